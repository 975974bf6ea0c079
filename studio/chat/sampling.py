"""From the logits of the running rows to the next token of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.errors import InvalidInput

# Dividing by less overflows float32; the likeliest token has all of the probability long before.
GREEDY_BELOW = 1e-6
LIKELIEST = 256  # so many of the likeliest tokens hold nearly every nucleus; sorting a whole vocabulary takes milliseconds
MAX_STOPS, MAX_STOP_LENGTH = 8, 200
BOUNDS = {
    "max_tokens": (1, 32_768),
    "temperature": (0.0, 5.0),
    "top_p": (0.01, 1.0),
    "top_k": (0, 1_000_000),
    "seed": (0, 2**63 - 1),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logprobs": (0, 20),
}


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn.

    Temperature 0 is greedy; `seed` None draws differently each time; `top_k` 0 is no limit. `stop`: texts that end a reply and are
    not part of it. `logprobs`: of how many likeliest tokens to tell the log-probability beside the drawn one's; None tells none.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not (value is None and name in ("seed", "logprobs")) and not low <= value <= high:
                raise InvalidInput(f"The option {name} is {value}; choose one from {low} to {high}.")
        if len(self.stop) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise InvalidInput(f"The option stop may hold {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters.")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of probabilities at temperature 1: of a token, and of the likeliest ones, (token id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def make_generator(seed: int | None) -> torch.Generator:
    """A source of randomness of one request alone, on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    return generator


def next_tokens(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], said: Sequence[Sequence[int]]
) -> list[int]:
    """Draw the next token of each row.

    Args:
        logits: (rows, V), float32, finite. said: the tokens that each row has said, for the penalties.
    """
    penalised = [i for i, s in enumerate(samplings) if (s.presence_penalty or s.frequency_penalty) and said[i]]
    if penalised:
        logits = logits.clone()
        for row in penalised:
            _penalise(logits[row], samplings[row], said[row])
    tokens: list[int] = logits.argmax(dim=1).tolist()
    drawn = [i for i, s in enumerate(samplings) if not s.is_greedy]
    if drawn:
        temperatures = torch.tensor([samplings[i].temperature for i in drawn], device=logits.device).unsqueeze(1)
        p = torch.softmax(logits[drawn] / temperatures, dim=-1).cpu()
        likeliest = p.topk(min(LIKELIEST, p.shape[1]), dim=-1)
        for place, row in enumerate(drawn):
            tokens[row] = _draw(p[place], likeliest.values[place], likeliest.indices[place], samplings[row], generators[row])
    return tokens


def logprobs_of(logits: Tensor, token_id: int, count: int) -> TokenLogprob:
    """Of one row of logits, (V,)."""
    found = torch.log_softmax(logits.float(), dim=-1)
    top = found.topk(count) if count else None
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True) if top else ()
    return TokenLogprob(token_id, float(found[token_id]), tuple(pairs))


def _draw(p: Tensor, values: Tensor, indices: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token of one row, (V,), whose likeliest tokens are known in their order."""
    if sampling.top_p == 1 and not sampling.top_k:
        return int(torch.multinomial(p, 1, generator=generator))
    wanted = min(sampling.top_k or len(p), len(p))
    if wanted > len(values) and (sampling.top_p == 1 or float(values.sum()) < sampling.top_p):  # a flat distribution
        values, indices = p.sort(descending=True)
    values, indices = values[:wanted], indices[:wanted]
    # The nucleus: the likeliest tokens whose sum first reaches top_p (Holtzman et al. 2019, arXiv 1904.09751).
    before = values.cumsum(-1) - values
    kept = torch.where(before < sampling.top_p, values, 0.0)
    return int(indices[torch.multinomial(kept, 1, generator=generator)])


def _penalise(logits: Tensor, sampling: Sampling, said: Sequence[int]) -> None:
    """Lower, in place, what was said already: once for having been said, and for each time."""
    counts = Counter(said)
    ids = torch.tensor(list(counts), device=logits.device)
    times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
    logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
