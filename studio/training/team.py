"""Processes that train one adapter together, each on its share of every step's pieces.

Gradients are summed over all of them before the optimizer's step; an adapter is so small that one sum of all its
gradients in one tensor costs less than the bookkeeping of anything finer. Alone, nothing of this costs anything.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from studio.bases.loading import device_name

Piece = TypeVar("Piece")


class Team:
    """This process among those that train together.

    Args:
        accelerator: an `accelerate.Accelerator` in each process, or None for a process alone.
    """

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes if accelerator else 1
        self.rank: int = accelerator.process_index if accelerator else 0

    @property
    def device(self) -> torch.device:
        """Where this process computes: on a GPU of its own, where there are any."""
        return torch.device(device_name()) if self.accelerator is None else self.accelerator.device

    @property
    def leads(self) -> bool:
        """Whether this process speaks, writes and saves for all."""
        return self.rank == 0

    def share(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces of this process."""
        return list(pieces[self.rank :: self.size])

    def even_share(self, pieces: Sequence[Piece]) -> list[tuple[Piece, int]]:
        """As many pieces for each process, with their weights: 1, or 0 for one that another process counts."""
        mine = [(piece, 1) for piece in self.share(pieces)]
        missing = -(-len(pieces) // self.size) - len(mine)
        return mine + [(pieces[-1], 0)] * missing

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        summed = self.accelerator.reduce(flat, reduction="sum")
        for tensor, part in zip(tensors, summed.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def least(self, value: int) -> int:
        """The smallest of the processes' numbers."""
        if self.size == 1:
            return value
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).min())

    def total(self, value: float) -> float:
        """A number summed over the processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, reduction="sum"))


def join_team(devices: int) -> Team:
    """The team of this process: alone unless a launcher started several.

    Args:
        devices: how many processes the job asks for.
    """
    if devices <= 1:
        return Team()
    from accelerate import Accelerator

    return Team(Accelerator(cpu=not torch.cuda.is_available()))
