"""A training that was stopped, however it was, ends with the same bits as one that was not."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.training.checkpoint import CheckpointFolder, Snapshot
from studio.training.loop import Trainer
from studio.training.progress import Outcome
from tests.tiny import FAMILIES, make_model, make_tokenizer
from tests.trainers import Events, same, state, trainer

STEPS = 6
# All that draws or remembers something at once, and then each kind of adapter with it.
DRAWING = {"dropout": 0.2, "neftune": 5.0, "eval_steps": 1, "held_out": 0.3, "max_steps": STEPS, "learning_rate": 0.05}
SOAK = bool(os.environ.get("STUDIO_SOAK"))  # every variant is stopped after every step
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"lora_plus": 4.0, "weight_decay": 0.1, "batch_tokens": 70},
    "pissa": {"init": "pissa"},
    "dora": {"method": "dora"},
    "prefix": {"method": "prefix", "virtual_tokens": 4},
    "recomputed": {"activation_checkpointing": "on"},
    "in pieces": {"token_budget": 32},
    "best": {"keep_best": True},
}


class Stop(Exception):
    """The test stops a training here."""


def stop_at(step: int) -> Any:
    """An emit that ends the training as soon as the checkpoint of a step is there."""

    def emit(kind: str, **data: Any) -> None:
        if kind == "checkpoint" and data["step"] == step:
            raise Stop

    return emit


def make(folder: Path | None, emit: Any = None, keep: int = 2, **changes: Any) -> Trainer:
    parts = {"checkpoints": CheckpointFolder(folder, "this job", keep)} if folder else None
    return trainer(make_model(), emit, parts=parts, checkpoint_every_s=0, **{**DRAWING, **changes})


def measured(outcome: Outcome) -> dict[str, Any]:
    """An outcome without its times, and without what tells that there was a stop."""
    return {k: v for k, v in asdict(outcome).items() if k not in ("seconds", "tokens_per_s", "resumed_from_step")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_that_was_stopped_after_any_step_ends_with_the_same_bits(tmp_path: Path, variant: str) -> None:
    changes = VARIANTS[variant]
    whole = make(None, **changes)
    outcome = whole.fit()
    kept = make(tmp_path / "all", keep=STEPS, **changes)
    kept.fit()
    assert same(state(kept), state(whole))  # checkpoints alone change nothing
    assert [path.name for path in sorted((tmp_path / "all").iterdir())] == [f"step-{step:09d}" for step in range(1, STEPS)]
    for step in range(1, STEPS) if SOAK or variant == "lora" else (STEPS // 2,):
        folder = tmp_path / f"until {step}"
        shutil.copytree(tmp_path / "all" / f"step-{step:09d}", folder / f"step-{step:09d}")
        torch.manual_seed(1000 + step)  # another process has other random numbers behind it
        again = make(folder, emit := Events(), **changes)
        found = again.fit()
        assert found.resumed_from_step == step and [event["step"] for event in emit.of("progress")] == list(range(step + 1, STEPS + 1))
        assert emit.of("notice")[0]["text"] == f"The training goes on from step {step} of {STEPS}."
        assert same(state(again), state(whole)), f"stopped after step {step}"
        assert measured(found) == measured(outcome)


def test_a_checkpoint_holds_all_that_these_bits_depend_on(tmp_path: Path) -> None:
    """Each thing that a checkpoint keeps makes a difference: without it the training ends with other bits."""
    whole = make(None)
    whole.fit()
    with pytest.raises(Stop):
        make(tmp_path, stop_at(3)).fit()
    kept = CheckpointFolder(tmp_path, "this job", 2).newest()
    other = make(None, seed=1)
    other.step(other.train)
    torch.manual_seed(1)
    for group in ("adapter.", "optimizer.", "random."):
        instead = {name: tensor for name, tensor in other._snapshot().tensors.items() if name.startswith(group)}
        assert instead and instead.keys() <= kept.tensors.keys()
        CheckpointFolder(tmp_path, "this job", 2).save(Snapshot(kept.step, {**kept.tensors, **instead}, kept.state))
        again = make(tmp_path)
        assert again.fit().resumed_from_step == 3 and not same(state(again), state(whole)), group
        for later in ("4", "5"):
            shutil.rmtree(tmp_path / f"step-00000000{later}")


def test_stopped_again_and_again(tmp_path: Path) -> None:
    whole = make(None)
    outcome = whole.fit()
    for step in (1, 2, 4, 5):
        with pytest.raises(Stop):
            make(tmp_path, stop_at(step), keep=1).fit()
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:09d}"]
    last = make(tmp_path)
    found = last.fit()
    assert found.resumed_from_step == 5 and measured(found) == measured(outcome) and same(state(last), state(whole))


def test_an_early_stop_and_the_best_weights_are_remembered(tmp_path: Path) -> None:
    changes = {
        "keep_best": True,
        "early_stopping": 2,
        "learning_rate": 0.3,
        "schedule": "constant",
        "max_steps": 30,
        "max_grad_norm": 1000.0,
    }
    whole = make(None, **changes)
    outcome = whole.fit()
    assert outcome.stopped_early and outcome.best_step == outcome.steps - 2
    # At the last step the training is over already; before it the best step lies behind the stop.
    for step in (outcome.steps, outcome.steps - 1):
        with pytest.raises(Stop):
            make(tmp_path / str(step), stop_at(step), **changes).fit()
        again = make(tmp_path / str(step), **changes)
        assert measured(again.fit()) == measured(outcome) and same(state(again), state(whole))


def test_answers_from_before_the_first_step_are_remembered(tmp_path: Path) -> None:
    def run(emit: Any, folder: Path | None) -> Trainer:
        parts = {"tokenizer": make_tokenizer(), "checkpoints": folder and CheckpointFolder(folder, "a", 2)}
        options = {"sample_prompts": "Hello|Bye", "sample_tokens": 5, "checkpoint_every_s": 0}
        return trainer(make_model(), emit, parts=parts, **{**DRAWING, **options})

    outcome = run(None, None).fit()
    assert outcome.samples_before and outcome.samples_before != outcome.samples
    with pytest.raises(Stop):
        run(stop_at(2), tmp_path).fit()
    assert measured(run(emit := Events(), tmp_path).fit()) == measured(outcome)
    assert emit.of("samples")[0]["step"] == 3


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_other_models_too(tmp_path: Path, family: str) -> None:
    def run(emit: Any, folder: Path) -> Trainer:
        parts = {"checkpoints": CheckpointFolder(folder, "a", 2)}
        return trainer(FAMILIES[family](), emit, parts=parts, checkpoint_every_s=0, **DRAWING)

    whole = run(None, tmp_path / "whole")
    whole.fit()
    with pytest.raises(Stop):
        run(stop_at(4), tmp_path / "stopped").fit()
    again = run(None, tmp_path / "stopped")
    again.fit()
    assert same(state(again), state(whole))


def test_a_broken_checkpoint_is_passed_over_and_a_foreign_one_too(tmp_path: Path) -> None:
    whole = make(None)
    whole.fit()
    with pytest.raises(Stop):
        make(tmp_path, stop_at(4)).fit()
    newest = tmp_path / "step-000000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    again = make(tmp_path, keep=1)
    assert again.fit().resumed_from_step == 3 and same(state(again), state(whole))
    other = trainer(make_model(), parts={"checkpoints": CheckpointFolder(tmp_path, "another job", 2)}, **DRAWING)
    assert other.fit().resumed_from_step is None and same(state(other), state(whole))


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_training_goes_on(tmp_path: Path) -> None:
    whole = make(None)
    whole.fit()
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    run = make(tmp_path / "checkpoints", emit := Events())
    assert run.fit().steps == STEPS and same(state(run), state(whole))
    told = [event["text"] for event in emit.of("notice")]
    assert len(told) == STEPS - 1 and told[0].startswith("The checkpoint of step 1 could not be written (")
    assert told[0].endswith("); the training goes on.") and not emit.of("checkpoint")


def test_checkpoints_come_after_so_many_seconds(tmp_path: Path) -> None:
    never = trainer(make_model(), emit := Events(), parts={"checkpoints": CheckpointFolder(tmp_path, "a", 2)}, checkpoint_every_s=86_400)
    never.fit()
    assert not emit.of("checkpoint") and not list(tmp_path.iterdir())
