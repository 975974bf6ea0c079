"""The learning rate's shape against transformers' schedules."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR

from studio.training.config import TrainConfig
from studio.training.schedule import factor

SCHEDULES = get_args(TrainConfig.model_fields["schedule"].annotation)
SIZES = [(total, warmup) for total in (1, 2, 3, 6, 7, 50, 333) for warmup in (0.0, 0.03, 0.1, 0.5, 0.95)]


def shape(schedule: str, total: int, warmup: float) -> list[float]:
    return [factor(schedule, step, total, warmup) for step in range(1, total + 1)]


def oracle(schedule: str, total: int, warm: int) -> list[float]:
    """transformers' factors at the indices 0 to total + 1 of total + 1 steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    made: LambdaLR
    if schedule == "constant":
        made = transformers.get_constant_schedule_with_warmup(optimizer, warm)
    elif schedule == "linear":
        made = transformers.get_linear_schedule_with_warmup(optimizer, warm, total + 1)
    elif schedule == "cosine":
        made = transformers.get_cosine_schedule_with_warmup(optimizer, warm, total + 1)
    else:
        falling = min(round(total / 5), total - warm)
        made = transformers.get_wsd_schedule(
            optimizer, warm, falling + 1, num_stable_steps=total - falling - warm, decay_type="linear", warmup_type="linear"
        )
    return [made.lr_lambdas[0](index) for index in range(total + 2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), SIZES)
def test_each_schedule_is_that_of_transformers(schedule: str, total: int, warmup: float) -> None:
    warm = max(round(total * warmup), 1)
    assert shape(schedule, total, warmup) == pytest.approx(oracle(schedule, total, warm)[1:-1])


def test_without_a_warm_up_linear_is_what_trl_does() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, 0, 6).lr_lambdas[0]
    assert shape("linear", 6, 0.0) == pytest.approx([theirs(index) for index in range(6)])
    assert shape("linear", 6, 0.0) == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), SIZES)
def test_no_step_is_taken_for_nothing_and_the_peak_is_reached(schedule: str, total: int, warmup: float) -> None:
    factors = shape(schedule, total, warmup)
    assert max(factors) == 1.0 and min(factors) > 0.0
    assert factors[0] == 1.0 or round(total * warmup) > 1


def test_wsd_is_level_until_the_last_fifth() -> None:
    factors = shape("wsd", 50, 0.1)
    assert factors[4:40] == [1.0] * 36 and factors[39] == 1.0 > factors[40]
    assert [a - b for a, b in pairwise(factors[39:])] == pytest.approx([1 / 11] * 10)
