"""Merging: one dense weight that computes what a frozen weight and an adapter beside it compute.

W′ = W + s · B A, and for a DoRA m / ‖W + s · B A‖ ∘ (W + s · B A), on a dense copy of W. Nothing is ever merged into quantized
numbers: what an adapter learned is smaller than their steps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from studio.lora.files import AdapterWeights
from studio.lora.frozen import dequantize

FOUR_BIT = ("nf4", "fp4")
QUANTIZED = (*FOUR_BIT, "int8")


@torch.no_grad()
def merged_weight(weight: Tensor, adapter: AdapterWeights, layer: str) -> Tensor:
    """The weight of a layer with the adapter inside, float32.

    Args:
        weight: W, (d_out, d_in). layer: its dotted name; one that the adapter leaves alone stays as it is.
    """
    weight = weight.float()
    if layer not in adapter.pairs:
        return weight
    a, b = adapter.pairs[layer]
    merged = torch.addmm(weight, b.float(), a.float(), alpha=adapter.scale)
    if adapter.kind == "dora":
        merged *= (adapter.magnitudes[layer].float() / merged.norm(dim=1)).unsqueeze(1)
    return merged


@torch.no_grad()
def through_quantization(weight: Tensor, form: str) -> Tensor:
    """The weight as a base that is held in this form computes with it: quantized, and read again.

    Args:
        weight: (d_out, d_in) as the files hold it. form: nf4 or fp4 with double quantization, int8 by row; others change nothing.
    """
    if form not in QUANTIZED:
        return weight
    from bitsandbytes.nn import Int8Params, Params4bit

    weight = weight.to(torch.bfloat16).contiguous()  # as bases are loaded
    held: Any
    if form == "int8":
        held = Int8Params(weight.to(torch.float16), requires_grad=False, has_fp16_weights=False).to("cpu")
    else:
        held = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type=form).to("cpu")
    return dequantize(held, torch.float32)


def rows_by_halves(heads: int) -> Callable[[Tensor], Tensor]:
    """The order of rows in which llama.cpp holds q and k of LLaMA: it turns pairs of neighbours where transformers turns halves.

    Args (of what is returned):
        rows: (d_out, …), `heads` heads below each other: a weight, a bias, or the B of an adapter.
    """

    def turned(rows: Tensor) -> Tensor:
        return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    return turned
