"""The configuration of a training job. Ranges and help are written once, here: the form and the docs read them."""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import InvalidInput

TrainingQuantization = Literal["nf4", "int8", "bf16", "fp32"]


class TrainConfig(BaseModel):
    """What a job trains, frozen when it is submitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, le=256, description="Size of the adapter: columns of B and rows of A.")
    alpha: float = Field(32.0, gt=0, le=1024, description="Strength: the adapter's output is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs of A that is dropped while training.")
    targets: str = Field("all-linear", min_length=1, description="Layers: all-linear, attention, or names with commas.")
    init: Literal["kaiming", "gaussian"] = Field("kaiming", description="Distribution that A starts from; B starts at zero.")
    epochs: float = Field(4.0, gt=0, le=100, description="How often every row is seen.")
    max_steps: int = Field(0, ge=0, le=1_000_000, description="Stop after this many optimizer steps; 0 leaves it to epochs.")
    batch_size: int = Field(8, ge=1, le=1024, description="Rows of one optimizer step.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak of the learning rate.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decay of A and B.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are scaled down to this norm.")
    max_length: int = Field(512, ge=16, le=131_072, description="Longest row in tokens.")
    over_length: Literal["truncate", "drop"] = Field("truncate", description="What happens to longer rows.")
    token_budget: int = Field(2048, ge=16, le=1_048_576, description="Tokens computed at once; lower it to save memory.")
    held_out: float = Field(0.1, ge=0, le=0.5, description="Share of the rows that is kept for evaluation.")
    quantization: TrainingQuantization = Field("nf4", description="How the frozen base is held: nf4 is QLoRA.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of initialisation, split and order.")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"rank": 8, "alpha": 16.0, "epochs": 2.0, "learning_rate": 1e-3},
    "balanced": {},
    "thorough": {"rank": 32, "alpha": 64.0, "epochs": 8.0, "learning_rate": 5e-4, "dropout": 0.05},
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


def field_choices(name: str) -> list[str]:
    """The allowed words of a choice, or nothing."""
    return [str(choice) for choice in get_args(TrainConfig.model_fields[name].annotation)]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
