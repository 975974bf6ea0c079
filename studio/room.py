"""Whether there is room for a training: the memory of its device, which the chat's base shares by rule."""

import logging
import socket
from collections.abc import Callable, Sequence

from storage.records import JobRecord
from storage.states import ACTIVE
from studio.chat.service import Chat
from studio.jobs.queue import Queue

log = logging.getLogger(__name__)


class Room:
    """Counts memory for a worker.

    Args:
        queue: to know what trains. chat: whose base may be put aside. needs_mb: what a job takes at its peak.
        free_mb: what devices have left. sharing: "aside" puts the chat's base aside where a training needs its memory
            and brings it back afterwards; "wait" lets the training wait.
    """

    def __init__(
        self,
        queue: Queue,
        chat: Chat,
        needs_mb: Callable[[JobRecord], int],
        free_mb: Callable[[Sequence[str]], int],
        sharing: str,
    ) -> None:
        self.queue, self.chat, self.needs_mb, self.free_mb, self.sharing = queue, chat, needs_mb, free_mb, sharing

    def why_not(self, job: JobRecord, devices: Sequence[str]) -> str:
        """Why the job cannot start on these devices now, in a sentence; empty where it can."""
        beside = [other for other in self._training() if _shared(other, devices)]
        needed = self._needs(job)
        free = self._free(devices, beside)
        if needed <= free:
            return ""
        if self.chat.takes_memory and self.sharing == "aside":
            if not self.chat.put_aside(f"“{job.adapter_name}” trains in the memory that it took"):
                return f"It needs about {needed:,} MB, where {free:,} MB are free; it starts when the chat has said its answers."
            free = self._free(devices, beside)
        if needed <= free:
            return ""
        if beside:
            names = " and ".join(f"“{other.adapter_name}”" for other in beside[:2])
            return f"It needs about {needed:,} MB, where {free:,} MB are free beside {names}; it starts when that is over."
        if self.chat.takes_memory:
            how = "give its memory back in the Chat tab, under More"
            return f"It needs about {needed:,} MB, where {free:,} MB are free beside the chat's base; {how}."
        return ""  # alone it makes itself fit, or says what would

    def settle(self) -> None:
        """Bring the chat's base back when nothing trains any more."""
        if self.chat.aside and not self._training() and self.queue.jobs.head() is None:
            self.chat.bring_back()

    def _training(self) -> list[JobRecord]:
        """What trains on this machine."""
        here = socket.gethostname()
        return [job for job in self.queue.jobs.held() if job.state in ACTIVE and job.lease_owner.partition(":")[0] == here]

    def _free(self, devices: Sequence[str], beside: list[JobRecord]) -> int:
        """What is free, less what trainings that have just begun will still take."""
        coming = sum(max(0, self._needs(other) - int(other.progress.get("memory_mb", 0))) for other in beside)
        return self.free_mb(devices) - coming

    def _needs(self, job: JobRecord) -> int:
        try:
            return self.needs_mb(job)
        except Exception as error:  # noqa: BLE001 - a job whose files are broken must not stop the queue; its training says what is wrong
            log.info("What job %s needs cannot be said: %s", job.id, error)
            return 0


def _shared(job: JobRecord, devices: Sequence[str]) -> bool:
    return not {name.partition("#")[0] for name in job.device.split(",")}.isdisjoint(devices)
