"""The scheduler: one thread owns the resident model and decodes requests of different adapters together.

A request is prefilled alone, then joins the running batch; at each step every row gets one token, whatever adapters
its neighbours use. What goes wrong with one request ends that request. Nothing here knows of names, conversations
or the page.
"""

import hashlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from studio.chat.bank import Bank, BankFull
from studio.chat.cache import BatchCache
from studio.chat.sampling import Sampling, make_generator, next_token
from studio.errors import InvalidInput, StudioError
from studio.lora.files import AdapterWeights
from studio.lora.serving import BASE_SLOT

log = logging.getLogger(__name__)
CLOSED = "The chat was closed while the request waited; send it again."


@dataclass(frozen=True)
class AdapterSource:
    """An adapter that a request names: its content hash, and how to read it if it is not resident."""

    sha256: str
    load: Callable[[], AdapterWeights]


@dataclass(frozen=True)
class Finished:
    """What a request measured. Times are milliseconds; `reason` is stop, length or cancelled."""

    tokens: int
    prompt_tokens: int
    reason: str
    swap_ms: float
    ttft_ms: float
    tokens_per_s: float


@dataclass
class Ticket:
    """A request on its way. Iterate for pieces of text; `finished` is there at the end."""

    token_ids: list[int]
    sampling: Sampling
    adapter: AdapterSource | None
    finished: Finished | None = None
    cancelled: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    pieces: "queue.SimpleQueue[str | Exception | None]" = field(default_factory=queue.SimpleQueue)

    def cancel(self) -> None:
        """Stop soon; what was said so far stands."""
        self.cancelled = True

    def __iter__(self) -> Iterator[str]:
        while (piece := self.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def text(self) -> str:
        """Wait for the whole reply."""
        return "".join(self)


@dataclass
class _Row:
    """A request in the running batch."""

    ticket: Ticket
    slot: int
    swap_ms: float
    generator: torch.Generator
    started: float = 0.0
    ttft_ms: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    said: int = 0  # characters that were sent


class Engine:
    """Owns a model and its bank.

    The model is loaded by the engine's own thread and no other thread computes with it: once two threads of a process
    have used OpenMP, its workers go to sleep between products, and decoding on two cores takes 1.6 times as long.

    Args:
        load: gives the model, in eval mode, and its tokenizer. slots: resident adapters. max_batch: rows decoded together.

    Raises:
        StudioError: whatever `load` raises.
    """

    model: Any
    tokenizer: Any
    bank: Bank

    def __init__(self, load: Callable[[], tuple[Any, Any]], slots: int, max_batch: int) -> None:
        self._load, self.slots, self.max_batch = load, slots, max_batch
        self._inbox: queue.SimpleQueue[Ticket | Future[Any] | None] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()
        self._rows: list[_Row] = []
        self._cache = BatchCache()
        self._closed = False
        self._door = threading.Lock()  # between those who submit and the thread's end
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="chat-engine", daemon=True)
        self._thread.start()
        loaded.result()

    def submit(self, token_ids: list[int], sampling: Sampling, adapter: AdapterSource | None = None) -> Ticket:
        """Queue a request for the tokens that follow `token_ids`; `adapter` None is the base.

        Raises:
            InvalidInput: prompt and reply do not fit the base's context. StudioError: the engine is closed.
        """
        if len(token_ids) + sampling.max_tokens > self.context:
            raise InvalidInput(
                f"The conversation has {len(token_ids)} tokens and the reply may have {sampling.max_tokens}, but this base's "
                f"context is {self.context}; start a new conversation or lower the length."
            )
        ticket = Ticket(token_ids, sampling, adapter)
        self._put(ticket)
        return ticket

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered or waits for it."""
        return bool(self._rows or self._waiting) or not self._inbox.empty()

    def checksum(self) -> str:
        """SHA-256 over the base's weights as they lie in memory, taken between two steps."""
        task: Future[str] = Future()
        task.work = self._checksum  # type: ignore[attr-defined]
        self._put(task)
        return task.result()

    def close(self) -> None:
        """End the thread; running and waiting requests end with a plain error."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def _put(self, message: "Ticket | Future[Any]") -> None:
        with self._door:
            if self._closed:
                raise StudioError(CLOSED)
            self._inbox.put(message)

    @torch.inference_mode()
    def _run(self, loaded: "Future[None]") -> None:
        try:
            self._set_up()
        except BaseException as error:  # noqa: BLE001 - the constructor raises it
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while not self._closed:
                self._receive()
                self._admit()
                if self._rows:
                    self._step()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Tell everybody who still waits that nothing more will come."""
        with self._door:
            self._closed = True
        left: list[Any] = [row.ticket for row in self._rows] + list(self._waiting)
        while not self._inbox.empty():
            left.append(self._inbox.get())
        for message in left:
            if isinstance(message, Ticket):
                message.pieces.put(StudioError(CLOSED))
            elif message is not None:
                message.set_exception(StudioError(CLOSED))

    def _set_up(self) -> None:
        """Load, and run once: the first forward pass of 4-bit layers may repack their weights; afterwards they never change."""
        self.model, self.tokenizer = self._load()
        self.context = int(getattr(self.model.config, "max_position_embeddings", 2048))
        self._end_ids = _end_ids(self.model, self.tokenizer)
        self.bank = Bank(self.model, self.slots)
        self.bank.route([BASE_SLOT])
        self.model(input_ids=torch.tensor([[0]], device=self.model.device), use_cache=False)

    def _receive(self) -> None:
        """Take what came in; wait for it where there is nothing else to do."""
        idle = not self._rows and not self._waiting
        while idle or not self._inbox.empty():
            message = self._inbox.get()
            idle = False
            if isinstance(message, Ticket):
                self._waiting.append(message)
            elif message is not None:
                message.set_result(message.work())  # type: ignore[attr-defined]

    def _admit(self) -> None:
        """Prefill waiting requests in their order while there is room."""
        while self._waiting and len(self._rows) < self.max_batch:
            ticket = self._waiting[0]
            try:
                slot, swap_ms = self._acquire(ticket)
            except BankFull:
                return
            except Exception as error:  # noqa: BLE001 - the border of one request
                self._waiting.popleft()
                self._fail(ticket, error)
                continue
            self._waiting.popleft()
            row = _Row(ticket, slot, swap_ms, make_generator(ticket.sampling.seed))
            try:
                self._prefill(row)
            except Exception as error:  # noqa: BLE001 - the border of one request
                self._release(ticket)
                self._fail(ticket, error)

    def _acquire(self, ticket: Ticket) -> tuple[int, float]:
        if ticket.adapter is None:
            return BASE_SLOT, 0.0
        return self.bank.acquire(ticket.adapter.sha256, ticket.adapter.load)

    def _prefill(self, row: _Row) -> None:
        from transformers import DynamicCache

        cache = DynamicCache()
        self.bank.route([row.slot])
        token_ids = torch.tensor([row.ticket.token_ids], device=self.model.device)  # (1, T)
        logits = self.model(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        row.started = time.perf_counter()
        self._accept(row, logits)
        row.ttft_ms = (time.perf_counter() - row.ticket.submitted) * 1e3
        if not self._end(row):
            self._cache.join(cache, len(row.ticket.token_ids))
            self._rows.append(row)

    def _step(self) -> None:
        """One token for every running row."""
        device = self.model.device
        self.bank.route([row.slot for row in self._rows])
        last = torch.tensor([[row.token_ids[-1]] for row in self._rows], device=device)  # (rows, 1)
        try:
            logits = self.model(
                input_ids=last,
                attention_mask=self._cache.mask(device),
                position_ids=self._cache.positions(device),
                past_key_values=self._cache.cache,
                use_cache=True,
            ).logits[:, -1]  # (rows, V)
        except Exception as error:  # noqa: BLE001 - the cache is spoiled for all of them
            for row in self._rows:
                self._release(row.ticket)
                self._fail(row.ticket, error)
            self._rows, self._cache = [], BatchCache()
            return
        self._cache.appended()
        kept = []
        for index, row in enumerate(self._rows):
            try:
                self._accept(row, logits[index])
            except Exception as error:  # noqa: BLE001 - the border of one request
                self._release(row.ticket)
                self._fail(row.ticket, error)
                continue
            if not self._end(row):
                kept.append(index)
        if len(kept) < len(self._rows):
            self._cache.keep(kept)
            self._rows = [self._rows[index] for index in kept]

    def _accept(self, row: _Row, logits: torch.Tensor) -> None:
        """Draw the next token and send the text that it completes."""
        if not torch.isfinite(logits).all():
            raise StudioError("The adapter gave numbers that are not finite; it cannot be used. Train it again with a lower learning_rate.")
        row.token_ids.append(next_token(logits, row.ticket.sampling, row.generator))
        text = self.tokenizer.decode(row.token_ids, skip_special_tokens=True)
        if len(text) > row.said and not text.endswith("\ufffd"):  # a character may need several tokens
            row.ticket.pieces.put(text[row.said :])
            row.said = len(text)

    def _end(self, row: _Row) -> bool:
        """Whether the row has said its last token; if so, tell its owner."""
        ticket, sampling = row.ticket, row.ticket.sampling
        if ticket.cancelled:
            reason = "cancelled"
        elif row.token_ids[-1] in self._end_ids and not sampling.ignore_eos:
            reason = "stop"
        elif len(row.token_ids) >= sampling.max_tokens:
            reason = "length"
        else:
            return False
        seconds = time.perf_counter() - row.started
        count = len(row.token_ids)
        rate = (count - 1) / seconds if count > 1 else 0.0
        ticket.finished = Finished(count, len(ticket.token_ids), reason, row.swap_ms, row.ttft_ms, rate)
        self._release(ticket)
        ticket.pieces.put(None)
        return True

    def _release(self, ticket: Ticket) -> None:
        if ticket.adapter is not None:
            self.bank.release(ticket.adapter.sha256)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, StudioError):
            log.error("A chat request failed.", exc_info=error)
            error = StudioError(f"The reply stopped on an error of the studio itself ({type(error).__name__}); send it again.")
        ticket.pieces.put(error)

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
        return digest.hexdigest()


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a reply: the generation config's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
