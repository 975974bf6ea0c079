"""Frozen quantized linear layers whose weights stay readable.

bitsandbytes repacks the weight of a `Linear4bit` in place at its first eval-mode forward on CPUs with AVX512-BF16.
From then on dequantizing gives garbage and gradients are wrong, with no error. The layers here never call that
forward: they dequantize for each product, in training and evaluation alike, and keep no dense copy between the
forward and the backward pass.

A layer holds its packed numbers as an ordinary frozen parameter and the scales as buffers, so that the weights can be
moved and spread over processes like any other.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenQuantizedLinear(nn.Module):
    """`y = dequantize(W) x + b` with W in NF4, FP4 or int8, differentiable in x alone.

    Args:
        source: a bitsandbytes `Linear4bit` or `Linear8bitLt`. Its numbers are shared, not copied.

    Raises:
        RuntimeError: see `dequantize`.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.in_features, self.out_features = int(source.in_features), int(source.out_features)  # type: ignore[arg-type]
        self.source_cls = getattr(source, "source_cls", None)  # the class that transformers quantized
        held: Any = source.weight
        self.weight = nn.Parameter(held.data, requires_grad=False)  # packed: (d_out · d_in / 2, 1), or (d_out, d_in) of int8
        self.bias = source.bias
        self.scales = _scales(held)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight that the forward pass uses, (d_out, d_in)."""
        return self.scales.dense(self.weight.detach(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., d_in); returns (..., d_out) in x's dtype."""
        y: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)  # type: ignore[operator]


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ that dequantizes again in the backward pass instead of saving a dense W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenQuantizedLinear) -> Tensor:
        ctx.layer = layer  # and not its weight: where a base is spread, that is another tensor by the backward pass
        return F.linear(x, layer.dense(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


class _FourBitScales(nn.Module):
    """What turns packed NF4 or FP4 into numbers: bitsandbytes' quantization state, with its tensors as buffers.

    Args:
        state: a `QuantState`, double-quantized or not.
    """

    PARTS = ("absmax", "code", "offset")
    OUTER_PARTS = ("absmax", "code")  # of the scales' own scales

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.fixed = {name: getattr(state, name) for name in ("shape", "blocksize", "quant_type", "dtype")}
        self.outer = {name: getattr(state.state2, name) for name in ("blocksize", "dtype")} if state.nested else None
        for name in self.PARTS:
            self.register_buffer(name, getattr(state, name), persistent=False)
        for name in self.OUTER_PARTS if state.nested else ():
            self.register_buffer(f"outer_{name}", getattr(state.state2, name), persistent=False)

    def dense(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """(d_out, d_in) of the packed numbers, (d_out · d_in / 2, 1)."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        outer = None
        if self.outer is not None:
            outer = QuantState(**{name: getattr(self, f"outer_{name}") for name in self.OUTER_PARTS}, **self.outer)
        state = QuantState(**{name: getattr(self, name) for name in self.PARTS}, **self.fixed, state2=outer)
        dense: Tensor = dequantize_4bit(packed, state).to(dtype)
        return dense


class _RowScales(nn.Module):
    """What turns int8 into numbers: each row's largest absolute value, (d_out,)."""

    largest: Tensor

    def __init__(self, largest: Tensor) -> None:
        super().__init__()
        self.register_buffer("largest", largest, persistent=False)

    def dense(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """(d_out, d_in) of int8 of that shape."""
        return packed.to(dtype) * (self.largest.to(dtype) / 127.0).unsqueeze(1)


def _scales(weight: Any) -> _FourBitScales | _RowScales:
    if not hasattr(weight, "quant_state"):
        return _RowScales(weight.SCB)
    if getattr(weight.quant_state, "packing_format_for_cpu", False):
        raise RuntimeError("a 4-bit weight was repacked by an eval-mode forward and cannot be read; freeze_quantized comes first")
    return _FourBitScales(weight.quant_state)


def dequantize(weight: Any, dtype: torch.dtype) -> Tensor:
    """The dense weight, (d_out, d_in), of a bitsandbytes `Params4bit` (NF4, FP4) or `Int8Params`.

    Raises:
        RuntimeError: bitsandbytes has repacked the weight for the CPU; what could be read would be garbage.
    """
    return _scales(weight).dense(weight.data, dtype)


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
