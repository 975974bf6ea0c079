"""The folder of one attempt in the shared place, as both sides of it know it.

The studio writes `spec` and `orders`; the program on the far machine writes all else. Every writer has a counter that moves
once a second, and each side counts the other as gone when that counter stands still by its own clock: clocks need not agree.
Attempts have folders of their own, so that one that was thought dead can spoil nothing.

    jobs/JOB/newest           the number of the newest attempt; an older one ends itself
    jobs/JOB/ATTEMPT/spec     what to train; `start` beside it is the checkpoint to go on from
    …/orders                  counter, wish, stop
    …/beat                    counter, usage, the names of complete checkpoints, whether it has ended
    …/said/00000001           events and log text, in order
    …/checkpoints/NAME, …/adapter, …/rest, …/end
"""

import time
from typing import Any

JOBS, BASES, DATASETS = "jobs", "bases", "datasets"
NEWEST, SPEC, ORDERS, BEAT, SAID, END = "newest", "spec", "orders", "beat", "said", "end"
START, CHECKPOINTS, ADAPTER, REST = "start", "checkpoints", "adapter", "rest"
PULSE_S = 1.0


def attempt_path(job_id: str, attempt: int) -> str:
    """The folder of an attempt."""
    return f"{JOBS}/{job_id}/{attempt}"


def newest_path(job_id: str) -> str:
    """What holds the number of a job's newest attempt."""
    return f"{JOBS}/{job_id}/{NEWEST}"


def chunk_path(folder: str, number: int) -> str:
    """One chunk of events and log text, counted from 1."""
    return f"{folder}/{SAID}/{number:08d}"


class Watched:
    """Whether somebody's counter still moves.

    Args:
        silence_s: how long it may stand still.
    """

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self._count, self._moved = -1, time.monotonic()
        self.heard = False

    def look(self, found: dict[str, Any] | None) -> None:
        """Take note of what the counter says now; None where it cannot be read."""
        if found is not None and found["count"] != self._count:
            self._count, self.heard = found["count"], True
            self.touch()

    def touch(self) -> None:
        """Something else says that it lives."""
        self._moved = time.monotonic()

    @property
    def silent(self) -> bool:
        """Whether it has stood still for too long."""
        return time.monotonic() - self._moved > self.silence_s
