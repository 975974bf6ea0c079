"""Keys and values of the running rows, as one left-padded batch that rows join and leave.

Each row's own tokens stand at the right end, so that all rows append at the same place. The attention mask hides
the padding on the left.
"""

from typing import Any

import torch
from torch import Tensor


class BatchCache:
    """Wraps a transformers `DynamicCache` of shape (rows, heads, T, head_dim) a layer, with each row's length."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.lengths: list[int] = []

    @property
    def width(self) -> int:
        """T: tokens that are kept a row, with padding."""
        return max(self.lengths, default=0)

    def mask(self, device: torch.device) -> Tensor:
        """(rows, T + 1): 1 where a row has a token, counting the one that comes next."""
        lengths = torch.tensor(self.lengths, device=device).unsqueeze(1)
        columns = torch.arange(self.width, -1, -1, device=device).unsqueeze(0)  # distance from the right end
        return (columns <= lengths).long()

    def positions(self, device: torch.device) -> Tensor:
        """(rows, 1): the position of each row's next token."""
        return torch.tensor(self.lengths, device=device).unsqueeze(1)

    def appended(self) -> None:
        """Every row has grown by one token."""
        self.lengths = [length + 1 for length in self.lengths]

    def join(self, cache: Any, length: int) -> None:
        """Add one row whose prefill filled `cache`, (1, heads, length, head_dim) a layer."""
        if self.cache is None or not self.lengths:
            self.cache, self.lengths = cache, [length]
            return
        width = max(self.width, length)
        for mine, other in zip(self.cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([_widen(mine.keys, width), _widen(other.keys, width)])
            mine.values = torch.cat([_widen(mine.values, width), _widen(other.values, width)])
        self.lengths.append(length)

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows, and the padding that nobody needs any more."""
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = None
            return
        for layer in self.cache.layers:
            index = torch.tensor(rows, device=layer.keys.device)
            layer.keys = layer.keys[index, :, -self.width :].contiguous()
            layer.values = layer.values[index, :, -self.width :].contiguous()


def _widen(tensor: Tensor, width: int) -> Tensor:
    """Pad (rows, heads, T, head_dim) with zeros on the left to T = width."""
    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[2], 0))
