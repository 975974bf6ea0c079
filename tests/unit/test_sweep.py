"""Sweeps: what is typed becomes jobs that differ in what was typed, or one sentence; and the best of them is found."""

from dataclasses import replace
from typing import Any

import pytest

from storage.records import JobRecord
from studio.errors import InvalidInput
from studio.jobs.sweep import MOST_JOBS, compare, parse_axes, plan
from tests.unit.test_present import JOB


@pytest.mark.parametrize(
    "texts", [["rank=8,16", "seed=0,1"], ["rank=8,16; seed=0,1"], [" rank = 8 , 16 ;; seed=0,1; "], ["rank=8,16;seed=0,1", ""]]
)
def test_axes_are_read_from_several_texts_or_from_one(texts: list[str]) -> None:
    assert parse_axes(texts) == {"rank": ["8", "16"], "seed": ["0", "1"]}
    assert parse_axes([" ; "]) == {}


@pytest.mark.parametrize("text", ["rank", "rank=", "=8", "rank=8,,16", "rank=8,", "8,16"])
def test_an_axis_of_another_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is not OPTION=VALUE,VALUE; write for example rank=8,16\."):
        parse_axes([text])


def test_every_combination_is_a_job_whose_name_says_it() -> None:
    variants = plan(" bird ", "quick", {"epochs": 3}, {"rank": ["8", "16"], "learning_rate": ["1e-3", "2e-4"]})
    assert [variant.name for variant in variants] == [
        "bird rank=8 learning_rate=1e-3",
        "bird rank=8 learning_rate=2e-4",
        "bird rank=16 learning_rate=1e-3",
        "bird rank=16 learning_rate=2e-4",
    ]
    last = variants[-1]
    assert (last.config.rank, last.config.learning_rate, last.config.epochs, last.config.alpha) == (16, 2e-4, 3.0, 16.0)
    assert last.options == {"rank": "16", "learning_rate": "2e-4"}


@pytest.mark.parametrize(
    ("axes", "overrides", "sentence"),
    [
        ({}, {}, "names no option"),
        ({"rank": ["8", "0"]}, {}, "The option rank is '0'.*Range 1 to 256"),
        ({"ranks": ["8"]}, {}, "There is no option 'ranks'"),
        ({"rank": ["8"]}, {"rank": 4}, "The option rank is swept and also set to 4; do one of the two"),
        ({"rank": ["8", "08"]}, {}, "The trainings 'bird rank=8' and 'bird rank=08' of the sweep are the same"),
        ({"seed": [str(i) for i in range(13)], "rank": ["1", "2", "3", "4", "5"]}, {}, "would be 65 trainings.* at most 64"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_sentence(axes: dict[str, list[str]], overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        plan("bird", "quick", overrides, axes)
    assert len(plan("bird", "quick", {}, {"seed": [str(i) for i in range(MOST_JOBS)]})) == MOST_JOBS


def test_an_axis_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="names the option rank twice"):
        parse_axes(["rank=8", "rank=16"])


def swept(place: int, value: str, state: str = "done", loss: float | None = None, option: str = "rank") -> JobRecord:
    sweep = {"name": "bird", "options": {option: value}, "place": place}
    return replace(JOB, id=f"j{place}", state=state, config={"sweep": sweep}, result={} if loss is None else {"eval_loss": loss})


def test_the_best_is_the_lowest_held_out_loss_among_those_that_can_be_compared() -> None:
    jobs = [swept(2, "32", loss=1.2), swept(0, "8", loss=1.5), swept(1, "16", loss=1.1), swept(3, "64", "failed", loss=0.1)]
    found = compare(jobs)
    assert [job.id for job in found.jobs] == ["j0", "j1", "j2", "j3"]
    assert (found.name, found.options, found.best, found.same_rows) == ("bird", ["rank"], "j1", True)
    assert compare([swept(0, "8", loss=1.5), swept(1, "16", "running")]).best == ""
    assert compare([swept(0, "8"), swept(1, "16")]).best == ""  # nothing was held out


def test_losses_on_other_rows_are_known_to_compare_roughly() -> None:
    assert not compare([swept(0, "0", option="seed"), swept(1, "1", option="seed")]).same_rows
