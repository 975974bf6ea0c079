"""The product of adapted layers that read the same input, as one autograd function.

Q, K and V (and the gate and up projections) multiply the same x. Here they are one product with their stacked
weights, so x is read once, its gradient is one product too, and what quantized weights dequantize to exists only
while it is used. Kept for the backward pass are x, which neighbours share, and the thin x Aᵀ.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from studio.lora.linear import dense_weight


class Adapted(Protocol):
    """What a layer must offer to be part of a `SharedInput`: a frozen base, and `W x + scale · B (A x)`."""

    base: nn.Module
    scale: float

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r), differentiable."""


class SharedInput:
    """Layers whose input is one and the same tensor. The first that is called computes for all.

    Args:
        layers: in the order in which the model calls them.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers: list[Adapted] = list(layers)
        self._input: Tensor | None = None
        self._version = 0
        self._ready: dict[int, Tensor] = {}

    def product(self, layer: Any, x: Tensor) -> Tensor:
        """The output of one of the layers for x, (..., d_in) → (..., d_out)."""
        if self._input is not x or self._version != x._version or id(layer) not in self._ready:
            factors = [factor for member in self.layers for factor in member.factors()]
            outputs = _SharedProduct.apply(x, self.layers, *factors)  # type: ignore[no-untyped-call]
            self._input, self._version = x, x._version
            self._ready = {id(member): y for member, y in zip(self.layers, outputs, strict=True)}
        y = self._ready.pop(id(layer))
        if not self._ready:
            self._input = None
        return y

    def forget(self) -> None:
        """Drop outputs that nobody fetched, as after a forward pass that failed."""
        self._input, self._ready = None, {}


def share_inputs(layers: Sequence[Any], run: Callable[[], Any]) -> list[SharedInput]:
    """Find the layers that read the same tensor, by running the model once, and let each group multiply as one.

    Args:
        layers: adapted layers; each gets a `shared`. run: one forward pass of the model.
    """
    calls: list[tuple[Any, Tensor]] = []  # holds the tensors, so that no two have one identity
    hooks = [la.register_forward_pre_hook(lambda module, args: calls.append((module, args[0]))) for la in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[list[Any]] = []
    last: Tensor | None = None
    for layer, x in calls:
        if x is not last:
            groups.append([])
        groups[-1].append(layer)
        last = x
    once = {id(layer): sum(layer is other for other, _ in calls) == 1 for layer in layers}
    shared = [SharedInput(group) for group in groups if all(once[id(layer)] for layer in group)]
    for group in shared:
        for member in group.layers:
            member.shared = group  # type: ignore[attr-defined]
    return shared


class _SharedProduct(torch.autograd.Function):
    """y_i = x W_iᵀ + b_i + s_i (x A_iᵀ) B_iᵀ for layers i of one x. x is (..., d_in), y_i is (..., d_out_i)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: list[Adapted], *factors: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (T, d_in)
        a, bs = _cast(layers, factors, x.dtype)
        y = flat @ stacked_weight(layers, x.dtype).T  # (T, Σ d_out)
        z = flat @ a.T  # (T, Σ r)
        outputs, at, row = [], 0, 0
        for layer, b in zip(layers, bs, strict=True):
            part = y[:, at : at + b.shape[0]]
            part.addmm_(z[:, row : row + b.shape[1]], b.T)
            if (bias := getattr(layer.base, "bias", None)) is not None:
                part += bias
            outputs.append(part.view(*x.shape[:-1], b.shape[0]))
            at, row = at + b.shape[0], row + b.shape[1]
        ctx.layers = layers
        ctx.save_for_backward(x, z, *factors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, z, *factors = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        a, bs = _cast(ctx.layers, factors, x.dtype)
        g = [grad.reshape(len(flat), b.shape[0]) for grad, b in zip(grads, bs, strict=True)]
        g_low = torch.cat([gi @ b for gi, b in zip(g, bs, strict=True)], dim=1)  # (T, Σ r): s·g B
        g_a = (g_low.T @ flat).split([b.shape[1] for b in bs])
        g_b, row = [], 0
        for layer, gi, b in zip(ctx.layers, g, bs, strict=True):
            g_b.append((z[:, row : row + b.shape[1]].T @ gi).T * layer.scale)
            row += b.shape[1]
        g_x = None
        if ctx.needs_input_grad[0]:
            whole = g[0] if len(g) == 1 else torch.cat(g, dim=1)
            g_x = (whole @ stacked_weight(ctx.layers, x.dtype)).addmm_(g_low, a).view(x.shape)
        pairs = zip(g_a, g_b, factors[::2], factors[1::2], strict=True)
        return g_x, None, *(grad.to(like.dtype) for ga, gb, fa, fb in pairs for grad, like in ((ga, fa), (gb, fb)))


def _cast(layers: list[Adapted], factors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """All A stacked, (Σ r, d_in), and each s·B, (d_out, r), in the dtype of the product."""
    bs = [(factor * layer.scale).to(dtype) for layer, factor in zip(layers, factors[1::2], strict=True)]
    return torch.cat(list(factors[::2])).to(dtype), bs


def stacked_weight(layers: Sequence[Adapted], dtype: torch.dtype) -> Tensor:
    """The dense weights of the layers one below the other, (Σ d_out, d_in)."""
    weights = [dense_weight(layer.base, dtype) for layer in layers]
    return weights[0] if len(weights) == 1 else torch.cat(weights)
