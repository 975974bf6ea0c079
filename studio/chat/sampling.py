"""From one row of logits to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from studio.errors import InvalidInput

# Dividing by less overflows float32; the likeliest token has all of the probability long before.
GREEDY_BELOW = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. Temperature 0 is greedy; `seed` None draws differently each time."""

    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        bounds = {"max_tokens": (1, 32_768), "temperature": (0.0, 5.0), "top_p": (0.01, 1.0), "seed": (0, 2**63 - 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not (name == "seed" and value is None) and not low <= value <= high:
                raise InvalidInput(f"The option {name} is {value}; choose one from {low} to {high}.")


def make_generator(seed: int | None) -> torch.Generator:
    """A source of randomness of one request alone, on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    return generator


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw from one row of logits, (V,)."""
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    p = torch.softmax(logits.float().cpu() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        p = _nucleus(p, sampling.top_p)
    return int(torch.multinomial(p, 1, generator=generator))


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens whose sum first reaches top_p (Holtzman et al. 2019, arXiv 1904.09751)."""
    ordered, order = p.sort(descending=True)
    before = ordered.cumsum(-1) - ordered  # what comes before each token
    return torch.zeros_like(p).scatter_(0, order, torch.where(before < top_p, ordered, 0.0))
