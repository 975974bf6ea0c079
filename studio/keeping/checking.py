"""A check of everything that is stored: what the database says there should be, what lies in the home, and whether they agree.

It only reads. What is younger than an hour, or belongs to a job that may still make it, is nobody's orphan.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from storage import files
from storage.database import Database
from storage.dump import snapshot
from storage.inventory import Inventory, Kept, dangling, read_inventory
from storage.soundness import broken_rows, faults, misplaced
from studio.bases.fingerprint import fingerprint
from studio.datasets.store import ROWS_FILE, rows_hash
from studio.errors import BaseUnavailable
from studio.keeping.backup import Tell, untold
from studio.keeping.findings import ASIDE, DROP, FETCH, JOIN, NOTHING, REINDEX, RELIST, SWEEP, Finding
from studio.keeping.lineage import read_lineage

YOUNG_S = 3600.0
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
NOT_JOBS = ("workers", "slots")
Hash = Callable[[Path, Kept], str | None]  # None: it cannot be known


class Check:
    """Looks at one home and its database.

    Args:
        database, home: of the studio. now: seconds since 1970.
    """

    def __init__(self, database: Database, home: Path, now: float | None = None) -> None:
        self._database, self._home = database, home
        self._now = time.time() if now is None else now

    def run(self, quick: bool = False, tell: Tell = untold) -> list[Finding]:
        """Everything that is not as it should be.

        Args:
            quick: look at names and sizes, and read no file. tell: is told how far it is, and may raise to stop it.
        """
        tell(0.0, "checking the database")
        if damage := [_damage(said) for said in faults(self._database)]:
            return damage  # whatever else it says cannot be believed
        found = [*self._of_database(), *self._of_records(self._inventory(), quick, tell)]
        tell(1.0, "looking for what no record names")
        now = self._inventory()  # something may have come or gone while files were read
        there = {"adapter": now.adapters, "dataset": now.datasets, "base": now.bases}
        found = [one for one in found if one.kind not in ("missing", "changed") or one.id in there[one.subject]]
        return [*found, *self._orphans(now), *self._partials()]

    def _inventory(self) -> Inventory:
        with snapshot(self._database) as connection:
            return read_inventory(connection)

    # The database

    def _of_database(self) -> Iterator[Finding]:
        for row in broken_rows(self._database):
            what = f"A row of {row.table!r} points at a row of {row.parent!r} that is gone."
            yield Finding("dangling", what, row.table, DROP, "row", f"{row.table}:{row.rowid}:{row.parent}")
        for one in dangling(self._database):
            mend = NOTHING if one.table == "job" else JOIN
            what = f"The {one.table} {one.name!r} {one.what}." + (" Cancel it, or add the dataset and copy it." if mend == NOTHING else "")
            yield Finding("dangling", what, one.table, mend, one.table, one.id, one.name)
        if wrong := misplaced(self._database):
            what = f"{wrong:,} entries of the index that adapters are found by are missing or wrong."
            yield Finding("index", what, "the index", REINDEX, "index")

    # What records name

    def _of_records(self, inventory: Inventory, quick: bool, tell: Tell) -> Iterator[Finding]:
        groups: list[tuple[str, str, dict[str, Kept], Hash]] = [
            ("adapter", "adapters", inventory.adapters, _adapter_hash),
            ("dataset", "datasets", inventory.datasets, _dataset_hash),
            ("base", "bases", inventory.bases, _base_hash),
        ]
        whole, done = max(1, sum(record.size_bytes for _, _, records, _ in groups for record in records.values())), 0
        for subject, parent, records, content in groups:
            for record in records.values():
                tell(done / whole, f"checking {parent}")
                done += record.size_bytes
                finding = self._of_record(subject, f"{parent}/{record.id}", record, None if quick else content)
                if finding is not None:
                    yield finding

    def _of_record(self, subject: str, where: str, record: Kept, content: Hash | None) -> Finding | None:
        folder = self._home / where
        if not _is_whole(subject, folder):
            mend = FETCH if subject == "base" else DROP
            return Finding("missing", f"The files of the {subject} {record.name!r} are gone.", where, mend, subject, record.id, record.name)
        if content is None or content(folder, record) in (None, record.content):
            return None
        mend = NOTHING if subject == "base" else ASIDE
        what = f"The files of the {subject} {record.name!r} are not those that were recorded. Restore them from a backup."
        return Finding("changed", what, where, mend, subject, record.id, record.name, files.size_of(folder))

    # What no record names

    def _orphans(self, inventory: Inventory) -> Iterator[Finding]:
        coming = {job.adapter_id for job in inventory.jobs.values() if job.is_open}
        known = {"adapters": inventory.adapters.keys() | coming, "datasets": inventory.datasets.keys(), "jobs": inventory.jobs.keys()}
        if not (self._home / "bases").is_symlink():  # else others may use them, too
            known["bases"] = inventory.bases.keys()
        for parent, ids in known.items():
            for folder in _folders(self._home / parent):
                if folder.name not in ids and not (parent == "jobs" and folder.name in NOT_JOBS) and self._is_old(folder):
                    yield self._orphan(folder, parent, inventory)

    def _orphan(self, folder: Path, parent: str, inventory: Inventory) -> Finding:
        subject, where, size = parent.removesuffix("s"), f"{parent}/{folder.name}", files.size_of(folder)
        what = f"No record names this {subject}'s folder."
        if subject == "adapter":
            lineage = read_lineage(folder, inventory)
            if lineage is not None:
                what = f"No record names the adapter {lineage.name!r}, whose files are complete."
                return Finding("orphan", what, where, RELIST, subject, folder.name, lineage.name, size)
        return Finding("orphan", what, where, ASIDE, subject, folder.name, "", size)

    def _partials(self) -> Iterator[Finding]:
        parents = [self._home, *(self._home / name for name in ("adapters", "datasets", "bases", "exports", "jobs", "lost"))]
        for parent in parents:
            for path in sorted(parent.glob(f"{files.PARTIAL}*")) if not parent.is_symlink() else ():
                if self._is_old(path):
                    where = path.relative_to(self._home).as_posix()
                    size = files.size_of(path) if path.is_dir() else path.stat().st_size
                    yield Finding(
                        "partial", "Half-written, and left by a process that was killed.", where, SWEEP, "partial", where, "", size
                    )

    def _is_old(self, path: Path) -> bool:
        """Whether nothing in it was written for an hour; what goes away meanwhile is none."""
        try:
            newest = max((p.stat().st_mtime for p in (path, *path.rglob("*"))), default=self._now)
        except FileNotFoundError:
            return False
        return self._now - newest > YOUNG_S


def _damage(said: str) -> Finding:
    what = f"The database is damaged: {' '.join(said.split()).rstrip('.')}. Restore a backup; nothing else was looked at."
    return Finding("database", what, "the database", NOTHING, "database")


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")) if parent.is_dir() else []


def _is_whole(subject: str, folder: Path) -> bool:
    """Whether the files are there without which it is of no use."""
    if subject == "adapter":
        return all((folder / name).is_file() for name in ADAPTER_FILES)
    return (folder / ROWS_FILE).is_file() if subject == "dataset" else (folder / "config.json").is_file()


def _adapter_hash(folder: Path, record: Kept) -> str:
    del record
    return adapter_hash(folder)


def adapter_hash(folder: Path) -> str:
    """The SHA-256 that an adapter's record names, over the bytes of both files; `studio.lora` computes the same, with torch in memory."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        with (folder / name).open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _dataset_hash(folder: Path, record: Kept) -> str | None:
    del record
    try:
        return rows_hash(folder / ROWS_FILE)
    except (OSError, ValueError):  # pyarrow's errors are both
        return ""


def _base_hash(folder: Path, record: Kept) -> str:
    try:
        return fingerprint(folder, record.name)
    except BaseUnavailable:
        return ""
