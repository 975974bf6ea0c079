"""The configuration of a training job. Ranges and help are written once, here: the form and the docs read them."""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import InvalidInput

TrainingQuantization = Literal["nf4", "fp4", "int8", "bf16", "fp32"]
GROUPS = ("Adapter", "Length of the training", "Learning rate", "Rows and memory", "Watching", "Machine")


def _option(default: Any, group: str, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


class TrainConfig(BaseModel):
    """What a job trains, frozen when it is submitted. Each option names the group of the form that it stands in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["lora", "dora", "prefix"] = _option(
        "lora", "Adapter", "Kind of adapter: lora, dora (learns the length of each weight row too), or prefix (learned keys and values)."
    )
    rank: int = _option(16, "Adapter", "Size of the adapter: columns of B and rows of A.", ge=1, le=256)
    alpha: float = _option(32.0, "Adapter", "Strength: the adapter's output is scaled by alpha / rank.", gt=0, le=1024)
    rslora: bool = _option(False, "Adapter", "Scale by alpha / √rank instead, which keeps high ranks stable.")
    dropout: float = _option(0.0, "Adapter", "Share of inputs of A that is dropped while training.", ge=0, lt=1)
    targets: str = _option("all-linear", "Adapter", "Linear layers: all-linear, attention, or names with commas.", min_length=1)
    layers: str = _option("all", "Adapter", "Blocks of the model: all, a range such as 0-9, or the last ones such as last 8.", min_length=1)
    init: Literal["kaiming", "gaussian", "pissa", "loftq"] = _option(
        "kaiming", "Adapter", "Start of A and B: random; pissa (main directions of W); loftq (what quantization lost)."
    )
    virtual_tokens: int = _option(20, "Adapter", "Length of the prefix, with method prefix.", ge=1, le=1024)

    epochs: float = _option(2.0, "Length of the training", "How often every row is seen.", gt=0, le=100)
    max_steps: int = _option(
        0, "Length of the training", "Stop after this many optimizer steps; 0 leaves it to epochs.", ge=0, le=1_000_000
    )
    max_minutes: float = _option(
        0.0, "Length of the training", "Stop after this many minutes of steps and keep what was learned; 0 never.", ge=0, le=100_000
    )
    batch_size: int = _option(8, "Length of the training", "Rows of one optimizer step.", ge=1, le=1024)
    batch_tokens: int = _option(
        0, "Length of the training", "Tokens of one optimizer step, instead of rows; 0 counts rows.", ge=0, le=4_194_304
    )
    early_stopping: int = _option(
        0, "Length of the training", "Stop after this many evaluations without a better held-out loss; 0 never.", ge=0, le=1000
    )
    keep_best: bool = _option(False, "Length of the training", "Keep the weights with the lowest held-out loss, not the last ones.")

    learning_rate: float = _option(1e-3, "Learning rate", "Peak of the learning rate.", gt=0, le=1)
    lora_plus: float = _option(1.0, "Learning rate", "LoRA+: B learns this many times as fast as A.", ge=1, le=64)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = _option(
        "cosine", "Learning rate", "Shape after the warm-up; wsd is level and falls over the last fifth."
    )
    warmup: float = _option(0.1, "Learning rate", "Share of the steps in which the learning rate rises.", ge=0, lt=1)
    weight_decay: float = _option(0.0, "Learning rate", "AdamW's decay of what is learned.", ge=0, le=1)
    max_grad_norm: float = _option(1.0, "Learning rate", "Gradients are scaled down to this norm.", gt=0, le=1000)
    neftune: float = _option(0.0, "Learning rate", "NEFTune: noise on the embeddings while training; 5 is usual, 0 is off.", ge=0, le=100)
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = _option(
        "adamw", "Learning rate", "AdamW; in 8 bit or paged it needs CUDA and saves memory with large adapters."
    )

    max_length: int = _option(512, "Rows and memory", "Longest row in tokens.", ge=16, le=131_072)
    over_length: Literal["truncate", "drop"] = _option("truncate", "Rows and memory", "What happens to longer rows.")
    token_budget: int = _option(2048, "Rows and memory", "Tokens computed at once; lower it to save memory.", ge=16, le=1_048_576)
    quantization: TrainingQuantization = _option("nf4", "Rows and memory", "How the frozen base is held: nf4 is QLoRA.")
    activation_checkpointing: Literal["auto", "on", "off"] = _option(
        "auto", "Rows and memory", "Compute activations twice to save memory; auto does so only when memory asks."
    )

    held_out: float = _option(0.1, "Watching", "Share of the rows that is kept for evaluation.", ge=0, le=0.5)
    eval_steps: int = _option(0, "Watching", "Evaluate after this many steps; 0 means after each epoch.", ge=0, le=1_000_000)
    sample_prompts: str = _option("", "Watching", "Prompts to answer at each evaluation, with | between them.")
    sample_tokens: int = _option(32, "Watching", "Longest answer to such a prompt, in tokens.", ge=1, le=1024)
    tracker: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = _option(
        "none", "Watching", "Where curves are sent as well; the studio always keeps its own."
    )

    checkpoint_every_s: float = _option(
        20.0,
        "Machine",
        "Seconds between checkpoints; a job that is stopped loses no more than that. 0 keeps one after each step.",
        ge=0,
        le=86_400,
    )
    keep_checkpoints: int = _option(2, "Machine", "Checkpoints that are kept while the job is not done.", ge=1, le=100)
    devices: int = _option(1, "Machine", "Processes that train together, one a GPU.", ge=1, le=64)
    sharding: Literal["ddp", "fsdp"] = _option(
        "ddp", "Machine", "With several GPUs: ddp keeps the base on each; fsdp spreads a base that does not fit one."
    )
    seed: int = _option(0, "Machine", "Seed of initialisation, split and order.", ge=0, le=2**31 - 1)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"rank": 8, "alpha": 16.0, "epochs": 1.0, "learning_rate": 1e-3},
    "balanced": {},
    "thorough": {"rank": 32, "alpha": 64.0, "epochs": 8.0, "learning_rate": 5e-4, "dropout": 0.05, "keep_best": True},
}
DEFAULT_PRESET = "balanced"


def make_config(preset: str = DEFAULT_PRESET, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """A preset with some fields changed.

    Raises:
        InvalidInput: names the unknown preset or field, or the value that is out of range and the range.
    """
    if preset not in PRESETS:
        raise InvalidInput(f"There is no preset {preset!r}; choose {', '.join(PRESETS)}.")
    try:
        return TrainConfig(**{**PRESETS[preset], **(overrides or {})})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise InvalidInput(f"There is no option {field!r}; the options are {', '.join(TrainConfig.model_fields)}.") from None
        raise InvalidInput(f"The option {field} is {first['input']!r}: {_lower(first['msg'])}. {field_help(field)}") from None


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Parse `key=value` pairs of the command line; values stay text and are converted by the config itself.

    Raises:
        InvalidInput: a pair has no equals sign.
    """
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"The option {pair!r} is not key=value.")
        values[key.strip()] = value.strip()
    return values


def field_help(name: str) -> str:
    """One line about a field: what it is and its range."""
    description = TrainConfig.model_fields[name].description or ""
    low, high = field_range(name)
    return description + (f" Range {_digits(low)} to {_digits(high)}." if low is not None and high is not None else "")


def _digits(bound: float) -> str:
    """ "1,048,576" where `:g` would say 1.04858e+06."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def field_range(name: str) -> tuple[float | None, float | None]:
    """The bounds of a number, inclusive or not, or (None, None)."""
    bounds = TrainConfig.model_fields[name].metadata
    low = next((getattr(b, k) for b in bounds for k in ("ge", "gt") if hasattr(b, k)), None)
    high = next((getattr(b, k) for b in bounds for k in ("le", "lt") if hasattr(b, k)), None)
    return low, high


def field_group(name: str) -> str:
    """The heading of the form that a field stands under, one of `GROUPS`."""
    extra = TrainConfig.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["group"])


def field_choices(name: str) -> list[str]:
    """The allowed words of a choice, or nothing."""
    return [str(choice) for choice in get_args(TrainConfig.model_fields[name].annotation)]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
