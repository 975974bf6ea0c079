"""A training is paused, everything is killed as by a reboot, and resumed: its adapter has the bytes of one that nothing disturbed.

The workers that are killed are the real command, their trainings the real ones, on the tiny base.
"""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from storage.records import JobRecord
from studio.services import Studio
from studio.training.control import CANCEL, PAUSE, Control, Stopped
from tests.conftest import tiny_settings
from tests.integration.test_queue import start, wait_for
from tests.jobs import WEIGHTS, Forks, Job
from tests.tiny import make_model
from tests.trainers import Events, same, state, trainer

OPTIONS = {"quantization": "fp32", "rank": 4, "max_steps": 40, "dropout": 0.1, "neftune": 5.0, "held_out": 0.1, "eval_steps": 20}
LONG_S = 300
pytestmark = pytest.mark.usefixtures("warm")


def step_of(studio: Studio, job: JobRecord) -> int:
    return int(studio.queue.get(job.id).progress.get("step", 0))


def kill_all(worker: subprocess.Popen[bytes]) -> None:
    """kill -9 of a worker and all that it started, at once."""
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in family:
        process.kill()
    worker.wait()
    psutil.wait_procs(family[1:], 10)


Starter = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def begin(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    """Starts the worker's command; in the end none is left."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started: list[subprocess.Popen[bytes]] = []

    def one() -> "subprocess.Popen[bytes]":
        started.append(start(studio, "-m", "studio", "worker"))
        return started[-1]

    yield one
    for worker in started:
        if worker.poll() is None:
            kill_all(worker)


def test_a_job_that_was_paused_before_a_reboot_ends_with_the_same_bytes(studio: Studio, begin: Starter) -> None:
    quiet = studio.train_and_wait(studio.train("Angry bird", "quiet", overrides=OPTIONS), lambda event: None)
    studio.worker.stop()  # from here on workers and trainings are commands
    assert quiet.state == "done", quiet.reason
    worker = begin()
    paused = studio.train("Angry bird", "paused", overrides={**OPTIONS, "checkpoint_every_s": 3600})
    early = studio.train("Angry bird", "early", overrides=OPTIONS)
    wait_for(lambda: step_of(studio, paused) >= 2, LONG_S)
    studio.queue.pause(paused.id)
    found = wait_for(lambda: studio.queue.get(paused.id).state == "paused" and studio.queue.get(paused.id), LONG_S)
    step = studio.queue.resume_step(paused.id)
    assert isinstance(found, JobRecord) and step and 2 <= step < 40 and found.reason == f"Paused at step {step}."
    # The next one is paused while it loads, before it has made a step.
    wait_for(lambda: studio.queue.get(early.id).state in ("starting", "running"), LONG_S)
    studio.queue.pause(early.id)
    wait_for(lambda: studio.queue.get(early.id).state == "paused")
    assert studio.queue.get(early.id).reason == "Paused before the first checkpoint."
    kill_all(worker)
    studio.queue.resume(paused.id)
    assert studio.queue.cancel(early.id).state == "cancelled"  # what is paused can be cancelled
    worker = begin()
    wait_for(lambda: studio.queue.get(paused.id).state == "done", LONG_S)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    done = studio.queue.get(paused.id)
    assert (done.attempt, done.losses, done.result["resumed_from_step"]) == (2, 0, step)
    assert studio.adapters.get("paused").sha256 == studio.adapters.get("quiet").sha256
    assert [a.ended for a in studio.queue.attempts(paused.id)] == ["paused", "done"]
    assert {a.name for a in studio.adapters.all()} == {"paused", "quiet"}


@pytest.mark.soak
def test_two_processes_are_paused_together_and_go_on(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    studio = Studio(tiny_settings(tmp_path / "home"))
    studio.bases.fetch(str(tiny_base))
    try:
        job = studio.train("Angry bird", "pair", overrides={**OPTIONS, "neftune": 0.0, "devices": 2, "max_steps": 200})
        studio.worker.start()
        wait_for(lambda: step_of(studio, job) >= 2, LONG_S)
        studio.queue.pause(job.id)
        wait_for(lambda: studio.queue.get(job.id).state == "paused")
        step = studio.queue.resume_step(job.id)
        assert step and step >= 2
        assert len(studio.queue.events(job.id, kinds=("paused",))) == 1  # one speaks for both
        studio.queue.resume(job.id)
        wait_for(lambda: studio.queue.get(job.id).state == "done", LONG_S)
        assert studio.queue.get(job.id).result["resumed_from_step"] == step
    finally:
        studio.close()


def test_a_time_limit_ends_a_job_and_keeps_its_adapter(tmp_path: Path, tiny_base: Path, forks: Forks) -> None:
    job = Job(tmp_path / "job", tiny_base, max_steps=100_000, max_minutes=0.01, held_out=0.1)
    assert forks.run(job) == 0, job.log
    (done,) = job.events("done")
    assert 0 < done["steps"] < 100_000 and (job.adapter / WEIGHTS).exists()
    assert done["eval_loss"] < done["eval_loss_before"]  # what was learned until there is measured
    said = [event["text"] for event in job.events("notice")]
    assert said == [
        f"max_minutes (0.01) is over at step {done['steps']} of 100000; what was learned until there is kept.",
    ]


# The loop itself


class Wishing(Control):
    """A wish that comes true after some steps."""

    def __init__(self, folder: Path, events: Events, after: int, what: Any) -> None:
        super().__init__(folder, 1)
        self.events, self.after, self.what = events, after, what

    def wish(self) -> Any:
        return self.what if len(self.events.of("progress")) >= self.after else ""


def make(folder: Path, events: Events, after: int, what: Any, **changes: Any) -> Any:
    from studio.training.checkpoint import CheckpointFolder

    parts = {"checkpoints": CheckpointFolder(folder, "this job", 2), "control": Wishing(folder, events, after, what)}
    return trainer(make_model(), events, parts=parts, checkpoint_every_s=3600, **{"max_steps": 6, "dropout": 0.2, **changes})


@pytest.mark.parametrize(("what", "after", "kept"), [(PAUSE, 0, False), (PAUSE, 1, True), (PAUSE, 3, True), (CANCEL, 3, False)])
def test_a_pause_keeps_a_checkpoint_of_the_last_step_and_a_cancel_none(tmp_path: Path, what: Any, after: int, kept: bool) -> None:
    whole = make(tmp_path / "whole", Events(), 99, "")
    whole.fit()
    stopped = make(tmp_path / "stopped", Events(), after, what)
    with pytest.raises(Stopped) as found:
        stopped.fit()
    assert (found.value.wish, found.value.step) == (what, after)
    assert sorted(path.name for path in (tmp_path / "stopped").glob("step-*")) == ([f"step-{after:09d}"] if kept else [])
    again = make(tmp_path / "stopped", Events(), 99, "")
    assert again.fit().resumed_from_step == (after if kept else None)
    assert same(state(again), state(whole))


def test_a_wish_at_the_last_step_comes_too_late(tmp_path: Path) -> None:
    late = make(tmp_path, Events(), 6, CANCEL)
    assert late.fit().steps == 6


def test_time_counts_over_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes ten seconds here, and a minute is allowed."""
    clock = [0.0]

    def ticking() -> float:
        clock[0] += 5.0
        return clock[0]

    monkeypatch.setattr("studio.training.loop.time.perf_counter", ticking)
    limited: dict[str, Any] = {"max_steps": 50, "max_minutes": 1.0}
    whole = make(tmp_path / "whole", Events(), 99, "", **limited)
    steps = whole.fit().steps
    assert 2 < steps < 50
    paused = make(tmp_path / "paused", Events(), 2, PAUSE, **limited)
    with pytest.raises(Stopped):
        paused.fit()
    again = make(tmp_path / "paused", Events(), 99, "", **limited)
    outcome = again.fit()
    assert (outcome.steps, outcome.resumed_from_step) == (steps, 2) and same(state(again), state(whole))
