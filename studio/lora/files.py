"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

What is read is checked before it is used: only LoRA on linear layers, only safetensors, every A with its B, finite,
of one rank. Options that would change the base or need code that is not here are refused.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_RANK = 1024
# Options of PEFT that must be off: each changes the base, or what the layer computes.
REFUSED = (
    "use_dora", "modules_to_save", "layer_replication", "rank_pattern", "alpha_pattern", "auto_mapping", "megatron_config",
    "trainable_token_indices", "target_parameters", "lora_bias", "use_qalora", "exclude_modules", "alora_invocation_tokens",
)  # fmt: skip
PLAIN_INIT = (True, False, "gaussian")


class BadAdapter(ValueError):
    """The files are not an adapter that can be used; the message says why."""


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in memory.

    `pairs` maps the dotted name of a base layer to (A, B), (r, d_in) and (d_out, r), in the dtype of the file.
    """

    rank: int
    alpha: float
    rslora: bool
    pairs: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        """s of `W x + s · B (A x)`."""
        return lora_scale(self.alpha, self.rank, self.rslora)


def lora_scale(alpha: float, rank: int, rslora: bool = False) -> float:
    """alpha / r, or alpha / √r for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def encode_adapter(weights: AdapterWeights, base_name: str, dropout: float) -> dict[str, bytes]:
    """The adapter's files by name, ready to be written. The bytes depend on the weights and options alone."""
    tensors = {}
    for name, (a, b) in weights.pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.detach().contiguous().cpu()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.detach().contiguous().cpu()
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": weights.alpha,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": weights.rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in weights.pairs}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": weights.rslora,
    }
    return {
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
    }


def read_adapter(folder: Path) -> AdapterWeights:
    """Read an adapter in PEFT's format.

    Raises:
        BadAdapter: a file is missing or broken, an option is refused, or the weights are not a finite (A, B) per layer.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BadAdapter(f"{name} is missing")
    config = _read_config(folder / CONFIG_FILE)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    if not 1 <= rank <= MAX_RANK or not math.isfinite(alpha):
        raise BadAdapter(f"the rank is {rank} and alpha is {alpha}; a rank from 1 to {MAX_RANK} and a finite alpha are served")
    try:
        with safe_open(str(folder / WEIGHTS_FILE), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadAdapter(f"{WEIGHTS_FILE} cannot be read ({error})") from None
    return AdapterWeights(rank, alpha, bool(config.get("use_rslora")), _pair(tensors, rank))


def adapter_sha256(folder: Path) -> str:
    """SHA-256 over both files: the identity of an adapter's content."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["peft_type"] != "LORA":
            raise BadAdapter(f"the kind is {config['peft_type']}, and LORA is served")
        number = {key: float(config[key]) for key in ("r", "lora_alpha")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, BadAdapter):
            raise
        raise BadAdapter(f"{path.name} is not JSON, or lacks peft_type, r or lora_alpha ({error})") from None
    refused = [key for key in REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if config.get("init_lora_weights", True) not in PLAIN_INIT:
        refused.append("init_lora_weights")
    if refused:
        raise BadAdapter(f"it uses {', '.join(refused)}, which the studio does not serve")
    return {**config, **number}


def _pair(tensors: dict[str, Tensor], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, half = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not key.startswith(PREFIX) or half not in ("lora_A", "lora_B"):
            raise BadAdapter(f"it holds {key!r}, which is not a LoRA weight of a linear layer")
        halves.setdefault(name, {})[half] = tensor
    if not halves:
        raise BadAdapter("it holds no weights")
    pairs = {}
    for name, both in halves.items():
        if len(both) != 2:
            raise BadAdapter(f"layer {name!r} has {', '.join(both)} alone")
        a, b = both["lora_A"], both["lora_B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise BadAdapter(f"layer {name!r} has shapes {tuple(a.shape)} and {tuple(b.shape)}, which are not of rank {rank}")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise BadAdapter(f"layer {name!r} holds numbers that are not finite")
        pairs[name] = (a, b)
    return pairs
