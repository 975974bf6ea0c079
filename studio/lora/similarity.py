"""How alike two adapters are, told from their thin factors alone: B A is never formed.

Two answers. The cosine of ΔW asks whether they change the weights in the same way, with ΔW as one long vector over all layers. The overlap
of column spaces asks whether they write into the same directions, whatever they read; it does not see sizes and signs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.lora.files import AdapterWeights

KEPT = 1e-6  # directions below this share of the largest singular value are rounding


@dataclass(frozen=True)
class Alike:
    """How alike two adapters are.

    Attributes:
        cosine: ⟨ΔW, ΔW′⟩ / (‖ΔW‖ ‖ΔW′‖) over all layers, from -1 to 1; a layer that one leaves alone counts as zero. overlap: the mean
            over common layers of Σ cos² θ / min(r, r′) of the principal angles θ between the column spaces of B A (after the Grassmann
            similarity of Hu et al. 2021, arXiv 2106.09685, section 7), from 0 to 1. layers: how many both act on.
    """

    cosine: float
    overlap: float
    layers: int


@torch.no_grad()
def alike(one: AdapterWeights, other: AdapterWeights) -> Alike:
    """Compare two LoRAs of one base; of DoRAs, the B A inside them, without the lengths."""
    common = sorted(one.pairs.keys() & other.pairs.keys())
    inner = math.fsum(_inner(one, other, name) for name in common)
    size = math.sqrt(_square(one)) * math.sqrt(_square(other))
    overlaps = [_overlap(_columns(*one.pairs[name]), _columns(*other.pairs[name])) for name in common]
    overlap = math.fsum(overlaps) / len(overlaps) if overlaps else 0.0
    return Alike(max(-1.0, min(1.0, inner / size)) if size else 0.0, overlap, len(common))


class Directions:
    """What an adapter writes into: an orthonormal basis of the column space of B A for each layer, in float32.

    Args:
        adapter: a LoRA, or a DoRA, whose B A it is.
    """

    @torch.no_grad()
    def __init__(self, adapter: AdapterWeights) -> None:
        self.of_layer = {name: _columns(*pair).float() for name, pair in adapter.pairs.items()}


@torch.no_grad()
def overlaps(many: Sequence[Directions], tell: Callable[[float, str], None]) -> list[list[float]]:
    """The overlap of each two, as `Alike` has it: for orthonormal Q and Q′ the squared cosines sum up to ‖Qᵀ Q′‖², so that one product a
    layer does for all. What has no common layer overlaps by 0.

    Args:
        tell: is told the share of layers that are done, and may raise to stop.
    """
    layers = list(dict.fromkeys(name for one in many for name in one.of_layer))
    sums, common = torch.zeros(len(many), len(many)), torch.zeros(len(many), len(many))
    for done, layer in enumerate(layers, 1):
        places = [i for i, one in enumerate(many) if layer in one.of_layer]
        columns = [many[i].of_layer[layer] for i in places]  # (d_out, r_i) each
        ranks = torch.tensor([found.shape[1] for found in columns])
        side = torch.cat(columns, dim=1)  # (d_out, Σ r_i)
        owner = torch.repeat_interleave(torch.arange(len(places)), ranks)
        squares = (side.T @ side).square()
        blocks = torch.zeros(len(places), squares.shape[1]).index_add_(0, owner, squares)
        found = torch.zeros(len(places), len(places)).index_add_(1, owner, blocks)
        found /= torch.minimum(ranks[:, None], ranks[None, :]).clamp(min=1)
        at = torch.tensor(places)
        sums[at[:, None], at[None, :]] += found
        common[at[:, None], at[None, :]] += 1
        tell(done / len(layers), f"comparing {layer}")
    return [[float(value) for value in row] for row in (sums / common.clamp(min=1)).clamp(0, 1)]


def principal_cosines(one: Tensor, other: Tensor) -> Tensor:
    """The cosines of the principal angles between the spans of two orthonormal bases, (d, r) and (d, r′); falling."""
    cosines: Tensor = torch.linalg.svdvals(one.T @ other).clamp(0, 1)
    return cosines


def _inner(one: AdapterWeights, other: AdapterWeights, name: str) -> float:
    """⟨s B A, s′ B′ A′⟩ = s s′ ⟨Bᵀ B′, A A′ᵀ⟩, of r×r′ matrices."""
    (a, b), (a2, b2) = one.pairs[name], other.pairs[name]
    inner = ((b.double().T @ b2.double()) * (a.double() @ a2.double().T)).sum()
    return one.scale * other.scale * float(inner)


def _square(adapter: AdapterWeights) -> float:
    return math.fsum(max(0.0, _inner(adapter, adapter, name)) for name in adapter.pairs)


def _columns(a: Tensor, b: Tensor) -> Tensor:
    """An orthonormal basis of the column space of B A, (d_out, at most r)."""
    left, core_b = torch.linalg.qr(b.double())
    core_a = torch.linalg.qr(a.double().T, mode="r").R
    u, s, _ = torch.linalg.svd(core_b @ core_a.T)
    kept = int((s > KEPT * s[0]).sum()) if s.numel() and float(s[0]) > 0 else 0
    columns: Tensor = left @ u[:, :kept]
    return columns


def _overlap(one: Tensor, other: Tensor) -> float:
    fewer = min(one.shape[1], other.shape[1])
    return float(principal_cosines(one, other).square().sum()) / fewer if fewer else 0.0
