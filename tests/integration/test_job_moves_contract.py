"""Every state and every move of a job, every fence, and the order of the queue, on SQLite and on PostgreSQL alike."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from storage import jobs as statements
from storage.database import Database
from storage.errors import LeaseLost
from storage.jobs import Jobs
from storage.records import JobRecord
from storage.repositories import Adapters
from storage.states import ACTIVE, LOST, MOVES, OVER, STATES, sources
from storage.tables import JobRow, QueueRow
from tests.records import ADAPTER, job

NUMBERS = count(1)


def claim(jobs: Jobs, job_id: str = "", owner: str = "w") -> JobRecord:
    claimed = jobs.claim(owner, 10.0, 5.0, job_id)
    assert claimed is not None
    return claimed


def adapter_of(record: JobRecord) -> Any:
    return replace(ADAPTER, id=record.adapter_id, name=record.adapter_name, job_id=record.id)


def lose(jobs: Jobs, record: JobRecord, most: int = 3) -> None:
    jobs.requeue_lost(11.0, [lease for lease in jobs.leases() if lease.job_id == record.id], most)


def in_state(jobs: Jobs, state: str) -> JobRecord:
    """A new job in a state, as it comes there; the record is that of the worker that holds or held it, where any did."""
    record = replace(job(next(NUMBERS), 1.0), losses=1)
    jobs.add(record)
    ways: dict[str, list[Callable[[JobRecord], Any]]] = {
        "waiting": [lambda r: jobs.wait(r.id, "memory")],
        "running": [jobs.run],
        "pausing": [lambda r: jobs.pause(r.id)],
        "cancelling": [lambda r: jobs.cancel(r.id, 11.0)],
        "paused": [lambda r: jobs.pause(r.id), lambda r: jobs.end(r, "paused", "", 11.0)],
        "done": [lambda r: jobs.finish(r, adapter_of(r), {}, 11.0)],
        "failed": [lambda r: jobs.end(r, "failed", "why", 11.0, "data")],
        "cancelled": [lambda r: jobs.cancel(r.id, 11.0), lambda r: jobs.end(r, "cancelled", "", 11.0)],
    }
    held = record if state in ("queued", "waiting") else claim(jobs, record.id)
    for way in ways.get(state, []):
        way(held)
    if state == LOST:  # nobody sees this one
        with jobs.database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == record.id).values(state=LOST))
    assert jobs.get(record.id).state == state
    return replace(held, lease_owner="w", attempt=max(1, held.attempt))


# What each method does to a job, by its state. Where nothing stands it changes nothing.
METHODS: dict[str, tuple[Callable[[Jobs, JobRecord], Any], dict[str, str]]] = {
    "claim": (lambda jobs, r: jobs.claim("v", 20.0, 5.0, r.id), {"queued": "starting", "waiting": "starting"}),
    "wait": (lambda jobs, r: jobs.wait(r.id, "memory"), {"queued": "waiting", "waiting": "waiting"}),
    "run": (lambda jobs, r: jobs.run(r), {"starting": "running"}),
    "finish": (lambda jobs, r: jobs.finish(r, adapter_of(r), {}, 20.0), dict.fromkeys(ACTIVE, "done")),
    "end as failed": (lambda jobs, r: jobs.end(r, "failed", "", 20.0), dict.fromkeys(ACTIVE, "failed")),
    "end as cancelled": (lambda jobs, r: jobs.end(r, "cancelled", "", 20.0), {"cancelling": "cancelled"}),
    "end as paused": (lambda jobs, r: jobs.end(r, "paused", "", 20.0), {"pausing": "paused"}),
    "end as queued": (lambda jobs, r: jobs.end(r, "queued", "", 20.0), {"starting": "queued", "running": "queued"}),
    "lose": (lose, {"starting": "queued", "running": "queued", "pausing": "paused", "cancelling": "cancelled"}),
    "lose too often": (
        lambda jobs, r: lose(jobs, r, 2),
        {"starting": "failed", "running": "failed", "pausing": "paused", "cancelling": "cancelled"},
    ),
    "cancel": (
        lambda jobs, r: jobs.cancel(r.id, 20.0),
        {
            **dict.fromkeys(("queued", "waiting", "paused"), "cancelled"),
            **dict.fromkeys(("starting", "running", "pausing"), "cancelling"),
        },
    ),
    "pause": (
        lambda jobs, r: jobs.pause(r.id),
        {"queued": "paused", "waiting": "paused", "starting": "pausing", "running": "pausing"},
    ),
    "resume": (lambda jobs, r: jobs.resume(r.id), {"paused": "queued"}),
    "retry": (lambda jobs, r: jobs.retry(r.id, f"again {r.id}", 20.0), {"failed": "queued", "cancelled": "queued"}),
    "run after another": (lambda jobs, r: jobs.run_after(r.id, "other", "after"), {"queued": "waiting", "waiting": "waiting"}),
    "run after none": (lambda jobs, r: jobs.run_after(r.id, "", ""), {"queued": "queued", "waiting": "queued"}),
}


def test_the_methods_make_every_move_of_the_table_and_no_other() -> None:
    made = {(source, target) for name, (_, moves) in METHODS.items() for source, target in moves.items() if not name.startswith("lose")}
    through = {target for name, (_, moves) in METHODS.items() for target in moves.values() if name.startswith("lose")}
    made |= {(source, LOST) for name, (_, moves) in METHODS.items() for source in moves if name.startswith("lose")}
    made |= {(LOST, target) for target in through}
    assert made == {(source, target) for source, targets in MOVES.items() for target in targets}
    assert set(MOVES) == set(STATES) and len(STATES) == 11


def test_a_method_moves_a_job_where_the_table_lets_it_and_else_changes_nothing(database: Database) -> None:
    jobs = Jobs(database)
    for name, state in product(METHODS, STATES):
        method, moves = METHODS[name]
        record = in_state(jobs, state)
        before, attempts = jobs.get(record.id), jobs.attempts(record.id)
        try:
            refused = method(jobs, record) is None
        except LeaseLost:
            refused = True
        after = jobs.get(record.id)
        assert after.state == moves.get(state, state), (name, state)
        if state not in moves and name != "run":  # which tells a worker that holds the job whether it does
            assert refused and after == before and jobs.attempts(record.id) == attempts, (name, state)
        assert_is_whole(jobs, after)
    made = sorted(adapter.job_id for adapter in Adapters(database).all())
    assert made == sorted(record.id for record in jobs.all(limit=None) if record.state == "done")


def assert_is_whole(jobs: Jobs, record: JobRecord) -> None:
    """What belongs to a state is there, and nothing else."""
    open_ones = [attempt for attempt in jobs.attempts(record.id) if not attempt.ended]
    if record.state in ACTIVE:
        assert len(open_ones) == 1 and record.lease_owner and record.lease_until
    elif record.state != LOST:
        assert not open_ones and record.lease_owner == ""
        assert (record.finished_at is not None) == (record.state in OVER)


def test_no_statement_makes_a_move_that_is_not_in_the_table(database: Database) -> None:
    jobs, pairs = Jobs(database), list(product(STATES, STATES))
    assert len(pairs) == 121
    jobs.add(*(replace(job(number, 1.0), state=state) for number, (state, _) in enumerate(pairs)))
    with database.write() as session:
        for number, (_, target) in enumerate(pairs):
            session.execute(statements._move(target, JobRow.id == f"j{number}"))
    for number, (state, target) in enumerate(pairs):
        assert jobs.get(f"j{number}").state == (target if target in MOVES[state] else state)
        assert (state in sources(target)) == (target in MOVES[state])


WRITES: dict[str, Callable[[Jobs, JobRecord], Any]] = {
    "run": lambda jobs, r: jobs.run(r),
    "renew": lambda jobs, r: jobs.renew(r, 20.0, 5.0),
    "record": lambda jobs, r: jobs.record(r, [(20.0, "notice", {"text": "late"})], {"step": 9}),
    "finish": lambda jobs, r: jobs.finish(r, adapter_of(r), {}, 20.0),
    "state": lambda jobs, r: jobs.state(r),
    "end as queued": lambda jobs, r: jobs.end(r, "queued", "late", 20.0),
    "end as paused": lambda jobs, r: jobs.end(r, "paused", "late", 20.0),
    "end as failed": lambda jobs, r: jobs.end(r, "failed", "late", 20.0),
    "end as cancelled": lambda jobs, r: jobs.end(r, "cancelled", "late", 20.0),
}


def test_only_the_owner_of_the_attempt_writes(database: Database) -> None:
    jobs = Jobs(database)
    wishes: tuple[Callable[[str], Any], ...] = (lambda _: None, jobs.pause, lambda job_id: jobs.cancel(job_id, 11.0))
    for wish in wishes:
        old = in_state(jobs, "running")
        lose(jobs, old)
        new = claim(jobs, old.id, "v")
        wish(old.id)
        before, attempts = jobs.get(old.id), jobs.attempts(old.id)
        stale = (old, replace(old, attempt=2), replace(new, attempt=1), replace(new, attempt=3), replace(new, lease_owner=""))
        for record, write in product(stale, WRITES.values()):
            with pytest.raises(LeaseLost):
                write(jobs, record)
        assert (jobs.get(old.id), jobs.attempts(old.id), jobs.events(old.id)) == (before, attempts, [])
    assert Adapters(database).all() == []


def test_each_attempt_is_kept_with_its_end(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(job(1, 1.0))
    for state, reason in (("queued", "stopped"), ("failed", "why")):
        jobs.end(claim(jobs), state, reason, 12.0)
    jobs.retry("j1", "again", 13.0)
    lose(jobs, claim(jobs, owner="gone"))
    last = claim(jobs)
    jobs.finish(last, adapter_of(last), {}, 14.0)
    found = [(a.number, a.owner, a.ended, a.reason, a.finished_at) for a in jobs.attempts("j1")]
    assert found == [
        (1, "w", "queued", "stopped", 12.0),
        (2, "w", "failed", "why", 12.0),
        (3, "gone", "lost", "The worker of attempt 3 died.", 11.0),
        (4, "w", "done", "", 14.0),
    ]


def test_the_queue_stops_after_failures_in_a_row(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in range(9)))
    jobs.stop_after(2)
    jobs.end(claim(jobs), "failed", "", 11.0)
    done = claim(jobs)
    jobs.finish(done, adapter_of(done), {}, 11.0)
    assert jobs.queue().failures == 0
    jobs.end(claim(jobs), "failed", "", 11.0)
    running = claim(jobs)
    jobs.end(claim(jobs), "failed", "", 11.0)
    found = jobs.queue()
    assert found.held and found.failures == 2 and "one after the other" in found.reason
    assert jobs.head() is None and jobs.claim("w", 12.0, 5.0) is None and jobs.claim("w", 12.0, 5.0, "j8") is None
    jobs.end(running, "failed", "", 12.0)  # what runs goes on
    assert jobs.queue().reason == found.reason
    jobs.release()
    assert jobs.queue().failures == 0 and jobs.head() is not None
    lost = claim(jobs)
    lose(jobs, lost, most=1)
    assert jobs.queue().failures == 1  # a job that was lost too often counts
    jobs.hold("by hand")
    assert jobs.head() is None and jobs.queue().held
    with database.read() as session:
        assert session.query(QueueRow).count() == 1


def test_a_job_runs_only_after_the_one_that_it_waits_for(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in (1, 2, 3)))
    assert jobs.run_after("j1", "j3", "It runs after bird 3.") is not None
    assert jobs.head().id == "j2"  # type: ignore[union-attr]
    assert jobs.claim("w", 10.0, 5.0, "j1") is None
    claim(jobs, "j2")
    third = claim(jobs)
    assert third.id == "j3" and jobs.head() is None
    jobs.end(third, "failed", "", 11.0)
    assert jobs.head() is None  # it may be retried
    jobs.retry("j3", "again", 12.0)
    third = claim(jobs)
    jobs.finish(third, adapter_of(third), {}, 13.0)
    assert claim(jobs).id == "j1"
    jobs.add(replace(job(4, 4.0), after="gone"))
    assert claim(jobs).id == "j4"  # what is no more holds nobody up


# The order

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "submit", "twin", "place", "place", "place", "last", "prioritise", "pause", "resume", "put back", "end"]
        ),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    max_size=30,
)


class Line:
    """The order of the queue as a plain list: all jobs that are not over, and their priorities."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.line, self.priority, self.paused, self.number = jobs, list[str](), dict[str, int](), set[str](), 100

    @property
    def ready(self) -> list[str]:
        return sorted((id_ for id_ in self.line if id_ not in self.paused), key=lambda id_: -self.priority[id_])

    def new(self, priority: int, position: float = 0.0) -> str:
        self.number += 1
        # As times are today: a position of exactly 0 stands for none, which no job ever comes near.
        record = replace(job(self.number, 1.8e9), priority=priority, position=position)
        self.jobs.add(record)
        self.priority[record.id] = priority
        return record.id

    def take(self, step: Step) -> None:
        kind, first, second = step
        ready = self.ready
        one = ready[first % len(ready)] if ready else ""
        other = ready[second % len(ready)] if ready else ""
        if kind == "submit":
            self.line.append(self.new(first % 3 - 1))
        elif one:
            getattr(self, kind.replace(" ", "_"))(one, other, second)

    def twin(self, one: str, other: str, number: int) -> None:
        """A job at exactly the place of another: the older id comes first."""
        position = self.jobs.get(one).position
        same = [id_ for id_ in self.line if self.jobs.get(id_).position == position]
        self.line.insert(self.line.index(same[-1]) + 1, self.new(self.priority[one], position))

    def place(self, one: str, other: str, number: int) -> None:
        moved = self.jobs.place(one, other)
        if one == other:
            assert moved is None
            return
        self.line.remove(one)
        self.line.insert(self.line.index(other), one)
        self.priority[one] = self.priority[other]

    def last(self, one: str, other: str, number: int) -> None:
        assert self.jobs.place(one) is not None
        others = [id_ for id_ in self.ready if id_ != one]
        if others:
            self.priority[one] = self.priority[others[-1]]
            self.line.remove(one)
            self.line.append(one)

    def prioritise(self, one: str, other: str, number: int) -> None:
        self.priority[one] = number % 3 - 1
        assert self.jobs.prioritise(one, self.priority[one]) is not None

    def pause(self, one: str, other: str, number: int) -> None:
        assert self.jobs.pause(one) is not None
        self.paused.add(one)
        assert self.jobs.place(one) is None and (one == other or self.jobs.place(other, one) is None)

    def resume(self, one: str, other: str, number: int) -> None:
        for id_ in self.paused:
            assert self.jobs.resume(id_) is not None
        self.paused.clear()

    def put_back(self, one: str, other: str, number: int) -> None:
        self.jobs.end(claim(self.jobs, one), "queued", "", 11.0)

    def end(self, one: str, other: str, number: int) -> None:
        self.jobs.end(claim(self.jobs, one), "failed", "", 11.0)
        self.line.remove(one)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_the_order_is_that_of_a_plain_list(database: Database, steps: list[Step]) -> None:
    with database.write() as session:
        session.execute(JobRow.__table__.delete())  # type: ignore[attr-defined]
    line = Line(Jobs(database))
    for step in steps:
        line.take(step)
        assert [record.id for record in line.jobs.ready()] == line.ready, step
    head = line.jobs.head()
    assert (head.id if head else None) == (line.ready[0] if line.ready else None)


def test_places_between_two_jobs_never_run_out(database: Database) -> None:
    """Two jobs change places before the same third one until no number is left between it and the first, and again."""
    line = Line(Jobs(database))
    for _ in range(4):
        line.take(("submit", 1, 0))
    first, one, other, third = line.line
    line.jobs.pause(first)
    line.paused.add(first)
    for number in range(60):
        line.place((one, other)[number % 2], third, 0)
        assert [record.id for record in line.jobs.ready()] == line.ready
    gaps = [line.jobs.get(id_).position for id_ in line.line]
    assert gaps == sorted(set(gaps))
    line.resume(one, other, 0)
    assert [record.id for record in line.jobs.ready()] == line.ready  # what was paused kept its place


def test_a_clock_that_was_set_back_puts_no_new_job_before_an_old_one(database: Database) -> None:
    jobs = Jobs(database)
    for number, now in ((3, 1000.0), (1, 10.0), (2, 1000.0)):
        [record] = jobs.add(replace(job(number, now), position=0.0))
        assert jobs.get(record.id) == record
    assert [record.id for record in jobs.ready()] == ["j3", "j1", "j2"]
    failed = claim(jobs)
    jobs.end(failed, "failed", "", 1001.0)
    jobs.retry(failed.id, "again", 5.0)
    assert [record.id for record in jobs.ready()] == ["j1", "j2", "j3"]
