"""Who can speak besides the base: finished adapters, and trainings as they stood at a checkpoint.

job:wizard@120             what the training of wizard had learned after step 120; the job's id may stand for the name

A training keeps its newest checkpoints until it is done; then its adapter speaks.
"""

from dataclasses import dataclass
from pathlib import Path

from storage.records import AdapterRecord, BaseRecord, JobRecord
from storage.states import DONE
from studio import __version__
from studio.adapters.catalog import AdapterCatalog
from studio.bases.catalog import BaseCatalog
from studio.chat.voices import CHECKPOINT
from studio.errors import NotFound
from studio.jobs.queue import Queue, training_config
from studio.lora.files import WEIGHTS_FILE, AdapterWeights, BadAdapter, adapter_sha256, read_revision
from studio.names import listed

SHOWN = 16  # trainings whose checkpoints are offered


@dataclass(frozen=True)
class Kept:
    """A checkpoint that can speak."""

    job: JobRecord
    step: int

    @property
    def id(self) -> str:
        """What `Speakers.get` reads."""
        return f"job:{self.job.id}@{self.step}"

    @property
    def label(self) -> str:
        """What people read."""
        return f"{self.job.adapter_name}, step {self.step:,}"


class Speakers:
    """Adapters of the catalog, and checkpoints in the place of adapters.

    Args:
        adapters, bases: the catalogs. queue: knows the trainings and where their checkpoints lie.
    """

    def __init__(self, adapters: AdapterCatalog, bases: BaseCatalog, queue: Queue) -> None:
        self.adapters, self.bases, self.queue = adapters, bases, queue

    def get(self, name_or_id: str) -> AdapterRecord:
        """An adapter by its name or id, or a checkpoint as if it were one.

        Raises:
            NotFound: with the names or the steps that there are.
        """
        try:
            return self.adapters.get(name_or_id)
        except NotFound:
            asked = CHECKPOINT.fullmatch(name_or_id)
            if asked is None:
                raise
        return self._record(self._find(asked["job"], int(asked["step"])))

    def read(self, record: AdapterRecord) -> AdapterWeights:
        """The weights of what `get` gave. Raises NotFound: the files are gone, broken, or others by now."""
        if CHECKPOINT.fullmatch(record.id) is None:
            return self.adapters.read(record)
        try:
            return read_revision(self.path(record), record.sha256)
        except BadAdapter as error:
            raise NotFound(f"The checkpoint {record.name!r} cannot be used any more: {error}. Choose another one.") from None

    def path(self, record: AdapterRecord) -> Path:
        """The folder of the files of what `get` gave."""
        asked = CHECKPOINT.fullmatch(record.id)
        return self.adapters.path(record) if asked is None else self.queue.checkpoints.at(record.job_id, int(asked["step"]))

    def checkpoints(self, base: BaseRecord) -> list[Kept]:
        """What can speak through a base, the newest step of the newest training first."""
        jobs = [job for job in self._trainings() if job.base_id == base.id and job.state != DONE]
        return [Kept(job, step) for job in jobs[:SHOWN] for step in reversed(self._steps(job))]

    def _trainings(self) -> list[JobRecord]:
        """Those that have any checkpoint, the newest first."""
        return self.queue.jobs.of(self.queue.checkpoints.jobs())

    def _steps(self, job: JobRecord) -> list[int]:
        """Checkpoints with an adapter beside them; older versions wrote none."""
        places = self.queue.checkpoints
        return [step for step in places.steps(job.id) if (places.at(job.id, step) / WEIGHTS_FILE).is_file()]

    def _find(self, name_or_id: str, step: int) -> Kept:
        named = [job for job in self._trainings() if name_or_id in (job.id, job.adapter_name)]
        if found := next((job for job in named if step in self._steps(job)), None):
            return Kept(found, step)
        if not named:
            name = next((job.adapter_name for job in self.queue.jobs.of([name_or_id])), name_or_id)
            raise NotFound(f"There is no checkpoint of a training of {name!r}; they go when it is done, then choose its adapter.")
        steps = listed([str(kept) for kept in self._steps(named[0])])
        raise NotFound(f"The training of {named[0].adapter_name!r} has no checkpoint of step {step} to talk to; there are {steps}.")

    def _record(self, kept: Kept) -> AdapterRecord:
        job, folder, config = kept.job, self.queue.checkpoints.at(kept.job.id, kept.step), training_config(kept.job)
        base = self.bases.get(job.base_id)
        try:
            written = (folder / WEIGHTS_FILE).stat()
            sha256 = adapter_sha256(folder)
        except OSError:
            raise NotFound(f"The checkpoint {kept.label} was just replaced by a newer one; choose that.") from None
        return AdapterRecord(
            id=kept.id,
            name=f"job:{job.adapter_name}@{kept.step}",
            sha256=sha256,
            base_id=base.id,
            base_fingerprint=base.fingerprint,
            dataset_id=job.dataset_id,
            dataset_hash=str(job.config.get("dataset_hash", "")),
            job_id=job.id,
            rank=int(config.get("rank", 0)),
            size_bytes=written.st_size,
            config=config,
            metrics={"steps": kept.step},
            code_version=__version__,
            seed=int(config.get("seed", 0)),
            created_at=written.st_mtime,
        )
