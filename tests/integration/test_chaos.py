"""Four workers, hundreds of short jobs, and everything that can happen to them at once; then every promise of the queue is looked at.

The trainer is a stub, here alone; workers, processes, slots, files and databases are real. `make soak` (STUDIO_SOAK=1) goes on for three
minutes with 300 jobs on each database; `make test` for some seconds. STUDIO_SEED chooses what happens; a failure prints it.
"""

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from storage.database import Database
from storage.errors import DatabaseUnavailable
from storage.files import PARTIAL
from storage.jobs import Jobs
from storage.records import JobRecord
from storage.repositories import Adapters
from storage.states import OPEN, PAUSED
from studio.jobs.devices import Slots
from studio.jobs.process import MARK
from studio.settings import Settings
from tests.records import BASE
from tests.workers import RUN, Nursery

SOAK = bool(os.environ.get("STUDIO_SOAK"))
SECONDS, COUNT, STEPS = (180.0, 300, (60, 360)) if SOAK else (9.0, 36, (8, 50))
WORKERS, SLOTS = 4, 12 if SOAK else 8
DRAIN_S = 240.0
WORDS = ("", "", "", "", "fail", "deaf", "child", "stray", "linger", "mute", "deaf child", "linger child")
CAUSES = {"killed", "lost", "error"}  # of a failure that a kill explains


class Chaos:
    """A home with jobs and workers, and what happens to them.

    Args:
        settings: of the workers. database: theirs. draw: decides.
    """

    def __init__(self, settings: Settings, database: Database, draw: random.Random) -> None:
        self.settings, self.draw, self.jobs = settings, draw, Jobs(database)
        self.home = settings.home
        self.nursery = Nursery(settings)
        self.workers: list[int] = []
        self.stopped: list[tuple[float, int]] = []
        self.cancelled: set[str] = set()
        self.retried: dict[str, str] = {}
        self.happened: Counter[str] = Counter()

    def fill(self, count: int) -> None:
        """Put jobs into the queue; some run after another one."""
        (self.home / "bases" / BASE.id).mkdir(parents=True)
        (self.home / "datasets" / "d1").mkdir(parents=True)
        (self.home / "datasets" / "d1" / "rows.arrow").touch()
        for number in range(count):
            config = {"max_steps": self.draw.randint(*STEPS), "warmup": 0.05, "rank": 8, "seed": 0, "devices": 1}
            record = JobRecord(
                id=f"j{number}",
                state="queued",
                adapter_id=f"a{number}",
                adapter_name=f"bird {number} {self.draw.choice(WORDS)}",
                base_id=BASE.id,
                dataset_id="d1",
                config={**config, "dataset_name": "rows", "dataset_hash": "h"},
                created_at=time.time(),
                priority=self.draw.choice((0, 0, 0, 5)),
            )
            self.jobs.add(record)

    def go_on(self, seconds: float) -> None:
        """Let things happen."""
        self.workers = [self.nursery.start() for _ in range(WORKERS)]
        until = time.monotonic() + seconds
        deeds: list[Callable[[], None]] = [
            *[self.kill_child] * 4,
            *[self.kill_worker] * 3,
            *[self.kill_both] * 2,
            *[self.pause] * 5,
            *[self.resume] * 5,
            *[self.cancel] * 2,
            *[self.retry] * 4,
            *[self.jump] * 4,
            self.freeze,
            self.stop_kindly,
            *[self.reorder] * 2,
        ]
        while time.monotonic() < until:
            self.thaw()
            deed = self.draw.choice(deeds)
            # A worker that was frozen in the middle of a write holds the writer's place until it thaws: people are told so.
            with contextlib.suppress(DatabaseUnavailable):
                deed()
                self.happened[deed.__name__] += 1
            time.sleep(self.draw.uniform(0.02, 0.3))
        self.thaw(all_of_them=True)

    def drain(self) -> None:
        """Let everything end: resume what is paused, and retry what was killed, until every job is over for good."""
        until = time.monotonic() + DRAIN_S
        while True:
            records = self.jobs.all(limit=None)
            for record in records:
                if record.state == PAUSED:
                    self.jobs.resume(record.id)
                if record.state == "failed" and record.cause in CAUSES:
                    self.try_again(record)
            left = [r for r in records if r.state in OPEN or (r.state == "failed" and r.cause in CAUSES)]
            if not left:
                return
            assert time.monotonic() < until, [(r.id, r.adapter_name, r.state, r.reason, r.lease_owner, r.attempt) for r in left]
            self.workers = [pid if is_alive(pid) else self.nursery.start() for pid in self.workers]
            time.sleep(0.3)

    def end(self) -> None:
        """Stop the workers as a person does, and see one start and stop afterwards, which sweeps."""
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not any(is_alive(pid) for pid in self.workers))
        last = self.nursery.start()
        wait_for(lambda: list((self.home / "jobs" / "workers").glob(f"*-{last}-*")))
        time.sleep(1.0)
        os.kill(last, signal.SIGTERM)
        wait_for(lambda: not is_alive(last))
        self.nursery.close()

    # What happens

    def kill_child(self) -> None:
        """kill -9 of a training process, or of what it started."""
        found = marked()
        if found:
            kill(self.draw.choice(found).pid)

    def kill_worker(self) -> None:
        """kill -9 of a worker; another one starts sooner or later."""
        place = self.draw.randrange(WORKERS)
        kill(self.workers[place])
        self.workers[place] = self.nursery.start()

    def kill_both(self) -> None:
        """kill -9 of a worker and of all its children at the same moment, so that nobody is left to end a grandchild."""
        place = self.draw.randrange(WORKERS)
        with contextlib.suppress(psutil.Error):
            for process in (psutil.Process(self.workers[place]), *psutil.Process(self.workers[place]).children()):
                kill(process.pid)
        self.workers[place] = self.nursery.start()

    def freeze(self) -> None:
        """SIGSTOP of a worker, for less or more than its lease; its children go on."""
        pid = self.draw.choice(self.workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.stopped.append((time.monotonic() + self.draw.uniform(0.5, 2.5) * self.settings.lease_s, pid))

    def thaw(self, all_of_them: bool = False) -> None:
        due = [entry for entry in self.stopped if all_of_them or entry[0] < time.monotonic()]
        for entry in due:
            self.stopped.remove(entry)
            with contextlib.suppress(ProcessLookupError):
                os.kill(entry[1], signal.SIGCONT)

    def stop_kindly(self) -> None:
        """SIGTERM of a worker, which gives its jobs back."""
        place = self.draw.randrange(WORKERS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.workers[place], signal.SIGTERM)
        self.workers[place] = self.nursery.start()

    def jump(self) -> None:
        """A worker's clock jumps, forth or back, by seconds or by days."""
        with contextlib.suppress(ProcessLookupError):
            self.nursery.set_clock(self.draw.choice(self.workers), self.draw.choice((-1, 1)) * 10 ** self.draw.uniform(0.5, 5.5))

    def some(self, *states: str) -> str:
        found = [record.id for record in self.jobs.all(limit=None) if record.state in states]
        return self.draw.choice(found) if found else ""

    def pause(self) -> None:
        self.jobs.pause(self.some("queued", "starting", "running"))

    def resume(self) -> None:
        self.jobs.resume(self.some("paused"))

    def cancel(self) -> None:
        job_id = self.some("queued", "waiting", "starting", "running", "pausing", "paused")
        if self.jobs.cancel(job_id, time.time()) is not None:
            self.cancelled.add(job_id)

    def retry(self) -> None:
        job_id = self.some("failed", "cancelled")
        if job_id:
            self.try_again(self.jobs.get(job_id))

    def try_again(self, record: JobRecord) -> None:
        """As `Queue.retry` does."""
        self.jobs.retry(record.id, f"{record.id}-{record.attempt}-{self.draw.randrange(10**9)}", time.time())

    def reorder(self) -> None:
        one, other = self.some("queued"), self.some("queued")
        if one != other:
            self.jobs.place(one, other)
            self.jobs.prioritise(one, self.draw.randint(-2, 2))


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_for(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def marked() -> list[psutil.Process]:
    """Training processes, and all that they started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            ours = MARK in environment and environment.get(RUN) == os.environ[RUN]
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def chaos(tmp_path: Path, database: Database) -> Iterator[Chaos]:
    seed = os.environ.get("STUDIO_SEED") or str(random.randrange(10**6))
    print(f"STUDIO_SEED={seed}")
    # The longest patience with losses: here they are many, and of the healthy.
    settings = Settings(
        home=tmp_path / "home", database_url=database.url, jobs_per_device=SLOTS, lease_s=3.0, max_losses=4, host="x", port=1
    )
    (settings.home / "adapters").mkdir(parents=True)
    found = Chaos(settings, database, random.Random(seed))
    yield found
    found.nursery.close()
    for pid in found.workers:
        kill(pid)
    for process in marked():
        kill(process.pid)


def test_every_job_ends_once_whatever_happens(chaos: Chaos, database: Database) -> None:
    chaos.fill(COUNT)
    chaos.go_on(SECONDS)
    chaos.drain()
    chaos.end()
    print(dict(chaos.happened))
    records = chaos.jobs.all(limit=None)
    assert len(records) == COUNT
    for record in records:
        assert_its_end_is_right(chaos, record)
        assert_its_attempts_add_up(chaos, record)
    assert_adapters_are_those_of_done_jobs(chaos, Adapters(database), records)
    assert_nothing_is_left(chaos)
    states = Counter(record.state for record in records)
    print(dict(states), "attempts:", sum(r.attempt for r in records), "losses:", sum(r.losses for r in records))
    assert states["done"] > COUNT / 2


def assert_its_end_is_right(chaos: Chaos, record: JobRecord) -> None:
    fails = "fail" in record.adapter_name.split()
    rights = {"failed"} if fails else {"done"}
    rights |= {"cancelled"} if record.id in chaos.cancelled else set()
    assert record.state in rights, (record.adapter_name, record)
    assert record.lease_owner == "" and record.finished_at is not None
    assert record.cause == ("data" if record.state == "failed" else ""), record
    if record.state == "failed":
        assert record.reason == "The row 3 does not fit; mend it."


def assert_its_attempts_add_up(chaos: Chaos, record: JobRecord) -> None:
    attempts = chaos.jobs.attempts(record.id)
    assert [a.number for a in attempts] == list(range(1, record.attempt + 1))
    assert all(a.ended and a.finished_at is not None for a in attempts), attempts
    assert all(a.ended != "done" for a in attempts[:-1]), attempts
    if record.state in ("done", "failed"):
        assert attempts[-1].ended == record.state
    folder = chaos.home / "jobs" / record.id
    assert not list(folder.glob("overlap-*")), f"two attempts of {record.adapter_name} trained at the same time"
    events = chaos.jobs.events(record.id)
    assert [e.attempt for e in events] == sorted(e.attempt for e in events)


def assert_adapters_are_those_of_done_jobs(chaos: Chaos, adapters: Adapters, records: list[JobRecord]) -> None:
    done = {record.adapter_id: record for record in records if record.state == "done"}
    found = adapters.all()
    assert sorted(a.id for a in found) == sorted(done)
    assert all(a.job_id == done[a.id].id and a.name == done[a.id].adapter_name for a in found)
    assert sorted(path.name for path in (chaos.home / "adapters").iterdir()) == sorted(done)
    for record in done.values():
        assert (chaos.home / "adapters" / record.adapter_id / "adapter_model.safetensors").read_text() == record.adapter_name


def assert_nothing_is_left(chaos: Chaos) -> None:
    assert not marked() and not any(is_alive(pid) for pid in chaos.workers)
    jobs = chaos.home / "jobs"
    assert not [path for path in jobs.rglob("*") if path.name.startswith((PARTIAL, "wish-"))]
    assert not list((jobs / "workers").iterdir())
    slots = [Slots(jobs / "slots", ("cpu",), SLOTS).reserve() for _ in range(SLOTS)]
    assert None not in slots
    assert not chaos.jobs.leases()
    if chaos.settings.url.startswith("sqlite"):
        with sqlite3.connect(chaos.settings.url.removeprefix("sqlite:///"), timeout=0) as connection:
            connection.execute("BEGIN IMMEDIATE")


def test_clocks_that_jump_alone_lose_no_job(chaos: Chaos) -> None:
    chaos.fill(WORKERS * 2)
    chaos.workers = [chaos.nursery.start() for _ in range(WORKERS)]
    until = time.monotonic() + 2 * chaos.settings.lease_s
    while time.monotonic() < until:
        chaos.jump()
        time.sleep(0.2)
    chaos.drain()
    assert {record.losses for record in chaos.jobs.all()} == {0}
    assert {record.attempt for record in chaos.jobs.all()} == {1}
