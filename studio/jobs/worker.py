"""The worker: claims a job under a lease, supervises its subprocess, and makes the adapter appear.

Whatever dies, the job does not: a dead worker's lease ends and the job is queued again; a dead subprocess fails its
job with a reason; an adapter whose files are complete is registered without training again.
"""

import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
from filelock import FileLock, Timeout

from storage import files
from storage.errors import DuplicateName, LeaseLost
from storage.jobs import CANCELLED, FAILED, QUEUED, Jobs
from storage.records import AdapterRecord, BaseRecord, JobRecord
from storage.repositories import Bases, Datasets
from studio.jobs.checkpoints import Checkpoints
from studio.jobs.process import TrainingProcess
from studio.jobs.queue import training_config
from studio.lora.files import adapter_sha256
from studio.settings import Settings
from studio.training.run import LINEAGE_FILE, JobSpec

POLL_S = 0.4
log = logging.getLogger(__name__)


class Worker:
    """Runs one job after another.

    Args:
        jobs, bases, datasets: the tables. checkpoints: kept while a job is not done. settings: home, leases and limits.
    """

    def __init__(self, jobs: Jobs, bases: Bases, datasets: Datasets, checkpoints: Checkpoints, settings: Settings) -> None:
        self.jobs, self.bases, self.datasets, self.checkpoints = jobs, bases, datasets, checkpoints
        self.home, self.lease_s, self.max_losses = settings.home, settings.lease_s, settings.max_losses
        self.memory_limit_mb = settings.memory_limit_mb
        self.owner = _identity(os.getpid()) + f":{files.new_id()[:6]}"
        # The machine's one device slot. The system frees it when its holder dies.
        (self.home / "jobs").mkdir(parents=True, exist_ok=True)
        self._device = FileLock(self.home / "jobs" / "device.lock")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Work in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self.run, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop soon; a running job goes back into the queue."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def run(self) -> None:
        """Claim and run jobs until `stop`."""
        while not self._stopping.is_set():
            try:
                worked = self.run_one()
            except Exception:  # one broken job or a busy disk must not end the queue
                log.exception("The worker met an error and goes on.")
                worked = False
            if not worked:
                self._stopping.wait(POLL_S)

    def run_one(self) -> bool:
        """Run the oldest waiting job, if there is one."""
        now = time.time()
        for lost in self.jobs.requeue_lost(now, self._dead_owners(), self.max_losses):
            log.warning("Job %s lost its worker and is %s.", lost.id, lost.state)
        try:
            with self._device.acquire(timeout=0):
                return self._claim_and_run(now)
        except Timeout:  # another worker of this machine trains
            return False

    def _claim_and_run(self, now: float) -> bool:
        job = self.jobs.claim(self.owner, now, self.lease_s)
        if job is None:
            return False
        log.info("Job %s: attempt %d of adapter %r.", job.id, job.attempt, job.adapter_name)
        try:
            self._run_job(job)
        except LeaseLost:
            log.warning("Job %s was taken over by another worker.", job.id)
        return True

    def _run_job(self, job: JobRecord) -> None:
        try:
            base = self.bases.get(job.base_id)
            if self.adapter_folder(job).exists():  # an earlier attempt died between its last two steps
                self._register(job, base)
                return
            process = TrainingProcess(self._write_spec(job, base), self.log_path(job.id), int(training_config(job).get("devices", 1)))
        except OSError as error:
            self.jobs.end(job, FAILED, f"The job could not start: {error.strerror or error}. Mend that and retry it.", time.time())
            return
        try:
            self._supervise(job, base, process)
        finally:
            process.stop()
            process.close()

    def _supervise(self, job: JobRecord, base: BaseRecord, process: TrainingProcess) -> None:
        progress: dict[str, Any] = {}
        reason, renewed = "", 0.0
        while True:
            status = process.wait(POLL_S)
            events = process.drain()
            reason = next((data["reason"] for _, kind, data in events if kind == "failed"), reason)
            if events:
                for _, kind, data in events:
                    progress = {**progress, **_newest(kind, data)}
                self.jobs.record(job, events, progress)
            if status is not None:
                break
            cancelled = False
            if time.time() - renewed > self.lease_s / 5 or self._stopping.is_set():
                cancelled, renewed = self.jobs.renew(job, time.time(), self.lease_s), time.time()
            if cancelled or self._stopping.is_set():
                process.stop()
                self._discard(job)
                state, why = (CANCELLED, "Cancelled.") if cancelled else (QUEUED, "The studio was stopped; the job is in the queue again.")
                self.jobs.end(job, state, why, time.time())
                return
        if self.adapter_folder(job).exists():  # folders appear complete or not at all
            self._register(job, base)
        else:
            self._discard(job)
            self.jobs.end(job, FAILED, reason or _exit_reason(status, self.checkpoints.resume_step(job.id)), time.time())

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
            self._discard(job)
            why = f"Another adapter took the name {job.adapter_name!r} while this one trained; rename that one, then retry."
            self.jobs.end(job, FAILED, why, time.time())

    def _write_spec(self, job: JobRecord, base: BaseRecord) -> Path:
        spec = {
            "base_path": str(self.home / "bases" / base.id),
            "base_name": base.name,
            "base_fingerprint": base.fingerprint,
            "dataset_path": str(self.home / "datasets" / job.dataset_id / "rows.arrow"),
            "dataset_name": job.config["dataset_name"],
            "dataset_hash": job.config["dataset_hash"],
            "adapter_folder": str(self.adapter_folder(job)),
            "adapter_name": job.adapter_name,
            "job_folder": str(self.home / "jobs" / job.id),
            "config": training_config(job),
            "memory_limit_mb": self.memory_limit_mb,
        }
        path = self.home / "jobs" / job.id / "job.json"
        files.write_file(path, orjson.dumps(JobSpec(**spec), option=orjson.OPT_INDENT_2))
        return path

    def adapter_folder(self, job: JobRecord) -> Path:
        """Where the job's adapter is or will be."""
        return self.home / "adapters" / job.adapter_id

    def log_path(self, job_id: str) -> Path:
        """The job's log text."""
        return self.home / "jobs" / job_id / "log.txt"

    def _discard(self, job: JobRecord) -> None:
        files.remove_folder(self.adapter_folder(job))

    def _dead_owners(self) -> list[str]:
        """Workers of this machine that hold a lease and are no process any more."""
        here = socket.gethostname() + ":"
        return [o for o in self.jobs.running_owners() if o.startswith(here) and not _is_alive(o)]


def _identity(pid: int) -> str:
    """host:pid:start, so that a new process with an old number is not mistaken for its owner."""
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def _is_alive(owner: str) -> bool:
    pid = int(owner.split(":")[1])
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and owner.startswith(_identity(pid) + ":")
    except psutil.NoSuchProcess:
        return False


def _newest(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """What an event changes in the job's progress."""
    if kind in ("progress", "state"):
        return data
    return {"eval_loss": data["loss"]} if kind == "eval" else {}


def _exit_reason(status: int, resume_step: int | None) -> str:
    again = "A retry begins at the start" if resume_step is None else f"A retry resumes at step {resume_step:,}"
    if status == -signal.SIGKILL:
        return (
            f"The training process was killed, most often because memory ran out. {again}; if it is killed again, "
            "start a new training with a lower token_budget or max_length, or on a smaller base."
        )
    if status < 0:
        return f"The training process was ended by signal {-status}. {again}."
    return f"The training process ended with status {status} and gave no reason; the job's log has the details."
