"""What every executor promises, here and on a Ray cluster, with the real trainer on the tiny base."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from studio.jobs.cluster import RayCluster
from studio.jobs.executor import Event, Executor, Launch, Run
from studio.jobs.process import LocalExecutor
from studio.jobs.ray import RayExecutor, RayPlan
from studio.jobs.shared import Shared
from studio.lora.files import adapter_sha256
from studio.training.run import LINEAGE_FILE
from tests.jobs import Job
from tests.ray_cluster import Head

SILENCE_S = 8.0
SLOW = {"max_steps": 100_000}


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
    return Launch(job.folder.name, spec, job.folder, job.folder / f"log-{attempt}.txt")


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
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> bytes:
    """The weights of the job below where nothing interrupts it."""
    job = Job(tmp_path_factory.mktemp("whole") / "whole", tiny_base, **PAUSABLE)
    assert Seen(LocalExecutor().submit(launch(job))).end() == 0
    return adapter_of(job)


PAUSABLE = {"max_steps": 40}


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
    assert done["resumed_from_step"] == step and done["steps"] == 40
    assert [data["state"] for data in second.of("state")] == ["loading", "training", "saving"]
    steps = [int(str(data["step"])) for data in second.of("progress")]
    assert steps == sorted(steps) and [at for at, _, _ in second.events] == sorted(at for at, _, _ in second.events)
    assert adapter_of(job) == undisturbed and (job.adapter / LINEAGE_FILE).exists() and len(adapter_sha256(job.adapter)) == 64
    assert (
        (job.folder / "log-2.txt").exists() and not list(job.folder.glob(".partial-*")) and not list(tmp_path.glob("shared/jobs/*/[0-9]*"))
    )


def test_a_cancelled_job_ends_by_itself_and_a_stopped_one_leaves_no_process(executor: Executor, tmp_path: Path, tiny_base: Path) -> None:
    job = Job(tmp_path / "job", tiny_base, **SLOW)
    seen = Seen(executor.submit(launch(job, 1)))
    seen.until(lambda s: s.step() >= 2)
    seen.run.ask("cancel")
    assert seen.end() == 0 and not job.adapter.exists()
    seen = Seen(executor.submit(launch(job, 2)))
    seen.until(lambda s: s.of("state"))
    mine = [p for p in psutil.process_iter(["cmdline"]) if is_training(p)]
    assert mine
    seen.run.stop()
    assert seen.run.status(1) not in (None, 0) and not [p for p in mine if p.is_running() and p.status() != "zombie"]
    seen.run.close()
    assert not job.adapter.exists()


def is_training(process: psutil.Process) -> bool:
    return "studio.training.run" in " ".join(process.info["cmdline"] or [])


def test_a_failure_comes_with_its_cause_and_the_log(executor: Executor, tmp_path: Path, tiny_base: Path) -> None:
    job = Job(tmp_path / "job", tiny_base, rows=[[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]], max_length=32)
    broken = replace(job.spec, config={**job.spec.config, "target_modules": "no_such_layer"}, attempt=1)
    run = executor.submit(Launch("broken", broken, job.folder, job.folder / "log-1.txt"))
    seen = Seen(run)
    assert seen.end() == 1
    [failed] = seen.of("failed")
    assert failed["cause"] and failed["reason"] and "Traceback" in (job.folder / "log-1.txt").read_text()
