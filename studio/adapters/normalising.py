"""An adapter as others wrote it, in the one form that is kept: one rank, one alpha, float tensors, and targets that name its layers.

Where all layers have one rank and one alpha nothing changes but the order of bytes. Where they differ (`rank_pattern`,
`alpha_pattern`), each layer's own scale is folded into its B, and A and B are padded with zeros to the largest rank: B A is the same,
and PEFT and the chat read it as any other adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from studio.adapters.fitting import BaseShape, Pair, Targets, name_ends
from studio.adapters.header import Entry, read_tensor
from studio.adapters.schema import LoraOptions, PrefixOptions
from studio.errors import InvalidInput
from studio.lora.files import LORA_A, LORA_B, MAGNITUDE, PROMPT, AdapterWeights, PrefixWeights, is_finite, lora_scale, tensor_key
from studio.lora.injection import shortest_ends


@dataclass(frozen=True)
class Plan:
    """What will be written.

    Args:
        weights: dtypes and shapes, on the meta device. origins: where the numbers of each key of PEFT come from.
        scales: by the keys of B what each is multiplied by; empty where nothing is folded.
    """

    weights: AdapterWeights
    origins: Mapping[str, Entry]
    scales: Mapping[str, float]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        weights = self.weights
        tensors = [tensor for pair in weights.pairs.values() for tensor in pair] + list(weights.magnitudes.values())
        tensors += [weights.prefix.embedding] if weights.prefix else []
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

    def numbers(self, handle: BinaryIO, file: str, key: str) -> Tensor:
        """One tensor as it is written.

        Raises:
            InvalidInput: it holds what is not finite, or the file was cut meanwhile.
        """
        entry = self.origins[key]
        found = read_tensor(handle, entry, file)
        if self.scales:
            found = self._padded(key, found.float() * self.scales.get(key, 1.0))
        if not is_finite(found):
            raise InvalidInput(f"The adapter's tensor {entry.key!r} holds numbers that are not finite; train it anew with a lower rate.")
        return found

    def _padded(self, key: str, tensor: Tensor) -> Tensor:
        """Zeros up to the common rank, below A and right of B."""
        rows = key.endswith(f".{LORA_A}.weight")
        missing = self.weights.rank - tensor.shape[0 if rows else 1] if tensor.ndim == 2 else 0
        return torch.nn.functional.pad(tensor, (0, 0, 0, missing) if rows else (0, missing)) if missing else tensor


def plan_lora(pairs: Mapping[str, Pair], options: LoraOptions, base: BaseShape) -> Plan:
    """How a LoRA or DoRA is written for a base that it fits."""
    alphas = {name: alpha_of(name, options) for name in pairs}
    ranks = {pair.rank for pair in pairs.values()}
    rank = max(ranks)
    is_even = len(ranks) == 1 and len(set(alphas.values())) == 1
    origins: dict[str, Entry] = {}
    for name, pair in pairs.items():
        origins |= {tensor_key(name, LORA_A): pair.a, tensor_key(name, LORA_B): pair.b}
        if pair.magnitude is not None:
            origins[tensor_key(name, MAGNITUDE)] = pair.magnitude
    scales = {tensor_key(name, LORA_B): lora_scale(alphas[name], pair.rank, options.use_rslora) for name, pair in pairs.items()}
    targets, blocks = _targets(pairs, options, base)
    weights = AdapterWeights(
        rank,
        next(iter(alphas.values())) if is_even else float(rank),
        options.use_rslora and is_even,
        {name: _shapes(pair, None if is_even else rank) for name, pair in pairs.items()},
        kind="dora" if options.use_dora else "lora",
        magnitudes={
            name: _empty(pair.magnitude.shape, pair.magnitude.dtype if is_even else torch.float32)
            for name, pair in pairs.items()
            if pair.magnitude is not None
        },
        targets=targets,
        blocks=blocks,
        fan_in_fan_out=any(name in base.turned for name in pairs),
    )
    return Plan(weights, origins, {} if is_even else scales)


def plan_prefix(entry: Entry, options: PrefixOptions) -> Plan:
    """How a prefix is written."""
    prefix = PrefixWeights(_empty(entry.shape, entry.dtype), options.num_layers, options.num_attention_heads)
    return Plan(AdapterWeights(0, 0.0, False, {}, kind="prefix", prefix=prefix), {PROMPT: entry}, {})


def alpha_of(name: str, options: LoraOptions) -> float:
    """The alpha of a layer: that of the first key of `alpha_pattern` that PEFT would match with the end of its name."""
    for key, alpha in (options.alpha_pattern or {}).items():
        if _is_named(name, key):
            return alpha
    return options.lora_alpha


def _is_named(name: str, key: str) -> bool:
    """PEFT takes the key for a regular expression, in which a dot stands for any character; keys here have no other signs."""
    whole, key = key.startswith("^"), key.removeprefix("^")
    before, end = name[: len(name) - len(key)], name[len(name) - len(key) :]
    alike = len(name) >= len(key) and all(sign in (".", char) for sign, char in zip(key, end, strict=True))
    return alike and (not before or (before.endswith(".") and not whole))


def _targets(pairs: Mapping[str, Pair], options: LoraOptions, base: BaseShape) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The targets and blocks of the file where they name just these layers, else the shortest names that do."""
    blocks, targets = options.layers_to_transform, Targets(options)
    if isinstance(options.target_modules, list) and not options.exclude_modules:
        named = {name for name in base.modules if targets.has(name)}
        if named == set(pairs):
            used = {end for name in pairs for end in name_ends(name)} & set(options.target_modules)
            return tuple(sorted(used)), tuple([blocks] if isinstance(blocks, int) else blocks or ())
    return tuple(shortest_ends(pairs, [name for name in base.modules if name not in pairs])), ()


def _shapes(pair: Pair, rank: int | None) -> tuple[Tensor, Tensor]:
    if rank is None:
        return _empty(pair.a.shape, pair.a.dtype), _empty(pair.b.shape, pair.b.dtype)
    d_out, d_in = pair.shape
    return _empty((rank, d_in), torch.float32), _empty((d_out, rank), torch.float32)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
