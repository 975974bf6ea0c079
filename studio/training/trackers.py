"""Where a job's curves go besides the studio's own: TensorBoard event files always, and one service by name.

The services are optional packages with threads, retries and prompts of their own, so each runs in a child process that
is fed JSON lines and may fail or hang without the training noticing. It finds its credentials where its own documentation
says, in environment variables; nothing of them is read here.
"""

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from studio.errors import InvalidInput
from studio.settings import command_environment
from studio.training.events import Emit

PROJECT = "adapter-studio"
SERVICES = ("trackio", "wandb", "mlflow")
FINISH_S = 30.0  # how long a service may send what is left after the last step
FLUSH_S = 1.0
FAILED = 1  # the child's status when it has written a reason

Log = Callable[[int, dict[str, float]], object]
Finish = Callable[[], object]


class TrackerFailed(Exception):
    """A tracker cannot go on; the message says why."""


class Sink(Protocol):
    """One place that values are written to. Both methods raise OSError or TrackerFailed."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write named values of a step."""

    def close(self) -> None:
        """Finish what is written."""


class Tracker:
    """Writes to every sink until it fails: then there is one notice, and the training goes on without that sink."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._sinks: dict[str, Sink] = {}

    def open(self, name: str, make: Callable[[], Sink]) -> None:
        """Add a sink."""
        self._try(name, lambda: self._sinks.update({name: make()}))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write named values of a step, which never falls within one job."""
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda sink=sink: sink.log(step, values))  # type: ignore[misc]

    def close(self) -> None:
        """Finish all sinks, within `FINISH_S` each."""
        for name, sink in list(self._sinks.items()):
            self._try(name, sink.close)
        self._sinks.clear()

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, TrackerFailed) as error:
            self._sinks.pop(name, None)
            self._emit("notice", text=f"The tracker {name} has stopped and the training goes on without it: {error}.")


def open_tracker(name: str, folder: Path, run_name: str, config: dict[str, Any], emit: Emit) -> Tracker:
    """A tracker that writes event files into `folder`/tensorboard, and to the service where `name` is one.

    Args:
        name: none, tensorboard (which is no more than none), or one of `SERVICES`. folder: the job's; what a service
            writes to the disk goes there too. config: shown beside the curves.

    Raises:
        InvalidInput: the service's package is not installed.
    """
    check_installed(name)
    tracker = Tracker(emit)
    tracker.open("tensorboard", lambda: EventFile(folder / "tensorboard", config))
    if name in SERVICES:
        tracker.open(name, lambda: Service(name, folder, run_name, config))
    return tracker


def check_installed(name: str) -> None:
    """See that a tracker's package is there.

    Raises:
        InvalidInput: it is not.
    """
    if name in SERVICES and find_spec(name) is None:
        raise InvalidInput(f"The option tracker is {name!r}, but {name} is not installed; run pip install {name}, or choose none.")


class EventFile:
    """A TensorBoard event file. It is written in the caller's thread: tensorboardX's own would block for good on a full disk."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import text

        folder.mkdir(parents=True, exist_ok=True)
        # Its name has the second alone; the process tells the attempts of one job apart.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._started, self._flushed = False, 0.0
        self._write(0, summary=text("config", f"```\n{json.dumps(config, indent=2)}\n```"))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append values; on the disk at most `FLUSH_S` later than the next call."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.summary import scalar

        if not self._started:  # TensorBoard forgets what an earlier attempt wrote for this step and later ones
            self._write(step, session_log=SessionLog(status=SessionLog.START))
            self._started = True
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_S:  # a flush waits for the disk
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class Service:
    """A tracking service in a child process. Its stdin is a pipe of JSON lines, whose end lets it finish."""

    def __init__(self, name: str, folder: Path, run_name: str, config: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "studio.training.trackers"],
            env=command_environment(),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a service prints may hold what nobody should read in a log
        )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lines.put({"tracker": name, "folder": str(folder), "run": run_name, "config": config})
        self._feeder = threading.Thread(target=self._feed, name="tracker", daemon=True)
        self._feeder.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand values over; never waits."""
        if self._process.poll() is not None:
            self._end()
        self._lines.put({"step": step, "values": values})

    def close(self) -> None:
        """Let the service send what is left, for `FINISH_S`."""
        self._lines.put(None)
        late = False
        try:
            self._process.wait(FINISH_S)
        except subprocess.TimeoutExpired:
            late = True
            self._process.kill()
            self._process.wait()
        self._end(f"it did not finish within {FINISH_S:g} s" if late else "")

    def _end(self, why: str = "") -> None:
        """Give back the pipes of a process that has ended, and say why it failed, if it did."""
        pipe, status = self._process.stdout, self._process.returncode
        assert pipe is not None
        self._lines.put(None)
        self._feeder.join()
        said = pipe.read(1024).decode(errors="replace") if status == FAILED else ""
        pipe.close()
        if status:
            raise TrackerFailed(why or said or f"its process ended with status {status}")

    def _feed(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (line := self._lines.get()) is not None:
                pipe.write(json.dumps(line).encode() + b"\n")
        except OSError:  # the process has ended; the next call asks it why
            return
        finally:
            pipe.close()


# What follows runs in the child process.
def _wandb(package: Any, run_name: str, config: dict[str, Any]) -> tuple[Log, Finish]:
    run = package.init(project=PROJECT, name=run_name, config=config, settings=package.Settings(console="off"))
    return lambda step, values: run.log(values, step=step), run.finish


def _trackio(package: Any, run_name: str, config: dict[str, Any]) -> tuple[Log, Finish]:
    package.init(project=PROJECT, name=run_name, config=config)
    return lambda step, values: package.log(values, step=step), package.finish


def _mlflow(package: Any, run_name: str, config: dict[str, Any]) -> tuple[Log, Finish]:
    package.set_experiment(PROJECT)
    package.start_run(run_name=run_name)
    package.log_params(config)
    return lambda step, values: package.log_metrics(values, step=step), package.end_run


_OPEN: dict[str, Callable[[Any, str, dict[str, Any]], tuple[Log, Finish]]] = {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}


def _forward() -> None:
    """Send what stdin says until it ends."""
    start = json.loads(sys.stdin.readline())
    os.chdir(start["folder"])
    log, finish = _OPEN[start["tracker"]](import_module(start["tracker"]), start["run"], start["config"])
    for line in sys.stdin:
        entry = json.loads(line)
        log(entry["step"], entry["values"])
    finish()


def reason(error: BaseException) -> str:
    """The first line of an error, short, and without a password in an address."""
    text = re.sub(r"://[^/@\s]+@", "://…@", str(error).strip()).partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}".rstrip(" .:")


def main() -> int:
    """The child process: the reason of a failure is all that it writes to its own stdout."""
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        _forward()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the border of the process: one line
        os.write(answer, reason(error).encode())
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
