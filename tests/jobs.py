"""Training processes: jobs on disk, and what runs them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from studio.settings import command_environment
from studio.training.run import JobSpec
from tests.conftest import ROOT
from tests.trainers import TINY
from tests.uploads import write_rows
from tests.warm import Parent

WEIGHTS = "adapter_model.safetensors"
WORDS = ["the", "bird", "is", "angry", "and", "says", "so", "to", "all", "who", "come", "near", "its", "tree", "at", "noon"]


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Questions and answers of many lengths."""
    pairs = [(f"Number {n}, what is it?", " ".join(WORDS[n % 5 : n % 5 + 3 + n % 11])) for n in range(count)]
    return [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]


class Job:
    """A job in a folder, as the worker writes one.

    Args:
        folder: is made. config: options besides those of the tiny adapter. rows: of the dataset.
    """

    def __init__(
        self, folder: Path, base: Path, rows: list[list[dict[str, str]]] | None = None, memory_limit_mb: int = 0, **config: Any
    ) -> None:
        self.folder, self.adapter = folder, folder / "adapter"
        folder.mkdir(parents=True)
        dataset = folder / "rows.arrow"
        self.spec = JobSpec(
            base_path=str(base),
            base_name="tiny",
            base_fingerprint="f",
            dataset_path=str(dataset),
            dataset_name="rows",
            dataset_hash=write_rows(dataset, rows or conversations(30)),
            adapter_folder=str(self.adapter),
            adapter_name="a",
            job_folder=str(folder),
            config={**TINY, **config},
            memory_limit_mb=memory_limit_mb,
        )
        self.file, self.out = folder / "job.json", folder / "events.txt"
        self.file.write_bytes(orjson.dumps(self.spec))

    @property
    def log(self) -> str:
        """What the process wrote to stderr."""
        return (self.folder / "log.txt").read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind so far, of all attempts."""
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        return [event for line in lines if line.endswith("}") and (event := json.loads(line))["kind"] == kind]

    def checkpoints(self) -> list[str]:
        """The names in the folder of checkpoints, half-written ones too."""
        folder = self.folder / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class Command:
    """The command that a worker starts, one process at a time.

    Args:
        popen: starts it. threads: how many it computes with; 0 as many as there are cores.
    """

    def __init__(self, popen: type[subprocess.Popen[bytes]] = subprocess.Popen, threads: int = 1) -> None:
        self.popen, self.threads = popen, threads
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, job: Job) -> None:
        """Start a job's process."""
        command = [sys.executable, "-m", "studio.training.run", str(job.file)]
        env = command_environment(threads=self.threads)
        with job.out.open("ab") as out, (job.folder / "log.txt").open("ab") as log:
            self.process = self.popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=out, stderr=log)

    def wait(self) -> int:
        """The exit status once it has ended, negative for a signal."""
        assert self.process is not None and self.process.stdin is not None
        status = self.process.wait()
        self.process.stdin.close()
        return status

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()

    def run(self, job: Job) -> int:
        """A job from start to end."""
        self.start(job)
        return self.wait()


class Forks(Command):
    """The same without its imports. `parent` forks the processes."""

    def __init__(self, parent: Parent, threads: int = 1) -> None:
        super().__init__(parent.subprocess.Popen, threads)
        self.parent = parent
