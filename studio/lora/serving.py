"""The linear layer that serves many adapters at once: each row of a batch has its own slot.

Slots are stacked in persistent tensors, A (slots, r, d_in) and B (slots, d_out, r), with the scale folded into B.
Slot 0 is the base and holds zeros. A smaller rank is padded with zeros, which changes no result.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE_SLOT = 0


@dataclass
class Routing:
    """Which slot each row of the coming forward pass uses. One object is shared by all layers of a model."""

    slots: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    single: int | None = BASE_SLOT

    def set(self, slots: list[int], device: torch.device) -> None:
        """Route row i of the next batch to `slots[i]`."""
        self.slots = torch.tensor(slots, dtype=torch.long, device=device)
        self.single = slots[0] if len(set(slots)) == 1 else None


class BankLinear(nn.Module):
    """`y_i = W x_i + B[slot_i] (A[slot_i] x_i)` for each row i of a batch.

    Args:
        base: the frozen layer. routing: shared, set before each forward pass. slots: how many there are, with the base's.
    """

    def __init__(self, base: nn.Module, routing: Routing, slots: int) -> None:
        super().__init__()
        self.base, self.routing, self.slots = base, routing, slots
        self.A: Tensor | None = None  # (slots, r, d_in)
        self.B: Tensor | None = None  # (slots, d_out, r)

    def forward(self, x: Tensor) -> Tensor:
        """x is (rows, T, d_in); returns (rows, T, d_out). Rows of the base alone take the base's path to the bit."""
        y: Tensor = self.base(x)
        if self.A is None or self.B is None or self.routing.single == BASE_SLOT:
            return y
        z = x.to(self.A.dtype)
        if self.routing.single is not None:
            delta = F.linear(F.linear(z, self.A[self.routing.single]), self.B[self.routing.single])
        else:
            a, b = self.A[self.routing.slots], self.B[self.routing.slots]  # (rows, r, d_in), (rows, d_out, r)
            delta = torch.bmm(torch.bmm(z, a.mT), b.mT)
        return y + delta.to(y.dtype)

    def install(self, slot: int, a: Tensor, b: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Put an adapter into a slot. a is (r, d_in); b is (d_out, r) with the scale folded in."""
        rank = a.shape[0]
        if self.A is None or self.B is None or self.A.shape[1] < rank:
            self._grow(rank, a.shape[1], b.shape[0], dtype, device)
        assert self.A is not None and self.B is not None
        self.clear(slot)
        self.A[slot, :rank] = a.to(device=device, dtype=dtype)
        self.B[slot, :, :rank] = b.to(device=device, dtype=dtype)

    def clear(self, slot: int) -> None:
        """Make a slot equal to the base."""
        if self.A is not None and self.B is not None:
            self.A[slot].zero_()
            self.B[slot].zero_()

    def _grow(self, rank: int, d_in: int, d_out: int, dtype: torch.dtype, device: torch.device) -> None:
        a = torch.zeros(self.slots, rank, d_in, dtype=dtype, device=device)
        b = torch.zeros(self.slots, d_out, rank, dtype=dtype, device=device)
        if self.A is not None and self.B is not None:
            a[:, : self.A.shape[1]] = self.A
            b[:, :, : self.B.shape[2]] = self.B
        self.A, self.B = a, b
