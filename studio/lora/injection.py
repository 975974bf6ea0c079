"""Find a model's linear layers by target names, and put LoRA layers around them."""

import torch
from torch import nn

from studio.lora.frozen import FrozenQuantizedLinear, is_quantized, replace_module
from studio.lora.layers import Init, LoraLinear

ALL_LINEAR, ATTENTION = "all-linear", "attention"
ATTENTION_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query", "key", "value", "out_proj", "dense")


class UnknownTarget(ValueError):
    """A target name matches no linear layer of the model."""


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its dotted name, without the output head, which adapters leave alone."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if module is not head and (isinstance(module, nn.Linear | FrozenQuantizedLinear) or is_quantized(module))
    }


def find_targets(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The layers to adapt.

    Args:
        targets: "all-linear", "attention", or last parts of names with commas between, such as "q_proj,v_proj".

    Raises:
        UnknownTarget: a name matches nothing; the message lists the names that there are.
    """
    layers = linear_layers(model)
    if targets == ALL_LINEAR:
        return layers
    there = sorted({name.rpartition(".")[2] for name in layers})
    if targets == ATTENTION:
        wanted = [name for name in there if name in ATTENTION_NAMES]
    else:
        wanted = [part.strip() for part in targets.split(",") if part.strip()]
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise UnknownTarget(f"{', '.join(missing) or targets!r} is no linear layer of this model; there are {', '.join(there)}")
    return {name: module for name, module in layers.items() if name.rpartition(".")[2] in wanted}


def inject(model: nn.Module, targets: str, rank: int, scale: float, dropout: float, init: Init, seed: int) -> dict[str, LoraLinear]:
    """Freeze the model and wrap its target layers; returns the new layers by the dotted names of what they wrap.

    Raises:
        UnknownTarget: see `find_targets`; the model is then unchanged.
    """
    found = find_targets(model, targets)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = {name: LoraLinear(module, rank, scale, dropout, init, generator) for name, module in found.items()}
    for name, layer in layers.items():
        replace_module(model, name, layer)
    return layers
