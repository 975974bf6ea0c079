"""One evaluation while it runs: losses batch by batch, answers of all voices side by side, each row kept as soon as it is done."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from storage.errors import LeaseLost
from storage.evaluations import Evaluations as Records
from storage.records import BaseRecord, EvaluationAnswerRecord, EvaluationCaseRecord, EvaluationRecord, EvaluationVoiceRecord
from studio.chat.sampling import Sampling
from studio.chat.scoring import Score
from studio.chat.service import Chat
from studio.datasets.rendering import Example, Renderer
from studio.datasets.store import RowStore
from studio.errors import BaseUnavailable, ContextTooLong, IncompatibleAdapter, Interrupted, InvalidInput, NotFound, StudioError
from studio.evaluation.cases import NO_PROMPT, Asked, asked
from studio.evaluation.metrics import Tally, measure
from studio.evaluation.plan import Plan

USER = "evaluation"  # all evaluations are one user of the chat, which gives way to whoever asks a single thing
BATCH = 8  # rows whose losses are asked for at once
ASIDE_S = 1.0
# What is wrong with a row and not with the evaluation.
FATAL = (BaseUnavailable, NotFound, IncompatibleAdapter)
Given = TypeVar("Given")
Tell = Callable[[int, int], None]  # rows done, of all rows of all voices


class Open(Protocol):
    """What waits for the engine."""

    def cancel(self) -> None: ...  # noqa: D102


@dataclass
class Todo:
    """A row under a voice that is not kept yet."""

    case: EvaluationCaseRecord
    place: int
    asked: Asked
    score: Score | None = None
    error: str = ""


@dataclass(frozen=True)
class Parts:
    """What an evaluation is made of."""

    records: Records
    chat: Chat
    base: BaseRecord
    store: RowStore
    room: threading.Semaphore  # for requests in the running batch
    width: int


@dataclass
class Run:
    """An evaluation that this program runs.

    Args:
        owner: who keeps what it finds. tell: hears how far it is.
    """

    record: EvaluationRecord
    voices: Sequence[EvaluationVoiceRecord]
    parts: Parts
    owner: str
    tell: Tell
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.plan = Plan(**{**self.record.plan, "metrics": tuple(self.record.plan["metrics"])})
        self._open: set[Open] = set()
        self._tallies = {voice.place: Tally() for voice in self.voices}
        self._done: set[tuple[int, int]] = set()

    def stop(self) -> None:
        """End soon; what is not finished is not kept."""
        self.stopped.set()
        for one in list(self._open):
            one.cancel()

    def go(self) -> None:
        """Do all that is left.

        Raises:
            Interrupted: it was stopped. StudioError: it cannot go on, in words for the user.
        """
        self._recall()
        pending: dict[Future[str], Todo] = {}
        with ThreadPoolExecutor(self.parts.width, "evaluation") as threads:
            try:
                for todo in self._todos():
                    if todo.error or not self.plan.answers:
                        self._keep(todo)
                        continue
                    pending[threads.submit(self._answer, todo)] = todo
                    if len(pending) >= self.parts.width:
                        self._collect(pending, everything=False)
                self._collect(pending, everything=True)
            except BaseException:
                self.stop()
                raise

    def _recall(self) -> None:
        """What was kept before."""
        for one in self.parts.records.answers(self.record.id):
            self._done.add((one.number, one.place))
            self._tallies[one.place].add(one.nats, one.tokens, one.hits, one.scores, one.error)
        self._told()

    def _told(self) -> None:
        self.tell(len(self._done), self.record.rows * len(self.voices))

    def _todos(self) -> Iterator[Todo]:
        """What is left, with its losses."""
        cases = self.parts.records.cases(self.record.id)
        renderer = Renderer(self._calmly(lambda: self.parts.chat.make_resident(self.parts.base)).tokenizer)
        for start in range(0, len(cases), BATCH):
            batch = [
                case for case in cases[start : start + BATCH] if any((case.number, voice.place) not in self._done for voice in self.voices)
            ]
            if batch:
                yield from self._batch(batch, renderer)

    def _batch(self, cases: Sequence[EvaluationCaseRecord], renderer: Renderer) -> list[Todo]:
        conversations = [self.parts.store.page(case.row, 1)[0].conversation for case in cases]
        found = [asked(conversation) for conversation in conversations]
        pairs = [(i, voice.place) for i in range(len(cases)) for voice in self.voices]
        todos = {(i, place): Todo(cases[i], place, found[i]) for i, place in pairs if (cases[i].number, place) not in self._done}
        if self.plan.scores:
            self._score(todos, dict(enumerate(renderer.render_each(conversations))))
        for todo in todos.values():
            if self.plan.answers and not todo.error and not todo.asked.prompt:
                todo.error = NO_PROMPT
        return list(todos.values())

    def _score(self, todos: dict[tuple[int, int], Todo], rows: dict[int, Example | InvalidInput]) -> None:
        """The losses of all voices at once, which the engine computes one voice after the other."""
        context = self._calmly(lambda: self.parts.chat.make_resident(self.parts.base)).context
        fit: dict[int, Example] = {}
        for i, row in rows.items():
            if isinstance(row, InvalidInput):
                trouble = str(row)
            elif len(row.token_ids) > context:
                trouble = f"The row has {len(row.token_ids)} tokens, but this base's context is {context}."
            else:
                fit[i] = row
                continue
            for todo in (todo for (j, _), todo in todos.items() if i == j):
                todo.error = trouble
        waiting = []
        for voice in self.voices:
            mine = [i for i in fit if (i, voice.place) in todos]
            if mine:
                scoring = self._calmly(self._scoring, voice, [fit[i] for i in mine])
                waiting.append((voice.place, mine, scoring))
                self._open.add(scoring)
        for place, mine, scoring in waiting:
            self._take(todos, place, mine, scoring)

    def _scoring(self, voice: EvaluationVoiceRecord, rows: list[Example]) -> Any:
        return self.parts.chat.score(rows, voice.name, self.parts.base)

    def _take(self, todos: dict[tuple[int, int], Todo], place: int, mine: list[int], scoring: Any) -> None:
        self._check()
        try:
            for i, score in zip(mine, scoring.result(), strict=True):
                todos[i, place].score = score
        except (*FATAL, Interrupted):
            raise
        except StudioError as error:
            for i in mine:
                todos[i, place].error = str(error)
        finally:
            self._open.discard(scoring)

    def _answer(self, todo: Todo) -> str:
        """What the voice says; in a thread that waits."""
        voice = next(voice for voice in self.voices if voice.place == todo.place)
        with self.parts.room:
            self._check()
            [stream] = self._calmly(self._ask, voice, todo.asked)
            self._open.add(stream)
            try:
                if self.stopped.is_set():
                    stream.cancel()
                return "".join(stream)
            finally:
                self._open.discard(stream)

    def _ask(self, voice: EvaluationVoiceRecord, what: Asked) -> Any:
        sampling = Sampling(max_tokens=self.plan.max_tokens, temperature=self.plan.temperature, seed=self.plan.seed)
        return self.parts.chat.answers(what.prompt, voice.name, self.parts.base, sampling, USER)

    def _collect(self, pending: dict[Future[str], Todo], everything: bool) -> None:
        """Keep the answers that are there, at least one; or all."""
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                todo = pending.pop(future)
                text = ""
                try:
                    text = future.result()
                except (ContextTooLong, StudioError) as error:
                    if isinstance(error, (*FATAL, Interrupted)):
                        raise
                    todo.error = str(error)
                self._keep(todo, text)
            if not everything:
                return

    def _keep(self, todo: Todo, text: str = "") -> None:
        self._check()
        voice = self.voices[todo.place]
        scores = measure(self.plan.metrics, text, todo.asked.reference) if self.plan.answers and not todo.error else {}
        nats, tokens, hits = (todo.score.nats, todo.score.tokens, todo.score.hits) if todo.score else (None, 0, 0)
        kept = EvaluationAnswerRecord(self.record.id, todo.case.number, todo.place, nats, tokens, hits, text, scores, todo.error)
        tally = self._tallies[todo.place]
        tally.add(nats, tokens, hits, scores, todo.error)
        reached = replace(voice, rows=tally.rows, errors=tally.errors, values=tally.values)
        try:
            self.parts.records.keep(kept, reached, self.owner, time.time())
        except LeaseLost:
            self.stopped.set()
            self._check()
        self._done.add((todo.case.number, todo.place))
        self._told()

    def _check(self) -> None:
        if self.stopped.is_set():
            raise Interrupted("The evaluation was stopped.")

    def _calmly(self, ask: Callable[..., Given], *arguments: Any) -> Given:
        """Ask the chat something; where its base is put aside for a training, once it is back."""
        while True:
            try:
                return ask(*arguments)
            except BaseUnavailable:
                if not self.parts.chat.aside:
                    raise
            self.stopped.wait(ASIDE_S)
            self._check()
