"""Put an adapter on a model for training, and take its weights from there.

The base is never changed, whatever the method and the start: what is learned, and what is saved, stands on it as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studio.lora.errors import UnsuitableStart
from studio.lora.files import AdapterWeights, Kind, PrefixWeights, lora_scale
from studio.lora.frozen import FrozenQuantizedLinear, is_quantized, replace_module
from studio.lora.injection import ALL_LAYERS, block_of, find_blocks, find_targets, shortest_ends
from studio.lora.layers import DoraLinear, LoraLinear
from studio.lora.linear import dense_weight, is_stored_transposed, shape
from studio.lora.prefix import Prefix, attention_modules, make_prefix
from studio.lora.starts import Init, Start, loftq_start, pissa_start, random_start

Original = Callable[[str], Tensor]


@dataclass(frozen=True)
class AdapterSpec:
    """What to put on a model. Fields that a method has no use for are ignored.

    Args:
        rank: r. alpha: s = alpha / r, or alpha / √r with `rslora`. dropout: of the input of A, in [0, 1).
        targets, layers: see `find_targets`. init: see `starts`. virtual_tokens: length of a prefix.
        seed: of all that is drawn.
    """

    method: Kind = "lora"
    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    dropout: float = 0.0
    targets: str = "all-linear"
    layers: str = ALL_LAYERS
    init: Init = "kaiming"
    virtual_tokens: int = 20
    seed: int = 0


class Attached:
    """What was put on a model and is trained.

    Attributes:
        layers: by the dotted name of the base layer that each wraps; empty for a prefix. prefix: of that method alone.
        parameters: all that is trained, by stable names in a stable order, as checkpoints need them.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        layers: dict[str, LoraLinear | DoraLinear],
        prefix: Prefix | None,
        targets: Sequence[str],
        blocks: list[int],
    ) -> None:
        self.spec, self.layers, self.prefix = spec, layers, prefix
        self.parameters: dict[str, nn.Parameter] = {} if prefix is None else {"prefix": prefix.embedding}
        for name, layer in layers.items():
            self.parameters |= {f"{name}.{key}": value for key, value in layer.named_parameters(recurse=False)}
        self._targets, self._blocks = tuple(targets), tuple(blocks)

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(everything but B, B): LoRA+ lets B learn faster (Hayou et al. 2024, arXiv 2402.12354)."""
        slow = [value for name, value in self.parameters.items() if not name.endswith(".lora_B")]
        return slow, [value for name, value in self.parameters.items() if name.endswith(".lora_B")]

    def weights(self) -> AdapterWeights:
        """A copy of what was learned, float32 on the CPU, as it acts on the untouched base.

        PiSSA's start is taken away inside the pairs, which then are of rank 2r, with an alpha that leaves s as it is.
        """
        if self.prefix is not None:
            learned = PrefixWeights(_copy(self.prefix.embedding), self.prefix.layers, self.prefix.heads)
            return AdapterWeights(0, 0.0, False, {}, kind="prefix", prefix=learned)
        pairs = {name: (_copy(a), _copy(b)) for name, layer in self.layers.items() for a, b in (layer.factors(),)}
        growth = 2 if self.spec.init == "pissa" else 1
        return AdapterWeights(
            self.spec.rank * growth,
            self.spec.alpha * (math.sqrt(growth) if self.spec.rslora else growth),
            self.spec.rslora,
            pairs,
            kind=self.spec.method,
            magnitudes={name: _copy(layer.magnitude) for name, layer in self.layers.items() if isinstance(layer, DoraLinear)},
            fan_in_fan_out=any(is_stored_transposed(layer.base) for layer in self.layers.values()),
            targets=self._targets,
            blocks=self._blocks,
        )


def attach(model: Any, spec: AdapterSpec, original: Original | None = None, start_ids: Sequence[int] = ()) -> Attached:
    """Freeze the model and put an adapter on it. Quantized layers come as `freeze_quantized` leaves them.

    A prefix is set as `prefix` on each attention module and is not used before the attention reads it there.

    Args:
        original: the unquantized weight of a layer by its dotted name, as the base's files hold it; for the start loftq alone.
        start_ids: token ids of a text like those of the task, from which a prefix starts.

    Raises:
        UnsuitableOption: an option does not fit the model, which is then unchanged; see `errors`.
    """
    if spec.method == "prefix":
        return _attach_prefix(model, spec, start_ids)
    found = find_targets(model, spec.targets, spec.layers)
    if spec.init == "loftq":
        _check_loftq(found, original)
    blocks = [] if spec.layers.strip() == ALL_LAYERS else find_blocks(model, spec.layers)
    targets = _target_modules(model, found, blocks)
    model.requires_grad_(False)
    scale = lora_scale(spec.alpha, spec.rank, spec.rslora)
    kind = DoraLinear if spec.method == "dora" else LoraLinear
    generator = torch.Generator().manual_seed(spec.seed)
    layers: dict[str, LoraLinear | DoraLinear] = {}
    for name, base in found.items():
        layers[name] = kind(base, _start(spec, scale, name, base, original, generator), scale, spec.dropout)
        replace_module(model, name, layers[name])
    return Attached(spec, layers, None, targets, blocks)


def _attach_prefix(model: Any, spec: AdapterSpec, start_ids: Sequence[int]) -> Attached:
    modules = attention_modules(model)
    prefix = make_prefix(model, spec.virtual_tokens, start_ids, spec.seed)
    model.requires_grad_(False)
    for module in modules.values():
        module.prefix = prefix
    return Attached(spec, {}, prefix, (), [])


def _start(spec: AdapterSpec, scale: float, name: str, base: nn.Module, original: Original | None, generator: torch.Generator) -> Start:
    if spec.init == "pissa":
        return pissa_start(dense_weight(base), spec.rank, scale, generator)
    if spec.init == "loftq" and original is not None and _is_held_quantized(base):
        weight = original(name)
        return loftq_start(dense_weight(base), weight.T if is_stored_transposed(base) else weight, spec.rank, scale, generator)
    d_out, d_in = shape(base)
    return random_start(d_out, d_in, spec.rank, "gaussian" if spec.init == "gaussian" else "kaiming", generator)


def _check_loftq(found: dict[str, nn.Module], original: Original | None) -> None:
    if not any(_is_held_quantized(layer) for layer in found.values()):
        raise UnsuitableStart("it makes up for what quantization lost, and this base is not quantized; choose kaiming or pissa")
    if original is None:
        raise UnsuitableStart("it needs the weights from before quantization, which are not at hand; choose kaiming or pissa")


def _is_held_quantized(layer: nn.Module) -> bool:
    return isinstance(layer, FrozenQuantizedLinear) or is_quantized(layer)


def _target_modules(model: nn.Module, found: dict[str, nn.Module], blocks: list[int]) -> list[str]:
    """The shortest ends of names by which PEFT finds these layers and no others, within the blocks where there are any."""
    others = [name for name, _ in model.named_modules() if name not in found and (not blocks or block_of(name) in blocks)]
    return shortest_ends(found, others)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
