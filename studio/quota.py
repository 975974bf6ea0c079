"""Whether there is room for more: asked before anything is added, and answered by a measurement that is seconds old."""

import shutil
from collections.abc import Callable
from pathlib import Path

from studio.errors import OutOfSpace

Room = Callable[[str, int], None]  # (what is to be added, bytes that it needs or 0) → nothing, or OutOfSpace
LEAST_FREE_BYTES = 200 * 2**20  # so much stays free on the disk, for the database and what runs
GIB, MIB = 2**30, 2**20


def unlimited(_what: str, _need_bytes: int = 0) -> None:
    """There is always room."""


class Quota:
    """A bound on what the studio keeps.

    Args:
        home: on whose disk there must be room, too. quota_bytes: 0 is none. used: measures what is kept, in bytes; it is asked at
            each check and must be cheap. least_free_bytes: that stay free on the disk.
    """

    def __init__(self, home: Path, quota_bytes: int, used: Callable[[], int], least_free_bytes: int = LEAST_FREE_BYTES) -> None:
        self._home, self.quota_bytes, self._used, self._least = home, quota_bytes, used, least_free_bytes

    def check(self, what: str, need_bytes: int = 0) -> None:
        """Make sure that something may be added.

        Args:
            what: it is, such as "another dataset". need_bytes: that it takes, as far as that is known.

        Raises:
            OutOfSpace: with what is used, the bound, and what to do.
        """
        how = "See what takes room with: python -m studio disk; it says what can be freed"
        needs = f", and it needs {gigabytes(need_bytes)}" if need_bytes else ""
        if self.quota_bytes and (used := self._used()) + max(need_bytes, 1) > self.quota_bytes:
            bound = f"the studio uses {gigabytes(used)} of its quota of {gigabytes(self.quota_bytes)}"
            raise OutOfSpace(f"There is no room for {what}: {bound}{needs}. {how}, or raise STUDIO_QUOTA_BYTES.")
        free = shutil.disk_usage(self._home).free
        if free - need_bytes < self._least:
            bound = f"the disk has {gigabytes(free)} free, of which {gigabytes(self._least)} must stay"
            raise OutOfSpace(f"There is no room for {what}: {bound}{needs}. {how}.")


def gigabytes(size_bytes: int) -> str:
    """A size for people: `1.5 GB`, or in MB below one."""
    return f"{size_bytes / GIB:,.1f} GB" if size_bytes >= GIB else f"{size_bytes / MIB:,.1f} MB"
