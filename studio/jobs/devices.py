"""Device slots: what may train at the same time on this machine. A slot is a locked file, which the system frees when its holder dies."""

import socket
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout


class Reservation:
    """Slots that are held until `release`."""

    def __init__(self, names: tuple[str, ...], locks: Sequence[FileLock]) -> None:
        self.names, self.locks = names, locks

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the slots, such as cuda:0, each once."""
        return tuple(dict.fromkeys(name.partition("#")[0] for name in self.names))

    def release(self) -> None:
        """Give the slots back."""
        for lock in self.locks:
            lock.release()


class Slots:
    """The slots of this machine, shared by all its workers on one home.

    Args:
        folder: holds the locked files. devices: names such as cpu or cuda:0. each: how many trainings a device takes.
    """

    def __init__(self, folder: Path, devices: Sequence[str], each: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.devices, self.each = folder, tuple(devices), each

    @property
    def names(self) -> tuple[str, ...]:
        """All slots: first one of each device, so that trainings spread over the devices."""
        return tuple(f"{device}#{i}" if i else device for i in range(self.each) for device in self.devices)

    def reserve(self, count: int = 1) -> Reservation | None:
        """Take slots on `count` different devices, or of one device where there are not so many; None where too few are free."""
        distinct = min(count, len(self.devices))
        reservation = Reservation((), ())
        try:
            for name in self.names:
                if len(reservation.names) == distinct:
                    return reservation
                if name.partition("#")[0] not in reservation.devices:
                    reservation = self._take(name, reservation)
        except BaseException:
            reservation.release()
            raise
        if len(reservation.names) == distinct:
            return reservation
        reservation.release()
        return None

    def _take(self, name: str, held: Reservation) -> Reservation:
        """What is held and this slot, where it is free."""
        lock = FileLock(self.folder / f"{socket.gethostname()}-{name.replace(':', '-')}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return held
        return Reservation((*held.names, name), (*held.locks, lock))
