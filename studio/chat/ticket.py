"""A request on its way through the engine, and what it measured."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from studio.chat.bank import BASE, Voice
from studio.chat.host import Loaded
from studio.chat.sampling import Sampling, TokenLogprob
from studio.errors import ContextTooLong, StudioError

log = logging.getLogger(__name__)
CLOSED = "The chat was closed while the request waited; send it again."


@dataclass(frozen=True)
class Finished:
    """What a request measured. Times are milliseconds; `reason` is stop, length or cancelled.

    `swap_ms` is what its adapters cost it: reading those that were not in memory, and installing those that had no slot.
    `reused_tokens` of the prompt were known from an earlier turn.
    """

    tokens: int
    prompt_tokens: int
    reused_tokens: int
    reason: str
    swap_ms: float
    ttft_ms: float
    tokens_per_s: float


class Piece(NamedTuple):
    """A piece of text, how many tokens the reply has by then, and how many log-probabilities are told by then."""

    text: str
    tokens: int
    told: int


@dataclass(eq=False)
class Ticket:
    """A request on its way. Iterate for pieces of text; `finished` is there at the end.

    Args:
        voice: who speaks. user: for fairness among many. wants_distribution: keep the first token's log-probabilities, (V,).
    """

    token_ids: list[int]
    sampling: Sampling
    voice: Voice = BASE
    user: str = ""
    wants_distribution: bool = False
    finished: Finished | None = None
    distribution: Tensor | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of each token of the text, where they are wished
    token_count: int = 0  # of the reply, so far
    submitted: float = field(default_factory=time.perf_counter)
    reading: "list[Future[Loaded]]" = field(default_factory=list)  # its adapters that were not in memory when it came
    _pieces: "queue.SimpleQueue[Piece | Exception | None]" = field(default_factory=queue.SimpleQueue)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _wake: Callable[[], None] = lambda: None
    _heard: Callable[[], None] = lambda: None
    _over: "Future[None]" = field(default_factory=Future)

    @property
    def voice_key(self) -> str:
        """See `Voice.key`."""
        return self.voice.key

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the rest."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop at the next step; what was said so far stands."""
        self._cancelled.set()
        if self.finished is None:  # else nobody needs to know, and whoever asks at once whether the engine is busy hears no
            self._wake()

    def pieces(self) -> Iterator[Piece]:
        """What is said, as it comes.

        Raises:
            StudioError: the request failed; in words for the user.
        """
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def listen(self, heard: Callable[[], None]) -> None:
        """Be called whenever something may have come for `ready`; once now, later from the engine's thread."""
        self._heard = heard
        heard()

    def when_over(self, call: "Callable[[Ticket], None]") -> None:
        """Be called once when nothing more comes, from the engine's thread, or now where it has come to that."""
        self._over.add_done_callback(lambda _: call(self))

    def ready(self) -> Iterator[Piece | None]:
        """What has come, without waiting, as `pieces` gives it; None is the end.

        Raises:
            StudioError: the request failed; in words for the user.
        """
        while not self._pieces.empty():
            piece = self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self.pieces() if piece.text)

    def text(self) -> str:
        """Wait for the whole reply."""
        return "".join(self)

    def say(self, text: str) -> None:
        """From the engine: a piece of text."""
        self._pieces.put(Piece(text, self.token_count, len(self.logprobs)))
        self._heard()

    def end(self, error: Exception | None = None) -> None:
        """From the engine: nothing more comes."""
        self._pieces.put(error)
        self._heard()
        if not self._over.done():
            self._over.set_result(None)

    def fail(self, error: BaseException) -> None:
        """From the engine: it broke off. What is no sentence for people is logged, and told as one."""
        if not isinstance(error, StudioError):
            log.error("A chat request failed.", exc_info=error)
            error = StudioError(f"The reply stopped on an error of the studio itself ({type(error).__name__}); send it again.")
        self.end(error)


def check_length(token_ids: list[int], sampling: Sampling, context: int) -> None:
    """Make sure that a prompt and its reply fit.

    Raises:
        ContextTooLong: they do not.
    """
    if len(token_ids) + sampling.max_tokens > context:
        raise ContextTooLong(
            f"The conversation has {len(token_ids)} tokens and the reply may have {sampling.max_tokens}, but this base's "
            f"context is {context}; start a new conversation or lower the length."
        )
