"""Find a model's linear layers by target names and blocks."""

import re
from collections.abc import Collection

from torch import nn

from studio.lora.errors import UnknownLayers, UnknownTarget
from studio.lora.linear import is_linear

ALL_LINEAR, ATTENTION = "all-linear", "attention"
ALL_LAYERS = "all"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its dotted name, without the output head, which adapters leave alone."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return {name: module for name, module in model.named_modules() if module is not head and is_linear(module)}


def find_targets(model: nn.Module, targets: str, layers: str = ALL_LAYERS) -> dict[str, nn.Module]:
    """The layers to adapt.

    Args:
        targets: "all-linear", "attention", or last parts of names with commas between, such as "q_proj,v_proj".
        layers: the blocks of the model: "all", "3", "0-9", "0,2,5" or "last 8".

    Raises:
        UnknownTarget: a name matches nothing; the message lists the names that there are.
        UnknownLayers: the blocks are not written in one of these ways, or the model has no such blocks.
    """
    found = _by_name(linear_layers(model), targets)
    if layers.strip() == ALL_LAYERS:
        return found
    wanted = find_blocks(model, layers)
    inside = {name: module for name, module in found.items() if block_of(name) in wanted}
    if not inside:
        raise UnknownLayers(f"none of the layers that targets names ({targets}) lies in these blocks")
    return inside


def find_blocks(model: nn.Module, layers: str) -> list[int]:
    """The numbers of the blocks that an expression such as "0-9", "0,2,5" or "last 8" names, rising.

    Raises:
        UnknownLayers: see `find_targets`.
    """
    blocks = sorted({block for name in linear_layers(model) if (block := block_of(name)) is not None})
    there = f"the model has {len(blocks)} blocks, {blocks[0]} to {blocks[-1]}" if blocks else "the model has no numbered blocks"
    if last := re.fullmatch(r"\s*last\s+(\d+)\s*", layers):
        wanted = set(blocks[-int(last[1]) :]) if 0 < int(last[1]) <= len(blocks) else {-1}
    else:
        wanted = {number for part in layers.split(",") for number in _numbers(part)}
    if not wanted <= set(blocks):
        raise UnknownLayers(f"{there}; write all, a number, a range such as 0-9, numbers with commas, or the last ones such as last 8")
    return sorted(wanted)


def block_of(name: str) -> int | None:
    """The number of the block that a layer lies in: the first number in its dotted name, as PEFT reads it."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def shortest_ends(names: Collection[str], others: Collection[str]) -> list[str]:
    """The shortest ends of names, sorted, by which PEFT finds these layers and none of the others."""
    return sorted({_shortest_end(name, others) for name in names})


def _shortest_end(name: str, others: Collection[str]) -> str:
    parts = name.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in ends if not any(_matches(other, end) for other in others)), name)


def _by_name(layers: dict[str, nn.Module], targets: str) -> dict[str, nn.Module]:
    if targets == ALL_LINEAR:
        return layers
    if targets == ATTENTION:
        wanted, missing = [], []
        found = {name: module for name, module in layers.items() if _is_attention(name)}
    else:
        wanted = [part.strip() for part in targets.split(",") if part.strip()]
        missing = [part for part in wanted if not any(_matches(name, part) for name in layers)]
        found = {name: module for name, module in layers.items() if any(_matches(name, part) for part in wanted)}
    if missing or not found:
        there = sorted({name.rpartition(".")[2] for name in layers})
        raise UnknownTarget(f"{', '.join(missing) or targets!r} is no linear layer of this model; there are {', '.join(there)}")
    return found


def _matches(name: str, target: str) -> bool:
    """Whether a target is the name's end, as PEFT compares them: "c_proj", or "attn.c_proj" where that is not enough."""
    return name == target or name.endswith(f".{target}")


def _is_attention(name: str) -> bool:
    """Whether a layer lies inside an attention module; GPT-2 calls layers of both its halves c_proj."""
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def _numbers(part: str) -> range:
    """ "3" or "0-9" as a range; block -1, which there never is, for anything else."""
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
    if match is None:
        return range(-1, 0)
    first, last = int(match[1]), int(match[2] or match[1])
    return range(first, last + 1) if first <= last else range(-1, 0)
