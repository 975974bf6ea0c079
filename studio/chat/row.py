"""A request that has its slots: its prompt is being computed, or it runs in the batch."""

from dataclasses import dataclass, field

import torch

from studio.chat.bank import Lease
from studio.chat.kv import KvBatch
from studio.chat.sampling import TokenLogprob
from studio.chat.speech import Speech
from studio.chat.ticket import Ticket


@dataclass(eq=False)
class Row:
    """A request that has slots."""

    ticket: Ticket
    lease: Lease
    swap_ms: float
    generator: torch.Generator
    speech: Speech
    kv: KvBatch | None = None  # until it joins the batch
    computed: int = 0  # tokens of the prompt
    reused: int = 0
    started: float = 0.0
    ttft_ms: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    untold: list[tuple[int, TokenLogprob]] = field(default_factory=list)  # with where the text of each begins

    def tell(self, is_over: bool = False) -> bool:
        """Give away the log-probabilities of the tokens whose text was given away; whether there were any.

        A token of a stop text alone is told to nobody, as its text is not; one that holds both is.

        Args:
            is_over: the reply ended by itself, so that all that is left belongs to it.
        """
        count = len(self.untold) if is_over else sum(at < self.speech.told for at, _ in self.untold)
        self.ticket.logprobs += [logprob for _, logprob in self.untold[:count]]
        del self.untold[:count]
        return bool(count)

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not computed yet."""
        return len(self.ticket.token_ids) - self.computed

    @property
    def user(self) -> str:
        """For fairness, as the next two."""
        return self.ticket.user

    @property
    def voice_key(self) -> str:
        """See `Voice.key`."""
        return self.ticket.voice_key

    @property
    def submitted(self) -> float:
        """When it came."""
        return self.ticket.submitted
