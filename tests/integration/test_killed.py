"""kill -9 of a training process, again and again: the adapter that comes out has the bytes of one that was never stopped.

STUDIO_SOAK=1 kills the command itself, ten times in each of several trainings, which takes some minutes: `make soak`.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import WEIGHTS, Command, Forks, Job

SOAK = bool(os.environ.get("STUDIO_SOAK"))
STEPS, KILLS = (120, 10) if SOAK else (24, 3)
DRAWING = {"dropout": 0.2, "neftune": 5.0, "max_steps": STEPS, "eval_steps": 7, "checkpoint_every_s": 0, "quantization": "nf4"}
VARIANTS: dict[str, dict[str, Any]] = {"lora": {}, "best": {"keep_best": True, "held_out": 0.3}, "prefix": {"method": "prefix"}}
VARIANTS |= {
    "dora from pissa": {"method": "dora", "init": "pissa"},
    "recomputed": {"activation_checkpointing": "on", "quantization": "fp32"},
}
Moment = Callable[[Job], bool]


def step_of(job: Job) -> int:
    """The step of the newest whole checkpoint."""
    return max((int(name.rpartition("-")[2]) for name in job.checkpoints() if not name.startswith(".")), default=0)


def is_writing(job: Job) -> bool:
    return any(name.startswith(".partial-") for name in job.checkpoints())


def is_publishing(job: Job) -> bool:
    return any(path.name.startswith(".partial-adapter") for path in job.folder.iterdir())


def moments(draw: random.Random) -> list[tuple[str, Moment]]:
    """One for each kill, each at a later step: in the middle of a checkpoint, or whenever it comes."""
    found: list[tuple[str, Moment]] = []
    for number in range(KILLS):
        after = number * STEPS // (KILLS + 1)
        if number % 2 == 0:
            found.append(("writing", lambda job, after=after: step_of(job) >= after and is_writing(job)))  # type: ignore[misc]
        else:
            found.append(("some time", later(draw.uniform(0, 0.1), lambda job, after=after: step_of(job) > after)))  # type: ignore[misc]
    return found


def later(delay_s: float, begins: Moment) -> Moment:
    """So many seconds after something began."""
    since: list[float] = []

    def now(job: Job) -> bool:
        if not since and begins(job):
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= delay_s

    return now


def kill_when(starter: Forks | Command, job: Job, moment: Moment) -> int:
    """Start a job's process, kill it at a moment, and return its exit status."""
    before = len(job.events("done"))
    starter.start(job)
    while not moment(job):
        assert len(job.events("done")) == before and not job.events("failed"), job.log
        time.sleep(0.0005)
    starter.kill()
    return starter.wait()


@pytest.mark.parametrize("variant", VARIANTS if SOAK else ["lora"])
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, tiny_base: Path, forks: Forks, variant: str
) -> None:
    starter = Command() if SOAK else forks
    options = {**DRAWING, **VARIANTS[variant]}
    undisturbed, job = Job(tmp_path / "undisturbed", tiny_base, **options), Job(tmp_path / "killed", tiny_base, **options)
    assert forks.run(undisturbed) == 0, undisturbed.log
    half_written = 0
    for name, moment in moments(random.Random(variant)):
        assert kill_when(starter, job, moment) == -9
        half_written += is_writing(job)
        assert not job.adapter.exists(), name
        print(f"killed at step {step_of(job)} of {STEPS}, {name}")
    if SOAK:  # this one may come too late
        starter.start(job)
        while not job.events("done") and not is_publishing(job):
            time.sleep(0.0005)
        starter.kill()
        print(f"killed while it was saved: {starter.wait() == -9}")
        assert not job.adapter.exists() or job.events("done") or (job.adapter / WEIGHTS).exists()
    if not job.adapter.exists():
        starter.start(job)
        assert starter.wait() == 0, job.log
    resumed = [event["text"] for event in job.events("notice")]
    assert len(resumed) >= KILLS - 1 and all(text.startswith("The training goes on from step ") for text in resumed)
    assert half_written >= 1  # a process did die in the middle of a checkpoint
    for name in (WEIGHTS, "adapter_config.json"):
        assert (job.adapter / name).read_bytes() == (undisturbed.adapter / name).read_bytes()
    assert [event["step"] for event in job.events("progress")][-1] == STEPS
