"""A whole model with an adapter inside, in bf16, as `transformers` loads it. One tensor is in memory at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from studio.bases.dense import DenseBase
from studio.bases.sources import COST_FILE, PATTERNS
from studio.lora.files import AdapterWeights

if TYPE_CHECKING:
    from torch import Tensor

Tell = Callable[[float, str], None]  # is told the share that is done, and what is done; may raise to stop it
SHARD_BYTES = 2_000_000_000
INDEX = "model.safetensors.index.json"


def write_merged(base: DenseBase, source: Path, adapter: AdapterWeights, target: Path, tell: Tell, shard_bytes: int = SHARD_BYTES) -> None:
    """Write configuration, tokenizer and weights into an empty folder.

    Args:
        source: the base's folder. shard_bytes: the most of one file, unless a single tensor is larger.

    Raises:
        BaseUnavailable: the base's files are broken. OSError: the disk is full. Whatever `tell` raises.
    """
    from studio.lora.files import write_tensors

    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors" and path.name not in (INDEX, COST_FILE) and any(path.match(pattern) for pattern in PATTERNS):
            shutil.copyfile(path, target / path.name)
    config = dict(base.config) | {"dtype": "bfloat16"}
    config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    files = _shards(base, shard_bytes)
    done = Done(base, "merging", tell)
    for name, keys in files.items():
        write_tensors(
            target / name, {key: _planned(base, key) for key in keys}, lambda key: done.of(key, merged_tensor(base, adapter, key))
        )
    if len(files) > 1:
        places = {key: name for name, keys in files.items() for key in keys}
        index = {"metadata": {"total_size": sum(map(base.size, base.shapes)) * 2}, "weight_map": dict(sorted(places.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def merged_tensor(base: DenseBase, adapter: AdapterWeights, key: str) -> "Tensor":
    """One tensor of the merged model in the shape of the base's files; float32 where the adapter or the base's form acts on it."""
    from studio.lora.merging import merged_weight

    layer = base.layers.get(key, "")
    if layer not in adapter.pairs:
        return base.read(key)
    merged = merged_weight(base.weight(key), adapter, layer)
    return merged.T if base.is_turned(key) else merged


class Done:
    """Tells how far one goes through the tensors of a base, by their numbers."""

    def __init__(self, base: DenseBase, what: str, tell: Tell) -> None:
        self._base, self._what, self._tell = base, what, tell
        self._so_far, self._whole = 0, max(1, sum(map(base.size, base.shapes)))

    def of(self, key: str, tensor: "Tensor") -> "Tensor":
        """Pass a tensor on as bf16, and tell."""
        import torch

        self.tick(key)
        return tensor.to(torch.bfloat16)

    def tick(self, key: str) -> None:
        """One more tensor."""
        self._so_far += self._base.size(key)
        self._tell(self._so_far / self._whole, f"{self._what} {key}")


def _planned(base: DenseBase, key: str) -> "Tensor":
    import torch

    return torch.empty(base.shapes[key], dtype=torch.bfloat16, device="meta")


def _shards(base: DenseBase, shard_bytes: int) -> dict[str, list[str]]:
    """The keys of each file, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for key in sorted(base.shapes):
        own = 2 * base.size(key)
        if groups[-1] and size + own > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(key)
        size += own
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": keys for number, keys in enumerate(groups, 1)}
