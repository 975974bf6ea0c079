"""How likely rows are under a voice: the loss of training, of what is there already, computed between the steps of those who chat.

Short rows go through the model together, a long one in pieces, so that logits of a few hundred tokens exist at once and nobody who
chats waits for more than one pass.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.chat.bank import BASE, PINNED, Bank, BankFull, Lease, Voice
from studio.chat.host import Loaded
from studio.chat.kv import KvBatch, kept_prefix
from studio.chat.prefill import NOT_FINITE, PIECE
from studio.chat.runner import Runner
from studio.chat.ticket import CLOSED
from studio.datasets.rendering import Example
from studio.errors import BaseUnavailable, ContextTooLong, Interrupted, StudioError

PASS = 256  # tokens of a pass where nobody chats; else a piece, as of a prompt
CHUNK = 64  # rows of logits that are float32 at once
TURNS = 4  # steps of those who chat for each pass
STOPPED = "The scoring was stopped."


@dataclass(frozen=True)
class Score:
    """Of one row: nats summed over its trained tokens, how many those are, and of how many the likeliest token was right."""

    nats: float
    tokens: int
    hits: int


@dataclass(eq=False)
class Scoring:
    """Rows on their way through the engine, in their order; `result` waits for all."""

    rows: Sequence[Example]
    voice: Voice = BASE
    scores: list[Score] = field(default_factory=list)
    reading: "list[Future[Loaded]]" = field(default_factory=list)
    is_cancelled: bool = False
    lease: Lease | None = None
    submitted: float = field(default_factory=time.perf_counter)
    _done: "Future[list[Score]]" = field(default_factory=Future)
    _wake: Callable[[], None] = lambda: None

    def result(self) -> list[Score]:
        """A score for each row.

        Raises:
            Interrupted: it was cancelled. StudioError: in words for the user.
        """
        return self._done.result()

    def cancel(self) -> None:
        """Stop behind the pass that runs."""
        self.is_cancelled = True
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """From the engine: nothing more comes."""
        if error is None:
            self._done.set_result(self.scores)
        else:
            self._done.set_exception(error)


def check_rows(rows: Sequence[Example], context: int) -> None:
    """Make sure that each row fits.

    Raises:
        ContextTooLong: one does not.
    """
    longest = max((len(row.token_ids) for row in rows), default=0)
    if longest > context:
        raise ContextTooLong(f"The row has {longest} tokens, but this base's context is {context}; shorten the row or leave it out.")


class Scorer:
    """Scorings that wait, one of which is computed. Owned by the thread that runs the model.

    Args:
        runner: the model. bank: gives slots. is_ready: whether what a request's voice needs is in memory.
    """

    def __init__(self, runner: Runner, bank: Bank, is_ready: Callable[[Scoring], bool]) -> None:
        self.runner, self.bank, self._is_ready = runner, bank, is_ready
        self.waiting: list[Scoring] = []
        self._turn = 0
        self._refused: Scoring | None = None  # there was no slot for it
        self._begun: tuple[KvBatch, int, Score] | None = None  # a long row: keys and values, tokens computed, what they gave

    def step(self, others_wait: bool) -> bool:
        """One pass of the first scoring that can be computed; whether there was any.

        Args:
            others_wait: rows of people who chat get no token meanwhile.
        """
        self._turn += 1
        if others_wait and self._turn % TURNS:
            return True
        self._refused = None
        ready = next((one for one in list(self.waiting) if self._admit(one)), None)
        if ready is None:
            return not others_wait and self._give_up()
        try:
            self._compute(ready, PIECE if others_wait else PASS)
        except Exception as error:  # noqa: BLE001 - the border of one request
            self._finish(ready, error)
        else:
            if len(ready.scores) == len(ready.rows):
                self._finish(ready)
        return True

    @property
    def is_begun(self) -> bool:
        """Whether a scoring has slots."""
        return any(one.lease is not None for one in self.waiting)

    def close(self) -> None:
        """Tell everybody who waits that nothing more comes."""
        for one in list(self.waiting):
            self._finish(one, BaseUnavailable(CLOSED))

    def _admit(self, one: Scoring) -> bool:
        """Whether it can be computed now. One alone at a time has slots."""
        if one.is_cancelled:
            self._finish(one, Interrupted(STOPPED))
            return False
        if one.lease is None and not self.is_begun:
            self._lend(one)
        return one.lease is not None

    def _lend(self, one: Scoring) -> None:
        """Slots, where all that it needs is in memory and there are any."""
        try:
            if self._is_ready(one):
                one.lease = self.bank.acquire(one.voice)
        except BankFull:
            self._refused = self._refused or one
        except Exception as error:  # noqa: BLE001 - the border of one request
            self._finish(one, error)

    def _give_up(self) -> bool:
        """End what finds no slot while nobody has any that would come back; whether there was such a thing."""
        refused = self._refused
        if refused is not None:
            self._finish(refused, StudioError(PINNED))
        return refused is not None

    def _finish(self, one: Scoring, error: BaseException | None = None) -> None:
        if one.lease is not None:
            self.bank.release(one.lease)
            one.lease, self._begun = None, None
        self.waiting.remove(one)
        one.end(error)

    def _compute(self, one: Scoring, tokens: int) -> None:
        assert one.lease is not None
        left = one.rows[len(one.scores) :]
        if not left:
            return
        group = _together(left, tokens) if self._begun is None and one.lease.prefix is None else left[:1]
        if len(group) > 1:
            one.scores += self._group(group, one.lease)
        elif (score := self._piece(group[0], one.lease, tokens)) is not None:
            one.scores.append(score)

    def _group(self, rows: Sequence[Example], lease: Lease) -> list[Score]:
        """Whole rows in one pass, each at the right end of its columns."""
        count = max(len(row.token_ids) for row in rows)
        shifts = [count - len(row.token_ids) for row in rows]
        token_ids = [[0] * shift + row.token_ids for shift, row in zip(shifts, rows, strict=True)]
        self.bank.route([lease] * len(rows), count)
        kv = KvBatch.prompts([len(row.token_ids) for row in rows])
        places = [[i - 1 for i in _trained(row)] for row in rows]
        flat = [number * count + shifts[number] + place for number, mine in enumerate(places) for place in mine]
        labels = [row.token_ids[i] for row in rows for i in _trained(row)]
        nats, hits = self._losses(token_ids, kv, flat, labels)
        scores, at = [], 0
        for mine in places:
            end = at + len(mine)
            scores.append(_score(nats[at:end], hits[at:end]))
            at = end
        return scores

    def _piece(self, row: Example, lease: Lease, tokens: int) -> Score | None:
        """The next tokens of a row; its score once nothing that counts is left."""
        trained = _trained(row)
        if not trained:
            return Score(0.0, 0, 0)
        kv, first, before = self._begun or (self._start(row, lease), 0, Score(0.0, 0, 0))
        end = min(first + tokens, trained[-1])  # what stands behind predicts nothing that counts
        wanted = [i for i in trained if first < i <= end]
        self.bank.route([lease])
        nats, hits = self._losses([row.token_ids[first:end]], kv, [i - 1 - first for i in wanted], [row.token_ids[i] for i in wanted])
        kv.advance(end - first)
        new = _score(nats, hits)
        score = Score(before.nats + new.nats, before.tokens + new.tokens, before.hits + new.hits)
        self._begun = None if end == trained[-1] else (kv, end, score)
        return score if self._begun is None else None

    def _start(self, row: Example, lease: Lease) -> KvBatch:
        if lease.prefix is None:
            return KvBatch.starting(columns=len(row.token_ids))
        length = lease.prefix.embedding.shape[0]
        kept = kept_prefix(lease.prefix, self.runner.device, self.runner.dtype)
        return KvBatch.starting(kept, length, length + len(row.token_ids))

    def _losses(self, token_ids: list[list[int]], kv: KvBatch, places: list[int], labels: list[int]) -> tuple[Tensor, Tensor]:
        """Nats of each label, float64, and whether it is the likeliest, both (n,) on the CPU.

        Args:
            places: of the flattened token_ids, (rows · T,), behind which the labels stand.
        """
        device = self.runner.device
        ids = torch.tensor(token_ids, device=device)
        if not places:
            self.runner.forward(ids, kv)  # for its keys and values
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
        logits = self.runner.forward(ids, kv, torch.tensor(places, device=device))  # (n, V)
        wanted = torch.tensor(labels, device=device)
        nats, hits = [], []
        for rows, chosen in zip(torch.split(logits, CHUNK), torch.split(wanted, CHUNK), strict=True):
            nats.append(F.cross_entropy(rows.float(), chosen, reduction="none").double())
            hits.append(rows.argmax(-1) == chosen)
        found = torch.cat(nats).cpu()
        if not bool(torch.isfinite(found).all()):
            raise StudioError(NOT_FINITE)
        return found, torch.cat(hits).cpu()


def _trained(row: Example) -> list[int]:
    """Tokens that are predicted in the loss; the first one never is."""
    return [i for i, counts in enumerate(row.trained) if counts and i]


def _score(nats: Tensor, hits: Tensor) -> Score:
    return Score(float(nats.sum()), len(nats), int(hits.sum()))


def _together(rows: Sequence[Example], tokens: int) -> list[Example]:
    """As many of the first rows as take one pass of so many tokens with their padding; at least one."""
    group = [rows[0]]
    for row in rows[1:]:
        longest = max(len(one.token_ids) for one in [*group, row])
        if longest * (len(group) + 1) > tokens:
            break
        group.append(row)
    return group
