"""Who is answered next: those of whom the fewest are being answered, by user and then by voice, and among them who came first."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Asking(Protocol):
    """What fairness looks at: who asks, whom, and since when."""

    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def voice_key(self) -> str: ...  # noqa: D102
    @property
    def submitted(self) -> float: ...  # noqa: D102


A = TypeVar("A", bound=Asking)


def in_turn(waiting: Iterable[A], answered: Iterable[Asking]) -> Iterator[A]:
    """The waiting ones in the order in which they are let in.

    A user counts before a voice: one who asks many things at once gives way to one who asks a single thing, whatever adapters they
    ask. Each one that is let in counts for those behind it.
    """
    answering, left = list(answered), list(waiting)
    users, voices = Counter(one.user for one in answering), Counter(one.voice_key for one in answering)
    while left:
        best = min(left, key=lambda one: (users[one.user], voices[one.voice_key], one.submitted))
        left.remove(best)
        users[best.user] += 1
        voices[best.voice_key] += 1
        yield best
