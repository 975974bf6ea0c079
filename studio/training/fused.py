"""Parts of a decoder layer whose backward pass needs less than autograd keeps: RMSNorm and the gated SiLU.

Each stands in for a module of the model only where it gives the same numbers for a random input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.lora.frozen import replace_module


class FusedRMSNorm(nn.Module):
    """y = w · x / √(mean(x²) + ε), computed in float32 and rounded before w as Llama does (Zhang & Sennrich 2019, arXiv 1910.07467).

    Args:
        weight: (H,), frozen. eps: ε.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., H); returns the same shape and dtype."""
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return y


class _RMSNorm(torch.autograd.Function):
    """Keeps x, which the residual stream keeps anyway, and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        rstd = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, rstd)
        return weight * (wide * rstd).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, rstd = ctx.saved_tensors
        normed = _wide(x) * rstd
        g = _wide(grads[0] * weight)
        g = g.sub_(normed.mul_((g * normed).mean(-1, keepdim=True))).mul_(rstd)
        return g.to(x.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class GatedMlp(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202), keeping gate and up alone.

    Args:
        source: a module with gate_proj, up_proj and down_proj, which become this one's.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = source.gate_proj, source.up_proj, source.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., H); returns the same shape."""
        y: Tensor = self.down_proj(_GatedSilu.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-untyped-call]
        return y


class _GatedSilu(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), F.silu(gate).mul_(grads[0])


@torch.no_grad()
def fuse(model: nn.Module) -> int:
    """Replace what can be replaced; returns how many modules that were. The names of layers stay as they are."""
    replaced = 0
    for name, module in list(model.named_modules()):
        new = _fused(module)
        if new is not None and _agree(module, new):
            replace_module(model, name, new)
            replaced += 1
    return replaced


def is_fused(model: nn.Module) -> bool:
    """Whether `fuse` would take the norms and the gates of this model over, as far as names tell."""
    return any(_fused(module) is not None for module in model.modules())


def _fused(module: nn.Module) -> nn.Module | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if type(module).__name__.endswith("RMSNorm") and isinstance(eps, float) and isinstance(module.weight, nn.Parameter):
        return FusedRMSNorm(module.weight, eps)
    silu = "SiLU" in type(getattr(module, "act_fn", None)).__name__
    if silu and all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
        return GatedMlp(module)
    return None


def _agree(old: nn.Module, new: nn.Module) -> bool:
    """Whether both give the same for the same random input."""
    weight = new.weight if isinstance(new, FusedRMSNorm) else None
    width = weight.shape[0] if weight is not None else int(old.gate_proj.in_features)  # type: ignore[union-attr, arg-type]
    like = weight if weight is not None else next(p for p in old.parameters())
    dtype = like.dtype if like.dtype.is_floating_point else torch.bfloat16
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(like.device, dtype)
    try:
        return torch.allclose(old(x), new(x), rtol=1e-5 if dtype in (torch.float32, torch.float64) else 1e-2, atol=1e-5)
    except (RuntimeError, TypeError):  # it wants other arguments: not what its name says
        return False
