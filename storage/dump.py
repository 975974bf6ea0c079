"""The whole database at one moment as lines of JSON, the same from SQLite and from PostgreSQL, and back into either.

The first line names the schema's revision; then, table by table in an order that foreign keys allow, a line names a table and its
columns, and each line behind it is a row. The index of the adapters is left out, since the studio fills it again. What a worker
held is written as it will be found: queued again, since no worker of a copy holds anything.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from sqlalchemy import JSON, Boolean, Column, Connection, Float, Integer, MetaData, String, Table, delete, func, inspect, select, text
from sqlalchemy.exc import DatabaseError, NoSuchTableError, SQLAlchemyError

from storage.connecting import make_engine, read_url
from storage.database import Database, revisions, upgrade
from storage.errors import BadDump, DatabaseUnavailable
from storage.shelf import SHELF
from storage.states import ACTIVE, CANCELLED, CANCELLING, LOST, PAUSED, PAUSING, QUEUED
from storage.tables import Table as Tables

AT_ONCE = 1000
ID = re.compile(r"[\w-]{0,64}", re.ASCII)
# Columns that name folders; what is read here may come from a stranger.
FOLDERS: Mapping[str, Sequence[str]] = {
    "base": ("id",),
    "dataset": ("id",),
    "job": ("id", "adapter_id", "base_id", "dataset_id"),
    "adapter": ("id", "base_id", "dataset_id", "job_id"),
}
AGAIN = "It ran when the backup was taken; it is in the queue again."
ENDS = {CANCELLING: (CANCELLED, "Cancelled; it ran when the backup was taken."), PAUSING: (PAUSED, "Paused when the backup was taken.")}


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """A connection that sees the database as it is now until the block ends, and keeps nobody from writing.

    Raises:
        DatabaseUnavailable: or what the database was given to raise instead.
    """
    level = {"isolation_level": "REPEATABLE READ"} if database.engine.dialect.name == "postgresql" else {}
    with database.explained(DatabaseError), database.engine.connect().execution_options(**level) as connection:
        connection.execute(text("SELECT 1 FROM alembic_version"))  # SQLite's moment is that of the first read
        yield connection


def dump(connection: Connection, sink: BinaryIO) -> str:
    """Write everything that a snapshot sees; returns the schema's revision."""
    revision = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
    now = time.time()
    _write(sink, {"schema": revision})
    for table in Tables.metadata.sorted_tables:
        if table is SHELF:
            continue
        _write(sink, {"table": table.name, "columns": [column.name for column in table.columns]})
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=AT_ONCE)
        for row in connection.execute(query).mappings():
            _write(sink, list(_at_rest(table.name, dict(row), now).values()))
    _write(sink, {"end": True})
    return revision


def _write(sink: BinaryIO, value: Any) -> None:
    sink.write(json.dumps(value).encode() + b"\n")


def _at_rest(table: str, row: dict[str, Any], now: float) -> dict[str, Any]:
    """A row as it is where no worker holds anything."""
    if table == "job" and row["state"] in (*ACTIVE, LOST):
        state, reason = ENDS.get(row["state"], (QUEUED, AGAIN))
        over = now if state == CANCELLED else None
        return row | {"state": state, "reason": reason, "lease_owner": "", "lease_until": 0.0, "finished_at": over}
    if table == "job_attempt" and row["finished_at"] is None:
        return row | {"finished_at": now, "ended": LOST, "reason": "The backup was taken while it ran."}
    return row | {"lease_owner": ""} if table == "notification" else row


def is_empty(url: str) -> bool:
    """Whether a database holds no table at all.

    Raises:
        DatabaseUnavailable: it cannot be reached or opened.
    """
    engine = make_engine(read_url(url))
    try:
        return not inspect(engine).get_table_names()
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(f"The database cannot be used ({type(error).__name__}); check STUDIO_DATABASE_URL.") from None
    finally:
        engine.dispose()


@contextmanager
def loading(url: str, lines: Iterable[bytes]) -> Iterator[None]:
    """Fill an empty database from a dump, and bring it to this program's schema; it is committed when the block ends without an error.

    Raises:
        BadDump: it is no dump, or one that was made up. DatabaseUnavailable: it is of a newer program.
    """
    engine = make_engine(read_url(url))
    try:
        with engine.execution_options(studio_writer=True).begin() as connection:
            _load(connection, iter(lines))
            yield
    finally:
        engine.dispose()


def _load(connection: Connection, lines: Iterator[bytes]) -> None:
    head = _read(next(lines, b""))
    revision = head.get("schema") if isinstance(head, dict) else None
    if revision not in revisions():
        raise BadDump(f"its schema {str(revision)[:20]!r} is not known to this version of the studio")
    upgrade(connection, str(revision))
    try:
        _fill(connection, lines)
    except (SQLAlchemyError, OverflowError) as error:
        cause = type(getattr(error, "orig", None) or error).__name__
        raise BadDump(f"a row of its database does not fit ({cause})") from None
    upgrade(connection)


def _fill(connection: Connection, lines: Iterator[bytes]) -> None:
    known = {table.name for table in Tables.metadata.sorted_tables} - {SHELF.name}
    line = next(lines, b"")
    while (value := _read(line)) != {"end": True}:
        if not isinstance(value, dict) or value.get("table") not in known:
            raise BadDump("its database names a table that the studio does not have")
        known.discard(value["table"])
        line = _fill_table(connection, _table(connection, value["table"]), value.get("columns"), lines)


def _table(connection: Connection, name: str) -> Table:
    try:
        return Table(name, MetaData(), autoload_with=connection, resolve_fks=False)
    except NoSuchTableError:
        raise BadDump(f"its schema has no table {name!r}") from None


def _fill_table(connection: Connection, table: Table, named: Any, lines: Iterator[bytes]) -> bytes:
    """Insert the rows of one table; returns the line behind them."""
    if not isinstance(named, list) or any(name not in table.columns for name in named):
        raise BadDump(f"its table {table.name!r} has other columns")
    columns = [table.columns[name] for name in named]
    connection.execute(delete(table))  # what a migration put there
    waiting: list[dict[str, Any]] = []
    for line in lines:
        row = _read(line)
        if isinstance(row, dict):
            break
        waiting.append(_checked(table.name, columns, row))
        if len(waiting) == AT_ONCE:
            connection.execute(table.insert(), waiting)
            waiting = []
    else:
        line = b""
    if waiting:
        connection.execute(table.insert(), waiting)
    _number_on(connection, table)
    return line


def _checked(table: str, columns: Sequence[Column[Any]], row: Any) -> dict[str, Any]:
    if not isinstance(row, list) or len(row) != len(columns):
        raise BadDump(f"a row of its table {table!r} has another length")
    for column, value in zip(columns, row, strict=True):
        if not _fits(column, value):
            raise BadDump(f"a row of its table {table!r} has a wrong {column.name}")
        if column.name in FOLDERS.get(table, ()) and not ID.fullmatch(value or ""):
            raise BadDump(f"a row of its table {table!r} has a {column.name} that is none of the studio's")
    return {column.name: value for column, value in zip(columns, row, strict=True)}


def _fits(column: Column[Any], value: Any) -> bool:
    kind = column.type
    if value is None or isinstance(kind, JSON):
        return value is not None or bool(column.nullable)
    if isinstance(kind, Boolean):
        return isinstance(value, bool)
    if isinstance(kind, Integer):
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(kind, Float):
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, str) and isinstance(kind, String)


def _number_on(connection: Connection, table: Table) -> None:
    """PostgreSQL counts ids by itself; let it go on behind the largest."""
    first = next(iter(table.primary_key.columns))
    if connection.dialect.name != "postgresql" or not isinstance(first.type, Integer):
        return
    name = connection.execute(text("SELECT pg_get_serial_sequence(:t, :c)"), {"t": f'"{table.name}"', "c": first.name}).scalar()
    largest = connection.execute(select(func.max(first))).scalar()
    if name and largest:
        connection.execute(text("SELECT setval(CAST(:s AS regclass), :n)"), {"s": name, "n": largest})


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise BadDump("its database is not as the studio writes one") from None
