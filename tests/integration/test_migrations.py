"""The schema on SQLite and on PostgreSQL: from nothing, from earlier revisions with what they hold, and by several at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import JSON, BigInteger, Engine, Integer, MetaData, inspect, text
from sqlalchemy.exc import IntegrityError

from storage.api_keys import ApiKeys
from storage.catalog import Catalog, Search
from storage.connecting import make_engine, read_url
from storage.database import Database, migrate
from storage.errors import DatabaseUnavailable, DuplicateName
from storage.jobs import Jobs
from storage.records import ApiKeyRecord
from storage.repositories import Adapters, Bases, Datasets
from storage.tables import Table
from tests.conftest import ROOT
from tests.records import ADAPTER, BASE, DATASET, job


def is_other_default(_context: Any, _found: Any, column: Any, found: str | None, _said: Any, wanted: str | None) -> bool | None:
    """Alembic's own comparison, but of JSON by its text: PostgreSQL cannot say whether two of these are equal."""
    return str(found).removesuffix("::json") != str(wanted) if isinstance(column.type, JSON) else None


Rows = dict[str, list[dict[str, Any]]]
CONFIG = {"rank": 16, "learning_rate": 2e-4, "targets": ["q_proj", "v_proj"], "dataset_name": "Ängste 🐦", "weight_decay": None}
RAN = {"attempt": 2, "losses": 1, "started_at": 1763895771.25, "result": {"train_loss": 0.1 + 0.2}, "progress": {"step": 40}}
# What revision 0003 held after a while of use: in each table more than one row, and what points from one to another.
# An index on the falling priority cannot be compared; another test sees that it is used.
# The words that adapters are found by are in a form of each database's own.
WORDS = "adapter_words"


def is_compared(_item: Any, name: str | None, *_others: Any) -> bool:
    return name != "job_order" and not str(name).startswith(WORDS)


COMPARED = {"compare_type": True, "compare_server_default": is_other_default, "include_object": is_compared}
NEW = ("priority", "position", "after", "copied_from", "device", "cause")  # columns of a job that revision 0003 had not
ORIGINS = ("kind", "origin", "source", "parents")  # columns of an adapter that revision 0008 had not
FINDING = ("version", "current", "tags", "collections", "favourite", "archived_at", "owner", "licence", "card")  # nor those before 0011


def old_adapter(**values: Any) -> dict[str, Any]:
    """An adapter as it was before revision 0009."""
    return {key: value for key, value in {**asdict(ADAPTER), **values}.items() if key not in (*ORIGINS, *FINDING)}


def old_job(number: int, **values: Any) -> dict[str, Any]:
    """A job as it was at revision 0003."""
    known = {key: value for key, value in asdict(job(number, float(number))).items() if key not in NEW}
    return {**known, "cancel_requested": False, **values}


USED: Rows = {
    "base": [asdict(BASE), {**asdict(BASE), "id": "b2", "name": "Größe", "size_bytes": 2**31 - 1, "quantization_loss": {}}],
    "dataset": [
        asdict(DATASET),
        {**asdict(DATASET), "id": "d2", "version": 2, "parent_id": "d1", "made_by": "sampled 5 rows", "notes": []},
        {**asdict(DATASET), "id": "d3", "name": "Ängste 🐦", "sample": True, "notes": ["read as Latin-1", "2 rows were left out"]},
    ],
    "job": [
        old_job(1, **{**RAN, "state": "done", "config": CONFIG, "finished_at": 1763895999.5}),
        old_job(2, **{**RAN, "state": "failed", "reason": "The training process was killed. " * 60, "finished_at": 3.0}),
        old_job(3, state="cancelled", cancel_requested=True, finished_at=4.0, base_id="b2"),
        old_job(4, group="g1", config={**CONFIG, "sweep": {"name": "s", "options": {"rank": "8"}, "place": 0}}),
        old_job(5, group="g1", dataset_id="gone"),
    ],
    "job_event": [
        {"id": number, "job_id": f"j{1 + number % 2}", "attempt": 1, "at": 2.0 + number, "kind": kind, "data": data}
        for number, (kind, data) in enumerate([("notice", {"text": "Zeile ✓"}), ("progress", {"loss": 1.5}), ("eval", {"loss": None})], 7)
    ],
    "adapter": [old_adapter(), old_adapter(id="a2", name="鳥", base_id="b2", config=CONFIG, seed=2**31 - 1)],
    "flag": [{"name": "samples", "at": 1.5}],
}
LATER = {"job": ("group",), "dataset": ("version", "parent_id", "made_by")}  # columns that revision 0001 had not
FIRST: Rows = {
    table: [
        {key: value for key, value in row.items() if key not in LATER.get(table, ())}
        for row in rows
        if row["id" if "id" in row else "name"] != "d2"
    ]
    for table, rows in USED.items()
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on an empty database of each kind."""
    engine = make_engine(read_url(database_url))
    yield engine
    engine.dispose()


def fill(engine: Engine, rows: Rows) -> None:
    """Insert as that revision's own tables are, not as the models are now."""
    then = MetaData()
    with engine.begin() as connection:
        then.reflect(connection)
        for table, values in rows.items():
            assert set(values[0]) == {column.name for column in then.tables[table].columns}
            connection.execute(then.tables[table].insert(), values)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT setval('job_event_id_seq', (SELECT max(id) FROM job_event))")


def held(engine: Engine, like: Rows) -> Rows:
    """What the tables hold now, in the columns that they had then."""
    now = MetaData()
    with engine.begin() as connection:
        now.reflect(connection)
        return {
            name: [
                {key: getattr(row, key) for key in rows[0] if key != "cancel_requested"}
                for row in connection.execute(now.tables[name].select().order_by("name" if name == "flag" else "id"))
            ]
            for name, rows in like.items()
        }


def ordered(rows: Rows) -> Rows:
    return {name: sorted(values, key=lambda row: row.get("id", row.get("name", ""))) for name, values in rows.items()}


def without_wishes(rows: Rows) -> Rows:
    """In order, and a wish to cancel is a state since revision 0005."""
    return {name: [{k: v for k, v in row.items() if k != "cancel_requested"} for row in values] for name, values in ordered(rows).items()}


def test_from_nothing_comes_the_schema_of_the_tables(database_url: str) -> None:
    database = Database(database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=COMPARED)
        assert compare_metadata(context, Table.metadata) == []
        tables = {name for name in inspect(connection).get_table_names() if not name.startswith(WORDS)}
        assert tables == {*Table.metadata.tables, "alembic_version"}
    database.close()


def test_autogenerate_would_notice_a_difference(database: Database) -> None:
    with database._writer.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_job_group")
        connection.exec_driver_sql("ALTER TABLE flag ADD COLUMN more INTEGER")
        context = MigrationContext.configure(connection, opts=COMPARED)
        assert {found[0] for found in compare_metadata(context, Table.metadata)} == {"add_index", "remove_column"}


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database._writer)
    again = Database(database.url)
    assert Bases(again).get("tiny") == BASE
    again.close()


@pytest.mark.parametrize(("revision", "rows"), [("0001", FIRST), ("0003", USED)])
def test_what_an_earlier_revision_held_is_all_there(engine: Engine, database_url: str, revision: str, rows: Rows) -> None:
    migrate(engine, revision)
    fill(engine, rows)
    before = held(engine, rows)
    assert before == without_wishes(rows)
    database = Database(database_url)
    assert held(engine, rows) == before
    jobs = Jobs(database)
    assert jobs.get("j4").config == next(row for row in rows["job"] if row["id"] == "j4")["config"]
    assert [found.id for found in jobs.ready()] == [row["id"] for row in rows["job"] if row["state"] == "queued"]
    [attempt] = jobs.attempts("j1")
    assert (attempt.number, attempt.ended) == (jobs.get("j1").attempt, "done")
    assert [found.data for found in Jobs(database).events("j2")] == [{"text": "Zeile ✓"}, {"loss": None}]
    assert {found.name for found in Adapters(database).all()} == {"bird", "鳥"}
    assert Datasets(database).get("birds").id == ("d2" if revision == "0003" else "d1")
    database.close()


def test_votes_and_gains_of_before_are_counted(engine: Engine, database_url: str) -> None:
    migrate(engine, "0011")
    columns = "config, metrics, created_at, dataset_id, dataset_hash, job_id, code_version, seed"
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO base VALUES ('b1', 'tiny', 'f', 'f', 1, 1.0, '{}')")
        for key, metrics in (("a", '{"eval_loss": 1.5, "eval_loss_before": 2.0}'), ("b", "{}")):
            connection.exec_driver_sql(
                f"INSERT INTO adapter (id, name, sha256, base_id, base_fingerprint, rank, size_bytes, {columns}) "
                f"VALUES ('{key}', '{key}', 's', 'b1', 'f', 8, 1, '{{}}', '{metrics}', 1.0, '', '', '', '0', 0)"
            )
            connection.exec_driver_sql(
                f"INSERT INTO shelf (adapter_id, state, name, loss, rank, size_bytes) VALUES ('{key}', 'l', '{key}', 1.5, 8, 1)"
            )
            for number, sha256 in enumerate(("s1", "s2", "")):  # the last of them is of one voice alone
                compared = json.dumps([{"adapter_id": key, "sha256": sha256}, {"adapter_id": "", "sha256": ""}])
                winner = 1 if key == "a" and number else 0
                connection.exec_driver_sql(f"INSERT INTO vote VALUES ('{key}{number}', 'Who?', '{compared}', {winner}, 1.0)")
    database = Database(database_url)
    with database.read() as session:
        assert session.execute(text("SELECT * FROM tally ORDER BY adapter_id")).all() == [("a", 1, 2), ("b", 2, 2)]
        assert session.execute(text("SELECT won, gain FROM shelf ORDER BY adapter_id")).all() == [(0.5, 0.5), (1.0, -1e300)]
    database.close()


def test_the_rules_hold_and_numbers_go_on_after_the_way_from_the_previous_release(engine: Engine, database_url: str) -> None:
    migrate(engine, "0003")
    fill(engine, USED)
    database = Database(database_url)
    jobs = Jobs(database)
    jobs.record(_claimed(jobs), [(9.0, "notice", {"text": "new"})], {})
    assert [found.id for found in jobs.events("j4")] == [10]
    Bases(database).add(replace(BASE, id="b3", name="large", size_bytes=3 * 2**30))
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(Table.metadata.tables["base"].delete().where(Table.metadata.tables["base"].c.id == "b2"))
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(Table.metadata.tables["dataset"].update().where(Table.metadata.tables["dataset"].c.id == "d2").values(version=1))
    with database.write() as session:
        session.execute(Table.metadata.tables["job"].delete().where(Table.metadata.tables["job"].c.id == "j2"))
    assert jobs.events("j2") == [] and len(jobs.events("j1")) == 1
    database.close()


def _claimed(jobs: Jobs) -> Any:
    claimed = jobs.claim("w", 10.0, 5.0)
    assert claimed is not None and claimed.id == "j4"
    return claimed


def test_bytes_are_counted_in_64_bits(database: Database) -> None:
    wide = Integer if database.engine.dialect.name == "sqlite" else BigInteger  # as SQLite's integers are anyway
    for table in ("base", "dataset", "adapter"):
        [found] = [column for column in inspect(database.engine).get_columns(table) if column["name"] == "size_bytes"]
        assert isinstance(found["type"], wide)


OPENER = """
import sys
from storage.database import Database
print("ready", flush=True)
sys.stdin.readline()
Database(sys.argv[1]).close()
"""


@pytest.mark.parametrize("revision", ["", "0003"])
def test_four_processes_that_start_at_once_migrate_once(engine: Engine, database_url: str, revision: str) -> None:
    if revision:
        migrate(engine, revision)
        fill(engine, USED)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen([sys.executable, "-c", OPENER, database_url], **pipes) for _ in range(4)]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    if revision:
        assert held(engine, USED) == without_wishes(USED)


def test_a_database_of_a_newer_version_is_left_alone(database: Database) -> None:
    with database._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match=r"made by a newer version of the studio; install that version, or .*\.$"):
        Database(database.url)


def test_the_table_of_keys_comes_to_what_the_release_before_held(engine: Engine, database_url: str) -> None:
    migrate(engine, "0003")
    fill(engine, USED)
    migrate(engine, "0006")
    assert "api_key" not in inspect(engine).get_table_names()
    database = Database(database_url)
    keys = ApiKeys(database)
    assert keys.is_empty() and held(engine, USED) == without_wishes(USED)
    record = ApiKeyRecord("k1", "a program", "a" * 64, "sk-studio-abcd", 0, 1.5)
    assert keys.add(record) == keys.get("k1") and keys.starting(record.start) == [record]
    database.close()


def test_the_origin_of_adapters_comes_to_what_the_release_before_held(engine: Engine, database_url: str) -> None:
    migrate(engine, "0003")
    fill(engine, USED)
    migrate(engine, "0008")
    configs: list[Any] = [{**CONFIG, "method": "dora"}, {"method": "prefix", "virtual_tokens": 5}, {"method": "lora"}, {"method": 7}, []]
    fill(engine, {"adapter": [old_adapter(id=f"m{i}", name=f"m{i}", config=config) for i, config in enumerate(configs)]})
    database = Database(database_url)
    adapters = Adapters(database)
    assert [adapters.get(f"m{i}").kind for i in range(5)] == ["dora", "prefix", "lora", "lora", "lora"]
    assert adapters.get("a1") == ADAPTER and held(engine, {"adapter": USED["adapter"]})["adapter"][:2] == USED["adapter"]
    parents = [{"id": "a1", "name": "bird \0", "sha256": "s" * 64, "weight": 0.7}]
    made = replace(ADAPTER, id="a9", name="mix", kind="dora", origin="arithmetic", source="0.7 · bird", parents=parents)
    assert adapters.add(made) == adapters.get("mix") == made
    database.close()


def test_adapters_of_the_release_before_are_found_once_the_index_has_caught_up(engine: Engine, database_url: str) -> None:
    migrate(engine, "0003")
    fill(engine, USED)
    database = Database(database_url)
    catalog = Catalog(database)
    assert catalog.page(Search(), 9).records == []
    assert catalog.catch_up() == 2 and catalog.catch_up() == 0
    assert [record.name for record in catalog.page(Search(text="鳥"), 9).records] == ["鳥"]
    assert {record.name for record in catalog.page(Search(text="Größe"), 9).records} == {"鳥"}  # by the name of its base
    assert Adapters(database).get("a1") == ADAPTER and held(engine, {"adapter": USED["adapter"]})["adapter"] == USED["adapter"]
    with pytest.raises(DuplicateName):
        Adapters(database).add(replace(ADAPTER, id="a3"))
    database.close()
