"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

LoRA, DoRA and prefix tuning. What is read is checked before it is used: only safetensors, nothing but the weights of its
kind and all of them, of the shapes that the configuration says, finite. Options that would change the base or need code
that is not here are refused.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
LORA_A, LORA_B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
PROMPT = "prompt_embeddings"
MAX_RANK = 1024
SETTLED_NS = 2 * 10**9
# Options of PEFT that must be off: each changes the base, or what the layer computes.
REFUSED = (
    "modules_to_save", "layer_replication", "rank_pattern", "alpha_pattern", "auto_mapping", "megatron_config",
    "trainable_token_indices", "target_parameters", "lora_bias", "use_qalora", "exclude_modules", "alora_invocation_tokens",
)  # fmt: skip
PLAIN_INIT = (True, False, "gaussian")
STORED_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
STORED = tuple(STORED_NAMES)  # in the order that safetensors writes them
Kind = Literal["lora", "dora", "prefix"]


class BadAdapter(ValueError):
    """The files are not an adapter that can be used; the message says why."""


@dataclass(frozen=True)
class PrefixWeights:
    """A prefix in memory: `embedding` is (n, L·2·H·D) for n virtual tokens, L `layers` and H `heads`, in PEFT's order."""

    embedding: Tensor
    layers: int
    heads: int


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in memory.

    `pairs` maps the dotted name of a base layer to (A, B), (r, d_in) and (d_out, r), in the dtype of the file. A DoRA has a
    magnitude, (d_out,), for each pair. A prefix has `prefix` alone, and no rank. The last three say where PEFT puts the
    pairs: `targets` are ends of names (the last parts, where there are none), `blocks` the numbers of blocks (all, where
    there are none), and `fan_in_fan_out` that the base's files hold W as (d_in, d_out).
    """

    rank: int
    alpha: float
    rslora: bool
    pairs: dict[str, tuple[Tensor, Tensor]]
    kind: Kind = "lora"
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    prefix: PrefixWeights | None = None
    targets: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    fan_in_fan_out: bool = False

    @property
    def scale(self) -> float:
        """s of `W x + s · B (A x)`."""
        return lora_scale(self.alpha, self.rank, self.rslora)


def lora_scale(alpha: float, rank: int, rslora: bool = False) -> float:
    """alpha / r, or alpha / √r for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def as_float32(tensor: Tensor) -> Any:
    """The numbers of a CPU tensor as a numpy array, float32.

    numpy is quicker than torch with many small tensors, and wakes none of torch's threads: adapters are read beside a model that
    computes.
    """
    if tensor.dtype == torch.bfloat16:  # the upper half of a float32
        return (tensor.contiguous().view(torch.int16).numpy().astype(np.uint32) << 16).view(np.float32)
    return tensor.numpy().astype(np.float32, copy=False)


def turned(numbers: Any, dtype: torch.dtype) -> Tensor:
    """The transpose of a float32 array, in rows and in this dtype, without waking torch's threads (see `as_float32`)."""
    if dtype != torch.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(numbers.T)).to(dtype)
    halves = (numbers.view(np.uint32) + np.uint32(0x8000)).view(np.uint16).reshape(*numbers.shape, 2)  # rounded; little-endian
    return torch.from_numpy(np.ascontiguousarray(halves[..., 1].T)).view(torch.bfloat16)


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a CPU tensor are finite. A sum of squares says it at once, unless it overflows."""
    numbers = as_float32(tensor).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(numbers, numbers)) or np.isfinite(numbers).all())


def encode_adapter(weights: AdapterWeights, base_name: str, dropout: float) -> dict[str, bytes]:
    """The adapter's files by name, ready to be written. The bytes depend on the weights and options alone."""
    config, tensors = lay_out(weights, base_name, dropout)
    return {
        CONFIG_FILE: config,
        WEIGHTS_FILE: save({key: t.detach().contiguous().cpu() for key, t in tensors.items()}, metadata={"format": "pt"}),
    }


def lay_out(weights: AdapterWeights, base_name: str, dropout: float) -> tuple[bytes, dict[str, Tensor]]:
    """The configuration's bytes, and the tensors by PEFT's keys; no number is looked at, so they may lie on the meta device."""
    own, tensors = _encode_prefix(weights.prefix) if weights.prefix else _encode_lora(weights, dropout)
    config = {"base_model_name_or_path": base_name, "inference_mode": True, "task_type": "CAUSAL_LM", **own}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), tensors


def write_tensors(path: Path, tensors: dict[str, Tensor], numbers: Callable[[str], Tensor]) -> None:
    """Write a safetensors file with one tensor in memory at a time: the bytes that `encode_adapter` would give.

    Args:
        tensors: dtypes and shapes by key, which may lie on the meta device. numbers: gives the tensor of a key, on the CPU.
    """
    order = sorted(tensors, key=lambda key: (STORED.index(tensors[key].dtype), key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key in order:
        size = tensors[key].numel() * tensors[key].itemsize
        header[key] = {"dtype": STORED_NAMES[tensors[key].dtype], "shape": list(tensors[key].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            tensor = numbers(key)
            if tensor.dtype != tensors[key].dtype or tensor.shape != tensors[key].shape:
                raise ValueError(f"{key} is {tensor.dtype} {tuple(tensor.shape)}, which was not said")
            handle.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def read_adapter(folder: Path) -> AdapterWeights:
    """Read an adapter in PEFT's format.

    Raises:
        BadAdapter: a file is missing or broken, an option is refused, or the weights are not all there, of the right
            shapes and finite.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BadAdapter(f"{name} is missing")
    config = _read_config(folder / CONFIG_FILE)
    weights = _read_prefix if config["peft_type"] == "PREFIX_TUNING" else _read_lora
    return weights(config, folder / WEIGHTS_FILE)


def read_revision(folder: Path, sha256: str) -> AdapterWeights:
    """Read an adapter whose content has this hash.

    Raises:
        BadAdapter: as `read_adapter`; or the content is another.
    """
    before = _state(folder) if all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)) else ()
    weights = read_adapter(folder)  # says what is missing
    try:
        found, after = adapter_sha256(folder), _state(folder)
    except OSError as error:
        raise BadAdapter(f"its content cannot be checked ({error.strerror or type(error).__name__})") from None
    if found != sha256:
        raise BadAdapter(f"they were changed, and hold {found[:12]} where {sha256[:12]} is expected")
    if after != before:
        raise BadAdapter("they were changed while they were read")
    return weights


def tensor_key(layer: str, part: str) -> str:
    """PEFT's key of a layer's A, B or magnitude."""
    return f"{ROOT}{layer}.{part}" + ("" if part == MAGNITUDE else ".weight")


def adapter_sha256(folder: Path) -> str:
    """SHA-256 over both files: the identity of an adapter's content. Files that are as they were when they were last asked are not
    read again: 20 MB take 14 ms, as long as the first use of an adapter may take in all."""
    state = _state(folder)
    newest = max(written for _, _, _, written in state)
    if time.time_ns() - newest < SETTLED_NS:  # the clock of files may tick so slowly that the next change has the same time
        return _sha256(folder)
    return _remembered(folder, state)


def _state(folder: Path) -> tuple[tuple[int, int, int, int], ...]:
    """What cannot stay the same where a file is changed or another takes its place."""
    found = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found)


@lru_cache(maxsize=4096)
def _remembered(folder: Path, state: tuple[tuple[int, int, int, int], ...]) -> str:
    del state  # it is what the result is remembered by
    return _sha256(folder)


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _encode_lora(weights: AdapterWeights, dropout: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {}
    for name, (a, b) in weights.pairs.items():
        tensors[tensor_key(name, LORA_A)] = a
        tensors[tensor_key(name, LORA_B)] = b
    for name, magnitude in weights.magnitudes.items():
        tensors[tensor_key(name, MAGNITUDE)] = magnitude
    config: dict[str, Any] = {
        "bias": "none",
        "fan_in_fan_out": weights.fan_in_fan_out,
        "init_lora_weights": True,
        "lora_alpha": weights.alpha,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": weights.rank,
        "target_modules": sorted(weights.targets or {name.rpartition(".")[2] for name in weights.pairs}),
        "use_dora": weights.kind == "dora",
        "use_rslora": weights.rslora,
    }
    if weights.blocks:
        config["layers_to_transform"] = list(weights.blocks)
        config["layers_pattern"] = sorted({_block_list(name) for name in weights.pairs})
    return config, tensors


def _block_list(name: str) -> str:
    """What the list of blocks is called in a layer's name: "layers" in "model.layers.0.self_attn.q_proj"."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
    return parts[at - 1] if at else ""


def _encode_prefix(prefix: PrefixWeights) -> tuple[dict[str, Any], dict[str, Tensor]]:
    width = prefix.embedding.shape[1] // (2 * prefix.layers)  # H · D
    config = {
        "encoder_hidden_size": width,
        "num_attention_heads": prefix.heads,
        "num_layers": prefix.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.embedding.shape[0],
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "token_dim": width,
    }
    return config, {PROMPT: prefix.embedding}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadAdapter(f"{path.name} is not JSON, or lacks peft_type ({error})") from None
    if kind not in ("LORA", "PREFIX_TUNING"):
        raise BadAdapter(f"the kind is {kind}, and LORA and PREFIX_TUNING are read")
    return config


def _read_lora(config: dict[str, Any], path: Path) -> AdapterWeights:
    refused = [key for key in REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if config.get("init_lora_weights", True) not in PLAIN_INIT:
        refused.append("init_lora_weights")
    if refused:
        raise BadAdapter(f"it uses {', '.join(refused)}, which the studio does not serve")
    rank, alpha = _numbers(config, "r", "lora_alpha")
    if not (rank.is_integer() and 1 <= rank <= MAX_RANK and math.isfinite(alpha)):
        raise BadAdapter(f"the rank is {rank:g} and alpha is {alpha:g}; a rank from 1 to {MAX_RANK} and a finite alpha are served")
    dora = bool(config.get("use_dora"))
    layers = _by_layer(_read_tensors(path), (LORA_A, LORA_B, MAGNITUDE) if dora else (LORA_A, LORA_B))
    for name, parts in layers.items():
        _check_layer(name, parts, int(rank))
    targets, blocks = config.get("target_modules"), config.get("layers_to_transform")
    return AdapterWeights(
        int(rank),
        alpha,
        bool(config.get("use_rslora")),
        {name: (parts[LORA_A], parts[LORA_B]) for name, parts in layers.items()},
        kind="dora" if dora else "lora",
        magnitudes={name: parts[MAGNITUDE] for name, parts in layers.items()} if dora else {},
        targets=tuple(targets) if isinstance(targets, list) else (),
        blocks=tuple(blocks) if isinstance(blocks, list) else (),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
    )


def _read_prefix(config: dict[str, Any], path: Path) -> AdapterWeights:
    keys = ("num_virtual_tokens", "num_layers", "token_dim", "num_attention_heads", "num_transformer_submodules")
    tokens, layers, width, heads, submodules = _numbers(config, *keys)
    whole = all(number.is_integer() and number >= 1 for number in (tokens, layers, width, heads))
    if submodules != 1 or not whole or width % heads:
        raise BadAdapter(f"its {', '.join(keys)} are {tokens:g}, {layers:g}, {width:g}, {heads:g} and {submodules:g}, which fit no decoder")
    tensors = _read_tensors(path)
    embedding = tensors.get(PROMPT)
    if embedding is None or len(tensors) > 1:
        raise BadAdapter(f"it holds {', '.join(sorted(tensors))}, and a prefix is {PROMPT} alone")
    if tuple(embedding.shape) != (tokens, 2 * layers * width):
        raise BadAdapter(f"{PROMPT} has the shape {tuple(embedding.shape)}, which is not {(int(tokens), int(2 * layers * width))}")
    if not is_finite(embedding):
        raise BadAdapter(f"{PROMPT} holds numbers that are not finite")
    return AdapterWeights(0, 0.0, False, {}, kind="prefix", prefix=PrefixWeights(embedding, int(layers), int(heads)))


def _numbers(config: dict[str, Any], *keys: str) -> list[float]:
    try:
        return [float(config[key]) for key in keys]
    except (KeyError, TypeError, ValueError) as error:
        raise BadAdapter(f"{CONFIG_FILE} lacks {', '.join(keys[:-1])} or {keys[-1]} ({error})") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadAdapter(f"{path.name} cannot be read ({error})") from None
    if not tensors:
        raise BadAdapter("it holds no weights")
    return tensors


def _by_layer(tensors: dict[str, Tensor], wanted: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer by its dotted name; every layer has all that are wanted, and nothing else is there."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(ROOT).removesuffix(".weight").rpartition(".")
        if not key.startswith(ROOT) or part not in wanted:
            raise BadAdapter(f"it holds {key!r}, which is not a weight of a linear layer of its kind")
        layers.setdefault(name, {})[part] = tensor
    for name, parts in layers.items():
        if len(parts) != len(wanted):
            raise BadAdapter(f"layer {name!r} has {', '.join(parts)} alone")
    return layers


def _check_layer(name: str, parts: dict[str, Tensor], rank: int) -> None:
    a, b, magnitude = parts[LORA_A], parts[LORA_B], parts.get(MAGNITUDE)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise BadAdapter(f"layer {name!r} has shapes {tuple(a.shape)} and {tuple(b.shape)}, which are not of rank {rank}")
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        raise BadAdapter(f"layer {name!r} has a magnitude of shape {tuple(magnitude.shape)}, which is not {tuple(b.shape[:1])}")
    if not all(is_finite(tensor) for tensor in parts.values()):
        raise BadAdapter(f"layer {name!r} holds numbers that are not finite")
