"""A backup of the whole studio while it runs.

The database is read at one moment. What that moment names is then held by hard links, so that nothing that is deleted meanwhile is
missing; files never change once they are published, and logs only grow. The copy is written beside its place and renamed.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from storage import files
from storage.database import Database
from storage.dump import dump, snapshot
from storage.inventory import Inventory, Kept, KeptJob, read_inventory
from storage.states import ACTIVE, DONE
from studio import __version__
from studio.errors import InvalidInput, OutOfSpace
from studio.keeping.archive import BLOCK, DATABASE, HOME, MANIFEST, Entry, FolderSink, HeldBase, Manifest, Sink, ZipSink
from studio.training.progress import CHECKPOINTS, STEP

Tell = Callable[[float, str], None]
TRIES = 5  # of taking the moment again, where something was deleted right behind it


def untold(_share: float, _what: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Made:
    """A backup that was written."""

    path: Path
    size_bytes: int
    files: int
    adapters: int
    datasets: int
    jobs: int
    bases: list[HeldBase]
    notes: list[str]


@dataclass
class _Held:
    """Files that stay while they are copied: (name in the backup, where it lies, bytes to copy). `gone` are folders without files."""

    found: list[tuple[str, Path, int]] = field(default_factory=list)
    gone: list[tuple[str, str]] = field(default_factory=list)  # (kind, name)

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return sum(size for _, _, size in self.found)


class Backup:
    """Takes backups of one home.

    Args:
        database: of the studio. home: its folder.
    """

    def __init__(self, database: Database, home: Path) -> None:
        self._database, self._home = database, home

    def write(self, target: Path, with_bases: bool = False, tell: Tell = untold) -> Made:
        """Write a backup: a zip where the name ends so, else a folder.

        Args:
            with_bases: copy the base models, too; else their names, sources and fingerprints are kept. tell: is told how far it is, and
                may raise to stop it.

        Raises:
            InvalidInput: the target is there already. OutOfSpace. Whatever `tell` raises; nothing is left of the backup then.
        """
        if target.exists():
            raise InvalidInput(f"{target.name!r} is there already; name another file or folder, or remove that one.")
        try:
            with files.staging_folder(self._home / "exports") as staging:
                return self._write(target, with_bases, tell, staging)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OutOfSpace(f"The backup could not be written: {error.strerror}. Free some space and take it again.") from None
            raise InvalidInput(f"The backup could not be written: {error.strerror or error}. Name another place for it.") from None

    def _write(self, target: Path, with_bases: bool, tell: Tell, staging: Path) -> Made:
        tell(0.0, "reading the database")
        schema, inventory, held = self._moment(staging, with_bases)
        held.found.insert(0, (DATABASE, staging / DATABASE, (staging / DATABASE).stat().st_size))
        _check_room(target, held.size_bytes)
        bases = [_held_base(base, with_bases and ("base", base.name) not in held.gone) for base in inventory.bases.values()]
        if target.suffix.lower() == ".zip":
            with files.publish_file(target) as handle, closing(ZipSink(handle)) as sink:
                manifest = _fill(sink, schema, held, bases, tell)
            size = target.stat().st_size
        else:
            with files.publish_folder(target) as beside:
                manifest = _fill(FolderSink(beside), schema, held, bases, tell)
            size = files.size_of(target)
        counts = (len(inventory.adapters), len(inventory.datasets), len(inventory.jobs))
        return Made(target, size, len(manifest.files), *counts, bases, manifest.notes)

    def _moment(self, staging: Path, with_bases: bool) -> tuple[str, Inventory, _Held]:
        """The database in a file of the staging folder, and its files held there."""
        for attempt in range(TRIES):
            pins = staging / f"held-{attempt}"
            with snapshot(self._database) as connection:
                with (staging / DATABASE).open("wb") as sink:
                    schema = dump(connection, sink)
                inventory = read_inventory(connection)
            held = _hold(self._home, inventory, pins, with_bases)
            with snapshot(self._database) as connection:
                now = read_inventory(connection)
            if not _moved_on(inventory, now, held):
                break
            shutil.rmtree(pins, ignore_errors=True)
        return schema, inventory, held


def _moved_on(before: Inventory, now: Inventory, held: _Held) -> bool:
    """Whether something whose files were not found was deleted meanwhile, or a training ended, whose checkpoints go with it."""
    ended = any(job.state in ACTIVE and now.jobs.get(job.id, job).state == DONE for job in before.jobs.values())
    kinds = ((before.bases, now.bases), (before.datasets, now.datasets), (before.adapters, now.adapters))
    return ended or (bool(held.gone) and any(was.keys() - still.keys() for was, still in kinds))


def _hold(home: Path, inventory: Inventory, pins: Path, with_bases: bool) -> _Held:
    held = _Held()
    kinds = [("adapter", "adapters", inventory.adapters), ("dataset", "datasets", inventory.datasets)]
    for kind, parent, records in [*kinds, *([("base", "bases", inventory.bases)] if with_bases else [])]:
        for record in records.values():
            if not _hold_folder(held, home, f"{parent}/{record.id}", pins):
                held.gone.append((kind, record.name))
    for job in inventory.jobs.values():
        _hold_job(held, home, job, pins)
    return held


def _hold_job(held: _Held, home: Path, job: KeptJob, pins: Path) -> None:
    """The logs of a job and what trackers wrote; of one that is not done, its complete checkpoints, too."""
    folder = home / "jobs" / job.id
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("log*.txt")):
        _hold_file(held, home, path, pins)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != CHECKPOINTS and not path.name.startswith("."):
            _hold_folder(held, home, f"jobs/{job.id}/{path.name}", pins)
    if job.state != DONE:
        for path in sorted((folder / CHECKPOINTS).glob(f"{STEP}*")):
            _hold_folder(held, home, f"jobs/{job.id}/{CHECKPOINTS}/{path.name}", pins)


def _hold_folder(held: _Held, home: Path, where: str, pins: Path) -> bool:
    """Hold all files of a folder, or none where it goes away meanwhile; returns whether there were any."""
    part, folder = _Held(), home / where
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not any(name.startswith(".") for name in path.relative_to(folder).parts):
                _hold_file(part, home, path, pins)
    except FileNotFoundError:
        return False
    held.found += part.found
    return bool(part.found)


def _hold_file(held: _Held, home: Path, path: Path, pins: Path) -> None:
    """Link a file, so that it can be read after it was deleted; where links are impossible it is read where it lies."""
    where = path.relative_to(home)
    pin = pins / where
    pin.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), pin)
    except FileNotFoundError:
        raise
    except OSError:
        pin = path
    held.found.append((f"{HOME}/{where.as_posix()}", pin, pin.stat().st_size))


def _held_base(base: Kept, included: bool) -> HeldBase:
    return HeldBase(base.id, base.name, base.source, base.content, included)


def _check_room(target: Path, need: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < need:
        raise OutOfSpace(
            f"The backup needs {need / 2**20:,.0f} MB, and {free / 2**20:,.0f} MB are free there. Name another disk, or free some."
        )


def _fill(sink: Sink, schema: str, held: _Held, bases: list[HeldBase], tell: Tell) -> Manifest:
    entries: list[Entry] = []
    notes = [f"The files of the {kind} {name!r} were gone already; its record alone is in the backup." for kind, name in held.gone]
    whole, done = max(held.size_bytes, 1), 0
    for path, source, size in held.found:
        if not source.exists():  # where links are impossible, it was deleted since
            notes.append(f"{path} was deleted while the backup was taken, and is not in it.")
            continue
        what = f"copying {path.split('/')[1] if '/' in path else 'the database'}"
        entries.append(sink.add(path, _told(_blocks(source, size), partial(_tell_share, tell, what, done, whole))))
        done += size
    manifest = Manifest(__version__, schema, time.time(), bases, entries, notes)
    sink.add(MANIFEST, [manifest.encode()])
    return manifest


def _tell_share(tell: Tell, what: str, done: int, whole: int, copied: int) -> None:
    tell((done + copied) / whole, what)


def _told(blocks: Iterator[bytes], copied: Callable[[int], None]) -> Iterator[bytes]:
    size = 0
    copied(size)
    for block in blocks:
        yield block
        size += len(block)
        copied(size)


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first bytes of a file: a log may have grown since."""
    left = size
    with path.open("rb") as handle:
        while left and (block := handle.read(min(BLOCK, left))):
            left -= len(block)
            yield block
