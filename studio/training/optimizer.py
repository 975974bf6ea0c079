"""AdamW over an adapter's parameters, with LoRA+'s own rate for B, in 32 bit or in 8."""

from typing import Any

import torch

from studio.errors import InvalidInput
from studio.lora.adapter import Attached
from studio.training.config import TrainConfig


def make_optimizer(attached: Attached, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW whose groups carry `factor`: how many times the learning rate each of them takes.

    Raises:
        InvalidInput: an 8-bit optimizer without CUDA.
    """
    slow, fast = attached.groups()
    groups = [{"params": slow, "factor": 1.0}, {"params": fast, "factor": config.lora_plus}]
    groups = [group for group in groups if group["params"]]
    shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **shared)
    if not torch.cuda.is_available():
        raise InvalidInput(f"The option optimizer is {config.optimizer!r}, which needs CUDA; choose adamw.")
    from bitsandbytes import optim

    kind = optim.PagedAdamW8bit if config.optimizer == "paged_adamw8bit" else optim.AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, **shared)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the coming step; each group takes its multiple."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
