"""What people do with the queue: submit, watch, cancel, pause, retry, copy, and put in order."""

import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from storage import files
from storage.errors import RecordNotFound
from storage.jobs import Jobs
from storage.records import AttemptRecord, BaseRecord, DatasetRecord, EventRecord, JobRecord, QueueRecord
from storage.repositories import Adapters, Datasets
from storage.states import CANCELLED, FAILED, OPEN, OVER, PAUSED, QUEUED, WAITING
from studio.errors import InvalidInput, NameTaken, NotFound
from studio.jobs.checkpoints import Checkpoints
from studio.jobs.sweep import Comparison, Variant, compare
from studio.names import checked_name
from studio.quota import Room, unlimited
from studio.training.config import TrainConfig, make_config

MOST_PRIORITY = 100
MOST_FAILURES = 1000
PAGE_JOBS = 100


class Queue:
    """By priority, then first in, first out, unless somebody changes the order. Nothing trains here; a worker takes what waits.

    Args:
        jobs: the table. adapters: to keep the names of finished and coming adapters apart. datasets: to know which
            ones are still there. checkpoints: from which a retried job goes on. has_room: is asked
            before a job is queued.
    """

    def __init__(self, jobs: Jobs, adapters: Adapters, datasets: Datasets, checkpoints: Checkpoints, has_room: Room = unlimited) -> None:
        self.jobs, self.adapters, self.datasets, self.checkpoints = jobs, adapters, datasets, checkpoints
        self._has_room = has_room

    def submit(
        self,
        adapter_name: str,
        base: BaseRecord,
        dataset: DatasetRecord,
        config: TrainConfig,
        *,
        priority: int = 0,
        after: str = "",
        copied_from: str = "",
        version_of: str = "",
        current: bool = True,
    ) -> JobRecord:
        """Queue a job that trains an adapter of this name, its configuration frozen.

        Args:
            priority: runs before all lower ones; 0 is usual. after: id of a job that must be done before this one starts.
            copied_from: id of the job that somebody changed to get this one. version_of: id of an adapter of this name, of which the
            new one will be the next version; and `current`, whether the name will stand for it.

        Raises:
            NameTaken: a finished adapter or a waiting job has the name. InvalidInput: the name or the priority is not usable.
            NotFound: there is no job to run after.
        """
        name = checked_name("adapter", adapter_name)
        if not version_of:
            self._check_free(name)
        self._has_room("another training", 0)
        made = _new_job(name, base.id, (dataset.id, dataset.name, dataset.content_hash), config)
        version = {"version_of": version_of, "version_current": current} if version_of else {}
        record = replace(made, config={**made.config, **version}, copied_from=copied_from, **self._placed(priority, after))
        return self.jobs.add(record)[0]

    def submit_group(
        self, label: str, variants: Sequence[Variant], base: BaseRecord, dataset: DatasetRecord, *, priority: int = 0, after: str = ""
    ) -> list[JobRecord]:
        """Queue the jobs of a sweep, all of them or none.

        Args:
            label: what the sweep is called. priority, after: of each of them, see `submit`.

        Raises:
            NameTaken. InvalidInput: one of the names is taken or not usable. NotFound: there is no job to run after.
        """
        group, now, placed = files.new_id(), time.time(), self._placed(priority, after)
        records = []
        self._has_room("more trainings", 0)
        for place, variant in enumerate(variants):
            name = checked_name("adapter", variant.name)
            self._check_free(name)
            record = _new_job(name, base.id, (dataset.id, dataset.name, dataset.content_hash), variant.config)
            sweep = {"name": label.strip(), "options": variant.options, "place": place}
            records.append(
                replace(
                    record,
                    group=group,
                    config={**record.config, "sweep": sweep},
                    created_at=now + place * 1e-4,
                    **placed,
                )
            )
        return self.jobs.add(*records)

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

    def over(self, limit: int = PAGE_JOBS, before: float | None = None) -> list[JobRecord]:
        """What ended last first; with `before`, what ended before this time."""
        return self.jobs.over(limit, before)

    def open(self, limit: int | None = None) -> list[JobRecord]:
        """Jobs that run, then at most `limit` of those that wait, in their order, then those that are paused."""
        held = self.jobs.held()
        running = [job for job in held if job.state != PAUSED]
        return [*running, *self.jobs.ready(limit), *(job for job in held if job.state == PAUSED)]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state that any is in."""
        return self.jobs.counts()

    def attempts(self, job_id: str) -> list[AttemptRecord]:
        """Every time that a worker took the job, the first one first."""
        return self.jobs.attempts(job_id)

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
        """Cancel a waiting or paused job now and a running one within seconds.

        Raises:
            InvalidInput: it is over already.
        """
        return self._moved(job_id, self.jobs.cancel(job_id, time.time()), "there is nothing to cancel")

    def cancel_group(self, group: str) -> list[JobRecord]:
        """Cancel what is not over of a sweep, the last job first, so that none starts meanwhile.

        Raises:
            InvalidInput: all of it is over already.
        """
        unfinished = [job for job in self.group(group) if job.state in OPEN]
        if not unfinished:
            raise InvalidInput("Every training of this sweep is over already; there is nothing to cancel.")
        cancelled = [self.jobs.cancel(job.id, time.time()) for job in reversed(unfinished)]
        return [job for job in cancelled if job is not None]

    def pause(self, job_id: str) -> JobRecord:
        """Put a waiting job aside now; let a running one keep a checkpoint after its step and stop.

        Raises:
            InvalidInput: it is over, or paused already.
        """
        return self._moved(job_id, self.jobs.pause(job_id), "only a waiting or running job can be paused")

    def resume(self, job_id: str) -> JobRecord:
        """Queue a paused job again, at its old place; it goes on at its checkpoint, on whatever worker takes it.

        Raises:
            InvalidInput: it is not paused.
        """
        return self._moved(job_id, self.jobs.resume(job_id), "only a paused job can be resumed")

    def retry(self, job_id: str, from_start: bool = False) -> JobRecord:
        """Queue a failed or cancelled job again; it goes on at its newest checkpoint, where it has one.

        Args:
            from_start: forget its checkpoints first.

        Raises:
            InvalidInput: it is neither, or its dataset was deleted. NameTaken: its adapter's name is used by now.
        """
        job = self.get(job_id)
        if job.state in (FAILED, CANCELLED):
            if self.adapters.find(str(job.config.get("version_of", ""))) is None:
                self._check_free(job.adapter_name)
            self._check_dataset(job)
            if from_start:
                self.checkpoints.remove(job.id)
        return self._moved(job_id, self.jobs.retry(job.id, files.new_id(), time.time()), "only a failed or cancelled job can be retried")

    def copy(self, job_id: str, name: str = "", changes: dict[str, Any] | None = None) -> JobRecord:
        """Queue a new job with the configuration of another one, and some options changed.

        Args:
            name: of its adapter; empty takes the other's where that is free, else the next one with a number.
            changes: options of `TrainConfig`, also as text.

        Raises:
            NotFound. NameTaken. InvalidInput: an option is out of range, or the dataset was deleted.
        """
        job = self.get(job_id)
        self._check_dataset(job)
        config = make_config(overrides={**training_config(job), **(changes or {})})
        learned = (job.dataset_id, job.config["dataset_name"], job.config["dataset_hash"])
        label = checked_name("adapter", name) if name else self.free_name(job.adapter_name)
        self._check_free(label)
        record = replace(_new_job(label, job.base_id, learned, config), priority=job.priority, copied_from=job.id)
        return self.jobs.add(record)[0]

    # The order, and the whole queue

    def prioritise(self, job_id: str, priority: int) -> JobRecord:
        """Let a job that has not started run before all of a lower priority.

        Raises:
            InvalidInput: it has started or is over, or the priority is out of range.
        """
        _check_priority(priority)
        return self._moved(job_id, self.jobs.prioritise(job_id, priority), "only a job that has not started has a place in the queue")

    def place(self, job_id: str, before: str = "") -> JobRecord:
        """Put a waiting job before another one, or at the end of the queue.

        Raises:
            InvalidInput: one of them does not wait any more.
        """
        if before:
            self.get(before)
        return self._moved(job_id, self.jobs.place(job_id, before), "it can only change places with jobs that wait")

    def run_after(self, job_id: str, other: str) -> JobRecord:
        """Let a waiting job start only when another one is done; an empty id lets it go.

        Raises:
            InvalidInput: it does not wait any more, or the other waits for this one.
        """
        job, first = self.get(job_id), self.get(other) if other else None
        later = first
        while later is not None:
            if later.id == job.id:
                raise InvalidInput(f"{job.adapter_name} cannot run after {first.adapter_name if first else ''}, which itself waits for it.")
            later = self.get(later.after) if later.after else None
        reason = f"It runs after {first.adapter_name}." if first else ""
        return self._moved(
            job_id, self.jobs.run_after(job.id, first.id if first else "", reason), "only a waiting job can wait for another"
        )

    def state(self) -> QueueRecord:
        """Whether the queue is held, and why."""
        return self.jobs.queue()

    def hold(self) -> None:
        """Start nothing more until `release`; what runs goes on."""
        self.jobs.hold("Held by hand.")

    def release(self) -> None:
        """Go on."""
        self.jobs.release()

    def stop_after(self, failures: int) -> None:
        """Hold the queue after this many failures in a row; 0 never does.

        Raises:
            InvalidInput: the number is out of range.
        """
        if not 0 <= failures <= MOST_FAILURES:
            raise InvalidInput(f"The number of failures is {failures}: it should be 0 (never) to {MOST_FAILURES}.")
        self.jobs.stop_after(failures)

    def free_name(self, name: str) -> str:
        """This name where no adapter has it and no job makes one of it, else the next one with a number."""
        stem = re.sub(r" \d+$", "", name)
        names = (name if i == 1 else f"{stem} {i}" for i in itertools.count(1))
        return next(candidate for candidate in names if self._is_free(candidate))

    def _placed(self, priority: int, after: str) -> dict[str, Any]:
        """The fields of a new job that say when it runs."""
        _check_priority(priority)
        if not after:
            return {"priority": priority}
        first = self.get(after)
        return {"priority": priority, "state": WAITING, "after": first.id, "reason": f"It runs after {first.adapter_name}."}

    def _moved(self, job_id: str, moved: JobRecord | None, rule: str) -> JobRecord:
        if moved is not None:
            return moved
        job = self.get(job_id)
        raise InvalidInput(f"The job {job.id} is {job.state}{' already' if job.state in OVER else ''}; {rule}.")

    def _check_dataset(self, job: JobRecord) -> None:
        if self.datasets.find(job.dataset_id) is None:
            name = job.config["dataset_name"]
            raise InvalidInput(f"The dataset {name!r} of the job {job.id} was deleted; add it again and start a new training.")

    def _is_free(self, name: str) -> bool:
        return self.adapters.find(name) is None and self.jobs.named(name, OPEN) is None

    def _check_free(self, name: str) -> None:
        if self.adapters.find(name) is not None:
            raise NameTaken(f"There is already an adapter named {name!r}; choose another name or delete that one first.")
        waiting = self.jobs.named(name, OPEN)
        if waiting is not None:
            raise NameTaken(f"The job {waiting.id} ({waiting.state}) already makes an adapter named {name!r}; choose another name.")


def _check_priority(priority: int) -> None:
    if abs(priority) > MOST_PRIORITY:
        raise InvalidInput(f"The priority is {priority}: it should be {-MOST_PRIORITY} to {MOST_PRIORITY}, and 0 is usual.")


def _new_job(name: str, base_id: str, learned: tuple[str, str, str], config: TrainConfig) -> JobRecord:
    """A job at the start of its life; `learned` is its dataset's id, name and content hash."""
    dataset_id, dataset_name, dataset_hash = learned
    return JobRecord(
        id=files.new_id(),
        state=QUEUED,
        adapter_id=files.new_id(),
        adapter_name=name,
        base_id=base_id,
        dataset_id=dataset_id,
        config={**config.model_dump(), "dataset_name": dataset_name, "dataset_hash": dataset_hash},
        created_at=time.time(),
    )


def training_config(job: JobRecord) -> dict[str, Any]:
    """The part of a job's configuration that the trainer takes."""
    return {key: value for key, value in job.config.items() if key in TrainConfig.model_fields}
