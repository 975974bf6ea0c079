"""What runs an attempt: a process of this machine, or of another one. The queue, the order and the truth stay in the database.

A worker submits an attempt, looks at it several times a second, and renews the job's lease as long as it hears of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from studio.errors import StudioError
from studio.training.control import Wish
from studio.training.run import JobSpec

Event = tuple[float, str, dict[str, Any]]  # (time, kind, data), as `studio.training.events` has them


class Lost(StudioError):
    """An attempt is gone through no fault of its job, which may be tried again. The message says what was lost, in a sentence."""

    cause = "lost"


@dataclass(frozen=True)
class Launch:
    """One attempt of a job.

    `folder` is the job's and holds its files; `log` takes what is no event. `processes` train together, on `devices`;
    none leaves the choice to the machine. `threads` is how many a process may compute with, 0 as many as there are.
    """

    job_id: str
    spec: JobSpec
    folder: Path
    log: Path
    devices: tuple[str, ...] = ()
    processes: int = 1
    threads: int = 0


class Run(Protocol):
    """A submitted attempt."""

    def status(self, timeout_s: float) -> int | None:
        """The exit status once the attempt and all that it started has ended and what it said is there, else None after `timeout_s`.

        Raises:
            Lost: nobody hears of the attempt any more.
        """

    def events(self) -> list[Event]:
        """Events that came since the last call."""

    def usage(self) -> dict[str, float]:
        """What it takes of its machine now: `cores` in use and `memory_mb`; empty where that is unknown."""

    def ask(self, wish: Wish) -> None:
        """Wish that it pauses or ends by itself."""

    def stop(self) -> None:
        """End all of its processes, kindly at first. It has ended when this returns."""

    def close(self) -> None:
        """Give back what watching it takes."""


class Executor(Protocol):
    """Where attempts run."""

    def submit(self, launch: Launch) -> Run:
        """Start an attempt.

        Raises:
            OSError: it could not be started here. StudioError: in words for the user.
        """

    def end_left(self, folder: Path, attempt: int) -> None:
        """End what may still run of the attempts up to this one of the job in a folder, whoever started them."""
