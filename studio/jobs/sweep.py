"""Sweeps: several trainings from one dataset that differ in a few options, and how they compare.

An axis is an option with its values, all text as a person types it. Every combination of values is one job.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from storage.records import JobRecord
from storage.states import DONE
from studio.errors import InvalidInput
from studio.training.config import TrainConfig, make_config

MOST_JOBS = 64
CHANGES_ROWS = frozenset({"seed", "held_out", "max_length", "over_length"})  # which rows are held out, or what is left of them
Axes = dict[str, list[str]]


@dataclass(frozen=True)
class Variant:
    """One job of a sweep: its adapter's name, the values that set it apart, and the whole configuration."""

    name: str
    options: dict[str, str]
    config: TrainConfig


@dataclass(frozen=True)
class Comparison:
    """Jobs of one sweep side by side.

    Attributes:
        name: what the user called the sweep. options: the swept ones. jobs: in the order of the sweep.
        best: id of the finished job with the lowest held-out loss, empty while fewer than two can be compared.
        same_rows: whether all were measured on the same held-out rows, so that their losses compare exactly.
    """

    name: str
    options: list[str]
    jobs: list[JobRecord]
    best: str
    same_rows: bool


def parse_axes(texts: Iterable[str]) -> Axes:
    """Read `rank=8,16`; several axes stand in texts of their own, or in one with semicolons between them.

    Raises:
        InvalidInput: a part is not KEY=VALUE,VALUE, or an option stands twice.
    """
    axes: Axes = {}
    for part in (part.strip() for text in texts for part in text.split(";")):
        if not part:
            continue
        key, _, text = (piece.strip() for piece in part.partition("="))
        values = [value.strip() for value in text.split(",")]
        if not key or not all(values):
            raise InvalidInput(f"The sweep {part!r} is not OPTION=VALUE,VALUE; write for example rank=8,16.")
        if key in axes:
            raise InvalidInput(f"The sweep names the option {key} twice; write its values once, with commas.")
        axes[key] = values
    return axes


def plan(name: str, preset: str, overrides: dict[str, Any], axes: Axes) -> list[Variant]:
    """Every combination of the axes' values, each checked.

    Raises:
        InvalidInput: there is no axis, there are too many jobs, two would be the same, or an option is wrong.
    """
    if not axes:
        raise InvalidInput("The sweep names no option; write for example rank=8,16.")
    both = next((key for key in axes if key in overrides), None)
    if both:
        raise InvalidInput(f"The option {both} is swept and also set to {overrides[both]}; do one of the two.")
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_JOBS:
        raise InvalidInput(f"The sweep would be {count:,} trainings; leave out values until there are at most {MOST_JOBS}.")
    variants: dict[TrainConfig, Variant] = {}
    for chosen in itertools.product(*axes.values()):
        options = dict(zip(axes, chosen, strict=True))
        label = " ".join([name.strip(), *(f"{key}={value}" for key, value in options.items())])
        variant = Variant(label, options, make_config(preset, {**overrides, **options}))
        twin = variants.setdefault(variant.config, variant)
        if twin is not variant:
            raise InvalidInput(f"The trainings {twin.name!r} and {label!r} of the sweep are the same; take one value out.")
    return list(variants.values())


def compare(jobs: Iterable[JobRecord]) -> Comparison:
    """Put the jobs of one group side by side."""
    ordered = sorted(jobs, key=lambda job: int(job.config["sweep"]["place"]))
    sweep = ordered[0].config["sweep"]
    measured = [(loss, job.id) for job in ordered if job.state == DONE and (loss := job.result.get("eval_loss")) is not None]
    best = min(measured)[1] if len(measured) > 1 else ""
    return Comparison(sweep["name"], list(sweep["options"]), ordered, best, CHANGES_ROWS.isdisjoint(sweep["options"]))
