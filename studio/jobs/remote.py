"""What runs on a machine of a cluster: `python -m studio.jobs.remote URL JOB ATTEMPT`.

Fetches what an attempt needs from the shared place, runs the same training process as the studio's own machine would, and hands
back what that says and makes. Ends itself, and the training with it, when nobody renews its orders or a newer attempt exists.
"""

import argparse
import codecs
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage import files
from studio import __version__, logs
from studio.errors import StudioError
from studio.jobs import far
from studio.jobs.executor import Event, Launch
from studio.jobs.process import LocalExecutor, TrainingProcess
from studio.jobs.shared import Halted, Shared, SharedUnavailable
from studio.settings import load_settings
from studio.training.control import WISHES, Wish
from studio.training.progress import STEP
from studio.training.run import JobSpec

POLL_S = 0.3
STALE_S = 24 * 3600.0
MOST_TEXT = 1 << 20  # bytes of the log in one chunk
GONE = 3  # the exit status where nobody wants the attempt any more
log = logging.getLogger(__name__)


class Pulse:
    """Says once a second that the attempt lives, and hears what is ordered."""

    def __init__(self, shared: Shared, job_id: str, attempt: int, silence_s: float) -> None:
        self.shared, self.folder, self.attempt = shared, far.attempt_path(job_id, attempt), attempt
        self._newest = far.newest_path(job_id)
        self._orders = far.Watched(silence_s)
        self._count = 0
        self._over = threading.Event()
        self.process: TrainingProcess | None = None
        self.checkpoints: list[str] = []
        self.wish: Wish = ""
        self.stop = threading.Event()  # on an order, or since nobody wants it any more
        self.unwanted = False
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Say that it has ended."""
        self._over.set()
        self._thread.join()
        if not self.unwanted:
            with contextlib.suppress(SharedUnavailable):
                self._beat(ended=True)

    def check(self) -> None:
        """What a long copy asks. Raises Halted where it is of no use any more."""
        if self.stop.is_set():
            raise Halted

    def _run(self) -> None:
        while not self._over.wait(far.PULSE_S):
            try:
                self._beat()
                self._hear()
            except SharedUnavailable as error:
                log.warning("%s", error)
            if self._orders.silent or self.unwanted:
                self.unwanted = True
                self.stop.set()

    def _beat(self, ended: bool = False) -> None:
        self._count += 1
        usage = self.process.usage() if self.process is not None and not ended else {}
        beat = {"count": self._count, "usage": usage, "checkpoints": self.checkpoints, "ended": ended}
        self.shared.write(f"{self.folder}/{far.BEAT}", beat)

    def _hear(self) -> None:
        orders = self.shared.read(f"{self.folder}/{far.ORDERS}")
        self._orders.look(orders)
        newest = self.shared.read(self._newest)
        self.unwanted = self.unwanted or (newest is not None and newest["attempt"] != self.attempt)
        if orders is not None:
            self.wish = next((wish for wish in WISHES if wish == orders["wish"]), "")
            if orders["stop"]:
                self.stop.set()


class Story:
    """What the attempt says, in numbered chunks; what cannot be written is kept for the next time.

    Args:
        path: of the log, whose text goes with the events.
    """

    def __init__(self, shared: Shared, folder: str, path: Path) -> None:
        self.shared, self.folder, self.path = shared, folder, path
        self.chunks, self._read = 0, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._events: list[Event] = []
        self._text = ""

    def add(self, events: list[Event]) -> None:
        """What is to be told next."""
        self._events += events

    def tell(self) -> bool:
        """Write the events, and what is new in the log; whether there was anything. Raises SharedUnavailable."""
        if not self._text and self.path.exists():
            with self.path.open("rb") as source:
                source.seek(self._read)
                new = source.read(MOST_TEXT)
            self._read += len(new)
            self._text = self._decoder.decode(new)
        if not self._events and not self._text:
            return False
        self.shared.write(far.chunk_path(self.folder, self.chunks + 1), {"events": self._events, "log": self._text})
        self.chunks, self._events, self._text = self.chunks + 1, [], ""
        return True

    def tell_all(self) -> None:
        """Until there is nothing more. Raises SharedUnavailable."""
        while self.tell():
            continue


class Attempt:
    """One attempt on this machine.

    Args:
        home: of this machine; holds bases and datasets that were fetched, and a folder for the time of the attempt.
    """

    def __init__(self, shared: Shared, job_id: str, attempt: int, home: Path) -> None:
        self.shared, self.folder, self.home = shared, far.attempt_path(job_id, attempt), home
        found = shared.read(f"{self.folder}/{far.SPEC}")
        if found is None:
            raise SharedUnavailable("The shared place does not hold this attempt.")
        self.order, self.spec = found, JobSpec(**found["spec"])
        self.work = home / "work" / f"{job_id}-{attempt}"
        self.job_id = job_id
        self.pulse = Pulse(shared, job_id, attempt, found["silence_s"])
        self.story = Story(shared, self.folder, self.work / "job" / "log.txt")

    def run(self) -> int:
        """See it through; returns the exit status of the training, or GONE."""
        _sweep(self.home / "work")
        (self.work / "job").mkdir(parents=True, exist_ok=True)
        self.pulse.start()
        try:
            try:
                status = self._train()
            except Halted:
                status = -signal.SIGTERM
            if self.pulse.unwanted:
                return GONE
            self._insist(lambda: self.shared.write(f"{self.folder}/{far.END}", {"status": status, "chunks": self.story.chunks}))
            return abs(status)
        except Halted:
            return GONE
        finally:
            self.pulse.close()
            shutil.rmtree(self.work, ignore_errors=True)

    def _train(self) -> int:
        try:
            launch = self._fetch()
        except (StudioError, OSError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error).rstrip(".")
            reason = f"The machine {socket.gethostname()} could not fetch what the training needs: {why}. Mend that and retry the job."
            self.story.add([(time.time(), "failed", {"cause": "start", "reason": reason})])
            self._insist(self.story.tell_all)
            return 1
        process = LocalExecutor().submit(launch)
        try:
            return self._watch(process)
        finally:
            process.stop()
            process.close()

    def _fetch(self) -> Launch:
        """Everything that the training needs, on this machine. Raises StudioError, OSError, Halted."""
        if self.order["version"] != __version__:
            raise StudioError(f"It has version {__version__} of the studio, where {self.order['version']} is asked for.")
        base = self._kept(f"{far.BASES}/{self.spec.base_fingerprint}")
        dataset = self._kept(f"{far.DATASETS}/{self.spec.dataset_hash}")
        job = self.work / "job"
        if self.order["start"]:
            name = self.order["start"]
            self.shared.take(f"{self.folder}/{far.START}", job / far.CHECKPOINTS / name, self.pulse.check)
        spec = replace(
            self.spec,
            base_path=str(base),
            dataset_path=str(dataset / "rows.arrow"),
            job_folder=str(job),
            adapter_folder=str(self.work / far.ADAPTER),
        )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Launch(self.job_id, spec, job, self.story.path, processes=self.order["processes"], threads=self.order["threads"] or cores)

    def _kept(self, path: str) -> Path:
        """A folder of the place where it can be read: there itself, or a copy on this machine that later attempts use again."""
        there = self.shared.local(path)
        if there is not None and self.shared.has(path):
            return there
        target = self.home / "fetched" / path
        for _ in range(2):  # a broken copy may have been on its way
            try:
                if target.exists() or self.shared.take(path, target, self.pulse.check):
                    return target
            except SharedUnavailable as error:
                log.warning("%s", error)
        raise SharedUnavailable("The shared place does not hold the base or the dataset whole.")

    def _watch(self, process: TrainingProcess) -> int:
        self.pulse.process = process
        sending = threading.Thread(target=self._send_checkpoints, args=(process,), name="checkpoints", daemon=True)
        sending.start()
        wish: Wish = ""
        while (status := process.status(POLL_S)) is None:
            if self.pulse.stop.is_set():
                process.stop()
            if self.pulse.wish != wish:
                wish = self.pulse.wish
                process.ask(wish)
            with contextlib.suppress(SharedUnavailable):
                self.story.add(process.events())
                self.story.tell()
        sending.join()
        if not self.pulse.unwanted:
            self._hand_over(process)
        return status

    def _hand_over(self, process: TrainingProcess) -> None:
        """All that the training left, the adapter last."""
        self.story.add(process.events())
        self._insist(self.story.tell_all)
        self._insist(self._send_new_checkpoints)
        rest, made = self.work / "rest", self.work / far.ADAPTER
        for item in (self.work / "job").iterdir():
            if item.is_dir() and item.name != far.CHECKPOINTS:
                rest.mkdir(exist_ok=True)
                item.rename(rest / item.name)
        for folder, name in ((rest, far.REST), (made, far.ADAPTER)):
            if folder.exists():
                self._insist(lambda folder=folder, name=name: self.shared.send(folder, f"{self.folder}/{name}"))  # type: ignore[misc]

    def _send_checkpoints(self, process: TrainingProcess) -> None:
        while process.process.poll() is None:
            with contextlib.suppress(SharedUnavailable, OSError):  # the trainer removed it while it was read
                self._send_new_checkpoints()
            time.sleep(POLL_S)

    def _send_new_checkpoints(self) -> None:
        """Send the newest checkpoint where it is not there, and remove those that the trainer has removed."""
        found = sorted((self.work / "job" / far.CHECKPOINTS).glob(f"{STEP}*"))
        names = [path.name for path in found]
        if names and names[-1] not in self.pulse.checkpoints:
            self.shared.send(found[-1], f"{self.folder}/{far.CHECKPOINTS}/{names[-1]}")
            self.pulse.checkpoints = [*self.pulse.checkpoints, names[-1]]
        for name in [name for name in self.pulse.checkpoints if name not in names]:
            self.pulse.checkpoints = [kept for kept in self.pulse.checkpoints if kept != name]
            self.shared.remove(f"{self.folder}/{far.CHECKPOINTS}/{name}")

    def _insist(self, go: Callable[[], Any]) -> None:
        """Do it again until the shared place takes it, or nobody wants it any more. Raises Halted."""
        while True:
            try:
                go()
                return
            except SharedUnavailable as error:
                log.warning("%s", error)
            if self.pulse.unwanted:
                raise Halted
            time.sleep(POLL_S)


def _sweep(folder: Path) -> None:
    """Remove what killed attempts left on this machine."""
    for old in folder.glob("*") if folder.exists() else ():
        if time.time() - old.stat().st_mtime > STALE_S:
            files.remove_folder(old)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Run one attempt of a job on this machine of a cluster.")
    parser.add_argument("url", help="the shared place, as STUDIO_SHARED_URL names it")
    parser.add_argument("job", help="id of the job")
    parser.add_argument("attempt", type=int)
    arguments = parser.parse_args()
    settings = load_settings()
    logs.set_up(settings)
    attempt = Attempt(Shared(arguments.url), arguments.job, arguments.attempt, settings.home / "remote")
    signal.signal(signal.SIGTERM, lambda *_: attempt.pulse.stop.set())
    return attempt.run()


if __name__ == "__main__":
    sys.exit(main())
