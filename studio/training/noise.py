"""Noise on the embeddings while training."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from studio.training.loss import CausalLoss


class EmbeddingNoise:
    """NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise on the embeddings while the block is open.

    Its size is alpha / √(L·H) for a row of L tokens, H wide.

    Args:
        model: noise is added behind its embeddings. alpha: 0 is off. loss: knows where rows begin.
    """

    def __init__(self, model: Any, alpha: float, loss: CausalLoss) -> None:
        self.alpha, self.loss, self.on = alpha, loss, False
        if alpha:
            model.get_input_embeddings().register_forward_hook(self._add)

    def __enter__(self) -> None:
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False

    def _add(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if not self.on:
            return output
        layout = self.loss.packing.layout
        lengths = layout.lengths if layout else [output.shape[1]]
        sizes = torch.cat([torch.full((n, 1), self.alpha / math.sqrt(n * output.shape[-1])) for n in lengths])
        noise = torch.empty(output.shape[1:]).uniform_(-1.0, 1.0) * sizes  # drawn on the CPU: one generator to keep
        return output + noise.to(output.device, output.dtype)
