"""The layers that are trained: LoRA and DoRA. The layer that serves many adapters at once is in `serving`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.lora.linear import dense_weight
from studio.lora.starts import Start


class LoraLinear(nn.Module):
    """`y = W x + s · B (A x)` around a frozen linear layer.

    A and B are float32 and are cast to x's dtype for the product. Dropout acts on x before A, as in PEFT.

    Args:
        base: a linear layer that maps (..., d_in) to (..., d_out). start: A and B at the start. scale: s.
        dropout: probability in [0, 1).

    `shared` may hold an object whose `product(layer, x)` computes the same for a group of layers at once; it is asked
    wherever no dropout is due.
    """

    def __init__(self, base: nn.Module, start: Start, scale: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        self.shared: Any = None
        device = next(base.parameters()).device
        self.lora_A, self.lora_B = nn.Parameter(start.a.to(device)), nn.Parameter(start.b.to(device))
        _keep_removed(self, start, device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) of `y = W x + s · B (A x)`, float32, differentiable; of 2r where a start is removed."""
        return _factors(self)

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., d_in); returns (..., d_out)."""
        if self.shared is not None and not (self.training and self.dropout):
            shared: Tensor = self.shared.product(self, x)
            return shared
        y: Tensor = self.base(x)
        a, b = self.factors()
        x = F.dropout(x, self.dropout, self.training)
        low = self.scale * F.linear(x, a.to(x.dtype))  # (..., r): the scale is cheapest where the tensor is thin
        return y + F.linear(low, b.to(x.dtype))


class DoraLinear(nn.Module):
    """`y = m / ‖W + s·B A‖ ∘ (W + s·B A) x + bias`, with a learned length m for each row of W.

    The norms are of rows, (d_out,), and count as constants for the gradient, as in section 4.3 of Liu et al. 2024,
    arXiv 2402.09353, and in PEFT. m starts at the norms, so that it changes nothing at the start. Under dropout, PEFT's
    rule: the row lengths act on W of the dropped x.

    Args:
        base, start, scale, dropout: as of `LoraLinear`. The base must be readable: see `FrozenQuantizedLinear`.
    """

    squares: Tensor

    def __init__(self, base: nn.Module, start: Start, scale: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        device = next(base.parameters()).device
        self.lora_A, self.lora_B = nn.Parameter(start.a.to(device)), nn.Parameter(start.b.to(device))
        _keep_removed(self, start, device)
        self.register_buffer("squares", dense_weight(base).square().sum(dim=1), persistent=False)  # ‖W‖² by row, (d_out,)
        self.magnitude = nn.Parameter(self.row_norms())

    def factors(self) -> tuple[Tensor, Tensor]:
        """As of `LoraLinear`."""
        return _factors(self)

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """‖W + s·B A‖ by row, (d_out,), float32, without forming B A.

        ‖w + s·bA‖² = ‖w‖² + 2s ⟨wAᵀ, b⟩ + s² ⟨b(AAᵀ), b⟩ for each row w of W and b of B.
        """
        a, b = self.factors()
        cross = ((dense_weight(self.base) @ a.T) * b).sum(dim=1)
        own = ((b @ (a @ a.T)) * b).sum(dim=1)
        squares: Tensor = self.squares + 2 * self.scale * cross + self.scale**2 * own
        return squares.clamp_min(torch.finfo(torch.float32).tiny).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., d_in); returns (..., d_out)."""
        y: Tensor = self.base(x)
        plain = self._without_bias(y)  # W x
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
            plain = self._without_bias(self.base(x))
        a, b = self.factors()
        gain = self.magnitude / self.row_norms()
        low = self.scale * F.linear(x, a.to(x.dtype))  # (..., r)
        # The gain is near 1, where bf16 has steps of 0.8 %, so only gain − 1 is cast.
        return y + (gain - 1).to(y.dtype) * plain + F.linear(low, (gain.unsqueeze(1) * b).to(x.dtype))

    def _without_bias(self, y: Tensor) -> Tensor:
        bias = getattr(self.base, "bias", None)
        return y if bias is None else y - bias.to(y.dtype)


def _keep_removed(layer: nn.Module, start: Start, device: torch.device) -> None:
    """Keep a start that is to be taken away, where the layer moves with it; None where none is."""
    for name, tensor in (("start_A", start.a), ("start_B", start.b)):
        layer.register_buffer(name, tensor.to(device, copy=True) if start.removed else None, persistent=False)


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    """B A − B₀A₀ = (B − B₀) A + B₀ (A − A₀), as one pair of rank 2r.

    B A and B₀A₀ are each as large as W, and the difference of their roundings would drown what was learned. In this form
    the differences are taken in float32, and at the start the product is zero to the bit.
    """
    a, b = layer.lora_A, layer.lora_B
    if layer.start_A is None:
        return a, b
    return torch.cat((a, a - layer.start_A)), torch.cat((b - layer.start_B, layer.start_B), dim=1)
