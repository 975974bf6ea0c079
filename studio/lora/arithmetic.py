"""Arithmetic of LoRA adapters: exact sums, smaller ranks with their error, and merges by TIES and DARE.

An adapter adds s · B A to each layer's W. All results are float32 with scale 1: what an adapter weighs is inside B.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from studio.lora.files import AdapterWeights

Pair = tuple[Tensor, Tensor]
Tell = Callable[[float, str], None]
Merge = Callable[[list[Tensor], list[float]], Tensor]


@dataclass(frozen=True)
class Term:
    """One adapter of a sum, with its weight."""

    adapter: AdapterWeights
    weight: float


@dataclass(frozen=True)
class Reduced:
    """An adapter of a smaller rank. `error` is ‖ΔW − ΔW′‖ / ‖ΔW‖, Frobenius norms over all layers together; 0 where ΔW is 0."""

    adapter: AdapterWeights
    error: float


@torch.no_grad()
def add(terms: Sequence[Term]) -> AdapterWeights:
    """The exact weighted sum, as one adapter whose rank is the sum of theirs: B A = Σ w s B A, with [A; A′] and [w s B, w′ s′ B′].

    A layer that some adapters leave alone has zeros in their place.
    """
    rank = sum(term.adapter.rank for term in terms)
    pairs = {}
    for name in _layers(terms):
        parts = [(term, *term.adapter.pairs[name]) for term in terms if name in term.adapter.pairs]
        a = torch.cat([a.float() for _, a, _ in parts])
        b = torch.cat([term.weight * term.adapter.scale * b.float() for term, _, b in parts], dim=1)
        pairs[name] = _padded((a, b), rank)
    return AdapterWeights(rank, float(rank), False, pairs, fan_in_fan_out=any(term.adapter.fan_in_fan_out for term in terms))


@torch.no_grad()
def reduce_rank(adapter: AdapterWeights, rank: int, tell: Tell = lambda _share, _what: None) -> Reduced:
    """The nearest adapter of a smaller rank (Eckart and Young 1936), from thin factors alone: B A is never formed.

    With B = Q R and Aᵀ = Q′ R′, the singular values of B A are those of R R′ᵀ, which is r×r.
    """
    pairs, lost, whole = {}, 0.0, 0.0
    for done, (name, (a, b)) in enumerate(adapter.pairs.items()):
        tell(done / len(adapter.pairs), f"reducing {name}")
        left, core_b = torch.linalg.qr(adapter.scale * b.double())  # (d_out, r), (r, r)
        right, core_a = torch.linalg.qr(a.double().T)  # (d_in, r), (r, r)
        u, s, vh = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)
        pairs[name] = _padded(_factors(left @ u, s, vh @ right.T, rank), rank)
        lost, whole = lost + float(s[rank:].square().sum()), whole + float(s.square().sum())
    return Reduced(replace(adapter, rank=rank, alpha=float(rank), rslora=False, pairs=pairs), _share(lost, whole))


@torch.no_grad()
def merge(terms: Sequence[Term], rule: Merge, rank: int, tell: Tell = lambda _share, _what: None) -> Reduced:
    """Merge by a rule on ΔW, one layer's at a time, and take the nearest adapter of a rank.

    Args:
        rule: makes one (d_out, d_in) of those of the adapters that have the layer, and their weights; see `ties` and `Dare`.
        tell: is told the share of layers that are done, and may raise to stop.
    """
    pairs, lost, whole = {}, 0.0, 0.0
    layers = _layers(terms)
    for done, name in enumerate(layers):
        tell(done / len(layers), f"merging {name}")
        having = [term for term in terms if name in term.adapter.pairs]
        deltas = [term.adapter.scale * (b.float() @ a.float()) for term in having for a, b in (term.adapter.pairs[name],)]
        u, s, vh = torch.linalg.svd(rule(deltas, [term.weight for term in having]), full_matrices=False)
        pairs[name] = _padded(_factors(u, s, vh, rank), rank)
        lost, whole = lost + float(s[rank:].double().square().sum()), whole + float(s.double().square().sum())
    turned = any(term.adapter.fan_in_fan_out for term in terms)
    return Reduced(AdapterWeights(rank, float(rank), False, pairs, fan_in_fan_out=turned), _share(lost, whole))


def ties(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): keep the largest, elect a sign for each number, average what agrees with it.

    The weights act after the election, as in PEFT.

    Args:
        deltas: (d_out, d_in) each. density: the share of numbers that is kept of each.
    """
    trimmed = torch.stack([_largest(delta, density) for delta in deltas])  # (n, d_out, d_in)
    elected = torch.where(trimmed.sum(dim=0) >= 0, 1.0, -1.0)
    agrees = trimmed.sign() == elected
    weighted = trimmed * torch.tensor(weights).view(-1, 1, 1)
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp_min(1)


class Dare:
    """DARE (Yu et al. 2023, arXiv 2311.03099): keep numbers by chance, and make up for the others; then the weighted sum.

    Args:
        density: the share that is kept. seed: of what is drawn, layer by layer in the order of their names.
    """

    def __init__(self, density: float, seed: int) -> None:
        self.density, self._generator = density, torch.Generator().manual_seed(seed)

    def __call__(self, deltas: list[Tensor], weights: list[float]) -> Tensor:
        """One (d_out, d_in) of several."""
        total = torch.zeros_like(deltas[0])
        for delta, weight in zip(deltas, weights, strict=True):
            kept = torch.bernoulli(torch.full_like(delta, self.density), generator=self._generator)
            total += weight * delta * kept / self.density
        return total


def _layers(terms: Sequence[Term]) -> list[str]:
    return sorted({name for term in terms for name in term.adapter.pairs})


def _largest(delta: Tensor, density: float) -> Tensor:
    """The given share of the numbers that are largest in size; zeros for the others."""
    flat = delta.reshape(-1)
    kept = torch.zeros_like(flat)
    indices = flat.abs().topk(int(density * flat.numel())).indices
    kept[indices] = flat[indices]
    return kept.view_as(delta)


def _factors(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Pair:
    """(A, B) of the largest singular values, each of which is shared by both."""
    root = s[:rank].sqrt()
    return (root.unsqueeze(1) * vh[:rank]).float(), (u[:, :rank] * root).float()


def _padded(pair: Pair, rank: int) -> Pair:
    """Zeros up to a rank, which change no product."""
    a, b = pair
    missing = rank - a.shape[0]
    return (a, b) if not missing else (torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing)))


def _share(lost: float, whole: float) -> float:
    return math.sqrt(max(lost, 0.0) / whole) if whole else 0.0
