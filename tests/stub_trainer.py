"""A training process that learns nothing, for the tests of the queue alone: `python -m tests.stub_trainer JOB.json`.

It runs in the real process's frame: its end with its parent, its events, its wishes, its sentence for a failure. The adapter's
name says what else it does, in words: fail, deaf (to TERM), child (leaves one behind), stray (one that left the group), linger (waits
between the adapter's folder and its end), mute (says nothing when it ends). A step takes the config's `warmup` in seconds.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from storage import files
from studio.errors import InvalidInput
from studio.training.control import PAUSE, Control, Stopped
from studio.training.events import Emit
from studio.training.progress import CHECKPOINTS, STEP
from studio.training.run import LINEAGE_FILE, JobSpec, main

SLEEPER = "import time; time.sleep(600)"
EVERY = 5  # steps between checkpoints


def pretend(spec: JobSpec, emit: Emit) -> None:
    """Steps, checkpoints and an adapter like a training's."""
    words = spec.adapter_name.split()
    misbehave(words)
    with claimed(spec):
        emit("state", state="loading")
        train(spec, emit, words)
        emit("state", state="saving")
        publish(spec)
    if "mute" in words:
        os._exit(0)
    emit("done", steps=spec.config["max_steps"])
    if "linger" in words:
        time.sleep(1.0)


def misbehave(words: list[str]) -> None:
    if "deaf" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for word, apart in (("child", False), ("stray", True)):
        if word in words:
            subprocess.Popen([sys.executable, "-S", "-c", SLEEPER], start_new_session=apart)


@contextmanager
def claimed(spec: JobSpec) -> Iterator[None]:
    """A file tells where two attempts of one job work at the same time."""
    with Path(spec.job_folder, "training").open("a") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Path(spec.job_folder, f"overlap-{spec.attempt}").touch()
        yield


def train(spec: JobSpec, emit: Emit, words: list[str]) -> None:
    """All steps that are left."""
    checkpoints, control = Path(spec.job_folder) / CHECKPOINTS, Control(Path(spec.job_folder), spec.attempt)
    step = max((int(path.name.removeprefix(STEP)) for path in checkpoints.glob(f"{STEP}*")), default=0)
    emit("state", state="training")
    print("some text for the log", flush=True)
    while step < spec.config["max_steps"]:
        wish = control.wish()
        if wish == PAUSE and step:
            keep(checkpoints, step, emit)
        if wish:
            raise Stopped(wish, step)
        time.sleep(spec.config["warmup"])
        step += 1
        emit("progress", step=step, loss=1 / step, memory_mb=10)
        if "fail" in words and step > 3:
            raise InvalidInput("The row 3 does not fit; mend it.")
        if step % EVERY == 0:
            keep(checkpoints, step, emit)


def keep(folder: Path, step: int, emit: Emit) -> None:
    """A checkpoint, and one before it."""
    target = folder / f"{STEP}{step:09d}"
    if not target.exists():
        with files.publish_folder(target) as partial:
            (partial / "state").write_text(str(step))
    for old in sorted(folder.glob(f"{STEP}*"))[:-2]:
        files.remove_folder(old)
    emit("checkpoint", step=step)


def publish(spec: JobSpec) -> None:
    """A folder with the files that a record is made of."""
    lineage = {"base_fingerprint": spec.base_fingerprint, "dataset_hash": spec.dataset_hash, "config": spec.config}
    lineage |= {"metrics": {"steps": spec.config["max_steps"]}, "code_version": "stub"}
    with files.publish_folder(Path(spec.adapter_folder)) as partial:
        (partial / "adapter_config.json").write_text("{}")
        (partial / "adapter_model.safetensors").write_bytes(spec.adapter_name.encode())
        time.sleep(spec.config["warmup"])
        (partial / LINEAGE_FILE).write_bytes(orjson.dumps(lineage))
    with (Path(spec.job_folder) / "published").open("a") as log:
        log.write(f"{spec.attempt} {Path(spec.adapter_folder).name}\n")


if __name__ == "__main__":
    sys.exit(main(pretend))
