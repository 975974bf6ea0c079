"""The log of a job: its end, or the lines of it in which some words stand. Nothing here holds a whole log in memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 400
TAIL_BYTES = 512 * 1024
LONGEST_LINE = 2000  # characters; a progress bar that was never ended must not fill the page


@dataclass(frozen=True)
class LogTail:
    """The last lines of a log, or of those that match.

    Attributes:
        lines: at most as many as were asked for. whole: whether these are all. matches: how many lines match; None where
            nothing was searched for. size_bytes: of the whole log.
    """

    lines: list[str]
    whole: bool
    matches: int | None
    size_bytes: int


def size_of(paths: Sequence[Path]) -> int:
    """Bytes of a log in several files."""
    return sum(path.stat().st_size for path in paths if path.exists())


def tail(paths: Sequence[Path], search: str = "", most: int = TAIL_LINES) -> LogTail:
    """The end of a log in several files.

    Args:
        paths: oldest first; missing ones are empty. search: keep only lines in which this stands, in capitals or not.
        most: lines.
    """
    wanted, size = search.strip().casefold(), size_of(paths)
    if not wanted:
        lines, whole = _last_lines(paths, most)
        return LogTail(lines, whole, None, size)
    matches, kept = 0, deque[str](maxlen=most)
    for line in _lines(paths):
        if wanted in line.casefold():
            matches += 1
            kept.append(line)
    return LogTail(list(kept), matches <= most, matches, size)


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as handle:
                for line in handle:
                    yield line.rstrip("\n")[:LONGEST_LINE]


def _last_lines(paths: Sequence[Path], most: int) -> tuple[list[str], bool]:
    """The last lines, and whether there are no others."""
    found: list[str] = []
    left = TAIL_BYTES
    for path in reversed(paths):
        if not path.exists():
            continue
        size = path.stat().st_size
        with path.open("rb") as handle:
            handle.seek(max(0, size - left))
            lines = handle.read(left).decode("utf-8", errors="replace").splitlines()
        found = [line[:LONGEST_LINE] for line in lines] + found
        if size > left or len(found) > most:
            return found[-most:], False
        left -= size
    return found[-most:], True
