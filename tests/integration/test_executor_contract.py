"""What every executor promises, here and on a Ray cluster, with the real trainer on the tiny base.

STUDIO_SOAK=1 kills the cluster as well, not only the program on it: `make soak`.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from storage.records import JobRecord
from studio.jobs.cluster import RayCluster
from studio.jobs.executor import Event, Executor, Launch, Run
from studio.jobs.process import LocalExecutor
from studio.jobs.ray import RayExecutor, RayPlan
from studio.jobs.shared import Shared
from studio.lora.files import adapter_sha256
from studio.services import Studio
from studio.training.run import LINEAGE_FILE
from tests.conftest import tiny_settings
from tests.jobs import Forks, Job, conversations
from tests.ray_cluster import Head
from tests.trainers import TINY
from tests.warm import Parent

SOAK = bool(os.environ.get("STUDIO_SOAK"))
SILENCE_S = 5.0
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SLOW = {"max_steps": 100_000}
SHORTLY = ["local", pytest.param("ray", marks=pytest.mark.soak)]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.close()


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Executor:
    if request.param == "local":
        return LocalExecutor()
    head: Head = request.getfixturevalue("head")
    # The address goes the way of object storage's; the place is a folder.
    shared = Shared(f"file://{tmp_path / 'shared'}")
    return RayExecutor(RayCluster(head.address, head.token), shared, RayPlan(gpus=1, silence_s=SILENCE_S))


def launch(job: Job, attempt: int = 1) -> Launch:
    spec = replace(job.spec, attempt=attempt)
    name = hashlib.sha256(str(job.folder).encode()).hexdigest()[:16]  # a cluster takes each name once
    return Launch(name, spec, job.folder, job.folder / f"log-{attempt}.txt", threads=1)


class Seen:
    """A run, and what it said so far."""

    def __init__(self, run: Run) -> None:
        self.run, self.events, self.usage = run, list[Event](), dict[str, float]()

    def until(self, what: Callable[["Seen"], object], timeout_s: float = 120) -> None:
        end = time.monotonic() + timeout_s
        while not what(self):
            assert self.look(0.1) is None, f"it ended too soon: {self.events[-1:]}"
            assert time.monotonic() < end, f"waited in vain: {self.events[-3:]}"

    def look(self, timeout_s: float) -> int | None:
        status = self.run.status(timeout_s)
        self.events += self.run.events()
        self.usage = self.run.usage() or self.usage
        return status

    def end(self) -> int:
        until = time.monotonic() + 120
        while (status := self.look(0.2)) is None:
            assert time.monotonic() < until, f"it does not end: {self.events[-3:]}"
        self.run.stop()
        self.run.close()
        return status

    def of(self, kind: str) -> list[dict[str, object]]:
        return [data for _, found, data in self.events if found == kind]

    def step(self) -> int:
        return int(str(self.of("progress")[-1]["step"])) if self.of("progress") else 0


def adapter_of(job: Job) -> bytes:
    return (job.adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, parent: Parent) -> bytes:
    """The weights of the job below where nothing interrupts it."""
    job = Job(tmp_path_factory.mktemp("whole") / "whole", tiny_base, **PAUSABLE)
    assert Forks(parent).run(job) == 0
    return adapter_of(job)


PAUSABLE = {"max_steps": 300}  # seconds of steps: a wish takes one or two to travel


def test_a_job_is_paused_and_resumed_and_its_adapter_has_the_same_bits(
    executor: Executor, tmp_path: Path, tiny_base: Path, undisturbed: bytes
) -> None:
    job = Job(tmp_path / "job", tiny_base, **PAUSABLE)
    first = Seen(executor.submit(launch(job, 1)))
    first.until(lambda seen: seen.step() >= 5)
    first.run.ask("pause")
    assert first.end() == 0 and first.of("paused") and not first.of("done") and not job.adapter.exists()
    assert first.usage["cores"] >= 0 and first.usage["memory_mb"] > 50
    [step] = {int(str(data["step"])) for data in first.of("paused")}
    assert max(job.checkpoints()) == f"step-{step:09d}"
    second = Seen(executor.submit(launch(job, 2)))
    assert second.end() == 0
    [done] = second.of("done")
    assert done["resumed_from_step"] == step and done["steps"] == PAUSABLE["max_steps"]
    assert [data["state"] for data in second.of("state")] == ["loading", "training", "saving"]
    steps = [int(str(data["step"])) for data in second.of("progress")]
    assert steps == sorted(steps) and [at for at, _, _ in second.events] == sorted(at for at, _, _ in second.events)
    assert adapter_of(job) == undisturbed and (job.adapter / LINEAGE_FILE).exists() and len(adapter_sha256(job.adapter)) == 64
    assert (
        (job.folder / "log-2.txt").exists() and not list(job.folder.glob(".partial-*")) and not list(tmp_path.glob("shared/jobs/*/[0-9]*"))
    )


@pytest.mark.parametrize("executor", SHORTLY, indirect=True)
def test_a_cancelled_job_ends_by_itself_and_a_stopped_one_leaves_no_process(executor: Executor, tmp_path: Path, tiny_base: Path) -> None:
    job = Job(tmp_path / "job", tiny_base, **SLOW)
    seen = Seen(executor.submit(launch(job, 1)))
    seen.until(lambda s: s.step() >= 2)
    seen.run.ask("cancel")
    assert seen.end() == 0 and not job.adapter.exists()
    assert len(seen.of("cancelled")) == 1 and not seen.of("paused")
    seen = Seen(executor.submit(launch(job, 2)))
    seen.until(lambda s: s.of("state"))
    mine = [p for p in psutil.process_iter(["cmdline"]) if is_training(p, job)]
    assert mine
    seen.run.stop()
    assert seen.run.status(1) not in (None, 0) and not [p for p in mine if p.is_running() and p.status() != "zombie"]
    seen.run.close()
    assert not job.adapter.exists()


def is_training(process: psutil.Process, job: Job) -> bool:
    words = " ".join(process.info["cmdline"] or [])
    return "studio.training.run" in words and (str(job.folder) in words or launch(job).job_id in words)


@pytest.mark.parametrize("executor", SHORTLY, indirect=True)
def test_a_failure_comes_with_its_cause_and_the_log(executor: Executor, tmp_path: Path, tiny_base: Path) -> None:
    job = Job(tmp_path / "job", tiny_base, rows=[[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]], max_length=32)
    broken = replace(job.spec, config={**job.spec.config, "target_modules": "no_such_layer"}, attempt=1)
    run = executor.submit(replace(launch(job), spec=broken))
    seen = Seen(run)
    assert seen.end() == 1
    [failed] = seen.of("failed")
    assert failed["cause"] and failed["reason"] and "Traceback" in (job.folder / "log-1.txt").read_text()


@pytest.fixture
def far_studio(head: Head, tmp_path: Path, tiny_base: Path) -> Iterator[Studio]:
    """A studio whose trainings run on the cluster."""
    settings = tiny_settings(
        tmp_path / "home",
        executor="ray",
        ray_address=head.address,
        ray_token=head.token,
        ray_silence_s=SILENCE_S,
        ray_jobs=1,
        shared_url=str(tmp_path / "shared"),
        max_losses=5,
        jobs_per_device=max(CORES, 2),  # so many that each computes with one thread
    )
    studio = Studio(settings)
    studio.bases.fetch(str(tiny_base))
    yield studio
    studio.close()


def wait_for(studio: Studio, job: JobRecord, what: Callable[[JobRecord], object], timeout_s: float = 120) -> JobRecord:
    until = time.monotonic() + timeout_s
    while not what(found := studio.queue.get(job.id)):
        assert time.monotonic() < until and found.state not in ("failed", "cancelled"), f"{found.state}: {found.reason} {found.progress}"
        time.sleep(0.1)
    return found


def goes_on(attempt: int, step: int) -> Callable[[JobRecord], bool]:
    """The attempt has taken more than `step` steps."""
    return lambda job: job.attempt == attempt and job.progress.get("step", 0) > step


def test_kill_9_of_what_runs_on_a_cluster_loses_nothing(far_studio: Studio, head: Head, undisturbed: bytes, tmp_path: Path) -> None:
    rows = tmp_path / "numbers.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations(30)))
    far_studio.datasets.add([rows], "numbers")
    job = far_studio.train("numbers", "far", overrides={**TINY, **PAUSABLE, "checkpoint_every_s": 0.5, "keep_checkpoints": 2})
    far_studio.worker.start()
    wait_for(far_studio, job, goes_on(1, 5))
    [program] = [p for p in head.processes("studio.jobs.remote") if "python" in p.name() and "-m" in p.cmdline()[:2]]
    assert program.environ()["CUDA_VISIBLE_DEVICES"] in ("0", "1")  # one of the two that the cluster says it has
    assert head.token not in " ".join(program.cmdline()) and "RAY_AUTH_TOKEN" not in head.trainers()[0].environ()
    wait_for(far_studio, job, lambda found: far_studio.queue.resume_step(job.id))  # a checkpoint has come here
    program.kill()
    wait_for(far_studio, job, lambda found: found.attempt == 2 or found.state == "queued")
    [attempt, *_] = far_studio.queue.jobs.attempts(job.id)
    assert attempt.ended == "lost" and attempt.reason == f"Nothing was heard of the machine that ran attempt 1 for {SILENCE_S:.0f} seconds."
    second = wait_for(far_studio, job, goes_on(2, 0))
    assert int(second.progress["step"]) > 1  # it went on from there
    if SOAK:
        kill_the_cluster(far_studio, head, job)
    wait_for(far_studio, job, lambda found: found.state == "done", 200)
    assert [a.name for a in far_studio.adapters.all()] == ["far"] and "Traceback" not in far_studio.job_log(job.id)
    [adapter] = far_studio.adapters.all()
    assert (far_studio.adapters.path(adapter) / "adapter_model.safetensors").read_bytes() == undisturbed


def kill_the_cluster(far_studio: Studio, head: Head, job: JobRecord) -> None:
    """The job waits for the cluster, and goes on at its checkpoint when that is back."""
    next(p for p in head.processes() if p.name() == "raylet").kill()  # what runs goes on, or ends with it
    time.sleep(2)
    head.kill()
    waiting = wait_for(far_studio, job, lambda found: found.state == "waiting")
    assert waiting.reason == f"The Ray cluster at {head.address} does not answer; the job waits for it." and waiting.losses <= 2
    assert not head.trainers()
    step = far_studio.queue.resume_step(job.id)
    head.start()
    done = wait_for(far_studio, job, lambda found: found.state == "done", 200)
    assert step and done.result["resumed_from_step"] == step
