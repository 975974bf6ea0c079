"""Which workers are gone: judged by no clock that a person or a time server may set.

A worker shows in two ways that it lives. It holds a locked file, which the system frees when it dies, so that its neighbours on
the same machine know at once. And each renewal writes another `lease_until`: a lease whose value stays the same for `lease_s` of
the observer's own monotonic clock, and then for half of it after the observer itself could write, is over: where nobody can
write, nobody can renew. The value itself is never compared with a time: clocks of two machines differ, and one
that jumps would declare every lease over, or none.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from storage.records import LeaseRecord

HOLD_S = 5.0  # somebody who looks whether we live holds the file for an instant
ENDING = ".alive"


class Leases:
    """The sign of life of one worker, and its judgement on others.

    Args:
        folder: holds the locked files of all workers on one home. owner: host:pid:random, of this worker.
        lease_s: how long a lease may stay as it is. write: raises where the database takes no writer.
        clock: in seconds, never set back or forth.
    """

    def __init__(
        self, folder: Path, owner: str, lease_s: float, write: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.owner, self.lease_s, self.write = folder, owner, lease_s, write
        self._clock = clock
        self._lock = FileLock(self._path(owner), thread_local=False)
        self._seen: dict[LeaseRecord, float] = {}
        self._wrote: dict[LeaseRecord, float] = {}  # since they are silent
        self._looked = float("-inf")

    def hold(self, held: Sequence[LeaseRecord]) -> None:
        """Show that this worker lives, until `release` or its death; sweep the files of dead ones that hold nothing."""
        self._lock.acquire(timeout=HOLD_S)
        kept = {self._path(lease.owner) for lease in held}
        for path in self.folder.glob(f"*{ENDING}"):
            if path not in kept and _is_free(path):
                path.unlink(missing_ok=True)

    def release(self) -> None:
        """This worker works no more."""
        if self._lock.is_locked:
            self._path(self.owner).unlink(missing_ok=True)
            self._lock.release()

    def over(self, held: Sequence[LeaseRecord]) -> list[LeaseRecord]:
        """Those of the leases whose worker is dead, or has been silent for too long; to be asked several times a second.

        Raises:
            DatabaseUnavailable: somebody is silent, but the database takes no writer.
        """
        now = self._clock()
        if now - self._looked > self.lease_s / 2:
            # We slept, or the database was away: then its workers could not renew either. What was not watched does not count.
            self._seen = {}
        self._looked = now
        self._seen = {lease: self._seen.get(lease, now) for lease in held}
        dead = {owner for owner in {lease.owner for lease in held} if self._is_dead(owner)}
        silent = self._silent(now)
        return [lease for lease in held if lease.owner in dead or lease in silent]

    def _silent(self, now: float) -> list[LeaseRecord]:
        suspects = [lease for lease, since in self._seen.items() if now - since > self.lease_s]
        self._wrote = {lease: since for lease, since in self._wrote.items() if lease in suspects}
        if len(self._wrote) < len(suspects):
            self.write()
            wrote = self._clock()
            self._wrote = {lease: self._wrote.get(lease, wrote) for lease in suspects}
        return [lease for lease in suspects if now - self._wrote[lease] > self.lease_s / 2]

    def _is_dead(self, owner: str) -> bool:
        """Whether it is a worker of this machine whose file nobody holds; a locked file says nothing about other machines."""
        if owner == self.owner or owner.partition(":")[0] != socket.gethostname():
            return False
        path = self._path(owner)
        return path.exists() and _is_free(path)

    def _path(self, owner: str) -> Path:
        return self.folder / f"{owner.replace(':', '-').replace('/', '-')}{ENDING}"


def _is_free(path: Path) -> bool:
    lock = FileLock(path, thread_local=False)
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
        lock.release()
        return True
    return False
