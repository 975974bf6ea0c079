"""One engine, two doors: `read()` for a snapshot, `write()` for a short transaction.

SQLite runs in WAL mode with foreign keys on. Writers begin IMMEDIATE: a deferred transaction that turns into a
writer cannot wait for the lock and fails under several processes. PostgreSQL locks rows; what is read in order to be
written is read `with_for_update`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from storage.connecting import VARIABLE, explain, make_engine, read_url
from storage.errors import DatabaseUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x5710_ADA9  # any number that other programs in the same database do not lock


class Database:
    """An SQLAlchemy engine on an up-to-date schema.

    Args:
        url: of SQLite or PostgreSQL; a SQLite file's folder is made where it is missing.
        unavailable: what is raised, with one sentence for people, where the database cannot be reached, opened or
            brought up to date; now or later.
    """

    def __init__(self, url: str, unavailable: type[Exception] = DatabaseUnavailable) -> None:
        self.url, self._unavailable = url, unavailable
        try:
            self._address = read_url(url)
            self.engine = make_engine(self._address)
        except DatabaseUnavailable as error:
            raise unavailable(str(error)) from None
        self._writer = self.engine.execution_options(studio_writer=True)
        try:
            with self.explained(DatabaseError):
                migrate(self._writer)
        except unavailable:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for queries."""
        with self.explained(), Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end of the block, or rolls all of it back."""
        with self.explained(), Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def explained(self, kind: type[SQLAlchemyError] = OperationalError) -> Iterator[None]:
        """Raise what the database says as the sentence that this object was given to raise."""
        try:
            yield
        except (kind, InterfaceError) as error:
            raise self._unavailable(explain(error, self._address)) from error
        except DatabaseUnavailable as error:
            raise self._unavailable(str(error)) from error

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to a revision, the newest where left out, in one transaction that other processes wait for.

    Raises:
        DatabaseUnavailable: a PostgreSQL database is not in UTF-8, or the schema is newer than this program.
    """
    with engine.begin() as connection:
        upgrade(connection, revision)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Like `migrate`, inside a transaction of the caller's. Raises as it does."""
    if connection.dialect.name == "postgresql":
        _check_encoding(connection)
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        if "locate revision" not in str(error):
            raise
        how = f"install that version, or name another database in {VARIABLE}"
        raise DatabaseUnavailable(f"The database was made by a newer version of the studio; {how}.") from None


def revisions() -> set[str]:
    """The schema revisions that this program knows."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _check_encoding(connection: Connection) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        how = "create one with: createdb --encoding UTF8 --template template0 NAME"
        raise DatabaseUnavailable(f"The PostgreSQL database is in {encoding} and cannot hold every name; {how}, and name it in {VARIABLE}.")
