"""The executor of a Ray cluster. Ray finds a machine with a free GPU; the queue, the order and the truth stay here.

Whether an attempt lives is decided by the counter that it moves in the shared place, not by Ray's table, which is lost with the
cluster's head. Ray's table is asked only before the first sign of life.
"""

import contextlib
import logging
import queue
import shlex
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage import files
from storage.records import JobRecord
from studio import __version__
from studio.errors import StudioError
from studio.jobs import far
from studio.jobs.cluster import ENDED, ClusterAway, RayCluster
from studio.jobs.executor import Event, Launch, Lost
from studio.jobs.shared import Halted, Shared, SharedUnavailable
from studio.training.control import Wish
from studio.training.progress import STEP

COMMAND = "python -m studio.jobs.remote"
GRACE_S = 5.0
STARTING_S = 180.0  # from Ray's word that it runs to the first sign of life: an interpreter with all its imports
POLL_S = 0.3
ASK_S = 2.0  # between two looks at Ray's table
RECEIVE_TRIES = 5
START_TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"  # Ray gave up waiting for a free GPU; we have not
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayPlan:
    """How attempts are run there: GPUs for each of an attempt's processes, attempts at a time, the command before its arguments, and
    after how many seconds without a sign of life either side counts the other as gone."""

    gpus: int = 1
    jobs: int = 1
    command: str = COMMAND
    silence_s: float = 30.0


class RayExecutor:
    """Runs attempts as jobs of a Ray cluster. It is also who says whether a job may start (`studio.jobs.worker.Room`).

    Args:
        cluster: places them. shared: what travels goes through it. plan: how they are run.
    """

    def __init__(self, cluster: RayCluster, shared: Shared, plan: RayPlan) -> None:
        self.cluster, self.shared, self.plan = cluster, shared, plan

    def slots(self) -> tuple[str, ...]:
        """Names for what may run at the same time."""
        return tuple(f"ray:{number}" for number in range(self.plan.jobs))

    def why_not(self, job: JobRecord, devices: Sequence[str]) -> str:
        """Why no job can start now, in a sentence; empty where one can."""
        del job, devices
        if why := self.cluster.why_not():
            return why
        try:
            self.shared.write("here", {"at": time.time()})
        except SharedUnavailable as error:
            return f"{error} The job waits for it."
        return ""

    def settle(self) -> None:
        """Nothing of this machine was put aside."""

    def end_left(self, folder: Path, attempt: int) -> None:
        """Stop what Ray lists of these attempts; where it does not answer, each ends by itself once nobody follows it."""
        job_id = folder.name
        numbered = {f"studio-{job_id}-{number}" for number in range(1, attempt + 1)}
        with contextlib.suppress(Lost):
            for name in self.cluster.names(f"studio-{job_id}-"):
                if name.removesuffix("-again") in numbered:
                    self.cluster.stop(name, GRACE_S)

    def submit(self, launch: Launch) -> "RayRun":
        """Begin to bring an attempt there. What fails on the way is told by the run's status."""
        return RayRun(self.cluster, self.shared, self.plan, launch)


class RayRun:
    """An attempt on another machine, or on its way there."""

    def __init__(self, cluster: RayCluster, shared: Shared, plan: RayPlan, launch: Launch) -> None:
        self.cluster, self.shared, self.plan, self.launch = cluster, shared, plan, launch
        self.folder = far.attempt_path(launch.job_id, launch.spec.attempt)
        self.name = self._name = f"studio-{launch.job_id}-{launch.spec.attempt}"
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._watched = far.Watched(plan.silence_s)
        self._usage: dict[str, float] = {}
        self._wish: Wish = ""
        self._stopping, self._halted, self._over = threading.Event(), threading.Event(), threading.Event()
        self._lost: Lost | None = None
        self._placed, self._told, self._asked, self._runs_since = False, False, 0.0, float("inf")
        self._outcome: int | Lost = Lost("The attempt was given up")
        self._threads = [threading.Thread(target=work, name=self.name, daemon=True) for work in (self._work, self._pulse)]
        for thread in self._threads:
            thread.start()

    def status(self, timeout_s: float) -> int | None:
        """The exit status once the attempt has ended and all that it made is here, else None. Raises Lost."""
        if not self._over.wait(timeout_s):
            return None
        if isinstance(self._outcome, Lost):
            raise self._outcome
        return self._outcome

    def events(self) -> list[Event]:
        """Events that came since the last call."""
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def usage(self) -> dict[str, float]:
        """Cores in use and memory on the far machine, as it last said."""
        return self._usage

    def ask(self, wish: Wish) -> None:
        """Order that it pauses or ends by itself."""
        self._wish = wish

    def stop(self) -> None:
        """End it: by an order that it obeys within a second or two, or else through Ray. A machine that neither reaches ends it itself."""
        if self._over.is_set():
            return
        self._stopping.set()
        if self._placed and not self._over.wait(GRACE_S):
            with contextlib.suppress(Lost):
                self.cluster.stop(self._name, GRACE_S)
            self._over.wait(GRACE_S)
        self._halted.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Take away what lies in the shared place, where the attempt is known to have ended."""
        self._halted.set()
        for thread in self._threads:
            thread.join()
        if isinstance(self._outcome, int):
            with contextlib.suppress(SharedUnavailable):
                self.shared.remove(self.folder)

    # The thread that brings things there and back

    def _work(self) -> None:
        try:
            self._outcome = self._see_through()
        except Halted:
            self._outcome = -signal.SIGTERM
            with contextlib.suppress(Lost):
                if self._placed:
                    self.cluster.stop(self._name, GRACE_S)
        except Lost as lost:
            self._outcome = lost
        except (StudioError, OSError) as error:
            self._outcome = Lost(str(error).rstrip("."))
        except Exception as error:
            log.exception("The attempt %s is given up.", self.name)
            self._outcome = Lost(f"Watching it failed ({type(error).__name__})")
        finally:
            if isinstance(self._outcome, Lost):
                self.cluster.doubt()
                with contextlib.suppress(StudioError, OSError, Halted):
                    self._mirror()  # what is lost goes on from its newest checkpoint
            self._over.set()

    def _see_through(self) -> int:
        if self._settle_older():
            return 0
        self._bring()
        self._go_on()
        self._submit()
        return self._follow()

    def _settle_older(self) -> bool:
        """End older attempts of the job and take what they made; True where that is the adapter."""
        spec = self.launch.spec
        newest = self.shared.read(far.newest_path(self.launch.job_id))
        if newest is not None and newest["attempt"] > spec.attempt:
            raise Lost("A newer attempt of the job has begun elsewhere")
        self.shared.write(far.newest_path(self.launch.job_id), {"attempt": spec.attempt})
        for name in self.cluster.names(f"studio-{self.launch.job_id}-"):
            self.cluster.stop(name, GRACE_S)
        for number in range(spec.attempt - 1, 0, -1):
            folder = far.attempt_path(self.launch.job_id, number)
            found = self.shared.read(f"{folder}/{far.SPEC}")
            # A retry has another adapter to make, and may have been told to forget all checkpoints.
            if found is not None and Path(found["spec"]["adapter_folder"]).name == Path(spec.adapter_folder).name:
                if self.shared.take(f"{folder}/{far.ADAPTER}", Path(spec.adapter_folder), self._go_on):
                    return True
                self._mirror(folder)
            if found is not None:
                self.shared.remove(folder)
        return False

    def _bring(self) -> None:
        """Put what the attempt needs into the shared place. Raises SharedUnavailable, OSError, Halted."""
        spec = self.launch.spec
        base, dataset = f"{far.BASES}/{spec.base_fingerprint}", f"{far.DATASETS}/{spec.dataset_hash}"
        if not self.shared.has(base):
            self._notice("The base is copied to the shared place; later trainings find it there.")
            self.shared.send(Path(spec.base_path), base, self._go_on)
        if not self.shared.has(dataset):
            self.shared.send_files({"rows.arrow": Path(spec.dataset_path)}, dataset, self._go_on)
        start = self._newest_here()
        if start:
            self.shared.send(self._checkpoints / start, f"{self.folder}/{far.START}", self._go_on)
        order = {"spec": asdict(spec), "processes": self.launch.processes, "threads": self.launch.threads, "start": start}
        self.shared.write(f"{self.folder}/{far.SPEC}", {**order, "silence_s": self.plan.silence_s, "version": __version__})

    def _submit(self) -> None:
        target = f"{shlex.quote(self.shared.url)} {self.launch.job_id} {self.launch.spec.attempt}"
        self.cluster.submit(self._name, f"{self.plan.command} {target}", self.plan.gpus * self.launch.processes)
        self._watched.touch()
        self._placed = True

    def _follow(self) -> int:
        """Hand on what it says until it has ended. Raises Lost, Halted."""
        number, tries = 0, 0
        while True:
            with contextlib.suppress(SharedUnavailable):  # whether that lasts too long is the pulse's to decide
                end = self.shared.read(f"{self.folder}/{far.END}")
                while (chunk := self.shared.read(far.chunk_path(self.folder, number + 1))) is not None:
                    number += 1
                    self._hand_on(chunk)
                self._mirror()
                if end is not None and number >= end["chunks"]:
                    tries += 1
                    return self._receive(int(end["status"]))
            if tries >= RECEIVE_TRIES:
                raise Lost("What the training made lies broken in the shared place")
            if self._lost is not None:
                raise self._lost
            if self._halted.wait(POLL_S):
                raise Halted

    def _hand_on(self, chunk: dict[str, Any]) -> None:
        with self.launch.log.open("a", encoding="utf-8") as out:
            out.write(str(chunk["log"]))
        for at, kind, data in chunk["events"]:
            self._events.put((float(at), str(kind), dict(data)))

    def _receive(self, status: int) -> int:
        """What the attempt made, which is here complete or not at all."""
        self.shared.take(f"{self.folder}/{far.ADAPTER}", Path(self.launch.spec.adapter_folder))
        rest = self.launch.folder / f"{files.PARTIAL}{self.launch.spec.attempt}"
        if self.shared.take(f"{self.folder}/{far.REST}", rest):
            for item in [item for item in rest.rglob("*") if item.is_file()]:
                target = self.launch.folder / item.relative_to(rest)
                target.parent.mkdir(parents=True, exist_ok=True)
                item.replace(target)
            files.remove_folder(rest)
        return status

    def _mirror(self, folder: str = "") -> None:
        """Bring the newest checkpoint of an attempt here, and keep as many as the trainer does."""
        beat = self.shared.read(f"{folder or self.folder}/{far.BEAT}")
        name = max(beat["checkpoints"], default="") if beat is not None else ""
        if not name.startswith(STEP) or not name.removeprefix(STEP).isdecimal() or name <= self._newest_here():
            return
        if self.shared.take(f"{folder or self.folder}/{far.CHECKPOINTS}/{name}", self._checkpoints / name):
            for old in sorted(self._checkpoints.glob(f"{STEP}*"))[: -int(self.launch.spec.config.get("keep_checkpoints", 2))]:
                files.remove_folder(old)

    @property
    def _checkpoints(self) -> Path:
        return self.launch.folder / far.CHECKPOINTS

    def _newest_here(self) -> str:
        return max((path.name for path in self._checkpoints.glob(f"{STEP}*")), default="")

    def _notice(self, text: str) -> None:
        self._events.put((time.time(), "notice", {"text": text}))

    def _go_on(self) -> None:
        if self._stopping.is_set() or self._halted.is_set():
            raise Halted

    # The thread that says and hears once a second that both sides live

    def _pulse(self) -> None:
        count = 0
        while not self._over.is_set() and not self._halted.is_set():
            count += 1
            try:
                self.shared.write(f"{self.folder}/{far.ORDERS}", {"count": count, "wish": self._wish, "stop": self._stopping.is_set()})
                self._hear()
            except SharedUnavailable as error:
                log.warning("%s", error)
            if self._placed and self._lost is None:
                self._lost = self._judge()
            self._halted.wait(far.PULSE_S)

    def _hear(self) -> None:
        beat = self.shared.read(f"{self.folder}/{far.BEAT}") if self._placed else None
        self._watched.look(beat)
        if beat is not None:
            self._usage = beat["usage"]
            if beat["ended"]:
                self._watched.touch()  # it has nothing to say any more, and what it made is on its way here

    def _judge(self) -> Lost | None:
        """What is lost, or None where nothing is."""
        if self._watched.heard:
            attempt, silence = self.launch.spec.attempt, self.plan.silence_s
            quiet = f"Nothing was heard of the machine that ran attempt {attempt} for {silence:.0f} seconds"
            return Lost(quiet) if self._watched.silent else None
        if time.monotonic() - self._asked < ASK_S:
            return None
        self._asked = time.monotonic()
        try:
            return self._judge_by_table()
        except ClusterAway as away:
            return away if self._watched.silent else None
        except Lost as lost:
            return lost

    def _judge_by_table(self) -> Lost | None:
        """The same before the first sign of life. Raises ClusterAway; Lost: it could not be submitted again."""
        info = self.cluster.info(self._name)
        if info is None:
            return Lost(f"The Ray cluster at {self.cluster.address} was started anew and has forgotten the job")
        if info["status"] in ENDED:
            return self._judge_ended(info)
        self._watched.touch()
        if info["status"] == "PENDING":
            if not self._told:
                self._notice("The job waits in the Ray cluster for a machine that is free.")
            self._told = True
            return None
        self._runs_since = min(self._runs_since, time.monotonic())
        slow = time.monotonic() - self._runs_since > STARTING_S
        return Lost(f"The program on the far machine gave no sign of life within {STARTING_S:.0f} seconds") if slow else None

    def _judge_ended(self, info: dict[str, object]) -> Lost | None:
        """It ended before its first sign of life, or with its last one just now."""
        self._hear()
        if self._watched.heard:
            return None
        if info.get("error_type") == START_TIMEOUT:
            self._name += "-again"
            self._submit()
            return None
        with self.launch.log.open("a", encoding="utf-8") as out:
            out.write(self.cluster.logs(self._name))
        return Lost("Ray ended the job before the training began; the job's log has what it said")
