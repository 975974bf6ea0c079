"""Where a job's checkpoints lie. The trainer writes and reads them; here they are only found and removed."""

from pathlib import Path

from storage import files
from studio.training.progress import CHECKPOINTS, STEP, step_folder


class Checkpoints:
    """The checkpoints of all jobs.

    Args:
        folder: holds one folder a job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, job_id: str) -> Path:
        """The folder of a job's checkpoints; it need not exist."""
        return self.folder / job_id / CHECKPOINTS

    def resume_step(self, job_id: str) -> int | None:
        """The step at which the next attempt goes on, or None where it begins at the start."""
        return max(self.steps(job_id), default=None)

    def steps(self, job_id: str) -> list[int]:
        """The steps that there are checkpoints of, lowest first."""
        steps = (entry.name.removeprefix(STEP) for entry in self.path(job_id).glob(f"{STEP}*"))
        return sorted(int(step) for step in steps if step.isdecimal())

    def at(self, job_id: str, step: int) -> Path:
        """The folder of one checkpoint; it need not exist."""
        return self.path(job_id) / step_folder(step)

    def jobs(self) -> list[str]:
        """The ids of the jobs that have any."""
        return [path.parent.name for path in self.folder.glob(f"*/{CHECKPOINTS}")]

    def remove(self, job_id: str) -> None:
        """Forget them, so that the next attempt begins at the start."""
        files.remove_folder(self.path(job_id))
