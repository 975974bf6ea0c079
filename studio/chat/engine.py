"""The scheduler: one thread owns the resident model and decodes requests of different adapters together.

A request's adapters are read on a thread of their own and get slots between two steps. Its prompt is computed in pieces, between
which the others go on; then it joins the running batch, where at each step every row gets one token, whatever adapters its
neighbours use. What goes wrong with one request ends that request. Nothing here knows of names, conversations or the page.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.chat.bank import BASE, PINNED, Bank, BankFull, Part, Voice
from studio.chat.graphs import with_graphs
from studio.chat.host import AdapterSource, HostTier
from studio.chat.kv import Kept, KvBatch, KvStore
from studio.chat.prefill import NOT_FINITE, PIECE, Prefill
from studio.chat.row import Row
from studio.chat.runner import Runner, make_runner
from studio.chat.sampling import Sampling, logprobs_of, make_generator, next_tokens
from studio.chat.scoring import Scorer, Scoring, check_rows
from studio.chat.speech import Speech
from studio.chat.ticket import CLOSED, Finished, Ticket, check_length
from studio.chat.waiting import in_turn
from studio.datasets.rendering import Example
from studio.errors import BaseUnavailable, StudioError
from studio.lora.serving import Routing

log = logging.getLogger(__name__)
PATIENCE_S = 2.0  # for so long others may pass a request for which there is no slot
MB = 2**20


@dataclass(frozen=True)
class Capacity:
    """How much an engine holds.

    slots: adapters that lie in slots at once. slots_mb: what those take. max_batch: rows decoded together. host_mb: adapters in the
    machine's memory. kv_mb: keys and values of conversations that may go on. packed: whether int8 may stand for quantized weights
    on the CPU.
    """

    slots: int = 16
    slots_mb: int = 2048
    max_batch: int = 16
    host_mb: int = 1024
    kv_mb: int = 512
    packed: bool = True


class Engine:
    """Owns a model and its bank.

    The model is loaded by the engine's own thread and no other thread computes with it: once two threads of a process
    have used OpenMP, its workers go to sleep between products, and decoding on two cores takes 1.6 times as long.

    Args:
        load: gives the model, in eval mode, and its tokenizer. capacity: how much is held.

    Raises:
        StudioError: whatever `load` raises.
    """

    model: Any
    tokenizer: Any
    runner: Runner
    host: HostTier
    bank: Bank
    context: int
    vocabulary: int
    is_local = True

    def __init__(self, load: Callable[[], tuple[Any, Any]], capacity: Capacity) -> None:
        self._load, self.capacity = load, capacity
        self._inbox: queue.SimpleQueue[Ticket | Scoring | Future[Any] | None] = queue.SimpleQueue()
        self._waiting: list[Ticket] = []
        self._rows: list[Row] = []
        self._kv = KvBatch()
        self.kept = KvStore(capacity.kv_mb * MB)
        self._closed = False
        self._door = threading.Lock()  # between those who submit and the thread's end
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="chat-engine", daemon=True)
        self._thread.start()
        loaded.result()

    def submit(
        self, token_ids: list[int], sampling: Sampling, voice: Voice = BASE, user: str = "", wants_distribution: bool = False
    ) -> Ticket:
        """Queue a request for the tokens that follow `token_ids`.

        Args:
            voice: who speaks; the base if left out. user: for fairness. wants_distribution: see `Ticket`.

        Raises:
            ContextTooLong: prompt and reply do not fit the base's context. BaseUnavailable: the engine is closed.
        """
        check_length(token_ids, sampling, self.context)
        ticket = Ticket(token_ids, sampling, voice, user, wants_distribution, _wake=self._wake)
        self._is_ready(ticket)  # so that reading begins at once
        self._put(ticket)
        return ticket

    def score(self, rows: Sequence[Example], voice: Voice = BASE) -> Scoring:
        """Queue rows whose losses are asked for; they are computed between the steps of those who chat.

        Raises:
            ContextTooLong: a row does not fit the base's context. BaseUnavailable: the engine is closed.
        """
        check_rows(rows, self.context)
        scoring = Scoring(rows, voice, _wake=self._wake)
        self._is_ready(scoring)
        self._put(scoring)
        return scoring

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered or waits for it."""
        return bool(self._rows or self._prefill.rows or self._waiting or self._scorer.waiting) or not self._inbox.empty()

    def checksum(self) -> str:
        """SHA-256 over the base's weights as they lie in memory, taken between two steps."""
        return str(self.call(self._checksum))

    def pin(self, sha256s: set[str]) -> None:
        """Adapters that keep their places once they have them."""
        self.call(lambda: self.bank.pin(sha256s))

    def prepare(self, source: AdapterSource) -> bool:
        """Give an adapter its slot now, so that the first who asks it does not wait; False where none is free.

        Raises:
            StudioError: it cannot be read, or does not fit the base.
        """
        self.host.want(source).result()  # here, so that the engine's thread does not wait for the disk
        try:
            self.call(lambda: self.bank.release(self.bank.acquire(Voice((Part(source),)))))
        except BankFull:
            return False
        return True

    def call(self, work: Callable[[], Any]) -> Any:
        """Do something on the engine's thread, between two steps, and wait for it.

        Raises:
            BaseUnavailable: the engine is closed. Else what `work` raises.
        """
        task: Future[Any] = Future()
        task.work = work  # type: ignore[attr-defined]
        self._put(task)
        return task.result()

    def close(self) -> None:
        """End the thread; running and waiting requests end with a plain error."""
        self._closed = True
        self._wake()
        self._thread.join()
        self.host.close()

    def _wake(self) -> None:
        self._inbox.put(None)

    def _put(self, message: "Ticket | Scoring | Future[Any]") -> None:
        with self._door:
            if self._closed:
                raise BaseUnavailable(CLOSED)
            self._inbox.put(message)

    @torch.inference_mode()
    def _run(self, loaded: "Future[None]") -> None:
        try:
            self._set_up()
        except BaseException as error:  # noqa: BLE001 - the constructor raises it
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        is_busy = True
        try:
            while not self._closed:
                self._receive(is_idle=not is_busy)
                self._admit()
                is_busy = bool(self._rows or self._prefill.rows)  # whoever leaves from here on makes room for those who wait
                self._drop_cancelled()
                if self._prefill.rows:
                    self._compute_prompts()
                if self._rows:
                    self._step()
                is_busy = self._score_some(is_busy)
        finally:
            self._abandon()

    def _score_some(self, others_wait: bool) -> bool:
        """A pass over rows whose losses are asked for; whether there is anything to do but wait for a message."""
        if not self._scorer.waiting:
            return others_wait
        return self._scorer.step(others_wait) or others_wait

    def _abandon(self) -> None:
        """Tell everybody who still waits that nothing more will come."""
        with self._door:
            self._closed = True
        self._scorer.close()
        left: list[Any] = [row.ticket for row in self._rows + self._prefill.rows] + self._waiting
        while not self._inbox.empty():
            left.append(self._inbox.get())
        for message in left:
            if isinstance(message, Ticket | Scoring):
                message.end(BaseUnavailable(CLOSED))
            elif message is not None:
                message.set_exception(BaseUnavailable(CLOSED))

    def _set_up(self) -> None:
        """Load; the probe of the runner is the first forward pass, after which the weights never change."""
        self.model, self.tokenizer = self._load()
        self.context = int(getattr(self.model.config, "max_position_embeddings", 2048))
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self._end_ids = end_ids(self.model, self.tokenizer)
        routing = Routing()
        # Exact answers on the CPU are those of adapters in float32; in bf16, what they add errs by less than 1 %.
        dtype = torch.float32 if self.model.device.type == "cpu" and not self.capacity.packed else self.model.dtype
        self.runner = with_graphs(make_runner(self.model, routing, dtype, self.capacity.packed))
        self.host = HostTier(self.capacity.host_mb * MB, dtype, self._wake)
        self.bank = Bank(self.runner, routing, self.capacity.slots, self.capacity.slots_mb * MB, self.host)
        self._prefill = Prefill(self.runner, self.bank, self.kept)
        self._scorer = Scorer(self.runner, self.bank, self._is_ready)

    def _receive(self, is_idle: bool) -> None:
        """Take what came in; wait for it where there is nothing else to do."""
        while is_idle or not self._inbox.empty():
            message = self._inbox.get()
            is_idle = False
            if isinstance(message, Ticket):
                self._waiting.append(message)
            elif isinstance(message, Scoring):
                self._scorer.waiting.append(message)
            elif message is not None:
                try:
                    message.set_result(message.work())  # type: ignore[attr-defined]
                except BaseException as error:  # noqa: BLE001 - it is the caller's
                    message.set_exception(error)

    def _admit(self) -> None:
        """Give slots to waiting requests while there is room, in a fair order."""
        now = time.perf_counter()
        for ticket in in_turn(self._waiting, self._rows + self._prefill.rows):
            if len(self._rows) + len(self._prefill.rows) >= self.capacity.max_batch:
                return
            try:
                if not self._admit_one(ticket) and now - ticket.submitted > PATIENCE_S and self._is_ready(ticket):
                    return  # it has been passed for long enough: it gets the next slot
            except Exception as error:  # noqa: BLE001 - the border of one request
                self._waiting.remove(ticket)
                ticket.fail(error)

    def _admit_one(self, ticket: Ticket) -> bool:
        """Whether the request has its slots, or needs none any more."""
        if ticket.is_cancelled:
            self._waiting.remove(ticket)
            ticket.finished = Finished(0, len(ticket.token_ids), 0, "cancelled", 0.0, 0.0, 0.0)
            ticket.end()
            return True
        if not self._is_ready(ticket):
            return False
        waited_ms = (time.perf_counter() - ticket.submitted) * 1e3
        try:
            lease = self.bank.acquire(ticket.voice)
        except BankFull:
            if not self._rows and not self._prefill.rows and not self._scorer.is_begun:
                raise StudioError(PINNED) from None
            return False
        self._waiting.remove(ticket)
        swap_ms = lease.install_ms + min(waited_ms, sum(future.result().load_ms for future in ticket.reading))
        speech = Speech(self.tokenizer, ticket.sampling.stop)
        self._prefill.rows.append(Row(ticket, lease, swap_ms, make_generator(ticket.sampling.seed), speech))
        return True

    def _is_ready(self, ticket: Ticket | Scoring) -> bool:
        """Whether all that the request names is in memory; what is not is being read from now on.

        Raises:
            StudioError: whatever reading it raised.
        """
        for future in ticket.reading:
            if future.done():
                future.result()
        wanted = [self.host.want(source) for source in self.bank.missing(ticket.voice)]
        ticket.reading += [future for future in wanted if not future.done() and future not in ticket.reading]
        return all(future.done() for future in wanted)

    def _drop_cancelled(self) -> None:
        for row in [row for row in self._prefill.rows if row.ticket.is_cancelled]:
            self._prefill.rows.remove(row)
            self._finish(row, "cancelled")
        for index in reversed(range(len(self._rows))):
            if self._rows[index].ticket.is_cancelled:
                self._leave(index, "cancelled")

    def _compute_prompts(self) -> None:
        """A piece of some prompts; whoever has its first token runs from now on."""
        for done in self._prefill.step(others_wait=bool(self._rows)):
            if done.logits is None:
                self.bank.release(done.row.lease)
                done.row.ticket.fail(done.error or StudioError(NOT_FINITE))
            else:
                self._start(done.row, done.logits)

    def _start(self, row: Row, logits: Tensor) -> None:
        row.started = time.perf_counter()
        row.ttft_ms = (row.started - row.ticket.submitted) * 1e3
        assert row.kv is not None
        self._share(row)
        if row.ticket.wants_distribution:
            row.ticket.distribution = torch.log_softmax(logits[0], dim=-1).cpu()
        reason = self._accept([row], logits)[0]
        if reason:
            if reason != "failed":
                self._keep(row, row.kv.keep(0))
            self._finish(row, reason)
            return
        self._kv.join(row.kv)
        row.kv = None
        self._rows.append(row)

    def _share(self, row: Row) -> None:
        """Keep a prompt at once where another waits to compute the same, such as an answer with another seed."""
        assert row.kv is not None
        mine, key = row.ticket.token_ids, row.ticket.voice_key
        others = [other.ticket for other in self._prefill.rows if other.kv is None] + self._waiting
        if any(other.voice_key == key and len(mine) > PIECE and other.token_ids[:PIECE] == mine[:PIECE] for other in others):
            self.kept.put(key, mine, row.kv.keep(0))

    def _step(self) -> None:
        """One token for every running row."""
        try:
            logits = self._decode(self._rows, self._kv)
        except Exception:
            log.exception("A step of %d rows failed; each is tried alone.", len(self._rows))
            self._end_those_that_fail()
            if not self._rows:
                return
            try:
                logits = self._decode(self._rows, self._kv)
            except Exception as error:  # noqa: BLE001 - together they cannot go on
                for index in reversed(range(len(self._rows))):
                    self._break_off(index, error)
                return
        self._kv.advance(1)
        reasons = self._accept(self._rows, logits)
        for index in reversed(range(len(self._rows))):
            if reasons[index]:
                self._leave(index, reasons[index])

    def _end_those_that_fail(self) -> None:
        """Try the step with each row alone; nothing is advanced, so what was written is written again."""
        for index in reversed(range(len(self._rows))):
            try:
                self._decode([self._rows[index]], self._kv.alone(index))
            except Exception as error:  # noqa: BLE001 - the border of one request
                self._break_off(index, error)

    def _break_off(self, index: int, error: Exception) -> None:
        ticket = self._rows[index].ticket
        self._remove(index, is_spoiled=True)
        ticket.fail(error)

    def _decode(self, rows: list[Row], kv: KvBatch) -> Tensor:
        """Logits of the next token of each row, (rows, V), float32; writes their keys and values but does not advance."""
        kv.reserve(1)
        self.bank.route([row.lease for row in rows])
        last = torch.tensor([[row.token_ids[-1]] for row in rows], device=self.runner.device)  # (rows, 1)
        return self.runner.forward(last, kv).float()

    def _accept(self, rows: list[Row], logits: Tensor) -> list[str]:
        """Draw each row's next token and send the text that it completes; why each row ends, empty where it goes on."""
        logits = logits.float()
        is_finite = torch.isfinite(logits.sum(dim=1)).tolist()
        if not all(is_finite):
            logits = torch.nan_to_num(logits)
        tokens = next_tokens(logits, [r.ticket.sampling for r in rows], [r.generator for r in rows], [r.token_ids for r in rows])
        reasons = []
        for index, row in enumerate(rows):
            try:
                if not is_finite[index]:
                    raise StudioError(NOT_FINITE)
                reasons.append(self._say(row, tokens[index], logits[index]))
            except Exception as error:  # noqa: BLE001 - the border of one request
                row.ticket.fail(error)
                reasons.append("failed")
        return reasons

    def _say(self, row: Row, token_id: int, logits: Tensor) -> str:
        sampling, ticket = row.ticket.sampling, row.ticket
        row.token_ids.append(token_id)
        is_end = token_id in self._end_ids and not sampling.ignore_eos
        if sampling.logprobs is not None and not is_end:  # the end is no part of the text
            row.untold.append((row.speech.length, logprobs_of(logits, token_id, sampling.logprobs)))
        text = "" if is_end else row.speech.add(token_id)
        ticket.token_count = len(row.token_ids)
        if row.tell() or text:
            ticket.say(text)
        if is_end or row.speech.is_stopped:
            return "stop"
        return "length" if len(row.token_ids) >= sampling.max_tokens else ""

    def _leave(self, index: int, reason: str) -> None:
        """A row has said its last token."""
        row = self._rows[index]
        if reason != "failed":
            self._keep(row, self._kv.keep(index))
        self._remove(index, is_spoiled=reason == "failed")
        self._finish(row, reason, is_released=True)

    def _remove(self, index: int, is_spoiled: bool) -> None:
        """Take a row out of the batch; the last one takes its place."""
        self.bank.release(self._rows[index].lease)
        self._kv.leave(index, is_spoiled)
        last = self._rows.pop()
        if index < len(self._rows):
            self._rows[index] = last

    def _keep(self, row: Row, kept: Kept) -> None:
        """What the conversation's next turn will begin with; the last token was drawn and not computed."""
        self.kept.put(row.ticket.voice_key, (row.ticket.token_ids + row.token_ids)[:-1], kept)

    def _finish(self, row: Row, reason: str, is_released: bool = False) -> None:
        """Tell the owner that nothing more comes; one that failed knows it."""
        if not is_released:
            self.bank.release(row.lease)
        if reason == "failed":
            return
        ticket, count = row.ticket, len(row.token_ids)
        if not row.speech.is_stopped and ((rest := row.speech.rest()) or row.untold):
            row.tell(is_over=True)
            ticket.say(rest)
        seconds = time.perf_counter() - row.started if row.started else 0.0
        rate = (count - 1) / seconds if count > 1 and seconds else 0.0
        ticket.finished = Finished(count, len(ticket.token_ids), row.reused, reason, row.swap_ms, row.ttft_ms, rate)
        ticket.end()

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.runner.tensors().items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a reply: the generation config's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}


__all__ = ["AdapterSource", "Capacity", "Engine", "Finished", "Ticket", "Voice"]
