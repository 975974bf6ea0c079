"""The database and the file store: one schema, one owner a name and a job, and nothing half-written."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, event, inspect
from sqlalchemy.exc import IntegrityError

from storage import files
from storage.database import Database, migrate
from storage.errors import DuplicateName, LeaseLost, RecordNotFound
from storage.jobs import Jobs
from storage.records import AdapterRecord, BaseRecord, DatasetRecord, JobRecord
from storage.repositories import Adapters, Bases, Datasets
from storage.tables import Table

ROOT = Path(__file__).parent.parent.parent
BASE = BaseRecord("b1", "tiny", "folder:tiny", "f" * 64, 10, 1.0, {"nf4": 2.5})
DATASET = DatasetRecord("d1", "birds", "messages", 2, 4, "h" * 64, 10, ["a note"], False, 1.0)
ADAPTER = AdapterRecord("a1", "bird", "s" * 64, "b1", "f" * 64, "d1", "h" * 64, "j1", 8, 10, {"rank": 8}, {"steps": 2}, "0", 0, 1.0)


NEW_IN_JOBS = ("group", "priority", "position", "after", "copied_from", "device", "cause")


def job(number: int, created_at: float) -> JobRecord:
    return JobRecord(
        id=f"j{number}",
        state="queued",
        adapter_id=f"adapter{number}",
        adapter_name=f"bird {number}",
        base_id="b1",
        dataset_id="d1",
        config={"rank": 8},
        created_at=created_at,
        position=created_at,
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'deep' / 'studio.db'}")
    Bases(database).add(BASE)
    yield database
    database.close()


def test_migrating_twice_changes_nothing(database: Database) -> None:
    before = inspect(database.engine).get_table_names()
    migrate(database._writer)
    again = Database(database.url)
    assert inspect(again.engine).get_table_names() == before
    assert set(before) == {*Table.metadata.tables, "alembic_version"}
    assert Bases(again).get("tiny") == BASE
    again.close()


def test_the_migrations_make_the_schema_of_the_tables(database: Database) -> None:
    # An index on the falling priority cannot be compared; another test sees that it is used.
    opts = {"compare_type": True, "compare_server_default": True, "include_object": lambda _, name, *__: name != "job_order"}
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, Table.metadata) == []


def test_a_database_of_the_first_revision_keeps_its_jobs_and_their_events(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studio.db'}"
    engine = create_engine(url)
    migrate(engine, "0001")
    rows = {
        "base": asdict(BASE),
        "job": {key: value for key, value in asdict(job(1, 1.0)).items() if key not in NEW_IN_JOBS} | {"cancel_requested": False},
        "job_event": {"job_id": "j1", "attempt": 1, "at": 2.0, "kind": "notice", "data": {"text": "old"}},
        "adapter": asdict(ADAPTER),
        "dataset": {key: value for key, value in asdict(DATASET).items() if key not in ("version", "parent_id", "made_by")},
    }
    first = MetaData()
    with engine.begin() as connection:
        first.reflect(connection)
        assert "group" not in first.tables["job"].columns
        for table, values in rows.items():
            connection.execute(first.tables[table].insert().values(values))
    engine.dispose()
    database = Database(url)
    assert Jobs(database).get("j1") == job(1, 1.0) and Jobs(database).of_group("") == [job(1, 1.0)]
    assert [event.data for event in Jobs(database).events("j1")] == [{"text": "old"}]
    assert Adapters(database).all() == [ADAPTER]
    assert Datasets(database).all() == [DATASET] and DATASET.version == 1
    Datasets(database).add(replace(DATASET, id="d2", version=2))
    database.close()


def test_two_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studio.db'}"
    code = f"from storage.database import Database; Database({url!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    assert [process.returncode for process in processes] == [0, 0, 0]


def test_a_write_that_fails_is_rolled_back_whole(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        session.execute(Table.metadata.tables["flag"].insert().values(name="x", at=1.0))
        raise RuntimeError
    assert Datasets(database).first_time("x", 2.0)


def test_foreign_keys_are_kept(database: Database) -> None:
    with pytest.raises(IntegrityError):
        Jobs(database).add(replace(job(1, 1.0), base_id="nowhere"))


def test_records_come_back_as_they_went_in(database: Database) -> None:
    Jobs(database).add(job(1, 1.0))
    Datasets(database).add(DATASET)
    Adapters(database).add(ADAPTER)
    assert Bases(database).get("tiny") == Bases(database).get("b1") == BASE
    assert Datasets(database).all() == [DATASET] and Adapters(database).find("bird") == ADAPTER
    assert Jobs(database).get("j1") == job(1, 1.0)


def test_a_name_belongs_to_one_record(database: Database) -> None:
    datasets, adapters = Datasets(database), Adapters(database)
    datasets.add(DATASET)
    adapters.add(ADAPTER)
    for add in (
        lambda: datasets.add(replace(DATASET, id="d2")),
        lambda: adapters.add(replace(ADAPTER, id="a2")),
        lambda: Bases(database).add(replace(BASE, id="b2")),
    ):
        with pytest.raises(DuplicateName):
            add()
    adapters.add(replace(ADAPTER, id="a2", name="wizard"))
    with pytest.raises(DuplicateName, match="wizard"):
        adapters.rename("a1", "wizard")
    assert adapters.get("a1").name == "bird"
    assert adapters.rename("a1", "eagle").name == "eagle" and adapters.find("bird") is None
    adapters.remove("a1")
    assert adapters.add(replace(ADAPTER, id="a3", name="eagle"))  # the name is free again


def test_a_name_stands_for_the_newest_version_of_a_dataset(database: Database) -> None:
    datasets = Datasets(database)
    second = replace(DATASET, id="d2", version=2, parent_id=DATASET.id, made_by="sampled 5 rows", created_at=DATASET.created_at + 1)
    other = replace(DATASET, id="d3", name="other")
    for record in (second, other, DATASET):
        datasets.add(record)
    assert datasets.get(DATASET.name) == second and datasets.get(DATASET.id) == DATASET
    assert datasets.versions(DATASET.name) == [second, DATASET] and datasets.versions("nothing") == []
    assert datasets.newest() == [second, other] and len(datasets.all()) == 3
    with pytest.raises(DuplicateName):
        datasets.add(replace(second, id="d4"))
    datasets.remove("d2")
    assert datasets.get(DATASET.name) == DATASET


def test_what_is_not_there_is_told_with_its_kind(database: Database) -> None:
    with pytest.raises(RecordNotFound, match="dataset gone"):
        Datasets(database).get("gone")
    with pytest.raises(RecordNotFound, match="job gone"):
        Jobs(database).get("gone")
    with pytest.raises(RecordNotFound):
        Adapters(database).rename("gone", "x")
    Adapters(database).remove("gone")


def test_a_name_is_found_before_an_id(database: Database) -> None:
    Datasets(database).add(DATASET)
    Datasets(database).add(replace(DATASET, id="d2", name="d1"))
    assert Datasets(database).get("d1").id == "d2"


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


def test_the_next_job_is_the_first_entry_of_an_index(database: Database) -> None:
    jobs, asked = Jobs(database), list[str]()
    event.listen(database.engine, "before_cursor_execute", lambda *seen: asked.append(seen[2]))
    assert jobs.head() is None
    query = next(statement for statement in asked if "SELECT" in statement).replace("?", "1")
    with database.engine.connect() as connection:
        plan = " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
    assert "job USING INDEX job_order" in plan and "TEMP B-TREE" not in plan


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
    assert [found.id for found in jobs.of_group("g")] == ["j1", "j2"] and len(jobs.all()) == 3


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


def test_two_processes_with_two_threads_beside_them_claim_200_jobs_and_none_twice(database: Database) -> None:
    jobs = Jobs(database)
    for number in range(200):
        jobs.add(job(number, float(number)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen([sys.executable, "-c", CLAIMER, database.url, f"process {i}"], **pipes) for i in range(2)]  # type: ignore[call-overload]
    claimed: list[list[str]] = [[], []]

    def claim(index: int) -> None:
        while (found := jobs.claim(f"thread {index}", 1.0, 5.0)) is not None:
            claimed[index].append(found.id)

    assert [process.stdout.readline() for process in processes] == ["ready\n", "ready\n"]
    threads = [threading.Thread(target=claim, args=(i,)) for i in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claimed += [process.communicate()[0].split() for process in processes]
    assert sorted(id_ for one in claimed for id_ in one) == sorted(f"j{n}" for n in range(200))
    assert sum(bool(one) for one in claimed) >= 2  # they did meet
    assert all(one == sorted(one, key=lambda id_: int(id_[1:])) for one in claimed)


def test_a_first_time_is_once_even_for_eight_at_a_time(database: Database) -> None:
    datasets, answers = Datasets(database), []
    threads = [threading.Thread(target=lambda: answers.append(datasets.first_time("samples", 1.0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert datasets.first_time("another", 1.0)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "room" / "id"
    with files.publish_folder(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a").write_bytes(b"a")
        assert not target.exists() and partial.name.startswith(files.PARTIAL)
    assert (target / "deep" / "a").read_bytes() == b"a"
    assert list(target.parent.iterdir()) == [target] and files.size_of(target) == 1


@pytest.mark.parametrize("error", [ValueError("broken"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_whose_block_raises_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), files.publish_folder(tmp_path / "id") as partial:
        (partial / "a").write_bytes(b"a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    with files.publish_folder(tmp_path / "id") as partial:
        (partial / "a").write_bytes(b"first")
    with pytest.raises(FileExistsError), files.publish_folder(tmp_path / "id") as partial:
        (partial / "a").write_bytes(b"second")
    assert (tmp_path / "id" / "a").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_replaced_whole_and_a_failed_one_leaves_the_old(tmp_path: Path) -> None:
    target = tmp_path / "room" / "a.json"
    files.write_file(target, b"first")
    files.write_file(target, b"second")
    assert target.read_bytes() == b"second"
    with pytest.raises(TypeError):
        files.write_file(target, "no bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"second" and list(target.parent.iterdir()) == [target]


def test_removing_a_folder_is_silent_where_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "id").mkdir()
    (tmp_path / "id" / "a").write_bytes(b"a")
    files.remove_folder(tmp_path / "id")
    files.remove_folder(tmp_path / "id")
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_takes_old_leftovers_and_nothing_else(tmp_path: Path) -> None:
    for name in ("id", f"{files.PARTIAL}old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"a")
    (tmp_path / f"{files.PARTIAL}file").write_bytes(b"a")
    now = (tmp_path / "id").stat().st_mtime
    assert files.sweep_partials(tmp_path, older_than_s=60, now=now + 30) == 0
    assert files.sweep_partials(tmp_path, older_than_s=60, now=now + 90) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["id"]
    assert files.sweep_partials(tmp_path / "nowhere", 60, now) == 0


def test_ids_are_opaque_and_never_repeat() -> None:
    ids = {files.new_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(i) == 16 and set(i) <= set("0123456789abcdef") for i in ids)
