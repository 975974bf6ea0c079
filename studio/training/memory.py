"""What a training needs in memory, told before it starts, and how much there is.

The sum is made from the model's own shapes, read from its config without its weights: what is held for each
parameter, and what the backward pass keeps for each token.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from studio.bases.loading import empty_model
from studio.lora.errors import UnsuitableOption
from studio.lora.injection import find_targets, linear_layers
from studio.lora.linear import shape
from studio.training.attention import KEPT_KEYS
from studio.training.config import TrainConfig
from studio.training.fused import is_fused
from studio.training.loss import CHUNK, SOFTMAX_BYTES

MB = 2**20
# Python with its libraries, the model's code and what loading leaves, and the kernels that are made for each shape;
# measured on the CPU. On CUDA the context and its kernels, a guess: not run on a GPU.
RUNTIME_MB = {"cpu": 990, "cuda": 700}
FRAGMENTED = 1.08  # what an allocator needs for each byte that is asked for
WEIGHT_BYTES = {"nf4": 0.52, "fp4": 0.52, "int8": 1.01, "bf16": 2.0, "fp32": 4.0}  # with the scales of blocks or rows
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2, "paged_adamw8bit": 0}  # two for each parameter; paged ones move out when asked
SMALLEST_BUDGET = 64  # tokens; below this a piece is hardly worth a product
# How torch, Python and the system say that memory ran out; a thread that has no stack says the last.
SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc", "can't start new thread")


@dataclass(frozen=True)
class Estimate:
    """The largest amount at one time, in MiB, by what holds it; what is free; and what to change where it does not fit."""

    total_mb: int
    parts: dict[str, int]
    available_mb: int
    advice: str


@dataclass(frozen=True)
class _Sizes:
    """Bytes that do not depend on the token budget by part, and bytes for each token that is computed at once."""

    fixed: dict[str, float]
    per_token: float
    per_token_recomputed: float


def estimate(base_path: Path, config: TrainConfig, longest_row: int | None = None, available_mb: int | None = None) -> Estimate:
    """What a training of this configuration needs.

    Args:
        base_path: the base's folder. longest_row: tokens of the dataset's longest row; None takes max_length.
        available_mb: what may be used; None measures what is free.

    Raises:
        BaseUnavailable: the base's config cannot be read.
    """
    free = free_mb() if available_mb is None else available_mb
    sizes = _sizes(base_path, config)
    row = min(config.max_length, longest_row or config.max_length)
    need = _need(sizes, config, row)
    total = sum(need.values())
    return Estimate(total, need, free, "" if total <= free else _advice(sizes, config, row, free))


def fitting(base_path: Path, config: TrainConfig, longest_row: int, available_mb: int) -> TrainConfig:
    """The configuration with the largest token budget that fits, halving it, and recomputing activations where that is not enough.

    The rows of a step stay as they are. Returned as it came where it fits, or where nothing fits.
    """
    sizes = _sizes(base_path, config)
    smallest = max(SMALLEST_BUDGET, min(longest_row, config.token_budget))
    modes = ["off", "on"] if config.activation_checkpointing == "auto" else [config.activation_checkpointing]
    for mode in modes:
        budget = config.token_budget
        while budget >= smallest:
            tried = config.model_copy(update={"token_budget": budget, "activation_checkpointing": mode})
            if sum(_need(sizes, tried, longest_row).values()) <= available_mb:
                return config if budget == config.token_budget and mode == "off" else tried
            budget = budget // 2
    return config


def free_mb(devices: Sequence[str] = ("cuda:0",)) -> int:
    """What a new process may take, in MiB: the least of CUDA devices; else of the machine, or of its container where that has a limit."""
    if torch.cuda.is_available():
        return min(int(torch.cuda.mem_get_info(device)[0] // MB) for device in devices)
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return int(max(free, 0) // MB)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory ran out, on CUDA or on the CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in SAID)


def limit_memory(limit_mb: int) -> None:
    """Let an allocation fail beyond so many MiB of this process, so that the training can use less, and is not killed.

    Linux alone; elsewhere, and on CUDA, where addresses are reserved in bulk, nothing is done.
    """
    if torch.cuda.is_available():
        return
    try:
        import resource

        allowed = limit_mb * MB + _reserved_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, AttributeError, ValueError, OSError):  # another platform, or a lower limit is set already
        return


def _reserved_bytes() -> int:
    """What this process has only reserved: it counts for the limit and is no memory. Arrow's allocator alone reserves 1 GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name in ("VmData", "RssAnon")}
    return max(0, kib["VmData"] - kib["RssAnon"]) * 1024


def _need(sizes: _Sizes, config: TrainConfig, longest_row: int) -> dict[str, int]:
    per_token = sizes.per_token_recomputed if config.activation_checkpointing == "on" else sizes.per_token
    # A step has no more tokens than its rows; a row longer than the budget goes through alone.
    tokens = max(longest_row, min(config.token_budget, config.batch_tokens or config.batch_size * longest_row))
    return {name: round(size / MB) for name, size in {**sizes.fixed, "activations": per_token * tokens}.items()}


def _sizes(base_path: Path, config: TrainConfig) -> _Sizes:
    model = empty_model(base_path)
    linear = linear_layers(model)
    weights = sum(_numel(layer) for layer in linear.values())
    others = sum(p.numel() for p in model.parameters()) - weights
    plain = 4.0 if config.quantization == "fp32" else 2.0
    learned = _learned(model, config)
    largest = max(_numel(layer) for layer in linear.values())
    text = model.config.get_text_config()
    head = CHUNK * text.vocab_size * plain + 2 * SOFTMAX_BYTES
    fixed = {
        "runtime": RUNTIME_MB["cuda" if torch.cuda.is_available() else "cpu"] * float(MB),
        "base": _held(weights * WEIGHT_BYTES[config.quantization], text.num_hidden_layers, config) + others * plain + 2 * largest * plain,
        "adapter": learned * 8.0,  # float32, and its gradient
        "optimizer": learned * float(MOMENT_BYTES[config.optimizer]),
        "head": head,
    }
    kept, transient = _per_token(model, linear, plain)
    return _Sizes(fixed, kept + transient, text.num_hidden_layers * text.hidden_size * plain + kept / text.num_hidden_layers + transient)


def _held(blocks_bytes: float, blocks: int, config: TrainConfig) -> float:
    """What a process holds of the blocks: all, or where GPUs share them its part, with two blocks gathered. Not run on a GPU."""
    if config.sharding == "fsdp" and torch.cuda.is_available():  # on the CPU the base is loaded whole first
        return min(blocks_bytes, blocks_bytes / config.devices + 2 * blocks_bytes / blocks)
    return blocks_bytes


def _per_token(model: Any, linear: dict[str, nn.Module], plain: float) -> tuple[float, float]:
    """(bytes that the backward pass keeps for each token, bytes that are needed for a moment)."""
    text = model.config.get_text_config()
    shapes = [shape(layer) for layer in linear.values()]
    outputs = sum(d_out for d_out, _ in shapes)
    blocks, hidden = text.num_hidden_layers, text.hidden_size
    # Each block keeps: what its products read (the norms' outputs, attention's and the gate's), what attention and the
    # gate read, the residual stream twice. Outputs of the products cover all of these but the norms' and the gate's.
    inner = max(d_in for _, d_in in shapes)
    probabilities = blocks * text.num_attention_heads * KEPT_KEYS // 4  # over half a row of up to so many tokens
    kept = (outputs + blocks * (3 * hidden + inner) + probabilities) * plain
    if not is_fused(model):  # autograd keeps float32 copies in each norm, and the activation on its own
        kept += blocks * (2 * 2 * 4 * hidden + 2 * inner * plain)
    return kept * FRAGMENTED, (6 * inner + 4 * hidden) * plain


def _learned(model: Any, config: TrainConfig) -> int:
    """Parameters of the adapter; 0 where its options do not fit the base, which the job itself will say."""
    text = model.config.get_text_config()
    if config.method == "prefix":
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return int(config.virtual_tokens * text.num_hidden_layers * 2 * heads * width)
    try:
        found = find_targets(model, config.targets, config.layers)
    except UnsuitableOption:
        return 0
    return sum(config.rank * sum(shape(layer)) + (shape(layer)[0] if config.method == "dora" else 0) for layer in found.values())


def _numel(layer: nn.Module) -> int:
    d_out, d_in = shape(layer)
    return d_out * d_in


def _advice(sizes: _Sizes, config: TrainConfig, longest_row: int, free: int) -> str:
    """The smallest change that fits, in a sentence."""
    budget = config.token_budget
    while budget > SMALLEST_BUDGET:
        budget //= 2
        tried = config.model_copy(update={"token_budget": budget})
        if sum(_need(sizes, tried, min(longest_row, budget)).values()) <= free:
            shorter = f" and max_length to {budget}" if longest_row > budget else ""
            return f"Set token_budget to {budget}{shorter}."
    return "Choose a smaller base, or close other programs."
