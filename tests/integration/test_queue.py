"""The queue with real subprocesses on the tiny base: first in first out, cancel, and kill -9 of everything."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from peft import PeftModel

from storage.errors import LeaseLost
from storage.records import JobRecord
from studio.errors import InvalidInput, NameTaken, NotFound
from studio.jobs.supervisor import exit_reason
from studio.lora.files import read_adapter
from studio.services import Studio
from tests.conftest import ROOT
from tests.tiny import make_model

SOAK = bool(os.environ.get("STUDIO_SOAK"))
pytestmark = pytest.mark.usefixtures("warm")
TINY = {"quantization": "fp32", "rank": 4, "max_steps": 4}
ENDLESS = {**TINY, "max_steps": 100_000}


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> object:
    """Poll until something is true."""
    end = time.time() + timeout_s
    while not (found := what()):
        assert time.time() < end, "waited in vain"
        time.sleep(0.1)
    return found


def submit(studio: Studio, name: str, config: dict[str, object]) -> JobRecord:
    return studio.train("Angry bird", name, overrides=config)


def is_training(studio: Studio, job: JobRecord) -> bool:
    return studio.queue.get(job.id).progress.get("step", 0) >= 2


def children_of(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if p.ppid() == pid and "studio.training.run" in " ".join(p.cmdline())]


def assert_nothing_half_written(studio: Studio) -> None:
    """Each adapter folder is a record's, and complete."""
    folders = {p.name for p in (studio.settings.home / "adapters").iterdir() if not p.name.startswith(".partial")}
    records = studio.adapters.all()
    assert folders == {r.id for r in records}
    for record in records:
        assert read_adapter(studio.adapters.path(record)).rank == 4


def start(studio: Studio, *command: str) -> subprocess.Popen[bytes]:
    """A separate process on the same home."""
    env = {
        **os.environ,
        "STUDIO_HOME": str(studio.settings.home),
        "STUDIO_BASE": "tiny",
        "STUDIO_QUANTIZATION": "fp32",
        "STUDIO_LEASE_S": "4",
    }
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_jobs_run_in_their_order_and_end_in_the_catalog_with_lineage(studio: Studio) -> None:
    jobs = [submit(studio, f"bird {i}", {**TINY, "seed": i, "checkpoint_every_s": 0}) for i in range(3)]
    assert [j.id for j in studio.queue.open()] == [j.id for j in jobs]
    studio.worker.start()
    wait_for(lambda: all(studio.queue.get(j.id).state == "done" for j in jobs), 120)
    done = [studio.queue.get(j.id) for j in jobs]
    assert [j.started_at for j in done] == sorted(j.started_at or 0 for j in done)
    assert all(earlier.finished_at <= later.started_at for earlier, later in pairwise(done))
    record = studio.adapters.get("bird 1")
    dataset, base = studio.datasets.get("Angry bird"), studio.default_base()
    assert (record.base_fingerprint, record.dataset_hash, record.seed) == (base.fingerprint, dataset.content_hash, 1)
    assert record.metrics["steps"] == 4 and record.metrics["tokens_per_s"] > 0 and record.metrics["peak_rss_mb"] > 100
    assert len({studio.adapters.get(f"bird {i}").sha256 for i in range(3)}) == 3
    steps = [e.data["step"] for e in studio.queue.events(done[0].id, kinds=("progress",))]
    assert steps == [1, 2, 3, 4]
    assert not any(studio.queue.checkpoints.path(j.id).exists() for j in jobs)  # what is done resumes no more
    assert_nothing_half_written(studio)


def test_the_zip_loads_in_peft(studio: Studio, tmp_path: Path) -> None:
    import zipfile

    import torch

    studio.train_and_wait(submit(studio, "bird", {**TINY, "learning_rate": 0.05}), lambda event: None)
    path = studio.export_adapter("bird", out=tmp_path / "out")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    base = make_model(vocab=600)
    tokens = torch.arange(2, 30).unsqueeze(0)
    before = base(tokens).logits
    after = PeftModel.from_pretrained(base, str(tmp_path / "unpacked")).eval()(tokens).logits
    assert (after - before).abs().max() > 0.01


def test_cancel_of_a_waiting_and_of_a_running_job(studio: Studio) -> None:
    running, waiting = submit(studio, "a", ENDLESS), submit(studio, "b", TINY)
    assert studio.queue.cancel(waiting.id).state == "cancelled"
    studio.worker.start()
    wait_for(lambda: is_training(studio, running))
    studio.queue.cancel(running.id)
    wait_for(lambda: studio.queue.get(running.id).state == "cancelled", 30)
    assert not children_of(os.getpid())
    with pytest.raises(InvalidInput, match="cancelled already"):
        studio.queue.cancel(running.id)
    assert studio.queue.retry(waiting.id).state == "queued"
    wait_for(lambda: studio.queue.get(waiting.id).state == "done")
    with pytest.raises(InvalidInput, match="only a failed or cancelled job"):
        studio.queue.retry(waiting.id)
    assert_nothing_half_written(studio)


def end_with_a_checkpoint(studio: Studio, state: str) -> JobRecord:
    """Play a worker whose trainer kept step 7 and then ended."""
    job = studio.queue.jobs.claim("test", time.time(), 60.0)
    assert job is not None
    for step in (5, 7):
        (studio.queue.checkpoints.path(job.id) / f"step-{step:09d}").mkdir(parents=True)
    studio.queue.jobs.end(job, state, "", time.time())
    return job


def test_a_job_keeps_its_checkpoint_for_the_retry_unless_it_starts_over(studio: Studio) -> None:
    submit(studio, "a", TINY)
    job = end_with_a_checkpoint(studio, "failed")
    assert studio.queue.resume_step(job.id) == 7
    assert "A retry resumes at step 7;" in exit_reason(-signal.SIGKILL, studio.queue.resume_step(job.id))[1]
    assert studio.queue.retry(job.id).state == "queued" and studio.queue.resume_step(job.id) == 7
    with pytest.raises(InvalidInput):
        studio.queue.retry(job.id, from_start=True)  # it waits already, and keeps what it has
    assert studio.queue.resume_step(job.id) == 7
    studio.queue.cancel(job.id)
    assert studio.queue.retry(job.id, from_start=True).state == "queued"
    assert studio.queue.resume_step(job.id) is None and not studio.queue.checkpoints.path(job.id).exists()
    (studio.queue.checkpoints.path(job.id) / ".partial-step-000000008").mkdir(parents=True)  # half-written, so it is none
    assert studio.queue.resume_step(job.id) is None


def test_a_sweep_is_queued_whole_or_not_at_all(studio: Studio) -> None:
    taken = submit(studio, "gull rank=4 seed=1", TINY)
    axes = {"rank": ["2", "4"], "seed": ["0", "1"]}
    with pytest.raises(NameTaken, match=taken.id):
        studio.sweep("Angry bird", "gull", axes=axes)
    with pytest.raises(InvalidInput, match="The option seed is '-1'"):
        studio.sweep("Angry bird", "owl", axes={"seed": ["0", "-1"]})
    with pytest.raises(InvalidInput, match="at most 80"):
        studio.sweep("Angry bird", "o" * 79, axes=axes)
    assert studio.queue.open() == [taken]
    jobs = studio.sweep("Angry bird", " owl ", preset="quick", axes=axes)
    assert [job.adapter_name for job in studio.queue.open()[1:]] == [
        "owl rank=2 seed=0",
        "owl rank=2 seed=1",
        "owl rank=4 seed=0",
        "owl rank=4 seed=1",
    ]
    found = studio.queue.compare(jobs[0].group)
    assert (found.name, found.options, [job.id for job in found.jobs]) == ("owl", ["rank", "seed"], [job.id for job in jobs])
    assert len(studio.queue.cancel_group(jobs[0].group)) == 4 and studio.queue.open() == [taken]
    with pytest.raises(InvalidInput, match="nothing to cancel"):
        studio.queue.cancel_group(jobs[0].group)
    with pytest.raises(NotFound, match="no sweep 'nowhere'"):
        studio.queue.compare("nowhere")


def test_names_that_are_taken_are_refused_at_once(studio: Studio) -> None:
    job = submit(studio, "bird", TINY)
    with pytest.raises(NameTaken, match=job.id):
        submit(studio, "bird", TINY)
    studio.train_and_wait(job, lambda event: None)
    with pytest.raises(NameTaken, match="already an adapter named 'bird'"):
        submit(studio, "bird", TINY)


def test_kill_9_of_the_training_process_fails_the_job_with_a_reason_and_a_retry_resumes(studio: Studio) -> None:
    job, after = submit(studio, "a", {**ENDLESS, "checkpoint_every_s": 0}), submit(studio, "b", TINY)
    studio.worker.start()
    wait_for(lambda: is_training(studio, job))
    (child,) = children_of(os.getpid())
    child.send_signal(signal.SIGKILL)
    wait_for(lambda: studio.queue.get(job.id).state == "failed")
    kept = studio.queue.resume_step(job.id)
    reason = studio.queue.get(job.id).reason
    assert "was killed, most often because memory ran out" in reason and f"A retry resumes at step {kept:,};" in reason
    wait_for(lambda: studio.queue.get(after.id).state == "done")  # the queue goes on
    studio.queue.retry(job.id)
    wait_for(lambda: studio.queue.get(job.id).progress.get("step", 0) > (kept or 0))
    again = next(e for e in studio.queue.events(job.id, kinds=("progress",)) if e.attempt == 2)
    assert kept and kept >= 2 and again.data["step"] == kept + 1
    studio.queue.cancel(job.id)
    wait_for(lambda: studio.queue.get(job.id).state == "cancelled", 30)
    assert studio.queue.resume_step(job.id)  # what was cancelled can be taken up, too
    assert_nothing_half_written(studio)


@pytest.mark.soak
def test_kill_9_of_the_worker_requeues_the_job_and_leaves_no_orphan(studio: Studio) -> None:
    job = submit(studio, "a", {**TINY, "max_steps": 300})
    worker = start(studio, "-m", "studio", "worker")
    wait_for(lambda: is_training(studio, job))
    (child,) = children_of(worker.pid)
    worker.kill()
    worker.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)
    assert studio.queue.get(job.id).state == "running"  # nobody has noticed yet
    studio.worker.start()  # the next worker on this machine sees that the owner is dead
    wait_for(lambda: studio.queue.get(job.id).state == "done", 120)
    assert studio.queue.get(job.id).attempt == 2 and studio.queue.get(job.id).losses == 1
    assert_nothing_half_written(studio)


def test_kill_9_of_the_app_loses_no_job(studio: Studio) -> None:
    """The next worker is one of this process, and that of the app again where STUDIO_SOAK=1."""
    job = submit(studio, "a", {**TINY, "max_steps": 300})
    settings = f"load_settings().model_copy(update={{'port': {free_port()}}})"
    code = f"from studio.settings import load_settings; from studio.ui.app import serve; serve({settings})"
    app = start(studio, "-c", code)
    wait_for(lambda: is_training(studio, job), 120)
    (child,) = children_of(app.pid)
    app.kill()
    app.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)
    assert studio.queue.get(job.id).state == "running"  # nobody has noticed yet
    if SOAK:
        app = start(studio, "-c", code)
    else:
        studio.worker.start()
    wait_for(lambda: studio.queue.get(job.id).state == "done", 180)
    if SOAK:
        app.send_signal(signal.SIGTERM)
        assert app.wait(30) == 0
    assert studio.queue.get(job.id).attempt == 2 and studio.queue.get(job.id).losses == 1
    assert_nothing_half_written(studio)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_stopped_worker_gives_its_job_back(studio: Studio) -> None:
    job = submit(studio, "a", ENDLESS)
    studio.worker.start()
    wait_for(lambda: is_training(studio, job))
    studio.worker.stop()
    assert studio.queue.get(job.id).state == "queued" and studio.queue.get(job.id).losses == 0
    assert not children_of(os.getpid())


def test_an_adapter_that_was_complete_when_the_worker_died_is_not_trained_again(studio: Studio) -> None:
    first = studio.train_and_wait(submit(studio, "a", TINY), lambda event: None)
    record = studio.adapters.get("a")
    # Take the last step back, as if the worker had died between the folder and the record.
    import sqlite3

    with sqlite3.connect(studio.settings.home / "studio.db") as database:
        database.execute("DELETE FROM adapter")
        database.execute("UPDATE job SET state = 'running', lease_owner = 'gone', lease_until = 0")
    wait_for(lambda: studio.queue.get(first.id).state == "done", 30)
    assert studio.adapters.get("a").sha256 == record.sha256
    assert studio.queue.get(first.id).attempt == 2
    assert len(studio.queue.events(first.id, kinds=("progress",))) == 4  # of the first attempt alone


def test_a_worker_that_was_thought_dead_can_change_nothing(studio: Studio) -> None:
    jobs = studio.queue.jobs
    job = submit(studio, "a", TINY)
    old = jobs.claim("old", 100.0, 5.0)
    assert old is not None and jobs.requeue_lost(200.0, jobs.leases(), 3)[0].state == "queued"
    new = jobs.claim("new", 200.0, 5.0)
    assert new is not None and new.id == job.id
    for attempt in (
        lambda: jobs.renew(old, 201.0, 5.0),
        lambda: jobs.record(old, [(1.0, "progress", {})], {}),
        lambda: jobs.end(old, "failed", "late", 201.0),
    ):
        with pytest.raises(LeaseLost):
            attempt()
    assert studio.queue.get(job.id).lease_owner == "new" and not studio.queue.events(job.id)


def test_a_job_that_is_lost_three_times_has_failed(studio: Studio) -> None:
    job = submit(studio, "a", TINY)
    for _ in range(3):
        assert studio.queue.jobs.claim("w", 100.0, 5.0)
        studio.queue.jobs.requeue_lost(200.0, studio.queue.jobs.leases(), 3)
    assert studio.queue.get(job.id).state == "failed"
    assert "died 3 times" in studio.queue.get(job.id).reason


def test_a_full_disk_while_saving_fails_plainly_and_leaves_nothing(studio: Studio, tmp_path: Path) -> None:
    """The system itself refuses the write: no file of the training process may grow beyond 20 KB."""
    job = submit(studio, "a", TINY)
    claimed = studio.queue.jobs.claim("test", time.time(), 60.0)
    assert claimed is not None
    launch = studio.supervisor._launch(claimed, studio.default_base(), ())
    spec = launch.folder / "job.json"
    spec.write_text(json.dumps(asdict(launch.spec)))
    code = (
        "import resource, sys; from pathlib import Path; from studio.training import run;"
        "from studio.training.events import emit_to_stdout;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        f"sys.exit(run.run(Path({str(spec)!r}), emit_to_stdout))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert result.returncode == 1 and events[-1]["kind"] == "failed"
    assert events[-1]["cause"] == "disk"
    assert events[-1]["reason"].startswith("The adapter could not be saved: File too large. Free some space")
    assert not list((studio.settings.home / "adapters").iterdir())
    assert studio.queue.get(job.id).state == "starting"  # this test played the worker
