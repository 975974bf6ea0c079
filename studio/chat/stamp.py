"""What is written under a reply: who made it, and how fast. Loads neither torch nor a database."""

from dataclasses import asdict, dataclass
from typing import Any

from storage.records import MessageRecord


@dataclass(frozen=True)
class Stamp:
    """Who made a reply, and how fast. `adapter_sha256` is empty for the base, and of a blend one over all its parts and weights."""

    adapter: str
    adapter_id: str
    adapter_sha256: str
    base: str
    swap_ms: float
    ttft_ms: float
    tokens: int
    tokens_per_s: float
    reason: str
    prompt_tokens: int = 0
    reused_tokens: int = 0


WHO = ("adapter", "adapter_id", "adapter_sha256", "base")  # these have columns of their own


def measured(stamp: Stamp) -> dict[str, Any]:
    """The numbers of a stamp, as a message keeps them."""
    return {key: value for key, value in asdict(stamp).items() if key not in WHO}


def stamp_of(message: MessageRecord) -> Stamp | None:
    """The stamp of a stored reply; None of anything else."""
    if message.role != "assistant":
        return None
    numbers = {"swap_ms": 0.0, "ttft_ms": 0.0, "tokens": 0, "tokens_per_s": 0.0, "reason": "", **message.stamp}
    return Stamp(message.voice, message.adapter_id, message.adapter_sha256, message.base, **numbers)
