"""Workers and their processes when something is in the way: the database, the disk, files that are gone, what a training leaves behind.

The trainer is the stub of the chaos test.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.database import Database
from storage.records import JobRecord
from storage.repositories import Adapters
from studio.jobs.devices import Slots
from studio.jobs.executor import Launch
from studio.jobs.process import LocalExecutor
from studio.jobs.worker import Worker
from studio.settings import Settings
from studio.training.run import JobSpec
from tests.databases import Server
from tests.integration.test_chaos import marked, wait_for
from tests.records import BASE, job
from tests.workers import STUB, make_worker


class Place:
    """A home with a worker in this process."""

    def __init__(self, home: Path, url: str, **changes: Any) -> None:
        self.settings = Settings(home=home, database_url=url, jobs_per_device=4, lease_s=2.0, **changes)
        for folder in (home / "bases" / BASE.id, home / "datasets" / "d1", home / "adapters"):
            folder.mkdir(parents=True)
        self.rows = home / "datasets" / "d1" / "rows.arrow"
        self.rows.touch()
        self.database, self.worker = make_worker(self.settings)
        self.jobs = self.worker.jobs

    def submit(self, number: int, words: str = "", steps: int = 20) -> str:
        config = {"max_steps": steps, "warmup": 0.05, "rank": 8, "seed": 0, "dataset_name": "rows", "dataset_hash": "h"}
        self.jobs.add(replace(job(number, 1.0), adapter_name=f"bird {number} {words}", config=config, position=0.0))
        return f"j{number}"

    def wait(self, job_id: str, state: str, timeout_s: float = 60.0) -> JobRecord:
        wait_for(lambda: self.jobs.get(job_id).state == state, timeout_s)
        return self.jobs.get(job_id)

    def trains(self, job_id: str) -> bool:
        return bool(self.jobs.get(job_id).progress.get("step", 0) >= 2)


@pytest.fixture
def place(tmp_path: Path, database: Database) -> Iterator[Place]:
    found = Place(tmp_path / "home", database.url)
    yield found
    found.worker.stop()
    found.database.close()
    assert not marked()


@contextmanager
def away(place: Place, request: pytest.FixtureRequest) -> Iterator[None]:
    """The database is gone for longer than a lease lasts, and than a statement waits."""
    if place.settings.url.startswith("sqlite"):
        with sqlite3.connect(place.settings.url.removeprefix("sqlite:///")) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
        return
    server: Server = request.getfixturevalue("postgres")
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_a_training_outlives_the_databases_absence(place: Place, request: pytest.FixtureRequest) -> None:
    long, short = place.submit(1, steps=200), place.submit(2, steps=45)
    place.worker.start()
    wait_for(lambda: place.trains(long) and place.trains(short))
    with away(place, request):
        time.sleep(6.5)  # the short one ends meanwhile
        assert (place.settings.home / "adapters" / "adapter2").exists()
    for job_id, steps in ((short, 45), (long, 200)):
        found = place.wait(job_id, "done")
        assert (found.attempt, found.losses) == (1, 0)
        said = [event.data["step"] for event in place.jobs.events(job_id, kinds=("progress",))]
        assert said == list(range(1, steps + 1))  # nothing that it said meanwhile is missing


def test_a_worker_that_stops_gives_all_its_jobs_back(place: Place) -> None:
    ids = [place.submit(number, words, 2000) for number, words in enumerate(("", "deaf", "child"))]
    place.worker.start()
    wait_for(lambda: all(map(place.trains, ids)))
    place.worker.stop()
    for job_id in ids:
        found = place.jobs.get(job_id)
        assert (found.state, found.losses, found.lease_owner) == ("queued", 0, ""), found
        assert [a.ended for a in place.jobs.attempts(job_id)] == ["queued"]
    assert not marked()
    assert all(Slots(place.settings.home / "jobs" / "slots", ("cpu",), 4).reserve() for _ in range(4))


def test_a_worker_works_once_however_often_it_is_started(place: Place) -> None:
    before = threading.active_count()
    place.worker.start()
    place.worker.start()
    assert threading.active_count() == before + 1


def test_a_job_whose_dataset_or_base_is_gone_fails_with_a_sentence(place: Place) -> None:
    first, second = place.submit(1), place.submit(2)
    place.jobs.pause(second)
    place.rows.unlink()
    place.worker.start()
    found = place.wait(first, "failed")
    assert (found.cause, found.attempt, found.losses) == ("data", 1, 0)
    assert found.reason == "The dataset 'rows' is not there any more; add it again and start a new training."
    place.rows.touch()
    (place.settings.home / "bases" / BASE.id).rmdir()
    place.jobs.resume(second)
    found = place.wait(second, "failed")
    assert found.reason == "The base 'tiny' is not there any more; fetch it again and start a new training." and found.cause == "base"


def test_a_room_that_raises_keeps_no_slot(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_job: object, _devices: object) -> str:
        raise ValueError("broken")

    job_id = place.submit(1, steps=3)
    monkeypatch.setattr(place.worker.room, "why_not", broken)
    for _ in range(6):
        with pytest.raises(ValueError, match="broken"):
            place.worker.start_one()
    monkeypatch.undo()
    place.worker.start()
    assert place.wait(job_id, "done").attempt == 1


def test_an_error_of_the_workers_own_ends_the_job_with_a_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_launch: object) -> None:
        raise RuntimeError("can't start new thread")

    job_id = place.submit(1)
    monkeypatch.setattr(place.worker.supervisor.executor, "submit", broken)
    place.worker.start()
    found = place.wait(job_id, "failed")
    assert found.attempt == 1 and "RuntimeError: can't start new thread" in found.reason and found.reason.endswith("Retry the job.")


def test_a_wish_that_cannot_be_written_stops_the_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: object, _wish: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("studio.training.control.Control.ask", full)
    job_id = place.submit(1, steps=2000)
    place.worker.start()
    wait_for(lambda: place.trains(job_id))
    place.jobs.pause(job_id)
    assert place.wait(job_id, "paused").reason.startswith("Paused at step ")


def test_the_first_look_sweeps_what_the_dead_left(place: Place) -> None:
    home = place.settings.home
    done, cancelled, waiting = place.submit(1, steps=1), place.submit(2), place.submit(3)
    worker: Worker = place.worker
    record = place.jobs.claim("gone", 1.0, 1.0, done)
    assert record is not None
    adapters = Adapters(place.database)
    place.jobs.finish(record, replace(_adapter(), id=record.adapter_id), {}, 2.0)
    place.jobs.cancel(cancelled, 1.0)
    for number in (1, 2, 3, 9):
        (home / "adapters" / f"adapter{number}").mkdir()
        (home / "jobs" / f"j{number}" / "checkpoints" / "step-000000001").mkdir(parents=True)
    worker.supervisor.sweep()
    # The one of a job that is over and no record is gone; what waits, and what nobody knows, stays.
    assert sorted(path.name for path in (home / "adapters").iterdir()) == ["adapter1", "adapter3", "adapter9"]
    assert sorted(path.parent.name for path in (home / "jobs").glob("*/checkpoints")) == ["j2", "j3", "j9"]
    assert [a.id for a in adapters.all()] == ["adapter1"] and place.jobs.get(waiting).state == "queued"


def _adapter() -> Any:
    from tests.records import ADAPTER

    return ADAPTER


# A training's process


def launch(folder: Path, words: str, log: Path | None = None, steps: int = 3, attempt: int = 1) -> Launch:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"max_steps": steps, "warmup": 0.02}
    spec = JobSpec("b", "b", "f", "d", "d", "h", str(folder / "adapter"), words, str(folder), config, attempt=attempt)
    return Launch(folder.name, spec, folder, log or folder / "log.txt")


def ended(run: Any, timeout_s: float = 30.0) -> int:
    until = time.monotonic() + timeout_s
    while (status := run.status(0.2)) is None:
        assert time.monotonic() < until, "it does not end"
    return int(status)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells")
def test_a_process_leaves_no_file_thread_or_child_behind(tmp_path: Path) -> None:
    executor = LocalExecutor(STUB)
    before = open_files(), threading.active_count()
    for number, words in enumerate(("", "child", "stray", "fail", "deaf")):
        run = executor.submit(launch(tmp_path / f"j{number}", words, steps=5 if words != "deaf" else 9999))
        if words == "deaf":
            wait_for(lambda run=run: any(kind == "progress" for _, kind, _ in run.events()))  # type: ignore[misc]
            run.stop()
        assert ended(run) == {"fail": 1, "deaf": -9}.get(words, 0)
        executor.end_left(f"j{number}", 1)
        run.close()
        wait_for(lambda: (open_files(), threading.active_count()) == before)
    assert not marked()


def test_a_full_disk_under_the_log_does_not_block_the_process(tmp_path: Path) -> None:
    run = LocalExecutor(STUB).submit(launch(tmp_path / "j1", "", log=Path("/dev/full")))
    assert ended(run) == 0
    assert [kind for _, kind, _ in run.events()][-1] == "done"
    run.close()


def test_a_log_that_cannot_be_opened_and_a_program_that_is_not_there_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    for log in (tmp_path / "nowhere" / "log.txt", None):
        with pytest.raises(OSError, match="nowhere"):
            LocalExecutor(STUB).submit(launch(tmp_path / "j1", "", log=log))
    assert open_files() == before


def test_a_later_attempt_ends_the_processes_of_earlier_ones_alone(tmp_path: Path) -> None:
    executor = LocalExecutor(STUB)
    runs = [executor.submit(launch(tmp_path / "j1", "stray", steps=9999, attempt=number)) for number in (1, 2)]
    other = executor.submit(launch(tmp_path / "j2", "", steps=9999))
    for run in (*runs, other):
        started: Callable[[], bool] = lambda run=run: any(kind == "progress" for _, kind, _ in run.events())  # type: ignore[misc] # noqa: E731
        wait_for(started)
    executor.end_left(tmp_path / "j1", 1)
    assert ended(runs[0]) == -9 and runs[1].status(0) is None and other.status(0) is None
    executor.end_left(tmp_path / "j1", 2)
    assert ended(runs[1]) == -9 and other.status(0) is None
    other.stop()
    for run in (*runs, other):
        run.close()
    assert not marked()
