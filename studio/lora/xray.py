"""What an adapter does to each layer, told from its thin factors: sizes, singular values, and how much of its rank it uses.

B A is never formed: with B = Q R and Aᵀ = Q′ R′, its singular values are those of R R′ᵀ, which is r×r.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.lora.files import AdapterWeights

ENERGY = 0.95  # the share of ‖ΔW‖² that the directions which count carry


@dataclass(frozen=True)
class LayerView:
    """What an adapter does to one layer.

    Attributes:
        norm: ‖s · B A‖, Frobenius. relative: that over ‖W‖. singular: the singular values of s · B A, falling. carries: how many of them
            hold 95 % of the energy ‖s · B A‖²; 0 where it is zero. entropy_rank: e to the entropy of their shares of the energy (after
            Roy and Vetterli 2007): 1 where one direction does all, r where r do the same.
        lengths: of a DoRA, how much the lengths of W's rows were changed, ‖m − ‖W‖ by row‖ over ‖W‖; 0 for others.
    """

    norm: float
    relative: float
    singular: tuple[float, ...]
    carries: int
    entropy_rank: float
    lengths: float = 0.0


@torch.no_grad()
def xray(adapter: AdapterWeights, rows: Mapping[str, Tensor]) -> dict[str, LayerView]:
    """Look at each layer of a LoRA or DoRA, in the order of names. A prefix changes no layer, so there are none.

    Args:
        rows: by layer, the lengths of W's rows, (d_out,); their norm is ‖W‖.
    """
    views = {}
    for name in sorted(adapter.pairs):
        a, b = adapter.pairs[name]
        lengths = rows[name].double()
        singular = abs(adapter.scale) * singular_values(a, b)
        norm, base_norm = float(singular.norm()), float(lengths.norm())
        moved = float((adapter.magnitudes[name].double() - lengths).norm()) if name in adapter.magnitudes else 0.0
        carries, entropy_rank = effective_ranks(singular.tolist())
        views[name] = LayerView(norm, _share(norm, base_norm), tuple(singular.tolist()), carries, entropy_rank, _share(moved, base_norm))
    return views


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of B A, falling, (r,), float64, from A (r, d_in) and B (d_out, r)."""
    core_b = torch.linalg.qr(b.double(), mode="r").R
    core_a = torch.linalg.qr(a.double().T, mode="r").R
    values: Tensor = torch.linalg.svdvals(core_b @ core_a.T)
    return values


def effective_ranks(singular: Sequence[float]) -> tuple[int, float]:
    """(how many of the falling singular values hold 95 % of the energy, the entropy rank); zeros where all of them are."""
    energies = [value * value for value in singular]
    whole = math.fsum(energies)
    if not whole:
        return 0, 0.0
    so_far, carries = 0.0, 0
    while so_far < ENERGY * whole:
        so_far, carries = so_far + energies[carries], carries + 1
    shares = [energy / whole for energy in energies if energy > 0]
    return carries, math.exp(-math.fsum(share * math.log(share) for share in shares))


def reading(views: Mapping[str, LayerView], rank: int) -> str:
    """What the views say about the rank, in plain words."""
    used = [view.carries for view in views.values() if view.carries]
    if not used:
        return "It changes nothing: every B A is zero." if views else "It changes no layer, so there is no picture of one."
    fullest, middle = max(used), round(statistics.median(used))
    carry = f"{middle} of {rank} directions carry {ENERGY:.0%} of the change in the middle layer, {fullest} in the fullest"
    if fullest <= rank // 2:
        return f"Rank {rank} is more than it used: {carry}. Rank {max(1, fullest)} would do."
    if middle >= 0.75 * rank:
        return f"Rank {rank} is used nearly in full: {carry}. A larger rank may learn more."
    return f"Rank {rank} fits: {carry}."


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
