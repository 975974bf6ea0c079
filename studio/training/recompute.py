"""Activation checkpointing: keep the input of each block alone, and compute the rest again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks_of(model: Any) -> list[nn.Module]:
    """The blocks of a model, in order, as transformers marks them; none where it does not."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute_blocks(model: Any, on: bool) -> bool:
    """Turn it on or off; returns whether the model has blocks that can do it.

    Blocks recompute while they count as training. Only the blocks themselves do: what is inside them stays in eval
    mode, so that no dropout of the base wakes up.
    """
    blocks = blocks_of(model)
    if blocks and on:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    elif blocks:
        model.activation_checkpointing_disable()
    for block in blocks:
        block.training = on
    return bool(blocks)


@contextmanager
def computed_once(model: Any) -> Iterator[None]:
    """Nothing is computed twice inside the block: a block that may be is given no cache of keys and values."""
    blocks = [block for block in blocks_of(model) if block.training]
    for block in blocks:
        block.training = False
    try:
        yield
    finally:
        for block in blocks:
            block.training = True
