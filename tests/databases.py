"""A private PostgreSQL server from Debian's packages, on a loopback port, and fresh databases on it."""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PASSWORD = "s3cret/with@signs"  # as a person's may be; in a URL it is written with escapes
ESCAPED = "s3cret%2Fwith%40signs"
START_S = 30.0
# It keeps nothing for anybody: no waiting for the disk, and little memory.
OPTIONS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=16MB", "max_connections=60", "autovacuum=off")


def programs() -> Path:
    """The folder of PostgreSQL's server programs, which are installed where we may and they are missing."""
    with (Path(tempfile.gettempdir()) / f"studio-postgresql-{os.geteuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the same tests may be at it
        found = _find()
        if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]):
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
            found = _find()
    if found is None:
        pytest.fail("These tests need a PostgreSQL server's programs; install them with: sudo apt-get install postgresql.", pytrace=False)
    return found


def _find() -> Path | None:
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(packaged, key=lambda path: float(path.parts[-3]), default=None)
    other = shutil.which("initdb")
    return newest.parent if newest else Path(other).parent if other else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server of our own; it ends with us, whatever ends us."""

    def __init__(self) -> None:
        self.programs = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="studio-pg-"))
        self.port = _free_port()
        self._as_owner: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root; Debian's package made a user for it
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT"]
        words = self.folder / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        self._run(
            "initdb",
            "-D",
            self._data,
            "-U",
            "studio",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(words),
            *["--no-sync", "-E", "UTF8", "--locale", "C"],
        )
        self.start()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [*self._as_owner, str(self.programs / program), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(self._command(program, *arguments), capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until it answers."""
        places = ("listen_addresses=127.0.0.1", f"port={self.port}", f"unix_socket_directories={self.folder}")
        options = [word for option in (*OPTIONS, *places) for word in ("-c", option)]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self._command("postgres", "-D", self._data, *options), stdout=log, stderr=log, cwd="/")
        log.close()
        until = time.monotonic() + START_S
        while not self._answers():
            said = (self.folder / "log").read_text()
            assert self.process.poll() is None and time.monotonic() < until, f"The PostgreSQL server did not start: {said}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def stop(self) -> None:
        """End every connection and the server."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def close(self) -> None:
        """Stop, and leave nothing behind."""
        self.stop()
        shutil.rmtree(self.folder)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement of the administrator's."""
        import psycopg

        address = {"host": "127.0.0.1", "port": self.port, "user": "studio", "password": PASSWORD, "dbname": database}
        with psycopg.connect(**address, autocommit=True) as connection:
            connection.execute(statement)

    def url(self, database: str, scheme: str = "postgresql") -> str:
        """As a person pastes it."""
        return f"{scheme}://studio:{ESCAPED}@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def database(self, more: str = "") -> Iterator[str]:
        """The URL of a fresh, empty database, which is dropped in the end."""
        name = f"t{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 {more}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")
