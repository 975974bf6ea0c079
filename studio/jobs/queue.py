"""What people do with the queue: submit, watch, cancel, retry."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from storage import files
from storage.errors import RecordNotFound
from storage.jobs import CANCELLED, FAILED, OPEN, QUEUED, Jobs
from storage.records import BaseRecord, DatasetRecord, EventRecord, JobRecord
from storage.repositories import Adapters, Datasets
from studio.errors import InvalidInput, NameTaken, NotFound
from studio.jobs.checkpoints import Checkpoints
from studio.jobs.sweep import Comparison, Variant, compare
from studio.names import checked_name
from studio.training.config import TrainConfig


class Queue:
    """First in, first out. Nothing trains here; a worker claims what is queued.

    Args:
        jobs: the table. adapters: to keep the names of finished and coming adapters apart. datasets: to know which
            ones are still there. checkpoints: from which a retried job goes on.
    """

    def __init__(self, jobs: Jobs, adapters: Adapters, datasets: Datasets, checkpoints: Checkpoints) -> None:
        self.jobs, self.adapters, self.datasets, self.checkpoints = jobs, adapters, datasets, checkpoints

    def submit(self, adapter_name: str, base: BaseRecord, dataset: DatasetRecord, config: TrainConfig) -> JobRecord:
        """Queue a job that trains an adapter of this name, its configuration frozen.

        Raises:
            NameTaken: a finished adapter or a waiting job has the name. InvalidInput: the name is not usable.
        """
        name = checked_name("adapter", adapter_name)
        self._check_free(name)
        record = _new_job(name, base, dataset, config)
        self.jobs.add(record)
        return record

    def submit_group(self, label: str, variants: Sequence[Variant], base: BaseRecord, dataset: DatasetRecord) -> list[JobRecord]:
        """Queue the jobs of a sweep, all of them or none.

        Args:
            label: what the sweep is called.

        Raises:
            NameTaken. InvalidInput: one of the names is taken or not usable.
        """
        group, now = files.new_id(), time.time()
        records = []
        for place, variant in enumerate(variants):
            name = checked_name("adapter", variant.name)
            self._check_free(name)
            record = _new_job(name, base, dataset, variant.config)
            sweep = {"name": label.strip(), "options": variant.options, "place": place}
            # Jobs run in the order of their times, so each is a little younger than the one before.
            records.append(replace(record, group=group, config={**record.config, "sweep": sweep}, created_at=now + place * 1e-4))
        self.jobs.add(*records)
        return records

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            NotFound: no job has this id.
        """
        try:
            return self.jobs.get(job_id)
        except RecordNotFound:
            raise NotFound(f"There is no job {job_id!r}; see the jobs with: python -m studio job list.") from None

    def all(self) -> list[JobRecord]:
        """The newest jobs first."""
        return self.jobs.all()

    def open(self) -> list[JobRecord]:
        """Running and waiting jobs in the order in which they (will) run."""
        return sorted(self.jobs.all(OPEN, limit=None), key=lambda job: (job.state == QUEUED, job.created_at, job.id))

    def group(self, group: str) -> list[JobRecord]:
        """The jobs of a sweep; empty where there is no such sweep."""
        return self.jobs.of_group(group) if group else []

    def compare(self, group: str) -> Comparison:
        """The jobs of a sweep side by side.

        Raises:
            NotFound: no sweep has this id.
        """
        jobs = self.group(group)
        if not jobs:
            raise NotFound(f"There is no sweep {group!r}; the group of a job says it: python -m studio job show ID.")
        return compare(jobs)

    def resume_step(self, job_id: str) -> int | None:
        """The step at which the job's next attempt goes on, or None where it begins at the start."""
        return self.checkpoints.resume_step(job_id)

    def events(self, job_id: str, after: int = 0, kinds: tuple[str, ...] = ()) -> list[EventRecord]:
        """What the job's process said, in order."""
        return self.jobs.events(job_id, after, kinds)

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a waiting job now and a running one within seconds.

        Raises:
            InvalidInput: it is over already.
        """
        job = self.get(job_id)
        if job.state not in OPEN:
            raise InvalidInput(f"The job {job.id} is {job.state} already; there is nothing to cancel.")
        return self.jobs.request_cancel(job_id, time.time())

    def cancel_group(self, group: str) -> list[JobRecord]:
        """Cancel what is not over of a sweep, the last job first, so that none starts meanwhile.

        Raises:
            InvalidInput: all of it is over already.
        """
        unfinished = [job for job in self.group(group) if job.state in OPEN]
        if not unfinished:
            raise InvalidInput("Every training of this sweep is over already; there is nothing to cancel.")
        return [self.jobs.request_cancel(job.id, time.time()) for job in reversed(unfinished)]

    def retry(self, job_id: str, from_start: bool = False) -> JobRecord:
        """Queue a failed or cancelled job again; it goes on at its newest checkpoint, where it has one.

        Args:
            from_start: forget its checkpoints first.

        Raises:
            InvalidInput: it is neither, or its dataset was deleted. NameTaken: its adapter's name is used by now.
        """
        job = self.get(job_id)
        if job.state in (FAILED, CANCELLED):
            self._check_free(job.adapter_name)
            if self.datasets.find(job.dataset_id) is None:
                name = job.config["dataset_name"]
                raise InvalidInput(f"The dataset {name!r} of the job {job.id} was deleted; add it again and start a new training.")
            if from_start:
                self.checkpoints.remove(job.id)
        if not self.jobs.retry(job.id, files.new_id(), time.time()):
            raise InvalidInput(f"The job {job.id} is {job.state}; only a failed or cancelled job can be retried.")
        return self.get(job_id)

    def _check_free(self, name: str) -> None:
        if self.adapters.find(name) is not None:
            raise NameTaken(f"There is already an adapter named {name!r}; choose another name or delete that one first.")
        waiting = next((job for job in self.jobs.all(OPEN, limit=None) if job.adapter_name == name), None)
        if waiting is not None:
            raise NameTaken(f"The job {waiting.id} ({waiting.state}) already makes an adapter named {name!r}; choose another name.")


def _new_job(name: str, base: BaseRecord, dataset: DatasetRecord, config: TrainConfig) -> JobRecord:
    return JobRecord(
        id=files.new_id(),
        state=QUEUED,
        adapter_id=files.new_id(),
        adapter_name=name,
        base_id=base.id,
        dataset_id=dataset.id,
        config={**config.model_dump(), "dataset_name": dataset.name, "dataset_hash": dataset.content_hash},
        created_at=time.time(),
    )


def training_config(job: JobRecord) -> dict[str, Any]:
    """The part of a job's configuration that the trainer takes."""
    return {key: value for key, value in job.config.items() if key in TrainConfig.model_fields}
