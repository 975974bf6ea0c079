"""The worker: takes the job whose turn it is, and sees one attempt of it through.

Whatever dies, the job does not: a dead worker's lease ends and the job is queued again; a dead process fails its job with
a reason; an adapter whose files are complete is registered without training again. While the database is away, trainings go on
and nothing starts.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from storage import files
from storage.errors import DatabaseUnavailable, LeaseLost
from storage.jobs import Jobs
from storage.records import JobRecord
from studio.jobs.attempt import POLL_S
from studio.jobs.devices import Reservation, Slots
from studio.jobs.leases import Leases
from studio.jobs.supervisor import Supervisor
from studio.settings import Settings

STOP_S = 30.0
log = logging.getLogger(__name__)


class Room(Protocol):
    """Who counts the memory of devices."""

    def why_not(self, job: JobRecord, devices: Sequence[str]) -> str:
        """Why the job cannot start on these devices now, in a sentence; empty where it can."""

    def settle(self) -> None:
        """Asked again and again, to put right what an earlier answer needed and nothing needs any more."""


class Teller(Protocol):
    """Who tells others what jobs have come to, while the worker works."""

    def start(self) -> None:
        """Begin; what tells already goes on."""

    def stop(self) -> None:
        """End soon."""


class Worker:
    """Runs jobs, one on each free device slot.

    Args:
        jobs: the queue. supervisor: sees an attempt through. settings: home, leases and limits.
        devices: names those of this machine; asked when the work begins. room: asked whether a job may start.
        teller: works beside it.
    """

    def __init__(
        self,
        jobs: Jobs,
        supervisor: Supervisor,
        settings: Settings,
        devices: Callable[[], tuple[str, ...]],
        room: Room,
        teller: Teller | None = None,
    ) -> None:
        self.jobs, self.supervisor, self.settings, self.room, self.teller = jobs, supervisor, settings, room, teller
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{files.new_id()[:6]}"
        self.leases = Leases(settings.home / "jobs" / "workers", self.owner, settings.lease_s, jobs.write_nothing)
        self._is_held = False
        self._devices = devices
        self._slots: Slots | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: list[threading.Thread] = []

    def start(self) -> None:
        """Work in a thread of its own until `stop`; once, however often it is asked."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="worker", daemon=True)
            self._thread.start()

    @property
    def is_working(self) -> bool:
        """Whether its thread looks after the queue."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping.is_set()

    def stop_soon(self) -> None:
        """Take no more jobs, and wish of the running ones to keep a checkpoint and go back into the queue."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop, and wait for running jobs to go back into the queue."""
        self.stop_soon()
        if self._thread is not None:
            self._thread.join(2 * STOP_S)
        self._finish()

    def run(self) -> None:
        """Claim and run jobs until `stop`."""
        if self.teller is not None:
            self.teller.start()
        troubled = False  # one message for the database's absence, however long it is
        while not self._stopping.is_set():
            try:
                started = self.start_one()
                troubled = False
            except DatabaseUnavailable as error:
                if not troubled:
                    log.warning("The worker waits for the database: %s", error)
                started, troubled = False, True
            except Exception:  # one broken job or a busy disk must not end the queue
                log.exception("The worker met an error and goes on.")
                started = False
            if not started:
                self._stopping.wait(POLL_S)
        self._finish()

    def start_one(self) -> bool:
        """Start the job whose turn it is, where there is one and a slot for it."""
        self._look_for_lost()
        self._running = [thread for thread in self._running if thread.is_alive()]
        self.room.settle()
        job = self.jobs.head()
        reservation = self.slots.reserve(job.config.get("devices", 1)) if job else None
        if job is None or reservation is None:
            return False
        thread = None
        try:
            claimed = self._claim(job, reservation)
            if claimed is not None:
                arguments = (claimed, reservation)
                thread = threading.Thread(target=self._see_through, args=arguments, name=f"job-{job.id[:6]}", daemon=True)
                thread.start()
        finally:
            if thread is None or thread.ident is None:
                reservation.release()
        if thread is not None:
            self._running.append(thread)
        return thread is not None

    def _look_for_lost(self) -> None:
        held = self.jobs.leases()
        if not self._is_held:
            self.leases.hold(held)
            self.supervisor.sweep()
            self._is_held = True
        for lost in self.jobs.requeue_lost(time.time(), self.leases.over(held), self.settings.max_losses):
            log.warning("Job %s lost its worker and is %s.", lost.id, lost.state)
            self.supervisor.clear_up(lost)

    def _finish(self) -> None:
        until = time.monotonic() + STOP_S
        for thread in self._running:
            thread.join(max(0.0, until - time.monotonic()))
        self.leases.release()
        if self.teller is not None:
            self.teller.stop()

    @property
    def slots(self) -> Slots:
        """The device slots of this machine."""
        if self._slots is None:  # the first look at the devices loads their library
            self._slots = Slots(self.settings.home / "jobs" / "slots", self._devices(), self.settings.jobs_per_device)
        return self._slots

    def _claim(self, job: JobRecord, reservation: Reservation) -> JobRecord | None:
        missing = self.room.why_not(job, reservation.devices)
        if missing:
            if missing != job.reason:
                self.jobs.wait(job.id, missing)
            return None
        return self.jobs.claim(self.owner, time.time(), self.settings.lease_s, job.id, ",".join(reservation.names))

    def _see_through(self, job: JobRecord, reservation: Reservation) -> None:
        log.info("Job %s: attempt %d of adapter %r on %s.", job.id, job.attempt, job.adapter_name, job.device)
        try:
            self.supervisor.see_through(job, reservation.devices, self._stopping)
        except LeaseLost:
            log.warning("Job %s was taken over by another worker.", job.id)
        except DatabaseUnavailable as error:
            log.warning("Job %s could not be given back: %s", job.id, error)
        except Exception:  # its lease ends, and the job is given to a worker again
            log.exception("Job %s could not be seen through.", job.id)
        finally:
            reservation.release()
