"""Spread the frozen base over the processes of a team, so that none of them holds it whole.

Each process keeps its part of every weight. A block's weights are gathered before its forward and its backward pass and
dropped behind it; what lies outside the blocks (embeddings, head, last norm) is one more such part, there for a whole
pass. What is learned stays whole in each process, and the team sums its gradients as ever. PyTorch's `fully_shard`
does the work (FSDP: Zhao et al. 2023, arXiv 2304.11277).

Gathering needs everybody: all processes must run the same number of passes, in the same order. Tested on the CPU with
gloo; not run on a GPU.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from torch import nn

from studio.errors import InvalidInput
from studio.training.config import TrainConfig
from studio.training.recompute import blocks_of
from studio.training.team import Team

Result = TypeVar("Result")


class Pass(Protocol):
    """How work that reads the base's weights is called, be it one forward pass or many."""

    def __call__(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)`."""


class SpreadBase(nn.Module):
    """Calls what it is given, with the weights outside the model's blocks gathered meanwhile and for its backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """`work(*arguments)`."""
        return work(*arguments)


def is_spread(config: TrainConfig, team: Team) -> bool:
    """Whether a job wants the base spread, and there is more than one process."""
    return config.sharding == "fsdp" and team.size > 1


def directly(work: Callable[..., Result], *arguments: Any) -> Result:
    """`work(*arguments)`: a pass where each process holds the whole base."""
    return work(*arguments)


def spread(model: Any, learned: Iterable[nn.Parameter], team: Team) -> SpreadBase:
    """Leave this process its part of the base, on its device, and return how passes are called from then on.

    Blocks go to the device one by one, so that a model that comes on the CPU is never whole there. Buffers, such as the
    scales of quantized weights, stay whole.

    Args:
        model: its quantized layers as `freeze_quantized` leaves them, its adapter attached.
        learned: parameters that stay whole; they are moved to the device and remain the same objects.

    Raises:
        InvalidInput: the model has no blocks by which it could be spread.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = blocks_of(model)
    if not blocks:
        raise InvalidInput("The option sharding is 'fsdp': this base has no blocks by which it could be spread; choose ddp.")
    mesh, whole = init_device_mesh(team.device.type, (team.size,)), set(learned)
    for parameter in whole:
        parameter.data = parameter.data.to(team.device)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    base = SpreadBase(model)
    fully_shard(base, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
    return base
