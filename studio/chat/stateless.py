"""Answers from processes that remember nothing, as ZeroGPU on Spaces wants them.

Each answer is one call of `answer`, whose arguments and results are plain data. On a Space with ZeroGPU `spaces.GPU` runs it in a
process that it forks from this one and lends a GPU to, and passes on what it yields as it comes; elsewhere `forked` does the same on
the CPU. This process loads the base and never computes with it: the call inherits it and makes an `Engine` on it. A process that is
lent a GPU again uses the engine that it has, which is quicker and changes no answer.

Errors are results too, since ZeroGPU tells no more of an exception than the name of its class.
"""

import contextvars
import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import spaces
from studio import errors
from studio.bases.loading import load_model, load_tokenizer
from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import Capacity, Engine
from studio.chat.host import AdapterSource
from studio.chat.sampling import Sampling, TokenLogprob
from studio.chat.scoring import Scoring
from studio.chat.ticket import CLOSED, Finished, Ticket, check_length
from studio.datasets.rendering import Example
from studio.errors import BaseUnavailable, InvalidInput, NotFound, StudioError
from studio.lora.files import AdapterWeights, BadAdapter, read_adapter

log = logging.getLogger(__name__)
DIED = "The process that wrote the reply died; send it again."
NO_LOSSES = "A process for each answer computes no losses of given rows; leave loss out, or set STUDIO_BACKEND=engine to use it."
BEAT_S = 0.2  # a call yields at least as often, so that one that nobody listens to is stopped
START_S, TOKENS_PER_S, LONGEST_S = 20, 20, 120  # what ZeroGPU is asked for; its own default is 60 seconds


@dataclass(frozen=True)
class Asked:
    """A request as plain data. `adapters` are (content hash, folder, weight)."""

    base: str
    quantization: str
    capacity: Capacity
    token_ids: tuple[int, ...]
    sampling: Sampling
    adapters: tuple[tuple[str, str, float], ...]
    wants_distribution: bool


@dataclass(frozen=True)
class Said:
    """A piece of a reply: text, tokens by now, and the log-probabilities of those that are new. Nothing at all is a sign of life."""

    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a reply. `distribution` is of the first token, (V,), float32, where it was asked for."""

    finished: Finished
    distribution: Any = None


@dataclass(frozen=True)
class Failed:
    """A reply that broke off: the kind of error, and a sentence."""

    kind: str
    text: str


Result = Said | Done | Failed
Results = Generator[Result, None, None]
Call = Callable[[Asked], Results]

_bases: dict[tuple[str, str], tuple[Any, Any]] = {}  # model and tokenizer by folder and form; a forked process inherits them
_engines: dict[tuple[int, str, str], Engine] = {}  # of this process alone
_forking = threading.Lock()


def seconds(asked: Asked) -> int:
    """What ZeroGPU is asked for."""
    return min(LONGEST_S, START_S + asked.sampling.max_tokens // TOKENS_PER_S)


def answer(asked: Asked) -> Results:
    """What follows a prompt, as it comes; the last one is `Done` or `Failed`. Runs in a process of its own."""
    ticket: Ticket | None = None
    try:
        engine = _engine(asked)
        parts = tuple(Part(AdapterSource(sha, partial(_read, Path(folder))), weight) for sha, folder, weight in asked.adapters)
        ticket = engine.submit(list(asked.token_ids), asked.sampling, Voice(parts), wants_distribution=asked.wants_distribution)
        yield from _pieces(ticket)
    except StudioError as error:
        yield Failed(type(error).__name__, str(error))
    except Exception as error:
        log.exception("A chat request failed.")
        yield Failed("StudioError", f"The reply stopped on an error of the studio itself ({type(error).__name__}); send it again.")
    finally:
        if ticket is not None:
            ticket.cancel()


def _pieces(ticket: Ticket) -> Results:
    """What an engine says, with a sign of life in between."""
    come, told = threading.Event(), 0
    ticket.listen(come.set)
    while True:
        if not come.wait(BEAT_S):
            yield Said(tokens=ticket.token_count)
            continue
        come.clear()
        for piece in ticket.ready():
            if piece is None:
                assert ticket.finished is not None
                yield Done(ticket.finished, None if ticket.distribution is None else ticket.distribution.numpy())
                return
            yield Said(piece.text, piece.tokens, tuple(ticket.logprobs[told : piece.told]))
            told = piece.told


def _read(folder: Path) -> AdapterWeights:
    try:
        return read_adapter(folder)
    except BadAdapter as error:
        raise NotFound(f"The files of the adapter cannot be used: {error}. Delete it and train it again.") from None


def _engine(asked: Asked) -> Engine:
    """The engine of this process, on the base that it inherited."""
    key = (os.getpid(), asked.base, asked.quantization)
    if key not in _engines:
        _engines[key] = Engine(lambda: _base(Path(asked.base), asked.quantization), asked.capacity)
    return _engines[key]


def _base(path: Path, quantization: str) -> tuple[Any, Any]:
    """Model and tokenizer, loaded once. On the CPU: a process that has touched a GPU of its own cannot be forked."""
    key = (str(path), quantization)
    if key not in _bases:
        _bases[key] = load_model(path, quantization, device="cuda" if IS_ZEROGPU else "cpu"), load_tokenizer(path)
    return _bases[key]


def forked(call: Call, asked: Asked) -> Results:
    """Run a call in a forked process, through which nothing passes but what can be pickled: what `spaces.GPU` does, without a GPU.

    Raises:
        BaseUnavailable: this system cannot fork. StudioError: the process died.
    """
    try:
        context = multiprocessing.get_context("fork")
    except ValueError:
        raise BaseUnavailable("STUDIO_BACKEND=stateless needs a system that can fork, such as Linux; set it to engine.") from None
    with _forking:  # a process that is forked meanwhile would hold this one's end open
        ours, theirs = context.Pipe()
        process = context.Process(target=_forked, args=(call, ours, theirs), daemon=True)
        process.start()
        theirs.close()
    try:
        ours.send(asked)
        while (result := ours.recv()) is not None:
            yield result
    except (EOFError, OSError):
        raise StudioError(DIED) from None
    finally:
        process.kill()  # it holds nothing that is to be kept
        process.join()
        ours.close()


def _forked(call: Call, ours: Any, theirs: Any) -> None:
    """In a new thread, as ZeroGPU does: one that has computed before the fork would wait for OpenMP's workers, which are not here."""
    ours.close()

    def run() -> None:
        for result in call(theirs.recv()):
            theirs.send(result)
        theirs.send(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    theirs.close()


def _decorated() -> Call | None:
    """`answer` as ZeroGPU runs it; None elsewhere. It must be there before the page opens."""
    if not hasattr(spaces, "GPU"):
        return None
    call: Call = spaces.GPU(answer, duration=seconds)
    return call if hasattr(call, "zerogpu") else None


_on_zerogpu = _decorated()
IS_ZEROGPU = _on_zerogpu is not None


class StatelessBackend:
    """A `Backend` whose answers come from processes that remember nothing.

    Nothing is pinned and no keys and values are kept: each turn computes its whole prompt anew.

    Args:
        path, quantization: the base, which is loaded here. capacity: `max_batch` answers are written at the same time.

    Raises:
        BaseUnavailable: it cannot be loaded.
    """

    is_local = not IS_ZEROGPU  # there the base lies where no training could use the memory

    def __init__(self, path: Path, quantization: str, capacity: Capacity) -> None:
        self._path, self._quantization = path, quantization
        model, self.tokenizer = _base(path, quantization)
        self.context = int(getattr(model.config, "max_position_embeddings", 2048))
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._capacity = Capacity(capacity.slots, capacity.slots_mb, 1, capacity.host_mb, 0, capacity.packed)
        self.call: Call = _on_zerogpu or partial(forked, answer)
        self._open: set[Ticket] = set()
        self._closed, self._door = False, threading.Lock()
        self._threads = ThreadPoolExecutor(capacity.max_batch, thread_name_prefix="chat-call")

    def submit(
        self, token_ids: list[int], sampling: Sampling, voice: Voice = BASE, user: str = "", wants_distribution: bool = False
    ) -> Ticket:
        """As of `Backend`; who comes first is answered first."""
        check_length(token_ids, sampling, self.context)
        ticket = Ticket(token_ids, sampling, voice, user, wants_distribution)
        adapters = tuple((part.source.sha256, str(part.source.folder), part.weight) for part in voice.parts)
        base = (str(self._path), self._quantization, self._capacity)
        asked = Asked(*base, tuple(token_ids), sampling, adapters, wants_distribution)
        with self._door:
            if self._closed:
                raise BaseUnavailable(CLOSED)
            self._open.add(ticket)
            # The visitor's context goes along: ZeroGPU counts the quota of the one whose request it finds there.
            self._threads.submit(contextvars.copy_context().run, self._answer, ticket, asked)
        return ticket

    def score(self, rows: Sequence[Example], voice: Voice = BASE) -> Scoring:
        """Raises InvalidInput: this backend cannot."""
        del rows, voice
        raise InvalidInput(NO_LOSSES)

    @property
    def busy(self) -> bool:
        """As of `Backend`."""
        return bool(self._open)

    def pin(self, sha256s: set[str]) -> None:
        """Nothing: no process has places to keep."""

    def prepare(self, source: AdapterSource) -> bool:
        """Nothing, as of `pin`: each call reads what it needs."""
        del source
        return True

    def close(self) -> None:
        """End all calls, and give the base back."""
        with self._door:
            self._closed = True
        self._threads.shutdown(wait=True)
        if not IS_ZEROGPU:  # which takes no base after the page has opened
            _bases.pop((str(self._path), self._quantization), None)

    def _answer(self, ticket: Ticket, asked: Asked) -> None:
        try:
            end = self._listen(ticket, asked)
        except Exception as error:  # noqa: BLE001 - the border of one request
            ticket.fail(_explained(error, seconds(asked)))
        else:
            _end(ticket, end)
        finally:
            self._open.discard(ticket)

    def _listen(self, ticket: Ticket, asked: Asked) -> Done | Failed | None:
        """Tell the ticket what the call yields; how that ends, or None where nobody wants the rest."""
        first = 0.0
        end: Done | Failed | None = None
        with closing(self.call(asked)) as results:
            # Behind its end a call is run out and not closed: by then its process may be answering somebody else.
            while end is not None or not (ticket.is_cancelled or self._closed):
                result = next(results, None)
                if result is None:
                    return end or Failed("StudioError", DIED)
                first = first or (time.perf_counter() if not isinstance(result, Said) or result.tokens else 0.0)
                if isinstance(result, Said):
                    _say(ticket, result)
                elif isinstance(result, Done):  # the first token came when it came here, behind the start of the process
                    end = replace(result, finished=replace(result.finished, ttft_ms=(first - ticket.submitted) * 1e3))
                else:
                    end = result
        return None


def _say(ticket: Ticket, said: Said) -> None:
    ticket.token_count = said.tokens
    ticket.logprobs += said.logprobs
    if said.text or said.logprobs:
        ticket.say(said.text)


def _end(ticket: Ticket, end: Done | Failed | None) -> None:
    if isinstance(end, Failed):
        ticket.fail(getattr(errors, end.kind, StudioError)(end.text))
        return
    if end is None:
        ticket.finished = Finished(ticket.token_count, len(ticket.token_ids), 0, "cancelled", 0.0, 0.0, 0.0)
        ticket.end(None if ticket.is_cancelled else BaseUnavailable(CLOSED))
        return
    if end.distribution is not None:
        ticket.distribution = torch.from_numpy(end.distribution)
    ticket.token_count, ticket.finished = end.finished.tokens, end.finished
    ticket.end()


def _explained(error: Exception, asked_s: int) -> Exception:
    """What is said of an error of the call itself; ZeroGPU's are Gradio's, with a title that tells them apart."""
    title = str(getattr(error, "title", ""))
    if isinstance(error, StudioError) or not title.startswith("ZeroGPU"):
        return error
    said = re.sub(r"<[^>]*>", "", str(getattr(error, "message", error))).strip().rstrip(".")
    if title == "ZeroGPU worker error":
        if "aborted" not in said:
            return StudioError(f"The reply stopped on an error on ZeroGPU ({said}); send it again.")
        return StudioError(f"ZeroGPU ended the reply, for which {asked_s} seconds were asked; send it again, or ask for a shorter one.")
    if "quota" in title or "credits" in title:
        return BaseUnavailable(f"ZeroGPU gives no more time for now ({said}); try again later, or sign in to Hugging Face.")
    if "duration" in title:
        return BaseUnavailable(f"ZeroGPU does not give {asked_s} seconds ({said}); ask for a shorter reply.")
    return BaseUnavailable(f"ZeroGPU has no GPU free ({said}); send it again in a minute.")
