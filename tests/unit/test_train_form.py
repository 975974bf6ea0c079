"""The form of the Train tab: each option by its type, what belongs to which kind of adapter, prompts one a line, the command."""

import shlex
from typing import Any

import gradio as gr
import pytest
from typer.main import get_command

from studio.__main__ import app
from studio.training.config import PRESETS, TrainConfig, make_config, parse_overrides
from studio.ui import form
from studio.ui.tabs import chat


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("rank", gr.Number),
        ("learning_rate", gr.Number),
        ("rslora", gr.Checkbox),
        ("method", gr.Dropdown),
        ("targets", gr.Textbox),
        ("sample_prompts", gr.Textbox),
    ],
)
def test_an_option_has_the_control_of_its_type(key: str, kind: type) -> None:
    value = make_config().model_dump()[key]
    control = form.build_field(key, value)
    assert type(control) is kind and control.value == value and control.info.endswith(".")


def test_prompts_stand_one_a_line() -> None:
    assert form.to_control("sample_prompts", "Who are you?|Sing | a song") == "Who are you?\nSing\na song"
    assert form.from_control("sample_prompts", " Who are you? \n\nSing|a song\n") == "Who are you?|Sing|a song"
    assert form.from_control("sample_prompts", "") == form.from_control("sample_prompts", None) == ""
    assert form.from_control("targets", "a|b") == "a|b"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_that_nobody_changed_changes_nothing(preset: str) -> None:
    assert form.changed_fields(preset, form.preset_controls(preset)) == {}


def filled(preset: str = "balanced", **changes: Any) -> list[Any]:
    return [changes.get(key, value) for key, value in zip(TrainConfig.model_fields, form.preset_controls(preset), strict=True)]


def test_only_what_was_changed_and_is_used_is_submitted() -> None:
    assert form.changed_fields("balanced", filled(rank=8, epochs=None, rslora=True)) == {"rank": 8, "rslora": True}
    assert form.changed_fields("balanced", filled(method="prefix", rank=8, virtual_tokens=5)) == {"method": "prefix", "virtual_tokens": 5}
    assert form.changed_fields("balanced", filled(virtual_tokens=5)) == {}
    assert form.changed_fields("balanced", filled(sample_prompts="a\nb")) == {"sample_prompts": "a|b"}


def test_options_are_shown_where_they_mean_something() -> None:
    for method in ("lora", "dora"):
        assert form.is_shown("rank", method, False) and not form.is_shown("virtual_tokens", method, False)
    assert form.is_shown("virtual_tokens", "prefix", False) and not form.is_shown("rank", "prefix", False)
    assert form.is_shown("devices", "lora", True) and not form.is_shown("devices", "lora", False)
    assert all(form.is_shown(key, "prefix", True) for key in ("epochs", "seed", "quantization"))
    assert {key for keys in form.UNUSED.values() for key in keys} | set(form.SEVERAL_GPUS) <= set(TrainConfig.model_fields)


def test_the_command_line_is_quoted_for_a_shell() -> None:
    changes = {"learning_rate": 0.003, "max_steps": 12, "targets": "q_proj,v proj"}
    line = form.command_line("it's mine", "bird; rm -rf /", "", "quick", changes, {})
    assert line == (
        "python -m studio train --dataset 'it'\"'\"'s mine' --name 'bird; rm -rf /' --preset quick "
        "--set learning_rate=0.003 --set max_steps=12 --set 'targets=q_proj,v proj'"
    )
    assert "--base Smol" in form.command_line("a", "b", "Smol", "quick", {}, {})


def test_the_command_line_means_what_the_form_means() -> None:
    changes = form.changed_fields("quick", filled("quick", rslora=True, sample_prompts="Who are you?\nSing", warmup=0.25))
    axes = {"rank": ["8", "16"], "seed": ["0", "1"]}
    words = shlex.split(form.command_line("a", "b", "", "quick", changes, axes, -10, "j1"))
    assert words[-3:] == ["--priority=-10", "--run-after", "j1"]
    known = {option for parameter in get_command(app).commands["train"].params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert make_config("quick", parse_overrides(pairs)) == make_config("quick", changes)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--sweep"] == ["rank=8,16", "seed=0,1"]


def test_a_seed_that_nobody_gave_is_not_0() -> None:
    with gr.Blocks():
        seed = chat.build().seed
    assert isinstance(seed, gr.Textbox) and seed.value == ""  # an empty gr.Number is 0
