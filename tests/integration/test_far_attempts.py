"""Attempts on another machine where its cluster or one of the two sides fails: what is believed, and that nobody trains twice."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from studio.jobs import far
from studio.jobs.cluster import ClusterAway, RayCluster
from studio.jobs.executor import Launch, Lost
from studio.jobs.ray import RayPlan, RayRun
from studio.jobs.shared import Shared
from tests.conftest import ROOT
from tests.jobs import Job

PLAN = RayPlan(gpus=0, command=f"{sys.executable} -m studio.jobs.remote", silence_s=4.0)
HASTY = replace(PLAN, silence_s=1.5)  # where nothing is started that could be late


class Table(RayCluster):
    """A cluster of this machine whose table says what a test wants it to say."""

    def __init__(self, home: Path) -> None:
        super().__init__("http://127.0.0.1:9", "token")
        self.home, self.status, self.error_type = home, "RUNNING", ""
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.starts = True
        self.away = False

    def submit(self, name: str, command: str, gpus: int) -> None:
        self.submitted.append(name)
        if self.starts:
            env = {**os.environ, "STUDIO_HOME": str(self.home)}
            self.processes.append(subprocess.Popen(shlex.split(command), cwd=ROOT, env=env, start_new_session=True))

    def info(self, name: str) -> dict[str, Any] | None:
        if self.away:
            raise ClusterAway(f"The Ray cluster at {self.address} does not answer")
        return {"status": self.status, "error_type": self.error_type} if self.status else None

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.submitted if name.startswith(prefix)]

    def stop(self, name: str, wait_s: float) -> bool:
        self.stopped.append(name)
        return True

    def logs(self, name: str) -> str:
        return "bash: no such command\n"


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path / "far")
    yield table
    for process in table.processes:
        process.kill()
        process.wait()


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(str(tmp_path / "shared"))


@pytest.fixture
def job(tmp_path: Path, tiny_base: Path) -> Job:
    return Job(tmp_path / "job", tiny_base, max_steps=100_000, checkpoint_every_s=0.5)


def launch(job: Job, attempt: int = 1) -> Launch:
    return Launch("job", replace(job.spec, attempt=attempt), job.folder, job.folder / f"log-{attempt}.txt")


def lost(run: RayRun, within_s: float = 60) -> str:
    with pytest.raises(Lost) as caught:
        wait_for(lambda: run.status(0.1) is not None, within_s)
    run.close()
    return str(caught.value)


def wait_for(what: Callable[[], object], within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def test_a_frozen_machine_is_lost_whatever_the_table_says_and_ends_itself_when_it_thaws(table: Table, shared: Shared, job: Job) -> None:
    run = RayRun(table, shared, PLAN, launch(job))
    wait_for(lambda: any(kind == "checkpoint" for _, kind, _ in run.events()))
    [process] = table.processes
    trainers = psutil.Process(process.pid).children()
    wait_for(lambda: list((job.folder / "checkpoints").glob("step-*")))
    process.send_signal(signal.SIGSTOP)
    assert lost(run, 30) == "Nothing was heard of the machine that ran attempt 1 for 4 seconds"
    shared.write(far.newest_path("job"), {"attempt": 2})
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 3 and trainers
    wait_for(lambda: not [p for p in trainers if p.is_running() and p.status() != "zombie"], 10)
    assert shared.read("jobs/job/1/end") is None and not job.adapter.exists()


def test_a_program_ends_itself_when_the_studio_is_gone(table: Table, shared: Shared, job: Job) -> None:
    run = RayRun(table, shared, PLAN, launch(job))
    wait_for(lambda: any(kind == "state" for _, kind, _ in run.events()))
    run._halted.set()  # as where the studio was killed: no thread of its own speaks any more
    table.status = "STOPPED"
    assert table.processes[0].wait(60) == 3 and not list((table.home / "remote" / "work").iterdir())


def finished(job: Job, shared: Shared, attempt: int, tmp_path: Path) -> None:
    """What an attempt leaves that ended after its studio had died."""
    folder = far.attempt_path("job", attempt)
    made = tmp_path / "made"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    shared.send(made, f"{folder}/{far.ADAPTER}")
    shared.write(f"{folder}/{far.SPEC}", {"spec": asdict(job.spec)})


def test_what_an_older_attempt_finished_is_taken_and_not_trained_again(table: Table, shared: Shared, job: Job, tmp_path: Path) -> None:
    table.submitted = ["studio-job-1"]
    finished(job, shared, 1, tmp_path)
    run = RayRun(table, shared, PLAN, launch(job, 2))
    wait_for(lambda: run.status(0.1) == 0)
    run.close()
    assert (job.adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert table.submitted == table.stopped == ["studio-job-1"]  # stopped first, and nothing new


def test_a_retry_takes_nothing_of_the_attempts_before_it(table: Table, shared: Shared, job: Job, tmp_path: Path) -> None:
    finished(job, shared, 1, tmp_path)
    table.starts, table.status = False, ""
    fresh = replace(job.spec, adapter_folder=str(tmp_path / "fresh"), attempt=2)
    run = RayRun(table, shared, PLAN, Launch("job", fresh, job.folder, job.folder / "log-2.txt"))
    assert "has forgotten the job" in lost(run) and not (tmp_path / "fresh").exists() and table.submitted == ["studio-job-2"]
    older = RayRun(table, shared, PLAN, launch(job, 1))
    assert lost(older) == "A newer attempt of the job has begun elsewhere"


def test_before_the_first_sign_of_life_the_table_is_asked(table: Table, shared: Shared, job: Job) -> None:
    table.starts, table.status = False, "PENDING"
    run = RayRun(table, shared, HASTY, launch(job))
    time.sleep(HASTY.silence_s + 2)  # a job that waits for a free GPU is not lost
    assert run.status(0) is None and [data["text"] for _, kind, data in run.events() if "waits" in data["text"]]
    table.status, table.error_type = "FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
    wait_for(lambda: table.submitted == ["studio-job-1", "studio-job-1-again"])
    table.error_type = "JOB_ENTRYPOINT_COMMAND_ERROR"
    assert lost(run) == "Ray ended the job before the training began; the job's log has what it said"
    assert "no such command" in (job.folder / "log-1.txt").read_text()


def test_a_cluster_that_is_away_before_it_begins_is_lost_after_a_silence(table: Table, shared: Shared, job: Job) -> None:
    table.starts, table.away = False, True
    assert lost(RayRun(table, shared, HASTY, launch(job))) == "The Ray cluster at http://127.0.0.1:9 does not answer"


def test_a_machine_of_another_version_says_so(table: Table, shared: Shared, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.jobs.ray.__version__", "9.9")
    run = RayRun(table, shared, PLAN, launch(job))
    wait_for(lambda: run.status(0.1) == 1)
    [(_, _, failed)] = [event for event in run.events() if event[1] == "failed"]
    run.close()
    assert failed["cause"] == "start" and "where 9.9 is asked for" in failed["reason"]


def test_a_shared_place_that_is_gone_in_the_middle_is_waited_for(table: Table, shared: Shared, job: Job, tmp_path: Path) -> None:
    run = RayRun(table, shared, replace(PLAN, silence_s=20.0), launch(job))
    wait_for(lambda: any(kind == "progress" for _, kind, _ in run.events()))
    place, away = tmp_path / "shared", tmp_path / "away"
    place.rename(away)
    place.write_text("no folder")
    time.sleep(3)
    place.unlink()
    away.rename(place)
    run.events()
    wait_for(lambda: any(kind == "progress" for _, kind, _ in run.events()))
    run.ask("cancel")
    wait_for(lambda: run.status(0.1) == 0)
    run.close()
    assert not [path for path in (tmp_path / "shared" / "jobs" / "job").iterdir() if path.name.startswith("1")]
    shutil.rmtree(away, ignore_errors=True)


@pytest.mark.parametrize(
    ("with_token", "without", "says"),
    [
        (404, 401, ""),
        (404, 404, "takes jobs from anybody; start it with RAY_AUTH_MODE=token."),
        (403, 401, "refuses the token of STUDIO_RAY_TOKEN; the job waits for it."),
        (502, 502, "answers with an error (502); the job waits for it."),
    ],
)
def test_a_cluster_must_ask_for_the_token_that_we_have(with_token: int, without: int, says: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(with_token if self.headers["Authorization"] == "Bearer geheim" else without)
            self.end_headers()
            self.wfile.write(json.dumps({}).encode())

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    why = RayCluster(f"http://127.0.0.1:{server.server_port}/", "geheim").why_not()
    server.shutdown()
    server.server_close()
    assert why.endswith(says) and bool(why) == bool(says) and "geheim" not in why
