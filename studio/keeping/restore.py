"""From a backup to a home in which everything is as it was.

All of it is written into a folder inside the new home that nobody lists, and every hash is checked there. Then it is moved into place,
the database last. Who is killed before that leaves an empty home; who is killed in the middle leaves a mark, by which the studio does
not start and the next restore begins again.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from storage import files
from storage.database import revisions
from storage.dump import is_empty, loading
from storage.errors import BadDump
from studio.bases.fingerprint import fingerprint
from studio.errors import BaseUnavailable, InvalidInput, OutOfSpace
from studio.keeping.archive import BLOCK, DATABASE, HOME, Entry, HeldBase, Manifest, Source, opened, read_manifest
from studio.keeping.backup import Tell, untold

MARK = ".restoring"
LOCK = ".restore.lock"
STAGING = f"{files.PARTIAL}restore"
SQLITE_FILE = "studio.db"


@dataclass(frozen=True)
class Restored:
    """What is there now. `fetch` are the bases whose files are not."""

    home: Path
    made_at: float
    files: int
    size_bytes: int
    fetch: list[HeldBase]
    notes: list[str]


def refuse_half_restored(home: Path) -> None:
    """A home in which a restore was killed at its end is no studio.

    Raises:
        InvalidInput.
    """
    if (home / MARK).exists():
        raise InvalidInput(f"A restore into {home} was interrupted; run it again: python -m studio restore FILE --into {home}.")


def restore(backup: Path, home: Path, database_url: str = "", tell: Tell = untold) -> Restored:
    """Fill an empty home, and an empty database, from a backup.

    Args:
        backup: a zip or a folder. home: is made where it is missing; it may hold bases. database_url: of another database than
            the home's own file. tell: is told how far it is.

    Raises:
        InvalidInput: it is no backup, damaged, hostile or of a newer studio; or home or database are not empty. OutOfSpace.
        DatabaseUnavailable. Nothing is left of the restore then.
    """
    with opened(backup) as source:
        manifest = read_manifest(source, revisions())
        was_there = home.exists()
        try:
            with _claimed(home):
                return _restore(source, manifest, home, database_url, tell)
        except OSError as error:
            kind = OutOfSpace if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else InvalidInput
            raise kind(f"The backup could not be restored: {error.strerror or error}. Mend that and restore it again.") from None
        finally:
            if not was_there:
                with contextlib.suppress(OSError):  # it holds what was restored
                    home.rmdir()


@contextlib.contextmanager
def _claimed(home: Path) -> Iterator[None]:
    """An empty home that nobody else restores into."""
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidInput(f"Another restore into {home} is running; wait until it is over.") from None
    try:
        _check_empty(home)
        files.remove_partials(home, STAGING.removeprefix(files.PARTIAL))
        yield
    finally:
        _undo(home)
        files.remove_partials(home, STAGING.removeprefix(files.PARTIAL))
        (home / LOCK).unlink(missing_ok=True)
        lock.release()


def _check_empty(home: Path) -> None:
    """Nothing but bases, and what a restore left that was killed."""
    _undo(home)
    others = sorted(p.name for p in home.iterdir() if p.name not in ("bases", LOCK) and not p.name.startswith(STAGING))
    if others:
        raise InvalidInput(
            f"The folder {home} is not empty ({', '.join(others[:3])}{', …' if len(others) > 3 else ''}); name another one with --into."
        )


def _undo(home: Path) -> None:
    """Take away what a restore moved into place that did not come to its end."""
    mark = home / MARK
    if not mark.exists():
        return
    for name in json.loads(mark.read_text()):
        place = home / name
        if place.is_dir():
            files.remove_folder(place)
        else:
            place.unlink(missing_ok=True)
    mark.unlink()


def _restore(source: Source, manifest: Manifest, home: Path, database_url: str, tell: Tell) -> Restored:
    if database_url and not is_empty(database_url):
        raise InvalidInput("The database that STUDIO_DATABASE_URL names is not empty; name an empty one, or unset it.")
    size = _check_sizes(source, manifest, home)
    staging = home / f"{STAGING}-{files.new_id()}"
    staging.mkdir()
    done = 0
    for entry in manifest.files:
        tell(done / max(size, 1), f"unpacking {entry.path.split('/')[1] if '/' in entry.path else 'the database'}")
        _unpack(source, entry, staging)
        done += entry.size_bytes
    tell(1.0, "filling the database")
    inside = staging / HOME
    for folder in ("datasets", "adapters", "jobs", "bases", "exports"):
        (inside / folder).mkdir(parents=True, exist_ok=True)
    _fill_database(source, staging, home, database_url)
    tell(1.0, "looking for the bases")
    fetch = [base for base in manifest.bases if not _is_there(base, home)]
    return Restored(home, manifest.made_at, len(manifest.files), size, fetch, manifest.notes)


def _fill_database(source: Source, staging: Path, home: Path, database_url: str) -> None:
    """Load the database; then move everything into place, and commit what is not a file of the home."""
    inside = staging / HOME
    try:
        with (staging / DATABASE).open("rb") as lines:
            if database_url:
                with loading(database_url, lines):
                    _publish(inside, home)
            else:
                with loading(f"sqlite:///{inside / SQLITE_FILE}", lines):
                    pass
                _publish(inside, home)
    except BadDump as error:
        raise InvalidInput(f"The backup {source.name!r} cannot be restored: {error}; take another backup.") from None
    (home / MARK).unlink(missing_ok=True)


def _publish(inside: Path, home: Path) -> None:
    """Move what is restored into the home, the database last; a mark stands there until the caller takes it away."""
    files.sync_folder(inside)
    for base in sorted((inside / "bases").iterdir()):
        if not (home / "bases" / base.name).exists():
            (home / "bases").mkdir(exist_ok=True)
            shutil.move(base, home / "bases" / base.name)
    names = sorted((p.name for p in inside.iterdir() if p.name != "bases"), key=lambda name: name.startswith(SQLITE_FILE))
    mark = json.dumps(names).encode()
    files.write_file(home / MARK, mark)
    for name in names:
        (inside / name).rename(home / name)
    files.write_file(home / MARK, mark)  # which brings the folder's new names to the disk, too
    (home / "bases").mkdir(exist_ok=True)


def _check_sizes(source: Source, manifest: Manifest, home: Path) -> int:
    """Bytes of all files, which must be as many as there are and find room."""
    for entry in manifest.files:
        if source.size(entry.path) != entry.size_bytes:
            raise _damaged(source, entry)
    size = sum(entry.size_bytes for entry in manifest.files)
    free = shutil.disk_usage(home).free
    if free < size:
        raise OutOfSpace(
            f"The backup takes {size / 2**20:,.0f} MB, and {free / 2**20:,.0f} MB are free. Free some, or name another folder."
        )
    return size


def _unpack(source: Source, entry: Entry, staging: Path) -> None:
    target = staging / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry.size_bytes
    with source.open(entry.path) as handle, target.open("xb") as sink:
        while left and (block := _read(source, entry, handle, min(BLOCK, left))):
            left -= len(block)
            digest.update(block)
            sink.write(block)
    if left or digest.hexdigest() != entry.sha256:
        raise _damaged(source, entry)


def _read(source: Source, entry: Entry, handle: BinaryIO, size: int) -> bytes:
    try:
        return handle.read(size)
    except Exception as error:  # whatever zlib and zipfile say of damage
        raise _damaged(source, entry) from error


def _damaged(source: Source, entry: Entry) -> InvalidInput:
    what = f"{entry.path!r} is not as it was when the backup was taken"
    return InvalidInput(f"The backup {source.name!r} cannot be restored: {what}; nothing was restored. Use another backup.")


def _is_there(base: HeldBase, home: Path) -> bool:
    """Whether a base's files are in the home, under its id or, byte for byte, under another one, from which they are linked."""
    bases = home / "bases"
    if (bases / base.id).is_dir():
        return True
    for folder in sorted(bases.iterdir()):
        try:
            if folder.is_dir() and not folder.name.startswith(".") and fingerprint(folder, base.name) == base.fingerprint:
                _link(folder, bases / base.id)
                return True
        except (BaseUnavailable, OSError):  # that one is none
            continue
    return False


def _link(folder: Path, target: Path) -> None:
    with files.publish_folder(target) as partial:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                try:
                    os.link(path.resolve(), partial / path.name)
                except OSError:
                    shutil.copyfile(path, partial / path.name)
