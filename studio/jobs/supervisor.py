"""One attempt of a job from its start to its end, whatever that is: the only writer of a job that a worker holds."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from storage import files
from storage.errors import DuplicateName, LeaseLost
from storage.jobs import Jobs
from storage.records import AdapterRecord, BaseRecord, JobRecord
from storage.repositories import Bases
from storage.states import CANCELLED, CANCELLING, FAILED, PAUSED, PAUSING, QUEUED, STARTING
from studio.errors import StudioError
from studio.jobs.checkpoints import Checkpoints
from studio.jobs.executor import Event, Executor, Launch, Lost, Run
from studio.jobs.queue import training_config
from studio.lora.files import adapter_sha256
from studio.settings import Settings
from studio.training.control import CANCEL, PAUSE, Wish
from studio.training.run import LINEAGE_FILE, JobSpec

POLL_S = 0.4
USAGE_S = 5.0
# How long a wish may take before the process is stopped: a pause waits for the step in progress and its checkpoint.
PATIENCE_S: dict[Wish, float] = {"": 0.0, CANCEL: 3.0, PAUSE: 60.0}
STOPPING_S = 8.0  # a program that was told to end is mostly killed after ten seconds
STOPPED = "The studio was stopped; the job is in the queue again."


class Supervisor:
    """Submits attempts, stores what they say, tells them what is wished, and makes their adapters appear.

    Args:
        jobs, bases: the tables. checkpoints: kept while a job is not done. executor: where attempts run.
        settings: home, leases and limits.
    """

    def __init__(self, jobs: Jobs, bases: Bases, checkpoints: Checkpoints, executor: Executor, settings: Settings) -> None:
        self.jobs, self.bases, self.checkpoints, self.executor = jobs, bases, checkpoints, executor
        self.home, self.settings = settings.home, settings

    def see_through(self, job: JobRecord, devices: tuple[str, ...], stopping: threading.Event) -> None:
        """Run one attempt of a claimed job, until it ended or `stopping` is set.

        Raises:
            LeaseLost: the job is another worker's now; the attempt's process was stopped.
        """
        base = self.bases.get(job.base_id)
        if self.adapter_folder(job).exists():  # an earlier attempt died between its last two steps
            self._register(job, base)
            return
        try:
            run = self.executor.submit(self._launch(job, base, devices))
        except (OSError, StudioError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error).rstrip(".")
            self.jobs.end(job, FAILED, f"The job could not start: {why}. Mend that and retry it.", time.time(), "start")
            return
        attempt = _Attempt(self.jobs, job, run, self.settings.lease_s)
        try:
            status = attempt.watch(stopping)
            run.stop()  # what it may have left behind
            try:
                self._conclude(attempt, base, status, stopping.is_set())
            except LeaseLost:  # somebody wished something just now; once it is heard, the end is another
                self._conclude(attempt, base, status, stopping.is_set())
        except Lost as lost:
            self.jobs.lose(job, str(lost).rstrip("."), time.time(), self.settings.max_losses)
        finally:
            run.stop()
            run.close()

    def adapter_folder(self, job: JobRecord) -> Path:
        """Where the job's adapter is or will be."""
        return self.home / "adapters" / job.adapter_id

    def job_folder(self, job_id: str) -> Path:
        """Where the job's log, checkpoints and event files are."""
        return self.home / "jobs" / job_id

    def _launch(self, job: JobRecord, base: BaseRecord, devices: tuple[str, ...]) -> Launch:
        folder = self.job_folder(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        config = training_config(job)
        spec = JobSpec(
            base_path=str(self.home / "bases" / base.id),
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            dataset_path=str(self.home / "datasets" / job.dataset_id / "rows.arrow"),
            dataset_name=job.config["dataset_name"],
            dataset_hash=job.config["dataset_hash"],
            adapter_folder=str(self.adapter_folder(job)),
            adapter_name=job.adapter_name,
            job_folder=str(folder),
            config=config,
            memory_limit_mb=self.settings.memory_limit_mb,
            attempt=job.attempt,
        )
        threads = max(1, _cores() // self.settings.jobs_per_device) if self.settings.jobs_per_device > 1 else 0
        return Launch(job.id, spec, folder, attempt_log(folder, job.attempt), devices, int(config.get("devices", 1)), threads)

    def _conclude(self, attempt: "_Attempt", base: BaseRecord, status: int, stopped: bool) -> None:
        """Bring the job to the state that the end of its process means."""
        job, now = attempt.job, time.time()
        if self.adapter_folder(job).exists():  # folders appear complete or not at all
            self._register(job, base)
            return
        state = self.jobs.state(job)
        step = self.checkpoints.resume_step(job.id)
        if state == CANCELLING:
            self.jobs.end(job, CANCELLED, "Cancelled.", now)
        elif state == PAUSING and not attempt.failed:
            self.jobs.end(job, PAUSED, "Paused before the first checkpoint." if step is None else f"Paused at step {step:,}.", now)
        elif stopped and not attempt.failed:
            self.jobs.end(job, QUEUED, STOPPED, now)
        else:
            cause, reason = attempt.failed or exit_reason(status, step)
            self.jobs.end(job, FAILED, reason, now, cause)

    def _register(self, job: JobRecord, base: BaseRecord) -> None:
        """Insert the adapter and end the job, in one transaction."""
        folder = self.adapter_folder(job)
        lineage = orjson.loads((folder / LINEAGE_FILE).read_bytes())
        record = AdapterRecord(
            id=job.adapter_id,
            name=job.adapter_name,
            sha256=adapter_sha256(folder),
            base_id=base.id,
            base_fingerprint=lineage["base_fingerprint"],
            dataset_id=job.dataset_id,
            dataset_hash=lineage["dataset_hash"],
            job_id=job.id,
            rank=int(lineage["config"]["rank"]),
            size_bytes=files.size_of(folder),
            config=lineage["config"],
            metrics=lineage["metrics"],
            code_version=lineage["code_version"],
            seed=int(lineage["config"]["seed"]),
            created_at=time.time(),
        )
        try:
            self.jobs.finish(job, record, lineage["metrics"], time.time())
            self.checkpoints.remove(job.id)
        except DuplicateName:
            files.remove_folder(folder)
            why = f"Another adapter took the name {job.adapter_name!r} while this one trained; rename that one, then retry."
            self.jobs.end(job, FAILED, why, time.time(), "name")


class _Attempt:
    """A running attempt: what it said so far, and what it was told."""

    def __init__(self, jobs: Jobs, job: JobRecord, run: Run, lease_s: float) -> None:
        self.jobs, self.job, self.run, self.lease_s = jobs, job, run, lease_s
        self.failed: tuple[str, str] | None = None  # cause and reason
        self._progress: dict[str, Any] = {}
        self._renewed = self._looked = 0.0
        self._wish: Wish = ""
        self._deadline = float("inf")

    def watch(self, stopping: threading.Event) -> int:
        """Store what the attempt says and tell it what is wished, until it has ended; returns its status.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        while True:
            status = self.run.status(POLL_S)
            events = self.run.events()
            if status is None and time.monotonic() - self._looked > USAGE_S:
                self._looked, usage = time.monotonic(), self.run.usage()
                events += [(time.time(), "usage", usage)] if usage else []
            self._store(events)
            if status is not None:
                return status
            self._tell(stopping.is_set())
            if time.monotonic() > self._deadline:  # beside this loop: the lease goes on while a far machine is stopped
                self._deadline = float("inf")
                threading.Thread(target=self.run.stop, name="stop", daemon=True).start()

    def _store(self, events: list[Event]) -> None:
        now = time.monotonic()
        if now - self._renewed > self.lease_s / 5:
            self.jobs.renew(self.job, time.time(), self.lease_s)
            self._renewed = now
        if not events:
            return
        for _, kind, data in events:
            self._progress = {**self._progress, **_newest(kind, data)}
            if kind == "failed":
                self.failed = (str(data.get("cause", "error")), str(data["reason"]))
        self.jobs.record(self.job, events, self._progress)

    def _tell(self, stopping: bool) -> None:
        """Move on to running, and pass on what people wish; a studio that stops wishes a pause."""
        state = self.jobs.state(self.job)
        if state == STARTING and "state" in self._progress:
            self.jobs.run(self.job)
        wish: Wish = CANCEL if state == CANCELLING else PAUSE if state == PAUSING or stopping else ""
        if wish and wish != self._wish:
            self.run.ask(wish)
            self._wish, self._deadline = wish, time.monotonic() + (STOPPING_S if stopping else PATIENCE_S[wish])


def attempt_log(folder: Path, attempt: int) -> Path:
    """The log of one attempt in a job's folder."""
    return folder / f"log-{attempt}.txt"


def exit_reason(status: int, resume_step: int | None) -> tuple[str, str]:
    """Cause and reason where a process ended without giving one."""
    again = "A retry begins at the start" if resume_step is None else f"A retry resumes at step {resume_step:,}"
    if status == -signal.SIGKILL:
        return "killed", (
            f"The training process was killed, most often because memory ran out. {again}; if it is killed again, "
            "start a new training with a lower token_budget or max_length, or on a smaller base."
        )
    if status < 0:
        return "killed", f"The training process was ended by signal {-status}. {again}."
    return "error", f"The training process ended with status {status} and gave no reason; the job's log has the details."


def _newest(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """What an event changes in the job's progress."""
    if kind in ("progress", "state"):
        return data
    return {"eval_loss": data["loss"]} if kind == "eval" else {}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
