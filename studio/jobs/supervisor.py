"""One attempt of a job from its start to its end, whatever that is: the only writer of a job that a worker holds."""

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

import orjson

from storage import files
from storage.errors import DatabaseUnavailable, DuplicateName, LeaseLost, RecordNotFound
from storage.jobs import Jobs
from storage.records import AdapterRecord, BaseRecord, JobRecord
from storage.repositories import Bases
from storage.states import CANCELLED, CANCELLING, FAILED, PAUSED, PAUSING, QUEUED
from studio.errors import StudioError
from studio.jobs.attempt import Attempt
from studio.jobs.checkpoints import Checkpoints
from studio.jobs.executor import Executor, Launch, Lost
from studio.jobs.queue import training_config
from studio.lora.files import adapter_sha256
from studio.settings import Settings
from studio.training.run import LINEAGE_FILE, JobSpec

log = logging.getLogger(__name__)
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
        try:
            self._run(job, devices, stopping)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Exception as error:
            log.exception("Job %s could not be seen through.", job.id)
            why = f"The studio's worker met an error of its own ({type(error).__name__}: {error}); its log has more. Retry the job."
            self.jobs.end(job, FAILED, why, time.time(), "error")

    def _run(self, job: JobRecord, devices: tuple[str, ...], stopping: threading.Event) -> None:
        base = self._base(job)
        if base is None:
            return
        self.executor.end_left(self.job_folder(job.id), job.attempt)  # an earlier attempt's worker may have died, or sleep
        self._sweep(job)
        if self.adapter_folder(job).exists():  # an earlier attempt died between its last two steps
            self._register(job, base)
            return
        try:
            run = self.executor.submit(self._launch(job, base, devices))
        except (OSError, StudioError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error).rstrip(".")
            self.jobs.end(job, FAILED, f"The job could not start: {why}. Mend that and retry it.", time.time(), "start")
            return
        attempt = Attempt(self.jobs, job, run, self.settings.lease_s)
        try:
            status = attempt.watch(stopping)
            attempt.patiently(lambda: self._end(attempt, base, status, stopping.is_set()), stopping)
        except Lost as lost:
            self.jobs.lose(job, str(lost).rstrip("."), time.time(), self.settings.max_losses)
        finally:
            run.stop()
            run.close()

    def clear_up(self, job: JobRecord) -> None:
        """Put away what the lost attempt of a job left on this machine. A job that was queued again may be another worker's by now."""
        self.executor.end_left(self.job_folder(job.id), job.attempt)
        if job.state != QUEUED:
            self._sweep(job)
        if job.state in (CANCELLED, FAILED):  # a retry makes another adapter
            files.remove_folder(self.adapter_folder(job))

    def sweep(self) -> None:
        """Remove what is of no more use and was left by somebody who died: adapters of jobs that are over, checkpoints of done ones."""
        made = [path.name for path in (self.home / "adapters").glob("*") if not path.name.startswith(files.PARTIAL)]
        for adapter_id in self.jobs.abandoned(made):
            files.remove_folder(self.home / "adapters" / adapter_id)
        for job_id in self.jobs.done(self.checkpoints.jobs()):
            self.checkpoints.remove(job_id)

    def adapter_folder(self, job: JobRecord) -> Path:
        """Where the job's adapter is or will be."""
        return self.home / "adapters" / job.adapter_id

    def job_folder(self, job_id: str) -> Path:
        """Where the job's log, checkpoints and event files are."""
        return self.home / "jobs" / job_id

    def _sweep(self, job: JobRecord) -> None:
        """Remove wishes and half-written files of attempts whose processes are gone."""
        folder = self.job_folder(job.id)
        for wish in folder.glob("wish-*"):
            wish.unlink(missing_ok=True)
        for path in (folder, self.checkpoints.path(job.id)):
            files.remove_partials(path)
        files.remove_partials(self.home / "adapters", of=job.adapter_id)

    def _base(self, job: JobRecord) -> BaseRecord | None:
        """The job's base; where that or the dataset is gone, the job has failed."""
        name = job.config["dataset_name"]
        try:
            base = self.bases.get(job.base_id)
        except RecordNotFound:
            base = None
        if base is None or not (self.home / "bases" / base.id).is_dir():
            which = f"The base {base.name!r}" if base else "The base of this job"
            self.jobs.end(job, FAILED, f"{which} is not there any more; fetch it again and start a new training.", time.time(), "base")
            return None
        if not self._dataset(job).is_file():
            why = f"The dataset {name!r} is not there any more; add it again and start a new training."
            self.jobs.end(job, FAILED, why, time.time(), "data")
            return None
        return base

    def _dataset(self, job: JobRecord) -> Path:
        return self.home / "datasets" / job.dataset_id / "rows.arrow"

    def _launch(self, job: JobRecord, base: BaseRecord, devices: tuple[str, ...]) -> Launch:
        folder = self.job_folder(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        config = training_config(job)
        spec = JobSpec(
            base_path=str(self.home / "bases" / base.id),
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            dataset_path=str(self._dataset(job)),
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

    def _end(self, attempt: Attempt, base: BaseRecord, status: int, stopped: bool) -> None:
        self.jobs.renew(attempt.job, time.time(), self.settings.lease_s)  # then no successor writes what is swept here
        self._sweep(attempt.job)
        for _ in range(2):
            with contextlib.suppress(LeaseLost):  # somebody wished something just now; once it is heard, the end is another
                return self._conclude(attempt, base, status, stopped)
        return self._conclude(attempt, base, status, stopped)

    def _conclude(self, attempt: Attempt, base: BaseRecord, status: int, stopped: bool) -> None:
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
            kind=str(lineage["config"].get("method", "lora")),
        )
        try:
            self.jobs.finish(job, record, lineage["metrics"], time.time())
            self.checkpoints.remove(job.id)
        except DuplicateName:
            why = f"Another adapter took the name {job.adapter_name!r} while this one trained; rename that one, then retry."
            self.jobs.end(job, FAILED, why, time.time(), "name")
            files.remove_folder(folder)


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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
