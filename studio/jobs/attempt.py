"""A running attempt of a job: what it said so far, and what it was told."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from storage.errors import DatabaseUnavailable
from storage.jobs import Jobs
from storage.records import JobRecord
from storage.states import CANCELLING, PAUSING, STARTING
from studio.jobs.executor import Event, Run
from studio.training.control import CANCEL, PAUSE, Wish

POLL_S = 0.4
USAGE_S = 5.0
LAST = ("done", "paused", "cancelled", "failed")  # the events that end an attempt
# How long a wish may take before the process is stopped: a pause waits for the step in progress and its checkpoint.
PATIENCE_S: dict[Wish, float] = {"": 0.0, CANCEL: 3.0, PAUSE: 60.0}
STOPPING_S = 3.5  # a server that is told to end has five seconds, in which its jobs go back into the queue
log = logging.getLogger(__name__)


class Attempt:
    """Watches a run for the worker that holds its job.

    Args:
        jobs: the table. job: as it was claimed. run: the attempt. lease_s: how long the lease lasts.
    """

    def __init__(self, jobs: Jobs, job: JobRecord, run: Run, lease_s: float) -> None:
        self.jobs, self.job, self.run, self.lease_s = jobs, job, run, lease_s
        self.failed: tuple[str, str] | None = None  # cause and reason
        self._progress: dict[str, Any] = {}
        self._renewed = self._looked = float("-inf")
        self._unsaid: list[Event] = []  # not stored yet
        self._has_said_last = False  # nothing comes behind that
        self._is_away = False  # the database
        self._wish: Wish = ""
        self._deadline = float("inf")
        self._is_ended = False

    def watch(self, stopping: threading.Event) -> int:
        """Store what the attempt says and tell it what is wished, until it has ended; returns its status.

        While the database is away the attempt goes on: what it says is kept, and the lease renewed later.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        while True:
            status = self.run.status(POLL_S)
            self._hear(status)
            state = ""
            with self._database_away():
                self._store()
                state = self._state() if status is None else ""
            if status is not None:
                return status
            self._tell(state, stopping.is_set())
            if time.monotonic() > self._deadline and not self._is_ended:  # beside this loop, which renews the lease
                self._is_ended = True
                threading.Thread(target=self.run.stop, name="stop", daemon=True).start()

    def patiently(self, work: Callable[[], None], stopping: threading.Event) -> None:
        """Store what is unsaid, and do it, as soon as the database is there; a worker that stops does not wait for that.

        Raises:
            DatabaseUnavailable: it stops. LeaseLost: the job is another worker's now.
        """
        while True:
            try:
                self._store()
                return work()
            except DatabaseUnavailable:
                if stopping.wait(POLL_S):
                    raise

    @contextlib.contextmanager
    def _database_away(self) -> Iterator[None]:
        """Go on without the database, and say so once."""
        try:
            yield
            self._is_away = False
        except DatabaseUnavailable as error:
            if not self._is_away:
                log.warning("Job %s goes on without the database: %s", self.job.id, error)
            self._is_away = True

    def _hear(self, status: int | None) -> None:
        events = self.run.events()
        self._has_said_last = self._has_said_last or any(kind in LAST for _, kind, _ in events)
        if status is None and not self._has_said_last and time.monotonic() - self._looked > USAGE_S:
            self._looked, usage = time.monotonic(), self.run.usage()
            events += [(time.time(), "usage", usage)] if usage else []
        for _, kind, data in events:
            self._progress = {**self._progress, **_newest(kind, data)}
            if kind == "failed":
                self.failed = (str(data.get("cause", "error")), str(data["reason"]))
        self._unsaid += events

    def _store(self) -> None:
        if time.monotonic() - self._renewed > self.lease_s / 5:
            self._renew()
        if self._unsaid:
            self.jobs.record(self.job, self._unsaid, self._progress)
            self._unsaid = []

    def _renew(self) -> None:
        self.jobs.renew(self.job, time.time(), self.lease_s)
        self._renewed = time.monotonic()

    def _state(self) -> str:
        """What is wished of the job, which moves on to running once its process speaks."""
        state = self.jobs.state(self.job)
        if state == STARTING and "state" in self._progress:
            self.jobs.run(self.job)
        return state

    def _tell(self, state: str, stopping: bool) -> None:
        """Pass on what people wish; a studio that stops wishes a pause, and does not wait long for it."""
        wish: Wish = CANCEL if state == CANCELLING else PAUSE if state == PAUSING or stopping else ""
        now = time.monotonic()
        if wish and wish != self._wish:
            self._wish, self._deadline = wish, now + PATIENCE_S[wish]
            try:
                self.run.ask(wish)
            except OSError as error:  # such as a full disk: then it is stopped without being asked
                log.warning("Job %s cannot be told to %s: %s", self.job.id, wish, error)
                self._deadline = now
        if stopping:
            self._deadline = min(self._deadline, now + STOPPING_S)


def _newest(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """What an event changes in the job's progress."""
    if kind in ("progress", "state"):
        return data
    return {"eval_loss": data["loss"]} if kind == "eval" else {}
