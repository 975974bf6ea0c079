"""The config of a job says each range once, in words that people read."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from studio.errors import InvalidInput
from studio.training.config import (
    DEFAULT_PRESET,
    GROUPS,
    PRESETS,
    TrainConfig,
    field_choices,
    field_group,
    field_help,
    field_range,
    make_config,
    parse_overrides,
)

NUMBERS = [name for name, field in TrainConfig.model_fields.items() if field.annotation in (int, float)]
CHOICES = [name for name in TrainConfig.model_fields if field_choices(name)]
SWITCHES = [name for name, field in TrainConfig.model_fields.items() if field.annotation is bool]
TEXTS = [name for name, field in TrainConfig.model_fields.items() if field.annotation is str]


def written(bound: float) -> str:
    """A bound as a person reads it: 1,048,576 and not 1.04858e+06."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_every_option_has_a_line_of_help(name: str) -> None:
    help_ = field_help(name)
    assert len(help_) > 15 and help_.endswith(".") and "\n" not in help_


def test_every_option_is_a_number_with_a_range_a_choice_a_switch_or_a_text() -> None:
    assert set(TrainConfig.model_fields) == {*NUMBERS, *CHOICES, *SWITCHES, *TEXTS}
    assert TEXTS == ["targets", "layers", "sample_prompts"]
    for name in NUMBERS:
        low, high = field_range(name)
        assert low is not None and high is not None and low < high
        assert f"Range {written(low)} to {written(high)}." in field_help(name)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_changes_known_options(preset: str) -> None:
    config = make_config(preset)
    assert config == TrainConfig(**PRESETS[preset])
    assert DEFAULT_PRESET in PRESETS


def test_an_option_wins_over_its_preset_and_the_rest_stays() -> None:
    config = make_config("quick", {"rank": 4})
    assert config.rank == 4 and config.epochs == PRESETS["quick"]["epochs"]


def test_an_unknown_preset_is_refused_with_the_presets() -> None:
    with pytest.raises(InvalidInput, match="no preset 'fast'; choose quick, balanced, thorough"):
        make_config("fast")


def test_an_unknown_option_is_refused_with_the_options() -> None:
    with pytest.raises(InvalidInput) as caught:
        make_config(overrides={"lr": 1})
    assert "There is no option 'lr'" in str(caught.value)
    assert all(name in str(caught.value) for name in TrainConfig.model_fields)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_value_out_of_range_says_the_option_the_value_and_the_range(name: str) -> None:
    low, high = field_range(name)
    assert low is not None and high is not None
    for value in (low - 1, high + 1):
        value = int(value) if TrainConfig.model_fields[name].annotation is int else value
        with pytest.raises(InvalidInput) as caught:
            make_config(overrides={name: value})
        message = str(caught.value)
        assert message.startswith(f"The option {name} is {value!r}: ") and f"Range {written(low)} to {written(high)}." in message


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["many", "", "nan", "inf", "-inf", math.nan, None])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"The option {name} is "):
        make_config(overrides={name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_config(overrides={name: "nothing"})
    assert all(choice in str(caught.value) for choice in field_choices(name))
    for choice in field_choices(name):
        assert getattr(make_config(overrides={name: choice}), name) == choice


def test_every_option_stands_in_a_group_and_every_group_has_options() -> None:
    assert {field_group(name) for name in TrainConfig.model_fields} == set(GROUPS)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_takes_the_words_of_the_command_line(name: str) -> None:
    for word, on in {"true": True, "1": True, "on": True, "false": False, "0": False}.items():
        assert getattr(make_config(overrides={name: word}), name) is on
    with pytest.raises(InvalidInput, match=f"The option {name} is 'perhaps'"):
        make_config(overrides={name: "perhaps"})


def test_text_of_the_command_line_becomes_numbers() -> None:
    config = make_config(overrides=parse_overrides(["rank=4", " learning_rate = 2e-4", "epochs=0.5", "targets=q_proj,v_proj", "seed=7"]))
    assert (config.rank, config.learning_rate, config.epochs, config.targets, config.seed) == (4, 2e-4, 0.5, "q_proj,v_proj", 7)
    with pytest.raises(InvalidInput, match=r"The option rank is '4\.5'"):
        make_config(overrides=parse_overrides(["rank=4.5"]))


def test_a_pair_without_an_equals_sign_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'rank' is not key=value"):
        parse_overrides(["rank"])
    assert parse_overrides(["targets=a=b"]) == {"targets": "a=b"}


def test_a_config_is_frozen_and_survives_json() -> None:
    config = make_config("thorough")
    with pytest.raises(ValidationError):
        config.rank = 1  # type: ignore[misc]
    assert TrainConfig(**config.model_dump(mode="json")) == config
