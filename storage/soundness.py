"""Whether the database is whole, and its index: what each kind of database can say of itself, and how it is mended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from storage.connecting import explain, read_url
from storage.database import Database
from storage.shelf import AT_ONCE, SHELF, shelve
from storage.tables import AdapterRow, Table

MOST_TOLD = 20


@dataclass(frozen=True)
class BrokenRow:
    """A row of SQLite whose foreign key leads nowhere."""

    table: str
    rowid: int
    parent: str


def faults(database: Database) -> list[str]:
    """What is wrong with the database's own pages and indexes, as sentences; empty where nothing is.

    SQLite looks at itself. PostgreSQL is asked for indexes that were never finished, and every row is read once.
    """
    try:
        with database.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                said = [str(row[0]) for row in connection.execute(text(f"PRAGMA integrity_check({MOST_TOLD})"))]
                return [] if said == ["ok"] else said
            invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
            said = [f"The index {row[0]} was never finished" for row in connection.execute(text(invalid))]
            _read_all(connection)
            return said
    except DatabaseError as error:
        return [explain(error, read_url(database.url))]


def _read_all(connection: Connection) -> None:
    for table in Table.metadata.sorted_tables:
        for _ in connection.execute(select(table).execution_options(yield_per=AT_ONCE)):
            pass


def broken_rows(database: Database) -> list[BrokenRow]:
    """Rows whose foreign keys lead nowhere; a program that does not ask for foreign keys can write them to SQLite alone."""
    if database.engine.dialect.name != "sqlite":
        return []
    with database.engine.connect() as connection:
        found = connection.execute(text("PRAGMA foreign_key_check")).all()
    return [BrokenRow(str(row[0]), int(row[1]), str(row[2])) for row in found if row[1] is not None]


def take_rows(database: Database, rows: Sequence[BrokenRow]) -> list[dict[str, Any]]:
    """Delete such rows; returns what they held."""
    taken: list[dict[str, Any]] = []
    with database.write() as session:
        for row in rows:
            table = Table.metadata.tables[row.table]
            here = text("rowid = :n").bindparams(n=row.rowid)
            held = session.execute(select(table).where(here)).mappings().first()
            session.execute(delete(table).where(here))
            taken += [{"table": row.table, **held}] if held else []
    return taken


def misplaced(database: Database) -> int:
    """How many entries the index of the adapters lacks, has too many, or has wrong."""
    with database.read() as session:
        adapters = session.scalar(select(func.count()).select_from(AdapterRow)) or 0
        right = select(func.count()).select_from(SHELF).join(AdapterRow, AdapterRow.id == SHELF.c.adapter_id)
        right = right.where(SHELF.c.rank == AdapterRow.rank, SHELF.c.size_bytes == AdapterRow.size_bytes)
        shelved = session.scalar(right) or 0
        words = _worded(session)
    return max(abs(adapters - shelved), abs(adapters - words))


def _worded(session: Session) -> int:
    """How many adapters have words."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    query = (
        "SELECT count(*) FROM adapter_words WHERE rowid IN (SELECT number FROM shelf)"
        if is_sqlite
        else "SELECT count(*) FROM adapter_words"
    )
    return int(session.scalar(text(query)) or 0)


def rebuild_index(database: Database) -> int:
    """Write the index of the adapters anew; returns how many it holds. Until it is done, few are found."""
    with database.write() as session:
        session.execute(text("DELETE FROM adapter_words"))
        session.execute(delete(SHELF))
        ids = list(session.scalars(select(AdapterRow.id).order_by(AdapterRow.created_at, AdapterRow.id)))
    for start in range(0, len(ids), AT_ONCE):  # others write in between
        with database.write() as session:
            shelve(session, ids[start : start + AT_ONCE])
    return len(ids)


def size_bytes(database: Database) -> int:
    """What the database takes on the disk, wherever that is."""
    if database.engine.dialect.name != "sqlite":
        with database.read() as session:
            return int(session.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    path = Path(read_url(database.url).database or "")
    files = (path.with_name(path.name + ending) for ending in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.is_file())
