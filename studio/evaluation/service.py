"""Evaluations: start, watch, stop, go on with, read and delete them.

One runs in a thread of the program that started it, and shows that it lives. Where that program is gone, it counts as interrupted and
can be gone on with, by any program on the same database.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from storage import files
from storage.errors import RecordNotFound
from storage.evaluations import DONE, FAILED, INTERRUPTED, RUNNING, STOPPED
from storage.evaluations import Evaluations as Records
from storage.records import (
    BaseRecord,
    DatasetRecord,
    EvaluationAnswerRecord,
    EvaluationCaseRecord,
    EvaluationRecord,
    EvaluationVoiceRecord,
)
from studio.bases.loading import load_tokenizer
from studio.chat.service import Chat
from studio.chat.voices import Chosen
from studio.datasets.library import DatasetLibrary
from studio.datasets.store import RowStore
from studio.errors import Interrupted, InvalidInput, NotFound, StudioError
from studio.evaluation.cases import asked, chosen_rows, held_out_rows
from studio.evaluation.lm_eval import run_tasks
from studio.evaluation.plan import Plan, checked
from studio.evaluation.running import Parts, Run, Tell

log = logging.getLogger(__name__)
BEAT_S, SILENT_S = 2.0, 60.0
GONE = "The program that ran it ended; go on with it, nothing that is done is done again."
STOPPED_BY_HAND = "It was stopped; go on with it whenever you like."


def untold(done: int, of: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Result:
    """An evaluation with what its voices reached."""

    record: EvaluationRecord
    voices: Sequence[EvaluationVoiceRecord]

    @property
    def done(self) -> int:
        """Rows that are done, of all voices."""
        return sum(voice.rows for voice in self.voices)

    @property
    def of(self) -> int:
        """Rows that there are, of all voices."""
        return self.record.rows * len(self.voices)

    @property
    def can_go_on(self) -> bool:
        """Whether there is something left that nobody works on."""
        return self.record.state in (STOPPED, INTERRUPTED, FAILED)


class Evaluations:
    """All evaluations.

    Args:
        records: the tables. chat: answers and scores. base_of: the base that a voice speaks through.
        width: requests that all evaluations together have in the running batch.
    """

    def __init__(self, records: Records, chat: Chat, datasets: DatasetLibrary, base_of: Callable[[str], BaseRecord], width: int) -> None:
        self.records, self.chat, self.datasets, self._base_of = records, chat, datasets, base_of
        self.width, self._room = width, threading.Semaphore(width)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{files.new_id()[:6]}"
        self._runs: dict[str, tuple[Run, threading.Thread]] = {}
        self._lock = threading.Lock()

    def add(self, dataset: str, voices: Sequence[str], plan: Plan | None = None) -> EvaluationRecord:
        """Make an evaluation that nobody runs yet.

        Args:
            dataset: name or id. voices: as `chat.voices` reads them.

        Raises:
            NotFound. IncompatibleAdapter: a voice was trained on another base. InvalidInput: names the option.
        """
        plan = checked(plan or Plan(), voices)
        chosen, base = self._chosen(voices)
        found = self.datasets.get(dataset)
        store = self.datasets.store(found)
        rows = chosen_rows(self._rows(found, store, chosen, base, plan), plan)
        if plan.answers and not plan.scores and store.has_passages_alone():
            raise InvalidInput(f"{found.name!r} holds plain passages, which ask nothing; choose the metric loss, or another dataset.")
        evaluation_id, now = files.new_id(), time.time()
        who = [EvaluationVoiceRecord(evaluation_id, i, _name(one), one.label, one.adapter_id, one.sha256) for i, one in enumerate(chosen)]
        label = self.datasets.labels().get(found.id, found.name)
        record = EvaluationRecord(
            evaluation_id, STOPPED, found.id, label, found.content_hash, base.id, base.name, asdict(plan), len(rows), now,
            reason=STOPPED_BY_HAND,
        )  # fmt: skip
        return self.records.add(record, who, [_case(evaluation_id, number, row, store) for number, row in enumerate(rows)])

    def start(self, evaluation_id: str, tell: Tell = untold) -> EvaluationRecord:
        """Run an evaluation in a thread, or go on with it.

        Raises:
            NotFound: it, its dataset or a voice is gone. InvalidInput: it runs or is done.
        """
        return self._begin(evaluation_id, tell)[0]

    def finish(self, evaluation_id: str, tell: Tell = untold) -> Result:
        """Run an evaluation to its end, and wait for that. Raises as `start` does."""
        record, thread = self._begin(evaluation_id, tell)
        try:
            thread.join()
        except BaseException:
            self.stop(record.id)
            raise
        return self.get(record.id)

    def run_lm_eval(self, tasks: Sequence[str], voices: Sequence[str], limit: int = 0, folder: Path | None = None) -> Result:
        """Run tasks of lm-eval, one voice after the other, and keep what came of them. Nothing is kept of a run that breaks off.

        Args:
            limit: examples of each task; 0 for all. folder: with tasks of one's own.

        Raises:
            InvalidInput: lm-eval is not installed or knows no such task; and as `add`.
        """
        checked(Plan(rows=limit), voices)
        if not tasks:
            raise InvalidInput("No task is named; name some of lm-eval's, with commas.")
        chosen, base = self._chosen(voices)
        evaluation_id, began = files.new_id(), time.time()
        reached = []
        for place, one in enumerate(chosen):
            values = run_tasks(self.chat, base, _name(one), tasks, limit, folder)
            reached.append(EvaluationVoiceRecord(evaluation_id, place, _name(one), one.label, one.adapter_id, one.sha256, values=values))
        plan = {"lm_eval": list(tasks), "rows": limit}
        named = f"lm-eval: {', '.join(tasks)}"
        record = EvaluationRecord(
            evaluation_id, DONE, "", named, "", base.id, base.name, plan, 0, began, beat_at=time.time(), finished_at=time.time()
        )  # fmt: skip
        return Result(self.records.add(record, reached, []), reached)

    def stop(self, evaluation_id: str) -> None:
        """Whoever runs it stops soon; what is done stands. Raises NotFound."""
        record = self.get(evaluation_id).record
        self.records.stop(record.id, STOPPED_BY_HAND, time.time())
        with self._lock:
            run = self._runs.get(record.id)
        if run is not None:
            run[0].stop()

    def get(self, evaluation_id: str) -> Result:
        """One evaluation as it stands, by its id or the beginning of it.

        Raises:
            NotFound: there is none.
        """
        try:
            record = self._seen(self.records.get(evaluation_id))
        except RecordNotFound:
            raise NotFound(f"There is no evaluation {evaluation_id!r}; see: python -m studio evaluation list.") from None
        return Result(record, self.records.voices([record.id])[record.id])

    def all(self, limit: int = 100) -> list[Result]:
        """The newest ones as they stand, the newest first."""
        records = self.records.all(limit)
        voices = self.records.voices([record.id for record in records])
        return [Result(self._seen(record), voices[record.id]) for record in records]

    def of_adapter(self, adapter_id: str) -> list[tuple[EvaluationRecord, EvaluationVoiceRecord]]:
        """What one adapter reached, the newest first."""
        return [(self._seen(record), voice) for record, voice in self.records.of_adapter(adapter_id)]

    def read(self, evaluation_id: str, offset: int, limit: int) -> list[tuple[EvaluationCaseRecord, list[EvaluationAnswerRecord]]]:
        """Some rows with what the voices made of them."""
        cases = self.records.cases(evaluation_id, offset, limit)
        answers = self.records.answers(evaluation_id, [case.number for case in cases])
        return [(case, [one for one in answers if one.number == case.number]) for case in cases]

    def remove(self, evaluation_id: str) -> EvaluationRecord:
        """Delete an evaluation; one that runs is stopped. Raises NotFound."""
        record = self.get(evaluation_id).record
        self.stop(record.id)
        self.records.remove(record.id)
        return record

    def close(self) -> None:
        """What runs here is interrupted."""
        with self._lock:
            runs = list(self._runs.values())
        for run, _ in runs:
            run.stop()
        for _, thread in runs:
            thread.join()

    def _chosen(self, voices: Sequence[str]) -> tuple[list[Chosen], BaseRecord]:
        base = next((self._base_of(name) for name in voices if name != "base"), None) or self._base_of("base")
        chosen = [self.chat.choose(name, base) for name in voices]
        keys = [_name(one) for one in chosen]
        if twice := next((one.label for one, key in zip(chosen, keys, strict=True) if keys.count(key) > 1), ""):
            raise InvalidInput(f"{twice!r} is chosen twice; choose each voice once.")
        return chosen, base

    def _rows(self, found: DatasetRecord, store: RowStore, chosen: Sequence[Chosen], base: BaseRecord, plan: Plan) -> Sequence[int]:
        if not plan.held_out:
            return range(len(store))
        adapters = [record for one in chosen for record, _ in one.parts]
        return held_out_rows(store, found, adapters, load_tokenizer(self.chat.bases.path(base), base.name))

    def _begin(self, evaluation_id: str, tell: Tell) -> tuple[EvaluationRecord, threading.Thread]:
        run = self._run(evaluation_id, tell)
        thread = threading.Thread(target=self._work, args=(run,), name=f"evaluation-{run.record.id[:6]}", daemon=True)
        with self._lock:
            self._runs[run.record.id] = run, thread
        thread.start()
        return run.record, thread

    def _run(self, evaluation_id: str, tell: Tell) -> Run:
        """An evaluation that is ours from now on."""
        found = self.get(evaluation_id)
        record = found.record
        if not found.can_go_on:
            how = "runs already" if record.state == RUNNING else "is done; start another one"
            raise InvalidInput(f"The evaluation {record.id[:8]} {how}.")
        base = self.chat.bases.get(record.base_id)
        for voice in found.voices:
            if self.chat.choose(voice.name, base).sha256 != voice.sha256:
                raise NotFound(f"What {voice.label!r} stands for has changed since the evaluation began; start another one.")
        store = self.datasets.store(self.datasets.get(record.dataset_id))
        if not self.records.claim(self.records.get(record.id), self.owner, time.time()):
            raise InvalidInput(f"The evaluation {record.id[:8]} was just taken by another program.")
        parts = Parts(self.records, self.chat, base, store, self._room, self.width)
        return Run(replace(record, state=RUNNING, owner=self.owner, reason=""), found.voices, parts, self.owner, tell)

    def _work(self, run: Run) -> None:
        """The thread of a run: from its start to the word on how it ended."""
        over = threading.Event()
        threading.Thread(target=self._beat, args=(run, over), name="evaluation-beat", daemon=True).start()
        state, reason = FAILED, "The evaluation stopped on an error of the studio itself; the log has the details. You can go on with it."
        try:
            run.go()
            state, reason = DONE, ""
        except Interrupted:
            state, reason = INTERRUPTED, GONE  # who stopped it by hand has said so already
        except StudioError as error:
            reason = str(error)
        except Exception:
            log.exception("The evaluation %s failed.", run.record.id)
        finally:
            over.set()
            self._end(run, state, reason)

    def _end(self, run: Run, state: str, reason: str) -> None:
        try:
            self.records.end(run.record.id, self.owner, state, reason, time.time())
        except StudioError as error:  # the database is away: it will count as interrupted
            log.warning("The end of the evaluation %s could not be written: %s", run.record.id, error)
        with self._lock:
            self._runs.pop(run.record.id, None)

    def _beat(self, run: Run, over: threading.Event) -> None:
        """Show that it lives, and hear whether somebody stopped it."""
        while not over.wait(BEAT_S):
            try:
                if not self.records.beat(run.record.id, self.owner, time.time()):
                    run.stop()
                    return
            except StudioError as error:
                log.warning("The evaluation %s cannot show that it lives: %s", run.record.id, error)

    def _seen(self, record: EvaluationRecord) -> EvaluationRecord:
        """A record with the state that it is really in."""
        if record.state != RUNNING or self._lives(record):
            return record
        return replace(record, state=INTERRUPTED, reason=GONE)

    def _lives(self, record: EvaluationRecord) -> bool:
        if record.owner == self.owner:
            return record.id in self._runs or time.time() - record.beat_at < BEAT_S
        host, pid, _ = record.owner.rsplit(":", 2)
        is_here = host == socket.gethostname()
        return time.time() - record.beat_at < SILENT_S and (not is_here or psutil.pid_exists(int(pid)))


def _name(chosen: Chosen) -> str:
    """What finds this very voice again, whatever is renamed or becomes a newer version."""
    if not chosen.parts:
        return "base"
    if len(chosen.parts) == 1 and chosen.parts[0][1] == 1:
        return chosen.parts[0][0].id
    return "+".join(f"{record.id}:{weight!r}" for record, weight in chosen.parts)


def _case(evaluation_id: str, number: int, row: int, store: RowStore) -> EvaluationCaseRecord:
    found = asked(store.page(row, 1)[0].conversation)
    return EvaluationCaseRecord(evaluation_id, number, row, found.question, found.reference)
