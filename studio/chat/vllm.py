"""The chat's base on a vLLM server, for those who outgrow one machine.

Prompts are written by the studio's own tokenizer and chat template and sent as tokens to the completions endpoint, so that what is
asked of the base is what our own engine would ask. An adapter is loaded there when somebody first speaks with it, under the hash of
its content, so that a name never stands for other weights; the least recently used one is unloaded above a number of them. What vLLM
does not serve (DoRA, prefixes, blends, weights other than 1, all of a distribution) is refused.

One thread of its own talks to the server for everybody. Times and rates are those that are seen from here.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from storage.records import BaseRecord
from studio.bases.loading import empty_model, load_tokenizer
from studio.chat.bank import BASE, Voice
from studio.chat.engine import end_ids
from studio.chat.host import AdapterSource
from studio.chat.sampling import Sampling, TokenLogprob
from studio.chat.scoring import Scoring
from studio.chat.ticket import CLOSED, Finished, Ticket, check_length
from studio.chat.vllm_server import NotLoaded, VllmServer
from studio.datasets.rendering import Example
from studio.errors import BaseUnavailable, InvalidInput

GENERATION_CONFIG = "generation_config.json"
OURS = "set STUDIO_BACKEND=engine to use it"
TOKEN = "token_id:"  # noqa: S105 - what stands before a token's number
ENDS = ("stop", "length")
NO_LOSSES = f"A vLLM server is not asked for the losses of given rows; leave loss out, or {OURS}."


@dataclass(frozen=True)
class Folders:
    """Where adapters are. home: the studio's; there: what that is to the server, such as in a container; empty for the same path."""

    home: Path
    there: str = ""

    def path(self, folder: Path) -> str:
        """A folder of ours, as the server sees it."""
        return f"{self.there.rstrip('/')}/{folder.relative_to(self.home).as_posix()}" if self.there else str(folder)


@dataclass(eq=False)
class _Place:
    """An adapter that the server has, or is to have."""

    users: int = 0
    is_loaded: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServedAdapters:
    """The adapters that a server has because we asked for them. Owned by one event loop.

    Args:
        folders: where their files are. limit: above so many the least recently used one that nobody uses is unloaded.
    """

    def __init__(self, server: VllmServer, folders: Folders, limit: int) -> None:
        self.server, self.folders, self.limit = server, folders, limit
        self.pinned: set[str] = set()
        self._places: OrderedDict[str, _Place] = OrderedDict()  # least recently used first

    @property
    def loaded(self) -> list[str]:
        """Their content hashes."""
        return [sha256 for sha256, place in self._places.items() if place.is_loaded]

    async def acquire(self, client: httpx.AsyncClient, source: AdapterSource) -> None:
        """Have an adapter loaded, and keep it until `release`.

        Raises:
            StudioError: it cannot be read, or not be served.
        """
        place = self._places.setdefault(source.sha256, _Place())
        self._places.move_to_end(source.sha256)
        place.users += 1
        try:
            async with place.lock:
                if not place.is_loaded:
                    await self._load(client, source)
                    place.is_loaded = True
        except BaseException:
            self.release(source.sha256)
            raise

    def release(self, sha256: str) -> None:
        """One user less; it stays loaded until its place is needed."""
        place = self._places[sha256]
        place.users -= 1
        if not place.users and not place.is_loaded:
            del self._places[sha256]

    def forget(self, sha256: str) -> None:
        """The server does not have it any more."""
        self._places[sha256].is_loaded = False

    async def _load(self, client: httpx.AsyncClient, source: AdapterSource) -> None:
        weights = await asyncio.to_thread(source.load)
        if weights.kind != "lora":
            kind = "DoRA" if weights.kind == "dora" else "prefix"
            raise InvalidInput(f"vLLM serves LoRA adapters, and this one is a {kind} adapter; {OURS}.")
        while len(self.loaded) >= self.limit and await self._unload_one(client):
            pass
        await self.server.load(client, source.sha256, self.folders.path(source.folder))

    async def _unload_one(self, client: httpx.AsyncClient) -> bool:
        """Unload the least recently used that nobody uses; False where there is none."""
        idle = (one for one in self.loaded if not self._places[one].users and one not in self.pinned)
        if (sha256 := next(idle, None)) is None:
            return False
        place = self._places[sha256]
        async with place.lock:  # whoever wants it meanwhile waits, and loads it again
            await self.server.unload(client, sha256)
            place.is_loaded = False
        if not place.users:
            del self._places[sha256]
        return True


@dataclass
class _Answer:
    """What was measured of a reply until now. Times are of `time.perf_counter`."""

    ticket: Ticket
    swap_ms: float = 0.0
    first: float = 0.0
    cached: int = 0
    reason: str = ""

    def finished(self, reason: str) -> Finished:
        ticket, count = self.ticket, self.ticket.token_count
        seconds = time.perf_counter() - self.first if self.first else 0.0
        rate = (count - 1) / seconds if count > 1 and seconds else 0.0
        ttft_ms = (self.first - ticket.submitted) * 1e3 if self.first else 0.0
        return Finished(count, len(ticket.token_ids), self.cached, reason, self.swap_ms, ttft_ms, rate)

    def add(self, chunk: dict[str, Any]) -> None:
        """Say what a chunk of the stream brings."""
        ticket, usage = self.ticket, chunk.get("usage") or {}
        for choice in chunk["choices"]:
            self.first = self.first or time.perf_counter()
            self.reason = choice.get("finish_reason") or self.reason
            ended_by_token = self.reason == "stop" and not isinstance(choice.get("stop_reason"), str)
            ticket.logprobs += _logprobs(choice.get("logprobs"), ticket.sampling.logprobs or 0, ended_by_token)
            ticket.token_count = usage.get("completion_tokens", ticket.token_count + 1)
            if choice["text"] or ticket.sampling.logprobs is not None:
                ticket.say(choice["text"])
        self.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or self.cached


class VllmBackend:
    """A `Backend` that asks a vLLM server.

    Args:
        server: its endpoints. base, path: the base, and its folder with tokenizer and template. model: what the base is called there;
            empty finds it by its name or its folder. folders: where adapters are. limit: adapters that are loaded there at once.

    Raises:
        BaseUnavailable: the server does not answer, does not take us, serves another base, or loads no adapters.
    """

    is_local = False

    def __init__(self, server: VllmServer, base: BaseRecord, path: Path, model: str, folders: Folders, limit: int) -> None:
        self.server = server
        card = _card_of(server, base, model)
        server.check_loading()
        self._model = str(card["id"])
        self.tokenizer = load_tokenizer(path, base.name)
        shape = empty_model(path)
        self.vocabulary = int(shape.get_input_embeddings().weight.shape[0])
        known = int(getattr(shape.config, "max_position_embeddings", 2048))
        self.context = min(known, int(card.get("max_model_len") or known))
        self._end_ids = sorted(_end_ids(shape, path, self.tokenizer))
        self.adapters = ServedAdapters(server, folders, limit)
        self._open: set[Ticket] = set()
        self._tasks: dict[Ticket, asyncio.Task[Finished]] = {}
        self._closed, self._door = False, threading.Lock()  # between those who submit and the thread's end
        begun: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(begun)), name="chat-vllm", daemon=True)
        self._thread.start()
        begun.result()

    def submit(
        self, token_ids: list[int], sampling: Sampling, voice: Voice = BASE, user: str = "", wants_distribution: bool = False
    ) -> Ticket:
        """As of `Backend`; who is answered first is the server's choice."""
        check_length(token_ids, sampling, self.context)
        if len(voice.parts) > 1 or any(part.weight != 1 for part in voice.parts):
            raise InvalidInput(f"vLLM serves no blends, and adapters at weight 1 alone, which this voice is not; {OURS}.")
        if wants_distribution:
            raise InvalidInput(f"vLLM does not tell the probability of every token, which this measure needs; {OURS}.")
        ticket = Ticket(token_ids, sampling, voice, user, _wake=lambda: self._tell(self._stop, ticket))
        with self._door:
            if self._closed:
                raise BaseUnavailable(CLOSED)
            self._open.add(ticket)
            self._loop.call_soon_threadsafe(self._begin, ticket)
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
        """These stay loaded once they are."""
        self.adapters.pinned = set(sha256s)

    def prepare(self, source: AdapterSource) -> bool:
        """Have it loaded on the server. Raises as of `Backend`."""

        async def work() -> None:
            await self.adapters.acquire(self._client, source)
            self.adapters.release(source.sha256)

        asyncio.run_coroutine_threadsafe(work(), self._loop).result()
        return True

    def close(self) -> None:
        """End the thread. Adapters stay loaded on the server."""
        with self._door:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _serve(self, begun: "Future[None]") -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        async with self.server.client() as self._client:
            begun.set_result(None)
            await self._closing.wait()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _tell(self, work: Any, ticket: Ticket) -> None:
        with self._door:
            if not self._closed:
                self._loop.call_soon_threadsafe(work, ticket)

    def _begin(self, ticket: Ticket) -> None:
        answer = _Answer(ticket)
        task = self._tasks[ticket] = asyncio.create_task(self._answer(answer))
        task.add_done_callback(partial(self._ended, answer))

    def _stop(self, ticket: Ticket) -> None:
        if ticket in self._tasks:
            self._tasks[ticket].cancel()  # which closes the connection, and so the server stops too

    def _ended(self, answer: _Answer, task: "asyncio.Task[Finished]") -> None:
        """However it ended, its owner is told."""
        ticket = answer.ticket
        del self._tasks[ticket]
        self._open.discard(ticket)
        if task.cancelled():
            ticket.finished = answer.finished("cancelled")
            ticket.end(None if ticket.is_cancelled else BaseUnavailable(CLOSED))
        elif (error := task.exception()) is not None:
            ticket.fail(error)
        else:
            ticket.finished = task.result()
            ticket.end()

    async def _answer(self, answer: _Answer) -> Finished:
        source = next((part.source for part in answer.ticket.voice.parts), None)
        if source is None:
            return await self._listen(answer, self._model)
        for _ in range(2):  # a server that was started anew has lost its adapters
            asked = time.perf_counter()
            await self.adapters.acquire(self._client, source)
            answer.swap_ms += (time.perf_counter() - asked) * 1e3
            try:
                return await self._listen(answer, source.sha256)
            except NotLoaded:
                self.adapters.forget(source.sha256)
            finally:
                self.adapters.release(source.sha256)
        raise BaseUnavailable(f"{self.server.name} forgets the adapter as soon as it is loaded; its log may say why.")

    async def _listen(self, answer: _Answer, model: str) -> Finished:
        """Ask, and say what comes."""
        body = request_body(answer.ticket, model, self._end_ids)
        try:
            async for chunk in self.server.complete(self._client, body):
                answer.add(chunk)
        except NotLoaded:
            if model != self._model:
                raise
            raise BaseUnavailable(f"{self.server.name} does not serve {model!r} any more; start it with this base.") from None
        if answer.reason not in ENDS:
            raise self.server.lost()
        return answer.finished(answer.reason)


def request_body(ticket: Ticket, model: str, stop_ids: list[int]) -> dict[str, Any]:
    """What vLLM is asked for a ticket.

    Each option is named, since the server fills in what is left out from the base's generation_config.json.

    Args:
        stop_ids: tokens that end a reply.
    """
    wanted = ticket.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": ticket.token_ids,
        "max_tokens": wanted.max_tokens,
        "temperature": 0.0 if wanted.is_greedy else wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "stop": list(wanted.stop),
        "stop_token_ids": [] if wanted.ignore_eos else stop_ids,
        "ignore_eos": wanted.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if wanted.seed is not None:
        body["seed"] = wanted.seed
    if wanted.logprobs is not None:
        body |= {"logprobs": wanted.logprobs, "return_tokens_as_token_ids": True}
    return body


def _card_of(server: VllmServer, base: BaseRecord, model: str) -> dict[str, Any]:
    """The base among what the server serves.

    Raises:
        BaseUnavailable: it is not there.
    """
    cards = [card for card in server.models() if not card.get("parent")]
    wanted = {model} if model else {base.name.lower(), base.id}
    for card in cards:
        names = {str(card.get("id"))} if model else {_last(card.get("id")), _last(card.get("root"))}
        if wanted & names:
            return card
    served = " and ".join(repr(str(card.get("id"))) for card in cards) or "no base"
    if model:
        raise BaseUnavailable(f"{server.name} serves {served}, not the {model!r} of STUDIO_VLLM_MODEL; set it to what is served.")
    raise BaseUnavailable(
        f"{server.name} serves {served}, and the chat's base is {base.name!r}; start it with that base, "
        "or set STUDIO_VLLM_MODEL to its name there if it is the same."
    )


def _last(name: Any) -> str:
    return str(name or "").rstrip("/").rpartition("/")[2].lower()


def _end_ids(shape: Any, path: Path, tokenizer: Any) -> set[int]:
    """As our own engine ends replies: by the generation config's tokens and the tokenizer's."""
    from transformers import GenerationConfig

    if (path / GENERATION_CONFIG).is_file():
        shape.generation_config = GenerationConfig.from_pretrained(str(path))
    return end_ids(shape, tokenizer)


def _logprobs(told: dict[str, Any] | None, count: int, ended_by_token: bool) -> list[TokenLogprob]:
    """Of the tokens of a chunk; the token that ends a reply is no part of its text.

    Args:
        told: vLLM's, whose tokens are `token_id:NUMBER`; it adds the drawn token to the likeliest ones.
    """
    if not told:
        return []
    found = []
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        pairs = sorted(((_token(name), value) for name, value in (top or {}).items()), key=lambda pair: -pair[1])
        found.append(TokenLogprob(_token(token), logprob, tuple(pairs[:count])))
    return found[:-1] if ended_by_token else found


def _token(name: str) -> int:
    if not name.startswith(TOKEN):
        raise BaseUnavailable("The vLLM server does not tell tokens by their numbers; use version 0.6.3 or a newer one.")
    return int(name.removeprefix(TOKEN))
