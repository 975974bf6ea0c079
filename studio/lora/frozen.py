"""Frozen quantized linear layers whose weights stay readable.

bitsandbytes repacks the weight of a `Linear4bit` in place at its first eval-mode forward on CPUs with AVX512-BF16.
From then on dequantizing gives garbage and gradients are wrong, with no error. The layers here never call that
forward: they dequantize for each product, in training and evaluation alike, and keep no dense copy between the
forward and the backward pass.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenQuantizedLinear(nn.Module):
    """`y = dequantize(W) x + b` with W in NF4, FP4 or int8, differentiable in x alone.

    Args:
        source: a bitsandbytes `Linear4bit` or `Linear8bitLt`. Its parameters are shared, not copied.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.in_features, self.out_features = int(source.in_features), int(source.out_features)  # type: ignore[arg-type]
        self.source_cls = getattr(source, "source_cls", None)  # the class that transformers quantized
        self.weight = source.weight
        self.bias = source.bias

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight that the forward pass uses, (d_out, d_in)."""
        return dequantize(self.weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., d_in); returns (..., d_out) in x's dtype."""
        y: Tensor = _FrozenProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)  # type: ignore[operator]


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ that dequantizes again in the backward pass instead of saving a dense W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any) -> Tensor:
        ctx.weight = weight
        return F.linear(x, dequantize(weight, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ dequantize(ctx.weight, grads[0].dtype), None


def dequantize(weight: Any, dtype: torch.dtype) -> Tensor:
    """The dense weight, (d_out, d_in), of a bitsandbytes `Params4bit` (NF4, FP4) or `Int8Params`.

    Raises:
        RuntimeError: bitsandbytes has repacked the weight for the CPU; what could be read would be garbage.
    """
    if hasattr(weight, "quant_state"):
        import bitsandbytes.functional as bnb

        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise RuntimeError("a 4-bit weight was repacked by an eval-mode forward and cannot be read; freeze_quantized comes first")
        dense: Tensor = bnb.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    else:  # int8 by row: SCB holds each row's largest absolute value
        dense = weight.data.to(dtype) * (weight.SCB.to(dtype) / 127.0).unsqueeze(1)
    return dense


def is_quantized(module: nn.Module) -> bool:
    """Whether this is one of bitsandbytes' linear layers."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt") and type(module).__module__.startswith("bitsandbytes")


def freeze_quantized(model: nn.Module, kinds: tuple[str, ...] = ("Linear4bit", "Linear8bitLt")) -> int:
    """Replace every quantized layer of these kinds by a `FrozenQuantizedLinear`; returns how many there were."""
    found = [(name, m) for name, m in model.named_modules() if is_quantized(m) and type(m).__name__ in kinds]
    for name, module in found:
        replace_module(model, name, FrozenQuantizedLinear(module))
    return len(found)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the submodule `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
