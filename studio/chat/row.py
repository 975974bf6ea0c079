"""A request that has its slots: its prompt is being computed, or it runs in the batch."""

from dataclasses import dataclass, field

import torch

from studio.chat.bank import Lease
from studio.chat.kv import KvBatch
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
