"""The executor of this machine: one training subprocess an attempt, in its own process group, read line by line, stopped as a group.

What a training starts carries the attempt's mark in its environment, so that it is found when its parents are gone, and when it
left the group.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
import psutil

from storage import files
from studio.jobs.executor import Event, Launch
from studio.settings import command_environment
from studio.training.control import Control, Wish
from studio.training.events import parse_event

GRACE_S = 5.0
READ_S = 5.0
TRAINER = ("-m", "studio.training.run", "--with-log")
MARK = "STUDIO_ATTEMPT"


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

    def end_left(self, folder: Path, attempt: int) -> None:
        """Kill what is left on this machine of a job's attempts up to this one, and wait until it is gone."""
        _end_marked(folder, attempt)


class TrainingProcess:
    """A training process. Its stdin is a pipe whose end tells it that we are gone.

    Args:
        command: what follows the interpreter. launch: whose log is appended to, with everything that is not an event.
    """

    def __init__(self, command: list[str], launch: Launch) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._control = Control(launch.folder, launch.spec.attempt)
        self._launch, self._ended = launch, False
        self._watched: dict[int, psutil.Process] = {}
        self._log = launch.log.open("ab", buffering=0)
        try:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**command_environment(_gpus(launch.devices), launch.threads), MARK: f"{launch.folder}:{launch.spec.attempt}"},
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        self._reader = threading.Thread(target=self._read, name="job-output", daemon=True)
        self._reader.start()

    def status(self, timeout_s: float) -> int | None:
        """The exit status once the process has ended and all its output is read, else None."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        if not self._ended:  # once; from here on its number may be another group's
            self._ended = True
            _end_marked(self._launch.folder, self._launch.spec.attempt)  # what it started may outlive it, and hold its output open
            self._reader.join(READ_S)
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
            if self._ended:
                return
            self._signal(number)
            self.status(GRACE_S)

    def close(self) -> None:
        """Give back the pipes and the log, and forget the wish."""
        # A process that left the group may hold the output; the thread that reads it then closes it when that ends.
        streams = (self.process.stdin, self._log, None if self._reader.is_alive() else self.process.stdout)
        for stream in streams:
            if stream is not None:
                stream.close()
        self._control.clear()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = parse_event(line)
            if event is not None:
                self._queue.put(event)
                continue
            with contextlib.suppress(OSError, ValueError):  # the disk is full, or nobody watches any more; the process must not block
                self._log.write(line)


def _end_marked(folder: Path, attempt: int) -> None:
    """Kill every process with the mark of a job's attempt up to this one, and wait until they are gone."""
    killed: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it ended meanwhile, or is another person's
            job, _, number = process.environ().get(MARK, "").rpartition(":")
            if job == str(folder) and int(number) <= attempt:
                process.kill()
                killed.append(process)
    until = time.monotonic() + READ_S
    while any(map(_runs, killed)) and time.monotonic() < until:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """Whether it has not ended yet; it is not waited for, since whoever started it wants its status."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _launcher(processes: int) -> list[str]:
    """What starts several processes of one command on this machine, each knowing the others; nothing for one."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []


def _gpus(devices: Sequence[str]) -> list[int]:
    """The numbers of the CUDA devices among `devices`."""
    return [int(device.removeprefix("cuda:")) for device in devices if device.startswith("cuda:")]
