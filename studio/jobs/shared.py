"""The place that the studio and the machines of a cluster share: a folder, or object storage through fsspec.

Nothing here counts on a file system that shows files whole: a small object carries its own SHA-256 and is not there until that
is right; a folder is there when its manifest is, which is written last and holds the SHA-256 of each file.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import orjson

from storage import files
from studio.errors import InvalidInput, StudioError

BLOCK = 4 << 20  # bytes
DIGEST = 32
T = TypeVar("T")
log = logging.getLogger(__name__)


class SharedUnavailable(StudioError):
    """The shared place cannot be reached, or what is there is broken."""

    cause = "shared"


class Halted(Exception):
    """A copy was given up on request."""


def never() -> None:
    """What a copy asks now and then that nobody stops."""


class Shared:
    """Small objects and folders by their path, which is of ids and hashes alone.

    Args:
        url: a folder, or an address that fsspec knows. Credentials come from the machine, never from the address.

    Raises:
        InvalidInput: the address is of no kind that is known here.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self.fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            why = str(error).rstrip(".")
            raise InvalidInput(f"STUDIO_SHARED_URL cannot be used: {why}. Name a folder, or install what its kind needs.") from None
        self._root = root.rstrip("/")
        self._local = "file" in ((self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol)
        self.url = self._root if self._local else url  # whole, for a program that begins in another folder

    def local(self, path: str) -> Path | None:
        """Where a file of the place lies on this machine, or None where it is elsewhere."""
        return Path(self._at(path)) if self._local else None

    def write(self, path: str, value: Any) -> None:
        """Write a small object, as JSON. Raises SharedUnavailable."""
        data = orjson.dumps(value)
        self._try(lambda: self._pipe(path, hashlib.sha256(data).digest() + data))

    def read(self, path: str) -> Any | None:
        """A small object, or None where it is not there or not whole. Raises SharedUnavailable."""
        data: bytes | None = self._try(lambda: self._cat(path))
        if data is None or hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
            return None
        return orjson.loads(data[DIGEST:])

    def has(self, path: str) -> bool:
        """Whether a folder is there, complete. Raises SharedUnavailable."""
        return self.read(_manifest(path)) is not None

    def send(self, folder: Path, path: str, go_on: Callable[[], None] = never) -> None:
        """Copy a folder into the place; others see it whole or not at all.

        Args:
            go_on: is called now and then, and raises what shall end the copy.

        Raises:
            SharedUnavailable. OSError: the folder cannot be read.
        """
        found = sorted(p for p in folder.rglob("*") if p.is_file())
        self.send_files({file.relative_to(folder).as_posix(): file for file in found}, path, go_on)

    def send_files(self, named: dict[str, Path], path: str, go_on: Callable[[], None] = never) -> None:
        """As `send`, with files that lie anywhere under the names that they shall have."""
        self.write(_manifest(path), {name: self._send_file(file, f"{path}/{name}", go_on) for name, file in named.items()})

    def take(self, path: str, target: Path, go_on: Callable[[], None] = never) -> bool:
        """Copy a folder of the place to this machine, whole or not at all; False where it is not there.

        Raises:
            SharedUnavailable: also where a file is not what the manifest says. OSError: for example a full disk.
        """
        manifest = self.read(_manifest(path))
        if manifest is None:
            return False
        try:
            with files.publish_folder(target) as partial:
                for name, digest in manifest.items():
                    file = partial / _inside(name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("wb") as out:
                        if self._fetch(f"{path}/{name}", out, go_on) != digest:
                            raise SharedUnavailable(f"The shared place holds a broken copy of {name}; it is copied again.")
        except FileExistsError:  # another process was faster
            log.debug("%s is there already.", target.name)
        return True

    def remove(self, path: str) -> None:
        """Remove a folder, and everything below it; silent where it is not there. Raises SharedUnavailable."""
        manifest = self._at(_manifest(path))

        def go() -> None:
            self.fs.invalidate_cache()
            for place, deep in ((manifest, False), (self._at(path), True)):
                if self.fs.exists(place):
                    self.fs.rm(place, recursive=deep)

        self._try(go)

    def _send_file(self, file: Path, path: str, go_on: Callable[[], None]) -> str:
        def go() -> str:
            with file.open("rb") as source, self._open(path) as out:
                return _copy(source, out, go_on)

        return self._try(go)

    def _fetch(self, path: str, out: BinaryIO, go_on: Callable[[], None]) -> str:
        def go() -> str:
            with self.fs.open(self._at(path), "rb") as source:
                return _copy(source, out, go_on)

        return self._try(go)

    def _open(self, path: str) -> Any:
        place = self._at(path)
        try:
            return self.fs.open(place, "wb")
        except FileNotFoundError:
            self.fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            return self.fs.open(place, "wb")

    def _pipe(self, path: str, data: bytes) -> None:
        with self._open(path) as out:
            out.write(data)

    def _cat(self, path: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(self._at(path)))
        except FileNotFoundError:
            return None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _try(self, go: Callable[[], T]) -> T:
        try:
            return go()
        except (Halted, StudioError):
            raise
        except Exception as error:  # each kind of storage raises what its library has
            what = getattr(error, "strerror", None) or type(error).__name__
            raise SharedUnavailable(f"The shared place of STUDIO_SHARED_URL cannot be used ({what}).") from error


def _manifest(path: str) -> str:
    return f"{path}.manifest"


def _inside(name: str) -> PurePosixPath:
    """A relative path of a manifest. Raises SharedUnavailable where it leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise SharedUnavailable(f"The shared place holds a list with the file name {name!r}, which is not used.")
    return path


def _copy(source: BinaryIO, out: BinaryIO, go_on: Callable[[], None]) -> str:
    """Copy block by block, each time asking whether to go on; returns the SHA-256."""
    digest = hashlib.sha256()
    for block in _blocks(source):
        go_on()
        digest.update(block)
        out.write(block)
    return digest.hexdigest()


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        yield block
