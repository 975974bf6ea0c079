"""zip and gzip: members are unpacked one at a time, under names of ours, and counted while they are read."""

import contextlib
import gzip
import io
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from studio.datasets.reading.documents import Document
from studio.datasets.reading.limits import KIB, MIB, megabytes
from studio.errors import OutOfSpace

CHUNK = 1 << 18
FREE_BYTES = 4 * MIB  # for these no ratio is asked
RATIO = 250  # real text packs to a third or a tenth, rows that are all the same to a hundredth
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, IndexError, KeyError)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Budget:
    """What may still be unpacked, over all files of one upload."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def spend(self, size: int, document: Document) -> None:
        """Count bytes that came out.

        Raises:
            InvalidInput: it is more than everything together may be.
        """
        self.used += size
        if self.used > self.limit:
            raise document.refuse(f"unpacks to more than {megabytes(self.limit)}; split it into parts.")


def unpack(document: Document, endings: tuple[str, ...], budget: Budget) -> Iterator[Document]:
    """The documents in an archive, or the document itself if it is none. Each is there until the next is asked for.

    Raises:
        InvalidInput: the archive is damaged, encrypted, nested, a bomb, or names a path outside itself. OutOfSpace.
    """
    if document.suffix == ".zip":
        yield from _unpack_zip(document, endings, budget)
    elif document.suffix == ".gz":
        with _unpacked_gzip(document, endings, budget) as inner:
            yield inner
    else:
        yield document


@contextlib.contextmanager
def _unpacked_gzip(document: Document, endings: tuple[str, ...], budget: Budget) -> Iterator[Document]:
    suffix = inner_suffix(document.file)
    if suffix in ARCHIVES or suffix not in endings:
        raise document.refuse(f"holds {suffix or 'something without an ending'} inside gzip; give one of {', '.join(endings)} inside it.")
    with (
        document.path.open("rb") as packed,
        gzip.GzipFile(fileobj=packed) as stream,
        _copied(document, stream, packed.tell, budget) as path,
    ):
        yield replace(document, path=path, suffix=suffix)


def inner_suffix(name: str) -> str:
    """The ending of what is inside `name.jsonl.gz`."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


@contextlib.contextmanager
def _copied(
    document: Document, stream: _Readable, packed_bytes: Callable[[], int], budget: Budget, within: Path | None = None
) -> Iterator[Path]:
    """A file with what comes out of a stream; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="studio-", dir=within) as folder:
        path = Path(folder) / "member"
        total = 0
        with path.open("wb", buffering=0) as target:
            while chunk := _next_chunk(document, stream):
                total += len(chunk)
                budget.spend(len(chunk), document)
                if total > FREE_BYTES and total > RATIO * max(packed_bytes(), 1):
                    raise document.refuse(f"unpacks to more than {RATIO} times its size, as a zip bomb does; give it unpacked.")
                _write(target, chunk)
        yield path


def _next_chunk(document: Document, stream: _Readable) -> bytes:
    try:
        return stream.read(CHUNK)
    except DAMAGE as error:
        raise document.refuse(f"is damaged and cannot be unpacked ({short(error)}); pack it again.") from None


def short(error: Exception) -> str:
    """What a library says of damage, without the pages of bytes that it may quote."""
    return brief(str(error) or type(error).__name__)


def brief(text: str) -> str:
    """A text of a stranger's, of any length, as it fits into a sentence."""
    return text if len(text) <= 120 else text[:119] + "…"


def _write(target: io.FileIO, chunk: bytes) -> None:
    try:
        target.write(chunk)
    except OSError as error:
        raise OutOfSpace(f"The archive could not be unpacked: {error.strerror or error}. Free some space and upload it again.") from None


class _TooMany(Exception):
    """The list of an archive's members is longer than so many members need."""


class _Guarded(io.FileIO):
    """A file of which no read may be large: zipfile reads the list of members at once, however long it says it is."""

    def __init__(self, path: Path, largest_read: int) -> None:
        super().__init__(path)
        self._largest_read = largest_read

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._largest_read:
            raise _TooMany
        return super().read(size) or b""


@contextlib.contextmanager
def open_zip(document: Document) -> Iterator[tuple[zipfile.ZipFile, list[tuple[str, zipfile.ZipInfo]]]]:
    """A zip and its files that are not hidden, by their names, after each was looked at; nothing is unpacked yet.

    Raises:
        InvalidInput: it is damaged, encrypted, a bomb of shared bytes, too many files, or names a path outside itself or a link.
    """
    limit = document.limits.files
    with _Guarded(document.path, max(limit * KIB, MIB)) as raw:
        try:
            archive = zipfile.ZipFile(raw)
        except _TooMany:
            raise document.refuse(f"holds more than {limit:,} files; pack fewer of them.") from None
        except DAMAGE as error:
            raise document.refuse(f"is no zip, or a damaged one ({short(error)}); pack it again.") from None
        with archive:
            yield archive, _checked_members(document, archive)


@contextlib.contextmanager
def unpacked(
    document: Document, archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget, folder: Path | None = None
) -> Iterator[Path]:
    """A file with what one member of a zip holds, in a folder or where temporary files lie; it is gone afterwards.

    Raises:
        InvalidInput: it is damaged, a bomb, or more than the budget. OutOfSpace.
    """
    try:
        stream = archive.open(member)
    except DAMAGE as error:
        raise document.refuse(f"is damaged at {brief(member.filename)!r} ({short(error)}); pack it again.") from None
    with stream, _copied(document, stream, lambda: member.compress_size, budget, folder) as path:
        yield path


def _unpack_zip(document: Document, endings: tuple[str, ...], budget: Budget) -> Iterator[Document]:
    skipped = []
    with open_zip(document) as (archive, members):
        for name, member in members:
            suffix = PurePosixPath(name.lower()).suffix
            known = inner_suffix(name) if suffix == ".gz" else suffix
            if known in ARCHIVES:
                raise document.refuse(f"holds another archive, {brief(name)!r}; unpack that one and pack its files instead.")
            if known not in endings:
                skipped.append(name)
                continue
            inner = replace(document, file=f"{document.file}/{name}", suffix=suffix)
            with unpacked(inner, archive, member, budget) as path:
                yield from unpack(replace(inner, path=path), endings, budget)
    if skipped:
        shown = ", ".join(repr(name) for name in skipped[:8]) + (", …" if len(skipped) > 8 else "")
        document.tell(f"holds {len(skipped)} file(s) of other kinds, which were left out: {shown}.")


def _checked_members(document: Document, archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """The files of an archive that are not hidden, after each was looked at."""
    everything = archive.infolist()
    if len(everything) > document.limits.files:
        raise document.refuse(f"holds {len(everything):,} files and the limit is {document.limits.files:,}; pack fewer of them.")
    _check_overlaps(document, archive, everything)
    members = []
    for member in everything:
        name = member.orig_filename.replace("\\", "/")
        parts = name.split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in parts or "\0" in name:
            raise document.refuse(f"holds a file that would lie outside it, {brief(name)!r}; pack the files by plain names.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise document.refuse(f"holds {brief(name)!r}, which is a link or a device; pack the file that it stands for.")
        if member.is_dir() or name.endswith("/") or "__MACOSX" in parts or parts[-1].startswith("."):
            continue
        if member.flag_bits & 1:
            raise document.refuse(f"is encrypted ({brief(name)!r}); pack it again without a password.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise document.refuse(f"packs {brief(name)!r} in a way that is not read here; pack it again with the usual one (deflate).")
        members.append((name, member))
    return members


def _check_overlaps(document: Document, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes: that is how one small file would be unpacked a thousand times."""
    in_order = sorted(members, key=lambda member: member.header_offset)
    ends = [member.header_offset for member in in_order[1:]] + [archive.start_dir]
    for member, end in zip(in_order, ends, strict=False):  # an empty archive has an end and no member
        if member.header_offset + member.compress_size > end:
            raise document.refuse(f"is damaged, or a zip bomb: {brief(member.filename)!r} shares its bytes with others; pack it again.")
