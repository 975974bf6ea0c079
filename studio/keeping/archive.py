"""What a backup looks like, as one zip or as a folder: `database.jsonl`, the files of the home under `home/`, and `manifest.json`
with the size and SHA-256 of each. Whoever reads one believes nothing: every name, size and hash is checked.
"""

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from studio.datasets.reading.archives import DAMAGE, FREE_BYTES, RATIO, open_zip, short
from studio.datasets.reading.documents import Document
from studio.datasets.reading.limits import Limits
from studio.datasets.reading.places import printable
from studio.errors import InvalidInput

FORMAT = 1
MANIFEST, DATABASE, HOME = "manifest.json", "database.jsonl", "home"
KINDS = ("datasets", "adapters", "jobs", "bases")
BLOCK = 1 << 20
MANIFEST_BYTES = 1 << 28
MOST_FILES = 1_000_000
LONGEST_PATH = 500
ID = re.compile(r"[\w-]{1,64}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
PART = re.compile(r"[^\\/:\0-\x1f]{1,200}")
TEXTS = (".jsonl", ".json", ".txt", ".csv")  # what is worth packing
HOW = "take another backup"


@dataclass(frozen=True)
class Entry:
    """A file of a backup."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class HeldBase:
    """A base that adapters of the backup stand on; `included` says whether its files are in it."""

    id: str
    name: str
    source: str
    fingerprint: str
    included: bool


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself. `notes` are sentences on what is missing from it."""

    studio: str
    schema: str
    made_at: float
    bases: list[HeldBase]
    files: list[Entry]
    notes: list[str]
    format: int = FORMAT

    def encode(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


class Sink(Protocol):
    """A backup that is being written."""

    def add(self, path: str, blocks: Iterable[bytes]) -> Entry:
        """Write one file."""
        ...


class ZipSink:
    """Into a zip; weights are stored as they are."""

    def __init__(self, handle: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED, allowZip64=True)

    def add(self, path: str, blocks: Iterable[bytes]) -> Entry:
        """Write one file."""
        about = zipfile.ZipInfo(path)
        about.compress_type = zipfile.ZIP_DEFLATED if path.endswith(TEXTS) else zipfile.ZIP_STORED
        about.external_attr = (stat.S_IFREG | 0o644) << 16
        with self._zip.open(about, "w", force_zip64=True) as sink:
            return _copy(path, blocks, sink)

    def close(self) -> None:
        """Write the list of members."""
        self._zip.close()


class FolderSink:
    """Into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, path: str, blocks: Iterable[bytes]) -> Entry:
        """Write one file."""
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            return _copy(path, blocks, sink)


def _copy(path: str, blocks: Iterable[bytes], sink: Any) -> Entry:
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        sink.write(block)
        digest.update(block)
        size += len(block)
    return Entry(path, size, digest.hexdigest())


class Source(Protocol):
    """A backup that is being read."""

    name: str

    def open(self, path: str) -> BinaryIO:
        """One file of it.

        Raises:
            InvalidInput: there is none, or none that is read.
        """
        ...

    def size(self, path: str) -> int:
        """Its size in bytes as it lies there. Raises as `open` does."""
        ...


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open a backup for reading.

    Raises:
        InvalidInput: it is none, damaged, or one that would write elsewhere.
    """
    if path.is_dir():
        yield FolderSource(path)
    elif path.is_file():
        document = Document(path, path.name, ".zip", Limits(0, files=MOST_FILES), [])
        with open_zip(document) as (archive, members):
            yield ZipSource(document, archive, dict(members))
    else:
        raise InvalidInput(f"There is no backup {str(path)!r}; check the name.")


class ZipSource:
    """A zip whose members were all looked at."""

    def __init__(self, document: Document, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self.name, self._document, self._archive, self._members = document.file, document, archive, members

    def size(self, path: str) -> int:
        """What the member's header says, which may not be more than so many bytes can hold."""
        member = self._members.get(path)
        if member is None:
            raise self._document.refuse(f"is no whole backup: {path} is missing; {HOW}.")
        if member.file_size > FREE_BYTES and member.file_size > RATIO * max(member.compress_size, 1):
            raise self._document.refuse(f"unpacks {path} to more than {RATIO} times its size, as a zip bomb does; {HOW}.")
        return member.file_size

    def open(self, path: str) -> BinaryIO:
        """One member."""
        self.size(path)
        try:
            return self._archive.open(self._members[path])  # type: ignore[return-value]
        except DAMAGE as error:
            raise self._document.refuse(f"is damaged at {path} ({short(error)}); {HOW}.") from None


class FolderSource:
    """A folder; links in it are not followed."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = folder.name, folder.resolve()

    def size(self, path: str) -> int:
        """Of a plain file."""
        return self._found(path).stat().st_size

    def open(self, path: str) -> BinaryIO:
        """One file."""
        return os.fdopen(os.open(self._found(path), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb")

    def _found(self, path: str) -> Path:
        place = self._folder
        for part in PurePosixPath(path).parts:
            place = place / part
            if place.is_symlink():
                raise InvalidInput(f"The backup {self.name!r} holds a link, {printable(path)!r}; {HOW}.")
        if not place.is_file():
            raise InvalidInput(f"The backup {self.name!r} is not whole: {printable(path)} is missing; {HOW}.")
        return place


def read_manifest(source: Source, schemas: set[str]) -> Manifest:
    """What a backup says of itself, after all of it was checked.

    Args:
        schemas: revisions of the database that can be restored.

    Raises:
        InvalidInput: it is no backup, of a newer studio, or names what no backup holds.
    """
    refuse = _Refusal(source.name)
    if source.size(MANIFEST) > MANIFEST_BYTES:
        raise refuse(f"its {MANIFEST} is far too large")
    with source.open(MANIFEST) as handle:
        try:
            value = json.loads(handle.read(MANIFEST_BYTES + 1))
        except (*DAMAGE, RecursionError):
            raise refuse(f"its {MANIFEST} is damaged") from None
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise refuse(f"its {MANIFEST} is none of the studio's")
    if value["format"] > FORMAT or str(value.get("schema")) not in schemas:
        made = printable(str(value.get("studio", ""))[:40])
        raise InvalidInput(
            f"The backup {source.name!r} was taken by a newer version of the studio ({made}); install that version, then restore it."
        )
    try:
        return _manifest(value, refuse)
    except (KeyError, TypeError, ValueError):
        raise refuse(f"its {MANIFEST} is none of the studio's") from None


class _Refusal:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, why: str) -> InvalidInput:
        return InvalidInput(f"The backup {self._name!r} cannot be restored: {printable(why)}; {HOW}.")


def _manifest(value: dict[str, Any], refuse: _Refusal) -> Manifest:
    files = [Entry(str(one["path"]), int(one["size_bytes"]), str(one["sha256"])) for one in value["files"]]
    seen = set[str]()
    for entry in files:
        if not _is_place(entry.path) or entry.path.casefold() in seen:
            raise refuse(f"it names the file {entry.path[:100]!r}, which no backup holds, or holds twice")
        if entry.size_bytes < 0 or not SHA256.fullmatch(entry.sha256):
            raise refuse(f"it has no size or hash of {entry.path[:100]!r}")
        seen.add(entry.path.casefold())
    if DATABASE not in seen:
        raise refuse("it holds no database")
    bases = [HeldBase(str(b["id"]), str(b["name"]), str(b["source"]), str(b["fingerprint"]), bool(b["included"])) for b in value["bases"]]
    if not all(ID.fullmatch(base.id) for base in bases):
        raise refuse("it names a base by an id that is none of the studio's")
    return Manifest(str(value["studio"]), str(value["schema"]), float(value["made_at"]), bases, files, [str(n) for n in value["notes"]])


def _is_place(path: str) -> bool:
    """Whether it is the database, or lies in a folder of something that the home holds."""
    if path == DATABASE:
        return True
    parts = path.split("/")
    plain = all(PART.fullmatch(part) and not part.startswith(".") for part in parts)
    return plain and len(path) <= LONGEST_PATH and len(parts) > 3 and parts[0] == HOME and parts[1] in KINDS
