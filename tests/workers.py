"""Workers in processes of their own, on the stub trainer: a parent that has imported everything forks them, so that they start at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from studio.settings import Settings
from tests.conftest import ROOT

RUN = "CHAOS_OF"  # names the test run in the environment of all that it starts, since others may test on the same machine
os.environ.setdefault(RUN, f"{os.getpid()}-{time.time()}")
STUB = ("-m", "tests.stub_trainer")


class Anything:
    """Room for every job."""

    def why_not(self, job: object, devices: Sequence[str]) -> str:
        return ""

    def settle(self) -> None:
        pass


def make_worker(settings: Settings, command: Sequence[str] = STUB) -> "tuple[Database, Worker]":  # noqa: F821
    """A worker on a home, with one device."""
    from storage.database import Database
    from storage.jobs import Jobs
    from storage.repositories import Bases
    from studio.errors import DatabaseUnavailable
    from studio.jobs.checkpoints import Checkpoints
    from studio.jobs.process import LocalExecutor
    from studio.jobs.supervisor import Supervisor
    from studio.jobs.worker import Worker

    database = Database(settings.url, DatabaseUnavailable)
    jobs, checkpoints = Jobs(database), Checkpoints(settings.home / "jobs")
    supervisor = Supervisor(jobs, Bases(database), checkpoints, LocalExecutor(command), settings)
    return database, Worker(jobs, supervisor, settings, lambda: ("cpu",), Anything())


class Nursery:
    """The parent of workers. SIGUSR1 lets a worker take the clock's error, in seconds, from a file `clock-PID` of its home.

    Args:
        settings: of every worker.
    """

    def __init__(self, settings: Settings) -> None:
        self.home = settings.home
        self.log = (self.home / "workers.log").open("ab")
        code = "from tests.workers import serve; serve()"
        text = settings.model_dump_json(exclude={"host", "port"})
        self.parent = subprocess.Popen(
            [sys.executable, "-c", code, text], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def start(self) -> int:
        """Start a worker; returns its process number."""
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write("start\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def set_clock(self, pid: int, error_s: float) -> None:
        """Let a worker's clock be wrong by so much."""
        (self.home / f"clock-{pid}").write_text(str(error_s))
        os.kill(pid, signal.SIGUSR1)

    def close(self) -> None:
        """End the nursery; its workers go on."""
        self.parent.kill()
        self.parent.communicate()
        self.log.close()


def serve() -> None:
    """The nursery's loop."""
    import faulthandler
    import logging

    from studio.jobs.worker import Worker  # noqa: F401

    settings = Settings.model_validate_json(sys.argv[1])
    logging.basicConfig(level="WARNING", format="%(process)d %(relativeCreated)d %(message)s")
    faulthandler.register(signal.SIGUSR2)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until a worker listens
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(settings)
        print(pid, flush=True)


def _become(settings: Settings) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    real, path, error = time.time, Path(settings.home, f"clock-{os.getpid()}"), [0.0]
    signal.signal(signal.SIGUSR1, lambda *_: error.__setitem__(0, float(path.read_text())))
    time.time = lambda: real() + error[0]
    status = 70
    try:
        database, worker = make_worker(settings)
        signal.signal(signal.SIGTERM, lambda *_: worker.stop_soon())
        worker.run()
        database.close()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)
