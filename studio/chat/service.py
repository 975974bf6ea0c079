"""What people and programs say to the chat: messages and an adapter's name in, a stamped reply out."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from storage.records import AdapterRecord, BaseRecord
from studio.adapters.catalog import check_base
from studio.bases.catalog import BaseCatalog
from studio.chat.backend import Backend, Load
from studio.chat.bank import Voice
from studio.chat.probe import Probe, compare
from studio.chat.sampling import Sampling
from studio.chat.scoring import Scoring
from studio.chat.speakers import Speakers
from studio.chat.stamp import Stamp
from studio.chat.ticket import CLOSED, Finished, Ticket
from studio.chat.tokens import TokenTexts
from studio.chat.voices import BASE_NAME, Chosen, choose
from studio.datasets.rendering import Example, prompt_ids
from studio.errors import BaseUnavailable, DatabaseUnavailable, InvalidInput, StudioError

log = logging.getLogger(__name__)
NOTHING_TO_ANSWER = "There is no message to answer; type one."

# Turns of {role, content}, the last one the user's; or a text that is continued, without a chat template; or its tokens.
Prompt = list[dict[str, str]] | str | list[int]


@dataclass(frozen=True)
class Reply:
    """One whole answer."""

    text: str
    stamp: Stamp


class Stream:
    """An answer on its way: iterate for pieces of text, then read `stamp`. `texts` tells what its tokens stand for."""

    def __init__(self, ticket: Ticket, chosen: Chosen, base: BaseRecord, texts: TokenTexts) -> None:
        self.ticket, self.texts, self._chosen, self._base = ticket, texts, chosen, base

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self.ticket
        finally:
            self.cancel()  # whoever stops listening, such as a browser that is gone, frees the row

    def cancel(self) -> None:
        """Stop soon; what was said so far stands."""
        self.ticket.cancel()

    @property
    def stamp(self) -> Stamp:
        """There once the stream has ended."""
        assert self.ticket.finished is not None
        return self.stamp_so_far()

    def stamp_so_far(self, reason: str = "") -> Stamp:
        """Who speaks, with what was measured until now.

        Args:
            reason: why the stream ends, where that is known better than by the engine.
        """
        who, ticket = self._chosen, self.ticket
        done = ticket.finished or Finished(ticket.token_count, len(ticket.token_ids), 0, "failed", 0.0, 0.0, 0.0)
        return Stamp(
            who.label, who.adapter_id, who.sha256, self._base.name, done.swap_ms, done.ttft_ms, done.tokens, done.tokens_per_s,
            reason or done.reason, done.prompt_tokens, done.reused_tokens,
        )  # fmt: skip


class Chat:
    """The resident base and everything that speaks through it.

    Args:
        bases: the catalog. adapters: who can speak. load: puts a backend on a base, such as `backend_of` of the settings.
        pinned: the adapters of a base that are to be kept ready.

    `watch` is called with each request that is over, from the engine's thread.
    """

    watch: Callable[[Ticket], None] = staticmethod(lambda _: None)

    def __init__(self, bases: BaseCatalog, adapters: Speakers, load: Load, pinned: Callable[[BaseRecord], Sequence[AdapterRecord]]) -> None:
        self.bases, self.adapters, self._load = bases, adapters, load
        self._pinned, self._ready = pinned, frozenset[str]()  # content hashes that the backend was told
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._base: BaseRecord | None = None
        self._put_aside: tuple[BaseRecord, str] | None = None
        self._is_closed = False

    @property
    def aside(self) -> str:
        """Why the base is put aside; empty where it is not."""
        return self._put_aside[1] if self._put_aside else ""

    def put_aside(self, why: str) -> bool:
        """Give back the memory of the resident base until `bring_back`; False where somebody is being answered.

        Args:
            why: a clause for who asks meanwhile, such as that something else needs the memory.
        """
        with self._lock:
            base = self._base
            if not self._unload():
                return False
            self._put_aside = (base, why) if base is not None else self._put_aside
            return True

    def unload(self) -> bool:
        """Give back the memory of the resident base until somebody asks something; False where somebody is being answered."""
        with self._lock:
            return self._unload()

    def bring_back(self) -> None:
        """Load the base that was put aside.

        Raises:
            BaseUnavailable: it cannot be loaded any more.
        """
        with self._lock:
            aside, self._put_aside = self._put_aside, None
        if aside is not None:
            self.make_resident(aside[0])

    @property
    def base(self) -> BaseRecord | None:
        """The resident base, if one is loaded."""
        return self._base

    @property
    def takes_memory(self) -> bool:
        """Whether a base is loaded on this machine."""
        backend = self._backend
        return backend is not None and backend.is_local

    def make_resident(self, base: BaseRecord) -> Backend:
        """Load a base unless it is the resident one already; another's requests end with a plain error.

        Raises:
            BaseUnavailable: it cannot be loaded, or is put aside.
        """
        with self._lock:
            if self._is_closed:
                raise BaseUnavailable(CLOSED)
            if self._put_aside is not None:
                raise BaseUnavailable(
                    f"The chat's base is put aside while {self._put_aside[1]}; it comes back by itself when that is over."
                )
            if self._backend is None or self._base is None or self._base.id != base.id:
                self._drop()
                self._backend = self._load(base, self.bases.path(base))
                self._base = base
            self._keep_ready(self._backend, base)
            return self._backend

    def keep_ready(self) -> None:
        """Give slots to what is pinned by now, where a base is resident."""
        with self._lock:
            if self._backend is not None and self._base is not None:
                self._keep_ready(self._backend, self._base)

    def _keep_ready(self, backend: Backend, base: BaseRecord) -> None:
        """Another program may have pinned something, or deleted what was."""
        try:
            records = self._pinned(base)
        except DatabaseUnavailable as error:
            log.warning("What is pinned stays as it was: %s", error)
            return
        wanted, before = frozenset(record.sha256 for record in records), self._ready
        if wanted == before:
            return
        backend.pin(set(wanted))
        self._ready = wanted
        for record in (record for record in records if record.sha256 not in before):
            [part] = Chosen(((record, 1.0),)).voice(self.adapters.read, self.adapters.path).parts
            try:
                if not backend.prepare(part.source):
                    log.info("Every slot is in use; %s gets one when it is asked.", record.name)
            except StudioError as error:
                log.warning("The pinned adapter %s is not ready: %s", record.name, error)

    def stream(self, messages: list[dict[str, str]], adapter: str, base: BaseRecord, sampling: Sampling, user: str = "") -> Stream:
        """Start an answer to a conversation.

        Args:
            messages: turns of {role, content}, the last one the user's. adapter: who speaks, as `voices` reads it.
            base: the one that is to be resident. user: for fairness among many.

        Raises:
            NotFound. IncompatibleAdapter: it was trained on another base. InvalidInput: no message, or too long.
        """
        [stream] = self.answers(messages, adapter, base, sampling, user)
        return stream

    def answers(
        self, prompt: Prompt, adapter: str, base: BaseRecord, sampling: Sampling, user: str = "", count: int = 1, fit: bool = False
    ) -> list[Stream]:
        """Start several answers to one prompt, which are decoded together.

        Args:
            prompt: see `Prompt`. sampling: where it has a seed, each answer after the first has the next one.
            fit: make max_tokens smaller where the context has less left. The others are as in `stream`.

        Raises:
            As `stream`.
        """
        chosen, backend, token_ids = self._asked(prompt, adapter, base)
        if fit:
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, backend.context - len(token_ids))))
        voice, seed = self._voice(chosen), sampling.seed
        drawn = [sampling if seed is None else replace(sampling, seed=(seed + place) % 2**63) for place in range(count)]
        texts = TokenTexts(backend.tokenizer)
        tickets = [backend.submit(token_ids, one, voice, user) for one in drawn]
        for ticket in tickets:
            ticket.when_over(self.watch)
        return [Stream(ticket, chosen, base, texts) for ticket in tickets]

    def score(self, rows: Sequence[Example], adapter: str, base: BaseRecord) -> Scoring:
        """Start to compute the losses of rows under a voice, between the answers to those who chat.

        Raises:
            NotFound. IncompatibleAdapter. ContextTooLong: a row does not fit. InvalidInput: the backend cannot.
        """
        chosen = self.choose(adapter, base)
        return self.make_resident(base).score(rows, self._voice(chosen))

    def choose(self, adapter: str, base: BaseRecord) -> Chosen:
        """Who is to speak on a base.

        Raises:
            NotFound. IncompatibleAdapter: one was trained on another base. InvalidInput: see `voices.choose`.
        """
        chosen = choose(adapter, self.adapters.get)
        for record, _ in chosen.parts:
            check_base(record, base)
        return chosen

    def reply(self, messages: list[dict[str, str]], adapter: str, base: BaseRecord, sampling: Sampling) -> Reply:
        """Wait for a whole answer. Raises as `stream` does."""
        stream = self.stream(messages, adapter, base, sampling)
        text = "".join(stream)
        return Reply(text, stream.stamp)

    def probe(self, messages: list[dict[str, str]], adapter: str, base: BaseRecord) -> Probe:
        """What a voice makes of the first token of a reply, compared with the base. Raises as `stream` does."""
        one = Sampling(max_tokens=1, temperature=0.0)
        chosen, backend, ids = self._asked(messages, adapter, base)
        voices = (choose(BASE_NAME, self.adapters.get), chosen)
        tickets = [backend.submit(ids, one, self._voice(who), wants_distribution=True) for who in voices]
        for ticket in tickets:
            ticket.text()
        without, with_it = (ticket.distribution for ticket in tickets)
        assert without is not None and with_it is not None  # a request that failed has raised
        return Probe(chosen.label, chosen.sha256, *compare(without, with_it, lambda token: str(backend.tokenizer.decode([token]))))

    def _asked(self, prompt: Prompt, adapter: str, base: BaseRecord) -> tuple[Chosen, Backend, list[int]]:
        """Who is to speak, through which backend, and the prompt's tokens."""
        chosen = self.choose(adapter, base)
        backend = self.make_resident(base)
        return chosen, backend, _tokens(prompt, backend)

    def _voice(self, chosen: Chosen) -> Voice:
        return chosen.voice(self.adapters.read, self.adapters.path)

    def close(self) -> None:
        """End the backend for good: who is being answered hears a plain error, and so does whoever asks later."""
        self._is_closed = True
        with self._lock:
            self._drop()

    def _unload(self) -> bool:
        if self._backend is not None and self._backend.busy:
            return False
        self._drop()
        return True

    def _drop(self) -> None:
        if self._backend is not None:
            self._backend.close()
        self._backend, self._base, self._ready = None, None, frozenset()


def _tokens(prompt: Prompt, backend: Backend) -> list[int]:
    """A prompt as tokens.

    Raises:
        InvalidInput: it says nothing, or holds a token that the base does not know; and as `prompt_ids`.
    """
    if isinstance(prompt, str):
        token_ids: list[int] = backend.tokenizer(prompt)["input_ids"]
    elif prompt and isinstance(prompt[0], dict):
        turns: Any = prompt
        if turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
            raise InvalidInput(NOTHING_TO_ANSWER)
        return prompt_ids(backend.tokenizer, turns)
    else:
        token_ids = [token for token in prompt if isinstance(token, int)]
    known = backend.vocabulary
    if unknown := next((token for token in token_ids if not 0 <= token < known), None):
        raise InvalidInput(f"The prompt holds the token {unknown}, but this base knows the tokens 0 to {known - 1}.")
    if not token_ids:
        raise InvalidInput(NOTHING_TO_ANSWER)
    return token_ids
