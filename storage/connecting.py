"""From a URL to an engine, and from what a driver says to one sentence. No sentence holds the URL: it may hold a password."""

import importlib.util
import re
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from storage.columns import dump_json
from storage.errors import DatabaseUnavailable

VARIABLE = "STUDIO_DATABASE_URL"
FORM = "postgresql://user:password@host:5432/name"
DRIVERS = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
CONNECT_TIMEOUT_S = 5
# A server that vanished without a word is noticed after a minute, not after the two hours of the system. Statements are not
# prepared, since a pooler between us and the server gives each transaction another connection.
POSTGRES_OPTIONS: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "adapter-studio",
    "client_encoding": "utf8",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "prepare_threshold": None,
}
# What libpq and the server say in English, and what to do; a server that speaks otherwise is quoted.
SAYINGS = (
    (r"password authentication failed|no password supplied|role .* does not exist", "refuses the user or the password; correct them in"),
    (r"database .* does not exist", "has no database of this name; create it with createdb, or change"),
    (r"no pg_hba\.conf entry", "does not let this user come from this machine; allow it in pg_hba.conf, or change"),
    (
        r"too many (connections|clients)|remaining connection slots",
        "has no connection left; close some, raise max_connections, or change",
    ),
    (r"permission denied for schema", "does not let this user make tables; grant it CREATE on the schema, or change the user in"),
    (r"starting up|shutting down|the database system is", "is just starting or stopping; try again in a moment, or change"),
    (r"could not translate host name|failed to resolve host", "cannot be found by its name; correct the host in"),
    (r"connection refused|timeout|timed out|no such file|unreachable|no route", "does not answer; start it, or correct host and port in"),
)


def read_url(text: str) -> URL:
    """A database's URL with the driver that the studio uses.

    Raises:
        DatabaseUnavailable: it is none, or of a database that the studio does not know.
    """
    wrong = f"What {VARIABLE} says is no database's URL; write it as {FORM}, with %40 for an @ in the password, or unset it."
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise DatabaseUnavailable(wrong) from None
    driver = DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise DatabaseUnavailable(f"{VARIABLE} names a database of another kind; the studio knows PostgreSQL ({FORM}) and SQLite.")
    if "@" in (url.host or ""):  # the second half of a password, which no message may show
        raise DatabaseUnavailable(wrong)
    if driver != "sqlite" and not url.database:
        raise DatabaseUnavailable(f"{VARIABLE} names no database on the server; write it as {FORM}.")
    if driver != "sqlite" and importlib.util.find_spec("psycopg") is None:
        raise DatabaseUnavailable("The driver of PostgreSQL is not installed; install it with: pip install -r requirements-postgres.txt.")
    return url.set(drivername=driver)


def make_engine(url: URL) -> Engine:
    """An engine on a database that is asked for nothing yet.

    Raises:
        DatabaseUnavailable: SQLite's folder cannot be made.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    options = {name: value for name, value in POSTGRES_OPTIONS.items() if name not in url.query}
    # Fenced updates look at rows as they are once their lock is had, which is what READ COMMITTED means. A connection that
    # died since its last use, because the server was restarted, is replaced before it is used.
    return create_engine(url, connect_args=options, json_serializer=dump_json, isolation_level="READ COMMITTED", pool_pre_ping=True)


def _sqlite(url: URL) -> Engine:
    if url.database:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailable(f"The database's folder cannot be made: {error.strerror}; change {VARIABLE}.") from None
    engine = create_engine(url, json_serializer=dump_json)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # Autocommit mode of the driver, so that our own BEGIN is the only one.
    connection.isolation_level = None
    for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    writer = connection.get_execution_options().get("studio_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def explain(error: SQLAlchemyError, url: URL) -> str:
    """What a person is told where the driver could not open, reach or use the database."""
    original = getattr(error, "orig", None) or error
    said = str(original)
    if url.get_backend_name() == "sqlite":
        if isinstance(original, sqlite3.OperationalError) and "locked" in said:
            return "Another program has held the database's lock for seconds; close it and try again."
        name = Path(url.database or "").name
        return f"The database file {name!r} cannot be used: {said}; check it, or change {VARIABLE}."
    where = f"The PostgreSQL server at {url.host or 'the local socket'}{f':{url.port}' if url.port else ''}"
    for pattern, advice in SAYINGS:
        if re.search(pattern, said, re.IGNORECASE):
            return f"{where} {advice} {VARIABLE}."
    last = said.strip().splitlines()[-1].rstrip(".") if said.strip() else type(original).__name__
    if url.password:
        last = last.replace(str(url.password), "***")
    return f"{where} cannot be used: {last}; mend that, or change {VARIABLE}."
