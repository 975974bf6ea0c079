"""How much room everything takes, and what of it can be given back.

Folders of datasets, adapters and bases never change, so each is measured once and then known by its time of change; what jobs and
exports hold is measured anew, at most every half minute.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage import files
from storage.database import Database
from storage.dump import snapshot
from storage.inventory import Inventory, read_inventory
from storage.soundness import size_bytes
from storage.states import DONE
from studio.errors import InvalidInput
from studio.keeping.checking import ADAPTER_FILES, NOT_JOBS
from studio.training.progress import CHECKPOINTS

FRESH_S = 30.0
OLD_EXPORT_S = 24 * 3600.0
LARGEST = 10
BACKUP = "studio-backup-"  # how the page names backups; they lie among the exports and are not freed with them
KINDS = {
    "datasets": "rows, one folder a version",
    "adapters": "weights of what was trained, imported or made",
    "checkpoints": "of trainings, to go on from",
    "logs": "of trainings, and what trackers wrote",
    "bases": "base models",
    "exports": "files that were made to be downloaded",
    "backups": "made in the page",
    "database": "records, conversations, curves",
    "lost": "what a check put aside",
    "other": "everything else in the home",
}
FREED = ("checkpoints", "exports")


@dataclass(frozen=True)
class Item:
    """One thing that takes room."""

    kind: str
    where: str
    name: str
    size_bytes: int


@dataclass(frozen=True)
class Use:
    """Bytes by kind, the largest things, what can be freed by kind, and the disk that the home lies on."""

    kinds: dict[str, int]
    largest: list[Item]
    freeable: dict[str, int]
    quota_bytes: int
    disk_free_bytes: int
    disk_bytes: int

    @property
    def used_bytes(self) -> int:
        """Of all kinds."""
        return sum(self.kinds.values())


class Disk:
    """Measures one home.

    Args:
        database, home: of the studio. quota_bytes: is only told. clock: in seconds, never set back.
    """

    def __init__(self, database: Database, home: Path, quota_bytes: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._home, self._quota_bytes, self._clock = database, home, quota_bytes, clock
        self._known: dict[str, tuple[int, int]] = {}  # where: (time of change, bytes)
        self._lock = threading.Lock()
        self._measured: tuple[float, int] | None = None

    def used(self) -> int:
        """Bytes of everything, as they were within the last half minute."""
        with self._lock:
            if self._measured is None or self._clock() - self._measured[0] > FRESH_S:
                self._measured = (self._clock(), sum(item.size_bytes for item in self._items()))
            return self._measured[1]

    def use(self) -> Use:
        """What takes the room, measured now."""
        with snapshot(self._database) as connection:
            inventory = read_inventory(connection)
        with self._lock:
            items = list(self._items())
            self._measured = (self._clock(), sum(item.size_bytes for item in items))
        kinds = {kind: sum(item.size_bytes for item in items if item.kind == kind) for kind in KINDS}
        largest = sorted(items, key=lambda item: -item.size_bytes)[:LARGEST]
        named = [Item(i.kind, i.where, _name(i, inventory), i.size_bytes) for i in largest if i.size_bytes]
        freeable = {kind: sum(size for _, size in self._freeable(kind, inventory)) for kind in FREED}
        disk = shutil.disk_usage(self._home)
        return Use(kinds, named, freeable, self._quota_bytes, disk.free, disk.total)

    def free(self, kind: str) -> int:
        """Give back what is safe: checkpoints of finished jobs whose adapter is there, or exports older than a day; returns the bytes.

        Raises:
            InvalidInput: nothing of this kind is safe to remove.
        """
        if kind not in FREED:
            raise InvalidInput(f"Nothing of the kind {kind!r} is freed without you; choose {' or '.join(FREED)}.")
        with snapshot(self._database) as connection:
            inventory = read_inventory(connection)
        freed = 0
        for path, size in list(self._freeable(kind, inventory)):
            if path.is_dir():
                files.remove_folder(path)
            else:
                path.unlink(missing_ok=True)
            freed += size
        with self._lock:
            self._measured = None
        return freed

    def _freeable(self, kind: str, inventory: Inventory) -> Iterator[tuple[Path, int]]:
        if kind == "exports":
            for path in _entries(self._home / "exports"):
                if not path.name.startswith(BACKUP) and time.time() - path.stat().st_mtime > OLD_EXPORT_S:
                    yield path, _size(path)
            return
        for job in inventory.jobs.values():
            folder, adapter = self._home / "jobs" / job.id / CHECKPOINTS, self._home / "adapters" / job.adapter_id
            is_kept = job.adapter_id in inventory.adapters and all((adapter / name).is_file() for name in ADAPTER_FILES)
            if job.state == DONE and is_kept and folder.is_dir():
                yield folder, _size(folder)

    def _items(self) -> Iterator[Item]:
        for kind in ("datasets", "adapters", "bases", "lost"):
            if not (self._home / kind).is_symlink():  # what is linked takes its room elsewhere
                for path in _entries(self._home / kind):
                    yield Item(kind, f"{kind}/{path.name}", path.name, self._unchanging(path))
        for path in _entries(self._home / "jobs"):
            checkpoints = _size(path / CHECKPOINTS)
            yield Item("checkpoints", f"jobs/{path.name}/{CHECKPOINTS}", path.name, checkpoints)
            yield Item("other" if path.name in NOT_JOBS else "logs", f"jobs/{path.name}", path.name, _size(path) - checkpoints)
        for path in _entries(self._home / "exports"):
            yield Item("backups" if path.name.startswith(BACKUP) else "exports", f"exports/{path.name}", path.name, _size(path))
        yield Item("database", "the database", "database", size_bytes(self._database))
        for path in _entries(self._home):
            if path.is_file() and not path.name.startswith("studio.db"):
                yield Item("other", path.name, path.name, _size(path))

    def _unchanging(self, path: Path) -> int:
        """The size of a folder that nobody writes into any more, and that another time tells from one that was put in its place."""
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return 0
        where = f"{path.parent.name}/{path.name}"
        known = self._known.get(where)
        if known is None or known[0] != changed or path.name.startswith(files.PARTIAL):
            self._known[where] = known = (changed, _size(path))
        return known[1]


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed, and what goes away meanwhile takes nothing."""
    try:
        if not path.is_dir():
            return path.lstat().st_size
        return sum(_size(Path(entry.path)) for entry in os.scandir(path) if not entry.is_symlink())
    except OSError:
        return 0


def _name(item: Item, inventory: Inventory) -> str:
    """What people call it."""
    own: dict[str, str] = {}
    if item.kind in ("datasets", "adapters", "bases"):
        records = {"datasets": inventory.datasets, "adapters": inventory.adapters, "bases": inventory.bases}[item.kind]
        own = {item.name: records[item.name].name} if item.name in records else {}
    elif item.kind in ("checkpoints", "logs") and item.name in inventory.jobs:
        own = {item.name: inventory.jobs[item.name].adapter_name}
    return own.get(item.name, item.name)
