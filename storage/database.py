"""One engine, two doors: `read()` for a snapshot, `write()` for a short transaction that takes the lock at once.

SQLite runs in WAL mode with foreign keys on. Writers begin IMMEDIATE: a deferred transaction that turns into a
writer cannot wait for the lock and fails under several processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """An SQLAlchemy engine on an up-to-date schema.

    Args:
        url: an SQLAlchemy URL; a SQLite file's folder is made where it is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_engine(url)
        if self.engine.dialect.name == "sqlite":
            if self.engine.url.database:
                Path(self.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(studio_writer=True)
        migrate(self._writer)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for queries."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end of the block, or rolls all of it back."""
        with Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # Autocommit mode of the driver, so that our own BEGIN is the only one.
    connection.isolation_level = None
    for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Any) -> None:
    writer = connection.get_execution_options().get("studio_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to a revision, the newest where left out, in one transaction that other processes wait for."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
