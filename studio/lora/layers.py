"""The LoRA layer that is trained. The layer that serves many adapters at once is in `serving`."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Init = Literal["kaiming", "gaussian"]


class LoraLinear(nn.Module):
    """`y = W x + s · B (A x)` around a frozen linear layer.

    A and B are float32 and are cast to x's dtype for the product; B starts at zero, so that training begins
    exactly at the base. Dropout acts on x before A, as in PEFT.

    Args:
        base: anything with in_features and out_features that maps (..., d_in) to (..., d_out).
        rank: r. scale: s. dropout: probability in [0, 1). init: distribution of A. generator: source of A.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, init: Init, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        device = next(base.parameters()).device
        d_in, d_out = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.lora_A = nn.Parameter(initial_a(rank, d_in, init, generator).to(device))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x is (..., d_in); returns (..., d_out)."""
        y: Tensor = self.base(x)
        x = F.dropout(x, self.dropout, self.training)
        low = self.scale * F.linear(x, self.lora_A.to(x.dtype))  # (..., r): the scale is cheapest where the tensor is thin
        return y + F.linear(low, self.lora_B.to(x.dtype))


def initial_a(rank: int, d_in: int, init: Init, generator: torch.Generator) -> Tensor:
    """A at the start, (r, d_in), float32: Kaiming-uniform with a = √5 (PEFT's default) or N(0, 1/r²)."""
    a = torch.empty(rank, d_in)
    if init == "gaussian":
        return a.normal_(0.0, 1.0 / rank, generator=generator)
    # kaiming_uniform_(a=√5): bound = √(6 / ((1 + 5) · d_in))
    bound = 1.0 / math.sqrt(d_in)
    return a.uniform_(-bound, bound, generator=generator)
