"""The executor of this machine: one training subprocess an attempt, in its own process group, read line by line, stopped as a group."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict

import orjson
import psutil

from storage import files
from studio.jobs.executor import Event, Launch
from studio.settings import command_environment
from studio.training.control import Control, Wish
from studio.training.events import parse_event

GRACE_S = 5.0
TRAINER = ("-m", "studio.training.run", "--log")


class LocalExecutor:
    """Starts `python -m studio.training.run JOB.json`.

    Args:
        command: what follows the interpreter instead.
    """

    def __init__(self, command: Sequence[str] = TRAINER) -> None:
        self.command = command

    def submit(self, launch: Launch) -> "TrainingProcess":
        """Start the process. Raises OSError."""
        job_file = launch.folder / "job.json"
        files.write_file(job_file, orjson.dumps(asdict(launch.spec), option=orjson.OPT_INDENT_2))
        return TrainingProcess([*_launcher(launch.processes), *self.command, str(job_file)], launch)


class TrainingProcess:
    """A training process. Its stdin is a pipe whose end tells it that we are gone.

    Args:
        command: what follows the interpreter. launch: whose log is appended to, with everything that is not an event.
    """

    def __init__(self, command: list[str], launch: Launch) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._control = Control(launch.folder, launch.spec.attempt)
        self._log = launch.log.open("ab", buffering=0)
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=command_environment(_gpus(launch.devices), launch.threads),
            start_new_session=True,
        )
        self._watched: dict[int, psutil.Process] = {}
        self._reader = threading.Thread(target=self._read, name="job-output", daemon=True)
        self._reader.start()

    def status(self, timeout_s: float) -> int | None:
        """The exit status once the process has ended and all its output is read, else None."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        return status

    def events(self) -> list[Event]:
        """Events that came since the last call."""
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._queue.get_nowait())
        return events

    def usage(self) -> dict[str, float]:
        """Cores in use since the last call, and memory, of the process and all that it started."""
        cores, memory = 0.0, 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            found = {p.pid: self._watched.get(p.pid, p) for p in (root, *root.children(recursive=True))}
            self._watched = found  # a process counts from its first look on, so the same objects are asked again
            for process in found.values():
                with contextlib.suppress(psutil.Error):  # it ended between the two looks
                    cores += process.cpu_percent() / 100
                    memory += process.memory_info().rss
        return {"cores": round(cores, 2), "memory_mb": memory // 2**20} if memory else {}

    def ask(self, wish: Wish) -> None:
        """Leave a wish where the training looks after each step."""
        self._control.ask(wish)

    def stop(self) -> None:
        """End the whole group: TERM, and KILL for what is left after some seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            if self.status(GRACE_S) is not None:
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what the process started may outlive it
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Give back the pipes and the log, and forget the wish."""
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None:
                stream.close()
        self._control.clear()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = parse_event(line)
            if event is None:
                self._log.write(line)
            else:
                self._queue.put(event)


def _launcher(processes: int) -> list[str]:
    """What starts several processes of one command on this machine, each knowing the others; nothing for one."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []


def _gpus(devices: Sequence[str]) -> list[int]:
    """The numbers of the CUDA devices among `devices`."""
    return [int(device.removeprefix("cuda:")) for device in devices if device.startswith("cuda:")]
