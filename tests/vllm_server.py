"""A server with the endpoints, the shapes and the errors of vLLM's OpenAI server, on our own engine with a tiny base.

Written down from vLLM's documentation and source (the completions API and LoRA's dynamic loading): what a field is called, which
status an error has and how it is written, what a stream's chunks look like.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.chat.backend import load_engine
from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource, Capacity
from studio.chat.sampling import Sampling, TokenLogprob
from studio.chat.ticket import Piece, Ticket
from studio.lora.files import BadAdapter, adapter_sha256, read_adapter
from tests.browser.running import free_port

ALREADY = "The lora adapter '{}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
CONTEXT = 400  # less than the tiny base's 512
COMPLETION = {  # every field that we may name
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "stop", "stop_token_ids", "ignore_eos", "stream", "stream_options", "seed", "logprobs",
    "return_tokens_as_token_ids",
}  # fmt: skip


def refused(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


class VllmLike:
    """The server. `loaded` maps names to paths; `asked` are the bodies of completions, `said` all (path, status)."""

    def __init__(self, base: Path) -> None:
        self.engine = load_engine(base, "fp32", Capacity(slots=8, max_batch=8))
        self.reset()

    def reset(self) -> None:
        self.served, self.root, self.key, self.allows_loading, self.max_rank = "tiny", "/models/tiny", "", True, 64
        self.loaded: dict[str, Path] = {}
        self.mounted: dict[str, Path] = {}  # where folders of the server are on this machine
        self.asked: list[dict[str, Any]] = []
        self.said: list[tuple[str, int]] = []
        self.keys: list[str] = []
        self.fault, self.pause_s, self.stopped = "", 0.0, 0
        self.forgets = False

    def routes(self) -> list[Route]:
        posts = {"load_lora_adapter": self.load, "unload_lora_adapter": self.unload, "completions": self.complete}
        return [
            Route("/v1/models", self.answer(self.models)),
            *(Route(f"/v1/{n}", self.answer(h), methods=["POST"]) for n, h in posts.items()),
        ]

    def answer(self, handler: Any) -> Any:
        async def answered(request: Request) -> Response:
            self.keys.append(request.headers.get("authorization", ""))
            reply = await handler(request)
            if self.key and self.keys[-1] != f"Bearer {self.key}":
                reply = JSONResponse({"error": "Unauthorized"}, 401)
            self.said.append((request.url.path, reply.status_code))
            return reply

        return answered

    async def models(self, request: Request) -> Response:
        card = {"object": "model", "created": 1, "owned_by": "vllm"}
        cards = [{**card, "id": self.served, "root": self.root, "parent": None, "max_model_len": CONTEXT}]
        cards += [
            {**card, "id": name, "root": str(path), "parent": self.served, "max_model_len": None} for name, path in self.loaded.items()
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def load(self, request: Request) -> Response:
        if not self.allows_loading:
            return JSONResponse({"detail": "Not Found"}, 404)
        body = await request.json()
        assert set(body) == {"lora_name", "lora_path"}
        name, path = body["lora_name"], body["lora_path"]
        if not name or not path:
            return refused(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.loaded:
            return refused(400, "InvalidUserInput", ALREADY.format(name))
        folder = Path(path)
        for there, here in self.mounted.items():
            folder = here / path.removeprefix(f"{there}/") if path.startswith(f"{there}/") else folder
        try:
            weights = read_adapter(folder)
        except BadAdapter:
            return refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        if weights.rank > self.max_rank:
            return refused(500, "InternalServerError", f"LoRA rank {weights.rank} is greater than max_lora_rank {self.max_rank}.")
        if not self.forgets:
            self.loaded[name] = folder
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.loaded:
            return refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        assert set(body) <= COMPLETION and body["stream"]
        self.asked.append(body)
        model = body["model"]
        if self.fault in ("400", "500"):
            return refused(int(self.fault), "BadRequestError", "max_tokens is too large.")
        if model != self.served and model not in self.loaded:
            return refused(404, "NotFoundError", f"The model `{model}` does not exist.")
        voice = BASE
        if model != self.served:
            folder = self.loaded[model]
            voice = Voice((Part(AdapterSource(adapter_sha256(folder), lambda: read_adapter(folder))),))
        ticket = self.engine.submit(body["prompt"], _sampling(body), voice)
        return StreamingResponse(self.events(body, ticket), media_type="text/event-stream")

    async def events(self, body: dict[str, Any], ticket: Ticket) -> AsyncIterator[bytes]:
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        told, said, is_over = 0, 0, False
        try:
            async for piece in _come(ticket):
                await asyncio.sleep(60 if self.fault == "silence" else self.pause_s)
                if self.fault and said >= 6:
                    if self.fault == "event":
                        yield _event({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}})
                        yield b"data: [DONE]\n\n"
                    is_over = True
                    if self.fault == "cut":
                        raise ConnectionResetError
                    return
                if piece is not None:
                    choice = _choice(piece.text, ticket.logprobs[told : piece.told], body)
                    yield _event({**head, **choice, "usage": _usage(ticket, piece.tokens)})
                    told, said = piece.told, piece.tokens
            is_over, done = True, ticket.finished
            assert done is not None
            ended = {"finish_reason": done.reason, "stop_reason": body["stop"][0] if done.reason == "stop" and body["stop"] else None}
            yield _event({**head, **_choice("", [], body, **ended), "usage": _usage(ticket, done.tokens)})
            details = {"prompt_tokens_details": {"cached_tokens": done.reused_tokens}}
            yield _event({**head, "choices": [], "usage": {**_usage(ticket, done.tokens), **details}})
            yield b"data: [DONE]\n\n"
        finally:
            self.stopped += not is_over
            ticket.cancel()


async def _come(ticket: Ticket) -> AsyncIterator[Piece | None]:
    loop, come = asyncio.get_running_loop(), asyncio.Event()
    ticket.listen(lambda: loop.call_soon_threadsafe(come.set))
    while True:
        await come.wait()
        come.clear()
        for piece in ticket.ready():
            if piece is None:
                return
            yield piece


def _sampling(body: dict[str, Any]) -> Sampling:
    assert (body["min_p"], body["repetition_penalty"]) == (0, 1) and (body["ignore_eos"] or body["stop_token_ids"] == [1])
    same = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "ignore_eos")
    assert body["top_k"] == -1 or body["top_k"] >= 1
    drawn = {"top_k": max(0, body["top_k"]), "seed": body.get("seed"), "stop": tuple(body["stop"]), "logprobs": body.get("logprobs")}
    return Sampling(**{name: body[name] for name in same}, **drawn)


def _choice(text: str, said: list[TokenLogprob], body: dict[str, Any], **more: Any) -> dict[str, Any]:
    told = None
    if "logprobs" in body:
        assert body["return_tokens_as_token_ids"]
        told = {
            "text_offset": [0] * len(said),
            "tokens": [f"token_id:{one.token_id}" for one in said],
            "token_logprobs": [one.logprob for one in said],
            "top_logprobs": [{f"token_id:{i}": p for i, p in [(one.token_id, one.logprob), *one.top]} for one in said],
        }
    return {"choices": [{"index": 0, "text": text, "logprobs": told, "finish_reason": None, "stop_reason": None, **more}]}


def _usage(ticket: Ticket, tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": len(ticket.token_ids), "completion_tokens": tokens, "total_tokens": len(ticket.token_ids) + tokens}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


@contextlib.contextmanager
def vllm_serving(like: VllmLike) -> Iterator[str]:
    """Serve it on loopback; gives its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=like.routes()), port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
