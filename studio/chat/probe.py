"""Is it really on? What a voice does to the next word, compared with the base."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

SHOWN = 5  # tokens that gain most, and that lose most
LEAST = 0.0005  # of the probability; what moves less is not told


@dataclass(frozen=True)
class Moved:
    """A token and its probability without and with the voice."""

    text: str
    before: float
    after: float


@dataclass(frozen=True)
class Probe:
    """What a voice moves of the next token's probability.

    total_variation: half the sum of the differences, from 0 to 1: the share of the probability that lies on other tokens.
    kl_nats: the Kullback-Leibler divergence of the voice's distribution from the base's.
    """

    voice: str
    sha256: str
    total_variation: float
    kl_nats: float
    gained: tuple[Moved, ...]
    lost: tuple[Moved, ...]


def compare(base: Tensor, voice: Tensor, decode: Callable[[int], str]) -> tuple[float, float, tuple[Moved, ...], tuple[Moved, ...]]:
    """Total variation, KL in nats, and the tokens that gain and that lose most.

    Args:
        base, voice: log-probabilities of the next token, (V,), float32.
    """
    p, q = base.double().exp(), voice.double().exp()
    difference = q - p
    variation = float(difference.abs().sum() / 2)
    divergence = float((q * (voice.double() - base.double())).nan_to_num(0.0).sum())

    def most(sign: float) -> tuple[Moved, ...]:
        found = (sign * difference).topk(min(SHOWN, len(p)))
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return tuple(Moved(decode(token), float(p[token]), float(q[token])) for token, moved in pairs if moved >= LEAST)

    return min(variation, 1.0), max(divergence, 0.0), most(1.0), most(-1.0)
