"""What of PEFT's `adapter_config.json` is read, and what is refused by name.

A schema of our own instead of PEFT's classes: nothing here follows a name that a file gives, downloads, imports, or evaluates a regular
expression. Which layers there are, and their ranks, is told by the tensors; the configuration must agree with them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StringConstraints, ValidationError

from studio.adapters.header import parse_json, shortened
from studio.datasets.reading.limits import MIB
from studio.datasets.reading.places import printable
from studio.errors import InvalidInput
from studio.lora.files import CONFIG_FILE, MAX_RANK, PLAIN_INIT

MAX_CONFIG_BYTES = MIB
MOST = 4096  # names in a list, or entries of a pattern
# What changes the base, or what is computed, when it is set at all.
REFUSED = {
    "auto_mapping": "names Python code to load a model with; remove it from the file, since the base is chosen here",
    "layer_replication": "builds another model out of copies of the base's layers; train an adapter without it",
    "modules_to_save": "replaces whole layers of the base; train an adapter without it",
    "megatron_config": "is for Megatron's parallel layers; convert the adapter to plain LoRA",
    "lora_bias": "adds a bias to the base's layers; train an adapter without it",
    "trainable_token_indices": "changes the base's token embeddings; train an adapter without it",
    "target_parameters": "adapts parameters that lie in no linear layer; train an adapter on linear layers",
    "use_qalora": "computes with inputs that are pooled by groups; train plain LoRA",
    "alora_invocation_tokens": "switches the adapter on in the middle of a text; train plain LoRA",
}
# What says nothing about how the adapter computes once it is trained.
IGNORED = {
    "base_model_name_or_path", "revision", "peft_version", "inference_mode", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "encoder_hidden_size", "prefix_projection",
    "init_weights",
}  # fmt: skip
KINDS = ("LORA", "PREFIX_TUNING")
PLAIN_STARTS = (*PLAIN_INIT, "orthogonal")  # starts of A and B that leave the base as it is

Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=300)]
Names = Annotated[list[Name], Field(max_length=MOST)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e6, le=1e6)]
Rank = Annotated[StrictInt, Field(ge=1, le=MAX_RANK)]
Block = Annotated[StrictInt, Field(ge=0, le=100_000)]
Count = Annotated[StrictInt, Field(ge=1, le=1 << 24)]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    task_type: Literal["CAUSAL_LM"] | None = None


class LoraOptions(_Options):
    """A LoRA, rsLoRA or DoRA."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Number
    use_rslora: StrictBool = False
    use_dora: StrictBool = False
    lora_dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    fan_in_fan_out: StrictBool = False
    bias: Literal["none"] = "none"
    init_lora_weights: StrictBool | Name = True
    target_modules: Names | Name | None = None
    exclude_modules: Names | Name | None = None
    layers_to_transform: Annotated[list[Block], Field(max_length=MOST)] | Block | None = None
    layers_pattern: Names | Name | None = None
    rank_pattern: Annotated[dict[Name, Rank], Field(max_length=MOST)] | None = None
    alpha_pattern: Annotated[dict[Name, Number], Field(max_length=MOST)] | None = None


class PrefixOptions(_Options):
    """A prefix: learned keys and values of every layer."""

    peft_type: Literal["PREFIX_TUNING"]
    num_virtual_tokens: Count
    num_layers: Count
    token_dim: Count
    num_attention_heads: Count
    num_transformer_submodules: Literal[1] = 1


Options = LoraOptions | PrefixOptions


def read_options(text: bytes) -> tuple[Options, str]:
    """The options, and what the file calls its base (a text for people, empty where it says nothing).

    Raises:
        InvalidInput: the file is no such JSON, or an option is refused; the message names it.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise refuse("has more than 1.0 MB, and a configuration has some kilobytes", "give the file that PEFT wrote")
    found = parse_json(text, lambda why: refuse(why, "give the file as PEFT wrote it"))
    if not isinstance(found, dict):
        raise refuse("is no JSON object", "give the file as PEFT wrote it")
    kind = found.get("peft_type")
    if kind not in KINDS:
        said = f"says peft_type {shortened(str(kind))!r}" if kind else "does not say its peft_type"
        raise refuse(f"{said}, and {' and '.join(KINDS)} are read", "train one of these kinds")
    model = LoraOptions if kind == "LORA" else PrefixOptions
    _check_refused(found)
    _check_unknown(found, set(model.model_fields))
    options = _validated(model, {key: value for key, value in found.items() if value is not None or key in ("r", "lora_alpha")})
    if isinstance(options, LoraOptions):
        _check_lora(options)
    named = found.get("base_model_name_or_path")
    return options, shortened(printable(named), 120) if isinstance(named, str) else ""


def refuse(why: str, mend: str) -> InvalidInput:
    """The error that refuses the configuration; `why` continues the sentence after its name."""
    return InvalidInput(f"The adapter's {CONFIG_FILE} {printable(why)}; {mend}.")


def base_label(named: str) -> str:
    """The last part of what a file calls its base: as a base is named here."""
    return Path(named.replace("\\", "/")).name


def _check_refused(found: dict[str, Any]) -> None:
    for key, why in REFUSED.items():
        if _is_set(found.get(key)):
            reason, _, mend = why.partition("; ")
            raise refuse(f"uses {key}, which {reason}", mend)
    if found.get("bias", "none") not in ("none", None):
        raise refuse(f"has bias {shortened(str(found['bias']))!r}, which changes the base's biases", "train an adapter with bias none")


def _check_unknown(found: dict[str, Any], known: set[str]) -> None:
    """What a newer PEFT added is fine where it is off; what is on may change what the adapter computes."""
    on = [key for key, value in found.items() if key not in known | IGNORED | {"bias"} | set(REFUSED) and _is_set(value)]
    if on:
        shown = ", ".join(shortened(key) for key in sorted(on)[:5])
        raise refuse(f"uses {shown}, which the studio does not know", "train an adapter without it")


def _is_set(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _validated(model: type[LoraOptions] | type[PrefixOptions], values: dict[str, Any]) -> Options:
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        if field == "task_type":
            raise refuse(f"is for the task {shortened(str(first['input']))!r}, and adapters here write text", "use CAUSAL_LM") from None
        if first["type"] == "missing":
            raise refuse(f"lacks {field}", "give the file as PEFT wrote it") from None
        got, why = shortened(repr(first["input"]), 60), first["msg"][:1].lower() + first["msg"][1:].rstrip(".")
        raise refuse(f"has {field} {got}, which cannot be: {why}", "give the file as PEFT wrote it") from None


def _check_lora(options: LoraOptions) -> None:
    init = options.init_lora_weights
    if init not in PLAIN_STARTS:
        raise refuse(
            f"has init_lora_weights {shortened(str(init))!r}, a start that changes the base's weights",
            "save the adapter with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(options, key)
        if (
            isinstance(value, str)
            and not (key == "target_modules" and value == "all-linear")
            and not (key == "layers_pattern" and _plain(value))
        ):
            raise refuse(f"gives {key} as a regular expression, which is never evaluated here", "write the names of the layers as a list")
    odd = next((name for name in options.alpha_pattern or () if not _plain(name.removeprefix("^"))), None)
    if odd is not None:
        raise refuse(
            f"has a regular expression in alpha_pattern, {shortened(odd)!r}, which is never evaluated here", "write the names of the layers"
        )


def _plain(name: str) -> bool:
    """Whether a name is one, and no pattern: PEFT matches both as regular expressions."""
    return name.isascii() and all(char.isalnum() or char in "_-." for char in name)
