"""Going over a dataset slice by slice: how a slice is got, how far it is, and a way to stop in the middle."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from studio.datasets.forms import Conversation

Fetch = Callable[[int, int], list[Conversation]]
"""(offset, limit) → the rows there."""
Progress = Callable[[float, str], None]
"""(share that is done, 0 to 1; what is being done)."""
SLICE_S = 0.1  # what a slice shall take, so that progress and a stop are never long in coming
LARGEST_SLICE = 1024
LARGEST_CHARACTERS = 400_000  # a slice of rows that are suddenly much longer than those before is handed out in parts


def unwatched(_: float, __: str) -> None:
    """Progress that nobody looks at."""


def never() -> bool:
    """Nobody stops it."""
    return False


class Cancelled(Exception):
    """The work was stopped because somebody asked for it; nothing is wrong."""


@dataclass(frozen=True)
class Watch:
    """Where progress goes, and who says that it shall stop. `start` and `end` are this part's share of the whole."""

    progress: Progress = unwatched
    cancelled: Callable[[], bool] = never
    start: float = 0.0
    end: float = 1.0

    def part(self, start: float, end: float) -> "Watch":
        """The same for a part of the work."""
        width = self.end - self.start
        return Watch(self.progress, self.cancelled, self.start + start * width, self.start + end * width)

    def at(self, fraction: float, what: str) -> None:
        """Tell how far this part is.

        Raises:
            Cancelled: it shall stop.
        """
        if self.cancelled():
            raise Cancelled
        self.progress(self.start + fraction * (self.end - self.start), what)


def slices(count: int, fetch: Fetch, watch: Watch, what: str) -> Iterator[tuple[int, list[Conversation]]]:
    """All rows as (index of the first, rows), in slices that take about a tenth of a second each.

    Raises:
        Cancelled: between two slices.
    """
    offset, size = 0, 16
    while offset < count:
        started = time.perf_counter()
        rows = fetch(offset, min(size, count - offset))
        for part in _parts(rows):
            watch.at(offset / count, what)
            yield offset, part
            offset += len(part)
        seconds = max(time.perf_counter() - started, 1e-6)
        size = max(1, min(int(size * min(max(SLICE_S / seconds, 0.25), 2)), LARGEST_SLICE))
    watch.at(1.0, what)


def _parts(rows: list[Conversation]) -> Iterator[list[Conversation]]:
    part: list[Conversation] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += sum(len(turn["content"]) for turn in row)
        if characters >= LARGEST_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
