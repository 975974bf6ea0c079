"""A copy of the database from SQLite or PostgreSQL is read into either; what is made up is refused and leaves nothing."""

import io
import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from storage.api_keys import ApiKeys
from storage.database import Database, revisions
from storage.dump import dump, is_empty, loading, snapshot
from storage.errors import BadDump
from storage.jobs import Jobs
from storage.repositories import Adapters, Bases, Datasets
from storage.soundness import misplaced
from storage.tables import Table
from tests.databases import Server
from tests.records import ADAPTER, BASE, DATASET, HOSTILE, job


def copy_of(database: Database) -> bytes:
    sink = io.BytesIO()
    with snapshot(database) as connection:
        dump(connection, sink)
    return sink.getvalue()


def load(url: str, copy: bytes) -> Database:
    with loading(url, io.BytesIO(copy)):
        pass
    return Database(url)


def fill(database: Database) -> None:
    Bases(database).add(BASE)
    Datasets(database).add(replace(DATASET, notes=["é 🐦"]))
    Adapters(database).add(replace(ADAPTER, metrics={"eval_loss": 1e-300, **HOSTILE}))
    jobs = Jobs(database)
    jobs.add(*(job(number, float(number)) for number in (1, 2, 3, 4)))
    for number, wish in ((1, None), (2, jobs.cancel), (3, None)):
        held = jobs.claim("somebody", 1.0, 5.0)
        assert held is not None and held.id == f"j{number}"
        jobs.record(held, [], {"step": number})
        if wish:
            wish(held.id, 2.0)
    jobs.pause("j3")


@pytest.fixture(params=["sqlite", "postgres"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'other.db'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


def test_every_row_comes_back_on_the_same_and_on_the_other_database(database_url: str, other_url: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(closing(Database(database_url)))
        fill(first)
        assert is_empty(other_url)
        copy = copy_of(first)
        second = stack.enter_context(closing(load(other_url, copy)))
        assert not is_empty(other_url)
        assert Adapters(second).all() == Adapters(first).all() and Bases(second).all() == Bases(first).all()
        assert Datasets(second).all() == Datasets(first).all()
        assert {j.id: j.state for j in Jobs(second).all()} == {"j1": "queued", "j2": "cancelled", "j3": "paused", "j4": "queued"}
        found = Jobs(second).get("j1")
        assert (found.lease_owner, found.attempt, found.progress) == ("", 1, {"step": 1}) and "backup" in found.reason
        assert [a.ended for a in Jobs(second).attempts("j1")] == ["lost"]
        assert Jobs(first).get("j1").state == "starting"  # a copy changes nothing
        # It can be written on: ids go on behind the largest, and the next copy is the same.
        again = Jobs(second).claim("other", 3.0, 5.0)
        assert again is not None and again.id == "j1" and again.attempt == 2
        assert misplaced(second) == 1  # the index is filled when the studio looks for something


def test_events_are_numbered_on_behind_those_of_the_copy(database: Database, other_url: str) -> None:
    jobs = Jobs(database)
    jobs.add(job(1, 1.0))
    held = jobs.claim("me", 1.0, 5.0)
    assert held is not None
    with database.write() as session:
        for at in (1.0, 2.0, 3.0):
            session.execute(Table.metadata.tables["job_event"].insert().values(job_id="j1", attempt=1, at=at, kind="notice", data={}))
    other = load(other_url, copy_of(database))
    with other.write() as session:
        session.execute(Table.metadata.tables["job_event"].insert().values(job_id="j1", attempt=1, at=4.0, kind="notice", data={}))
    assert [event.at for event in Jobs(other).events("j1")] == [1.0, 2.0, 3.0, 4.0]
    other.close()


def test_keys_stay_hashed(database: Database) -> None:
    from studio.api.keys import Keys

    key, _ = Keys(ApiKeys(database)).make("a program")
    copy = copy_of(database)
    assert key.encode() not in copy and b"a program" in copy


LATER = ("evaluation", "evaluation_voice", "evaluation_case", "evaluation_answer", "tally")  # tables since 0011


def test_a_copy_of_an_older_schema_is_brought_up_to_date(tmp_path: Path, other_url: str) -> None:
    old = Database(f"sqlite:///{tmp_path / 'old.db'}")
    fill(old)
    lines = copy_of(old).splitlines(keepends=True)
    # What the studio wrote before migration 0011: adapters without versions, tags and cards.
    older = [json.dumps({"schema": "0010"}).encode() + b"\n"]
    columns, table = list[str](), ""
    for line in lines[1:]:
        value = json.loads(line)
        if isinstance(value, dict) and "table" in value:
            columns, table = value["columns"], value["table"]
        if table in LATER and value != {"end": True}:
            continue
        if isinstance(value, dict) and "table" in value:
            dropped = range(columns.index("version"), len(columns)) if table == "adapter" else range(0)
            value["columns"] = [name for i, name in enumerate(columns) if i not in dropped]
        elif isinstance(value, list):
            value = [item for i, item in enumerate(value) if i not in dropped]
        older.append(json.dumps(value).encode() + b"\n")
    new = load(other_url, b"".join(older))
    assert Adapters(new).get("bird").version == 1 and Adapters(new).get("bird").current
    with new.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == max(revisions())
    new.close()
    old.close()


def changed(copy: bytes, table: str, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The copy with the first row of a table changed."""
    lines, columns = copy.splitlines(), []
    for number, line in enumerate(lines):
        value = json.loads(line)
        if isinstance(value, dict):
            columns = value["columns"] if value.get("table") == table else []
        elif columns:
            row = dict(zip(columns, value, strict=True))
            change(row)
            lines[number] = json.dumps(list(row.values())).encode()
            break
    return b"\n".join(lines)


HOSTILE_COPIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda copy: b"", "not as the studio writes one"),
    "newer": (lambda copy: copy.replace(f'"{max(revisions())}"'.encode(), b'"9999"', 1), "'9999' is not known"),
    "cut": (lambda copy: copy[: len(copy) // 2], "not as the studio writes one"),
    "no end": (lambda copy: copy.rpartition(b'{"end"')[0], "not as the studio writes one"),
    "other table": (lambda copy: copy.replace(b'{"table": "base"', b'{"table": "sqlite_master"'), "does not have"),
    "other column": (lambda copy: copy.replace(b'"fingerprint", ', b'"x; DROP TABLE job", ', 1), "has other columns"),
    "traversal": (lambda copy: changed(copy, "adapter", lambda row: row.update(id="../../home")), "none of the studio's"),
    "absolute": (lambda copy: changed(copy, "job", lambda row: row.update(adapter_id="/etc")), "none of the studio's"),
    "wrong kind": (lambda copy: changed(copy, "adapter", lambda row: row.update(rank="eight")), "wrong rank"),
    "null": (lambda copy: changed(copy, "adapter", lambda row: row.update(name=None)), "wrong name"),
    "too large": (lambda copy: changed(copy, "adapter", lambda row: row.update(size_bytes=2**70)), "wrong size_bytes"),
    "nowhere": (lambda copy: changed(copy, "adapter", lambda row: row.update(base_id="b9")), "does not fit"),
    "short row": (lambda copy: copy.replace(b'["d1", ', b"[", 1), "another length"),
    "deep": (lambda copy: copy.replace(b'["d1", ', b"[" * 100_000 + b'"d1", ', 1), "not as the studio writes one"),
}


@pytest.mark.parametrize("name", HOSTILE_COPIES)
def test_what_is_made_up_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    source = Database(f"sqlite:///{tmp_path / 'source.db'}")
    fill(source)
    change, said = HOSTILE_COPIES[name]
    url = f"sqlite:///{tmp_path / 'target.db'}"
    with pytest.raises(BadDump, match=said):
        load(url, change(copy_of(source)))
    assert is_empty(url)
    source.close()


def test_a_refused_copy_leaves_nothing_on_postgres_either(tmp_path: Path, postgres: Server) -> None:
    source = Database(f"sqlite:///{tmp_path / 'source.db'}")
    fill(source)
    copy = copy_of(source)
    with postgres.database() as url:
        for bad in (
            changed(copy, "adapter", lambda row: row.update(base_id="b9")),
            changed(copy, "adapter", lambda r: r.update(name="\0")),
        ):
            with pytest.raises(BadDump, match="does not fit"):
                load(url, bad)
            assert is_empty(url)
    source.close()


def test_a_copy_is_of_one_moment_while_others_write(database: Database) -> None:
    fill_with = Jobs(database)
    with snapshot(database) as connection:
        fill_with.add(job(1, 1.0))
        sink = io.BytesIO()
        dump(connection, sink)
    assert b'"j1"' not in sink.getvalue() and b'"j1"' in copy_of(database)
