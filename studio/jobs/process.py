"""One training subprocess: started in its own process group, read line by line, stopped as a group."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from studio.settings import command_environment
from studio.training.events import parse_event

Event = tuple[float, str, dict[str, Any]]
GRACE_S = 5.0


class TrainingProcess:
    """Runs `python -m studio.training.run JOB.json`. Its stdin is a pipe whose end tells it that we are gone.

    Args:
        job_file: the JobSpec. log: everything that is not an event is appended to it. devices: processes that train together.
    """

    def __init__(self, job_file: Path, log: Path, devices: int = 1) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._log = log.open("ab", buffering=0)
        self.process = subprocess.Popen(
            [sys.executable, *_launcher(devices), "-m", "studio.training.run", str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=command_environment(),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="job-output", daemon=True)
        self._reader.start()

    def drain(self) -> list[Event]:
        """Events that came since the last call."""
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def wait(self, timeout_s: float) -> int | None:
        """The exit status once the process has ended and all its output is read, else None."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        return status

    def stop(self) -> None:
        """End the whole group: TERM, and KILL for what is left after some seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            if self.wait(GRACE_S) is not None:
                return

    def close(self) -> None:
        """Give back the pipes and the log."""
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = parse_event(line)
            if event is None:
                self._log.write(line)
            else:
                self._events.put(event)


def _launcher(devices: int) -> list[str]:
    """What starts several processes of one command on this machine, each knowing the others; nothing for one."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)] if devices > 1 else []
