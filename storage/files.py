"""The file store: opaque ids, and files and folders that appear complete or not at all.

Write beside, fsync, rename. A folder is made under `.partial-<id>` in the same parent and renamed into place;
what a killed process leaves behind is named so, is never listed, and is swept at the next start.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial-"


def new_id() -> str:
    """A random id of 16 hex digits."""
    return secrets.token_hex(8)


def _sync(path: Path) -> None:
    """fsync of a file, or of a folder where the platform can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """fsync of a folder and of everything in it."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; rename it to `target` when the block ends, or remove it when it raises.

    Raises:
        FileExistsError: `target` is already there. OSError: for example ENOSPC; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{PARTIAL}{target.name}-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            _sync(path)
        _sync(partial)
        if target.exists():
            raise FileExistsError(f"{target} already exists")
        partial.rename(target)
        _sync(target.parent)
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder that is never listed, and is gone when the block ends or, after a kill, at a later start."""
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / f"{PARTIAL}{new_id()}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def publish_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; others see it whole or not at all.

    Raises:
        OSError: for example ENOSPC; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{target.name}-{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        partial.rename(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_file(target: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all. Raises as `publish_file` does."""
    with publish_file(target) as handle:
        handle.write(data)


def remove_folder(target: Path) -> None:
    """Remove a folder so that no reader sees half of it: rename it away first."""
    if not target.exists():
        return
    partial = target.parent / f"{PARTIAL}{target.name}-{secrets.token_hex(4)}"
    target.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def sweep_partials(parent: Path, older_than_s: float, now: float) -> int:
    """Remove what killed processes left under `parent`; returns how many. Younger ones may still be written."""
    stale = []
    for path in parent.glob(f"{PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            if now - path.stat().st_mtime > older_than_s:
                stale.append(path)
    for path in stale:
        _remove(path)
    return len(stale)


def remove_partials(parent: Path, of: str = "") -> None:
    """Remove what killed processes left under `parent`, all of it or of one target's name; nobody may write there any more."""
    for path in parent.glob(f"{PARTIAL}{of}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
