"""What the queue's table promises, on SQLite and on PostgreSQL alike."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import DuplicateName, LeaseLost, RecordNotFound
from storage.jobs import Jobs
from storage.records import JobRecord
from storage.repositories import Adapters, Datasets
from tests.conftest import ROOT
from tests.records import ADAPTER, HOSTILE, job


def test_only_unfinished_jobs_need_a_dataset(database: Database) -> None:
    jobs, datasets = Jobs(database), Datasets(database)
    for number in (1, 2, 3):
        jobs.add(job(number, float(number)))
    assert datasets.needed_by("d1") == 3 and datasets.needed_by("d2") == 0
    claimed = jobs.claim("w", 10.0, 5.0)
    assert claimed is not None and datasets.needed_by("d1") == 3
    jobs.end(claimed, "failed", "why", 11.0)
    jobs.cancel("j2", 11.0)
    assert datasets.needed_by("d1") == 1


def test_jobs_are_claimed_first_in_first_out(database: Database) -> None:
    jobs = Jobs(database)
    for number, created_at in ((1, 30.0), (2, 10.0), (3, 20.0), (4, 10.0)):
        jobs.add(job(number, created_at))
    claimed = [jobs.claim("w", 100.0, 5.0) for _ in range(5)]
    assert [c.id if c else None for c in claimed] == ["j2", "j4", "j3", "j1", None]
    first = claimed[0]
    assert first is not None
    assert (first.state, first.attempt, first.lease_owner, first.lease_until, first.started_at) == ("starting", 1, "w", 105.0, 100.0)


def test_the_next_job_is_the_first_entry_of_an_index(tmp_path: Path) -> None:
    database, asked = Database(f"sqlite:///{tmp_path / 'studio.db'}"), list[str]()
    event.listen(database.engine, "before_cursor_execute", lambda *seen: asked.append(seen[2]))
    assert Jobs(database).head() is None
    query = next(statement for statement in asked if "SELECT" in statement).replace("?", "1")
    with database.engine.connect() as connection:
        plan = " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
    assert "job USING INDEX job_order" in plan and "TEMP B-TREE" not in plan
    database.close()


def test_a_job_that_is_put_back_keeps_its_place(database: Database) -> None:
    jobs = Jobs(database)
    for number in (1, 2):
        jobs.add(job(number, float(number)))
    claimed = jobs.claim("w", 10.0, 5.0)
    assert claimed is not None
    jobs.end(claimed, "queued", "stopped", 11.0)
    again = jobs.claim("w", 12.0, 5.0)
    assert again is not None and (again.id, again.attempt) == ("j1", 2)


def test_an_adapter_and_its_jobs_end_appear_together_or_not_at_all(database: Database) -> None:
    jobs, adapters = Jobs(database), Adapters(database)
    for number in (1, 2):
        jobs.add(job(number, float(number)))
    first, second = jobs.claim("w", 10.0, 5.0), jobs.claim("w", 10.0, 5.0)
    assert first is not None and second is not None
    jobs.finish(first, ADAPTER, {"steps": 2}, 11.0)
    assert jobs.get("j1").state == "done" and jobs.get("j1").result == {"steps": 2} and adapters.find("bird")
    with pytest.raises(DuplicateName):
        jobs.finish(second, replace(ADAPTER, id="a2"), {}, 11.0)
    assert jobs.get("j2").state == "starting" and len(adapters.all()) == 1
    with pytest.raises(LeaseLost):
        jobs.finish(first, replace(ADAPTER, id="a3", name="late"), {}, 12.0)
    assert adapters.find("late") is None


def test_jobs_are_added_together_or_not_at_all(database: Database) -> None:
    jobs = Jobs(database)
    with pytest.raises(IntegrityError):
        jobs.add(job(1, 1.0), replace(job(2, 2.0), base_id="nowhere"))
    assert jobs.all() == []
    pair = [replace(job(number, float(number)), group="g") for number in (1, 2)]
    jobs.add(*pair, job(3, 3.0))
    assert jobs.of_group("g") == pair and len(jobs.all()) == 3


def test_no_unfinished_job_is_left_out_of_a_long_queue(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in range(205)))
    assert len(jobs.all()) == 200 and len(jobs.ready(limit=None)) == 205


def test_events_come_back_in_order_and_after_an_id(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(job(1, 1.0))
    claimed = jobs.claim("w", 10.0, 5.0)
    assert claimed is not None
    jobs.record(claimed, [(11.0, "notice", {"text": "x"}), (12.0, "progress", {"step": 1})], {"step": 1})
    jobs.record(claimed, [(13.0, "progress", {"step": 2})], {"step": 2})
    events = jobs.events("j1")
    assert [(e.kind, e.at, e.attempt) for e in events] == [("notice", 11.0, 1), ("progress", 12.0, 1), ("progress", 13.0, 1)]
    assert jobs.events("j1", after=events[0].id, kinds=("progress",)) == events[1:]
    assert jobs.get("j1").progress == {"step": 2}


CLAIMER = """
import sys
from storage.database import Database
from storage.jobs import Jobs
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
jobs = Jobs(database)
while (job := jobs.claim(sys.argv[2], 1.0, 5.0)) is not None:
    print(job.id)
"""


def test_four_processes_claim_200_jobs_and_none_twice(database: Database) -> None:
    Jobs(database).add(*(job(number, float(number)) for number in range(200)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen([sys.executable, "-c", CLAIMER, database.url, f"process {i}"], **pipes) for i in range(4)]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    claimed = [process.communicate()[0].split() for process in processes]
    assert sorted(id_ for one in claimed for id_ in one) == sorted(f"j{n}" for n in range(200))
    assert sum(bool(one) for one in claimed) >= 2  # they did meet
    assert all(one == sorted(one, key=lambda id_: int(id_[1:])) for one in claimed)


def claim(jobs: Jobs, owner: str = "w", now: float = 10.0) -> JobRecord:
    claimed = jobs.claim(owner, now, 5.0)
    assert claimed is not None
    return claimed


def test_a_worker_that_was_thought_dead_can_write_nothing(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(job(1, 1.0))
    old = claim(jobs, "old")
    jobs.renew(old, 11.0, 5.0)
    seen = jobs.leases()
    jobs.renew(old, 12.0, 5.0)
    assert jobs.requeue_lost(16.5, seen, 3) == []  # it was renewed since
    assert [lost.state for lost in jobs.requeue_lost(16.5, jobs.leases(), 3)] == ["queued"]
    new = claim(jobs, "new", 17.0)
    late = (
        lambda: jobs.renew(old, 18.0, 5.0),
        lambda: jobs.record(old, [(18.0, "progress", {})], {"step": 9}),
        lambda: jobs.finish(old, ADAPTER, {}, 18.0),
        lambda: jobs.end(old, "failed", "late", 18.0),
        lambda: jobs.renew(replace(new, attempt=old.attempt), 18.0, 5.0),
    )
    for write in late:
        with pytest.raises(LeaseLost):
            write()
    assert jobs.get("j1") == new and new.attempt == 2
    assert jobs.events("j1") == [] and Adapters(database).all() == []


def test_jobs_of_dead_workers_go_back_until_they_were_lost_too_often(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in range(3)))
    for owner in ("dead", "alive", "dead"):
        claim(jobs, owner)
    dead = [lease for lease in jobs.leases() if lease.owner == "dead"]
    assert sorted(lease.owner for lease in jobs.leases()) == ["alive", "dead", "dead"]
    assert sorted(lost.id for lost in jobs.requeue_lost(11.0, dead, 2)) == ["j0", "j2"]
    assert jobs.get("j1").lease_owner == "alive"
    claim(jobs, "dead", 12.0)
    [failed] = jobs.requeue_lost(12.0, [lease for lease in jobs.leases() if lease.owner == "dead"], 2)
    assert (failed.id, failed.state, failed.losses) == ("j0", "failed", 2) and "died 2 times" in failed.reason


def test_eight_threads_put_back_each_lost_job_once(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in range(20)))
    for _ in range(20):
        claim(jobs)
    leases = jobs.leases()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: jobs.requeue_lost(100.0, leases, 3), range(8)))
    assert sorted(lost.id for one in found for lost in one) == sorted(f"j{n}" for n in range(20))
    assert {record.losses for record in jobs.all()} == {1}


def test_a_wish_to_cancel_is_not_lost_when_the_worker_stops_at_that_moment(database: Database) -> None:
    jobs, threads = Jobs(database), list[threading.Thread]()
    jobs.add(job(1, 1.0))
    running = claim(jobs)

    def put_back() -> None:
        with suppress(LeaseLost):  # where the wish came first, and the job is over
            jobs.end(running, "queued", "stopped", 11.0)

    def stop_the_worker(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        """The worker puts the job back right behind the first update; it may have to wait."""
        if not threads and statement.startswith("UPDATE"):
            threads.append(threading.Thread(target=put_back))
            threads[0].start()
            threads[0].join(0.5)

    event.listen(database.engine, "after_cursor_execute", stop_the_worker)
    jobs.cancel("j1", 11.0)
    threads[0].join()
    found = jobs.get("j1")
    assert found.state in ("cancelled", "cancelling")


def test_a_job_and_what_it_says_may_hold_any_text(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(replace(job(1, 1.0), config=HOSTILE))
    running = claim(jobs)
    jobs.record(running, [(11.0, "sample", HOSTILE), (12.0, "progress", {"loss": float("nan")})], HOSTILE)
    assert jobs.get("j1").config == jobs.get("j1").progress == HOSTILE
    assert [found.data for found in jobs.events("j1")] == [HOSTILE, {"loss": None}]
    jobs.end(running, "failed", "NUL \0 and half \ud800 of a pair" + "ä" * 3000, 13.0)
    reason = jobs.get("j1").reason
    assert reason.startswith("NUL \ufffd and half \ufffd of a pair") and reason.endswith("ä…") and len(reason) == 2000
    with pytest.raises(RecordNotFound):
        jobs.get("j\0\ud800")


def test_events_of_many_jobs_at_once_stay_in_the_order_of_each(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in range(8)))
    running = [claim(jobs, f"w{number}") for number in range(8)]

    def speak(record: JobRecord) -> None:
        for step in range(0, 30, 3):
            jobs.record(record, [(float(s), "progress", {"step": s}) for s in range(step, step + 3)], {"step": step + 2})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(speak, running))
    for record in running:
        events = jobs.events(record.id)
        assert [found.data["step"] for found in events] == list(range(30))
        assert [found.id for found in events] == sorted({found.id for found in events})
