"""The form of the Train tab: every option of the config in its group, and what the form says before one starts.

Controls, help and ranges come from the config itself; here stands only which options go together.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from studio.training.config import (
    DEFAULT_PRESET,
    GROUPS,
    PRESETS,
    TrainConfig,
    field_choices,
    field_group,
    field_help,
    make_config,
)
from studio.ui import present
from studio.ui.jobs.parts import PRIORITIES
from studio.ui.page import AS_VERSION, html

PRESET_LINES = {"quick": "a first impression", "balanced": "good for most sets", "thorough": "slow, for sets of many rows"}
PROMPTS = "sample_prompts"
PROMPTS_HELP = "Prompts to answer at each evaluation, one a line."
SEVERAL_GPUS = ("devices", "sharding")
LORA_ALONE = ("rank", "alpha", "rslora", "dropout", "targets", "layers", "init", "lora_plus")
UNUSED = {"lora": ("virtual_tokens",), "dora": ("virtual_tokens",), "prefix": LORA_ALONE}
SWEEP_HELP = "Train one adapter for each combination of these values, at most 64, and compare them."
PRIORITY_CHOICES = [(name.capitalize(), value) for name, value in PRIORITIES.items()]
PRIORITY_HELP = "Runs before all that wait with a lower one."
NO_OTHER = ("No other training", "")
AFTER_HELP = "Starts only when that one is done."


def build(several_gpus: bool) -> dict[str, Any]:
    """Lay the form out; returns its handles by the names that `TrainTab` gives them."""
    dataset = gr.Dropdown([], label="Dataset", info="What the adapter learns from.", elem_id="train-dataset")
    name = gr.Textbox("", label="Adapter name", placeholder="Angry bird", max_lines=1, elem_id="train-name")
    version = gr.Checkbox(False, **AS_VERSION, elem_id="train-version")
    preset = gr.Radio(
        [(f"{key.capitalize()}: {preset_line(key)}", key) for key in PRESETS],
        value=DEFAULT_PRESET,
        label="Preset",
        elem_id="train-preset",
        elem_classes="as-radio-lines",
    )
    base = gr.Dropdown([], label="Base", elem_id="train-base")
    cost = html(elem_id="train-cost")
    with gr.Accordion("More", open=False, elem_id="train-more"):
        fields = _build_groups(several_gpus)
        with gr.Accordion("Several at once", open=False, elem_classes="as-fold"):
            sweep = gr.Textbox("", label="Sweep", info=SWEEP_HELP, placeholder="rank=8,16; seed=0,1", max_lines=1, elem_id="train-sweep")
        with gr.Accordion("Place in the queue", open=False, elem_classes="as-fold"), gr.Row(elem_classes="as-grid"):
            priority = gr.Dropdown(PRIORITY_CHOICES, value=0, label="Priority", info=PRIORITY_HELP, elem_id="train-priority", min_width=180)
            after = gr.Dropdown([NO_OTHER], value="", label="Run after", info=AFTER_HELP, elem_id="train-after", min_width=180)
    memory = html(elem_id="train-memory")
    start = gr.Button("Start training", variant="primary", elem_id="train-start")
    message = html(elem_id="train-message")
    command = gr.Textbox(
        "", label="The same as a command", lines=2, interactive=False, buttons=["copy"], elem_id="train-command", elem_classes="as-command"
    )
    handles = {"dataset": dataset, "name": name, "version": version, "preset": preset, "base": base, "cost": cost, "fields": fields}
    return handles | {
        "sweep": sweep,
        "priority": priority,
        "after": after,
        "memory": memory,
        "start": start,
        "message": message,
        "command": command,
    }


def _build_groups(several_gpus: bool) -> dict[str, Any]:
    """The controls of all options under the headings of their groups."""
    defaults = make_config().model_dump()
    fields = {}
    for group in GROUPS:
        with gr.Accordion(group, open=False, elem_classes="as-fold"), gr.Row(elem_classes="as-grid"):
            for key in (key for key in TrainConfig.model_fields if field_group(key) == group):
                fields[key] = build_field(key, defaults[key], visible=is_shown(key, defaults["method"], several_gpus))
    return {key: fields[key] for key in TrainConfig.model_fields}


def preset_line(preset: str) -> str:
    """What a preset means, in its own numbers."""
    config = make_config(preset)
    return f"rank {config.rank}, {config.epochs:g} epoch{'' if config.epochs == 1 else 's'}; {PRESET_LINES[preset]}"


def build_field(key: str, value: Any, *, visible: bool = True) -> Any:
    """The control of one option: a switch, a choice, a number or a text, with its help and range."""
    shared: dict[str, Any] = {
        "value": to_control(key, value),
        "label": key.replace("_", " ").capitalize(),
        "info": PROMPTS_HELP if key == PROMPTS else field_help(key),
        "elem_id": f"train-{key.replace('_', '-')}",
        "min_width": 180,
        "visible": visible,
    }
    if isinstance(value, bool):
        return gr.Checkbox(**shared)
    if choices := field_choices(key):
        return gr.Dropdown(choices, **shared)
    if key == PROMPTS:
        return gr.Textbox(lines=3, max_lines=8, elem_classes="as-whole-row", **shared)
    if isinstance(value, str):
        return gr.Textbox(max_lines=1, **shared)
    return gr.Number(precision=0 if isinstance(value, int) else None, **shared)


def is_shown(key: str, method: str, several_gpus: bool) -> bool:
    """Whether an option means anything here."""
    return key not in UNUSED.get(method, ()) and (several_gpus or key not in SEVERAL_GPUS)


def to_control(key: str, value: Any) -> Any:
    """An option's value as its control shows it: prompts stand one a line."""
    return "\n".join(prompt.strip() for prompt in value.split("|")) if key == PROMPTS else value


def from_control(key: str, value: Any) -> Any:
    """What a control shows, as the option's value; empty lines are no prompts."""
    if key != PROMPTS:
        return value
    return "|".join(filter(None, (part.strip() for line in (value or "").splitlines() for part in line.split("|"))))


def preset_controls(preset: str) -> list[Any]:
    """What the controls show of a preset."""
    return controls(make_config(preset).model_dump())


def controls(config: Mapping[str, Any]) -> list[Any]:
    """What the controls show of a configuration."""
    return [to_control(key, config[key]) for key in TrainConfig.model_fields]


def changed_fields(preset: str, values: Sequence[Any]) -> dict[str, Any]:
    """The options that differ from the preset. An emptied number means the preset's own; what this kind of adapter ignores stays out."""
    expected = make_config(preset).model_dump()
    given = {key: from_control(key, value) for key, value in zip(expected, values, strict=True)}
    unused = UNUSED.get(given["method"], ())
    return {key: value for key, value in given.items() if value is not None and value != expected[key] and key not in unused}


def command_line(
    dataset: str,
    name: str,
    base: str,
    preset: str,
    changes: Mapping[str, Any],
    axes: Mapping[str, list[str]],
    priority: int = 0,
    after: str = "",
    version: bool = False,
) -> str:
    """The command that does what the form does, quoted for a shell."""
    words = ["python", "-m", "studio", "train", "--dataset", dataset, "--as-version-of" if version else "--name", name]
    words += ["--base", base] if base else []
    words += ["--preset", preset]
    for key, value in changes.items():
        words += ["--set", f"{key}={present.plain_number(value)}"]
    for key, values in axes.items():
        words += ["--sweep", f"{key}={','.join(values)}"]
    words += [f"--priority={priority}"] if priority else []  # with the equals sign, or a negative one would be an option
    words += ["--run-after", after] if after else []
    return shlex.join(words)
