"""The addresses of the API, in front of which stands `Access`.

Each request: who asks, then what is asked, then the answer. All refusals are OpenAI's JSON, whatever went wrong.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from storage.records import AdapterRecord, BaseRecord
from studio.api.access import Access
from studio.api.asked import Asked, AskedChat, AskedText
from studio.api.errors import RETRY_S, Refusal, refusal
from studio.api.speaking import Answers, EventStream, Gone, while_here
from studio.chat.voices import BASE_NAME
from studio.errors import BaseUnavailable, NotFound, StudioError
from studio.services import Studio

log = logging.getLogger(__name__)
MAX_BODY = 8 << 20  # bytes; no context is as long
MAX_OPEN = 256  # requests that are answered or wait for it
HUNG_UP = 499  # nobody reads it; proxies write this number into their logs
ADDRESSES = "GET /v1/models, POST /v1/chat/completions and POST /v1/completions"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")  # a wrong one is told in a sentence too
Handler = Callable[[Request, str], Awaitable[Response]]


def routes(studio: Studio, access: Access) -> list[Route]:
    """What is added to a server's routes."""
    api = _Api(studio)
    handlers: list[tuple[str, str, Handler]] = [
        ("/v1/models", "GET", api.models),
        ("/v1/models/{model:path}", "GET", api.model),
        ("/v1/chat/completions", "POST", api.chat),
        ("/v1/completions", "POST", api.complete),
    ]
    ways = [Route(path, _guarded(access, method, handler), methods=METHODS) for path, method, handler in handlers]
    return [*ways, Route("/v1/{rest:path}", _nothing, methods=METHODS)]


class _Api:
    """What is answered once it is clear who asks."""

    def __init__(self, studio: Studio) -> None:
        self._studio, self._open = studio, set[Answers]()

    async def models(self, request: Request, user: str) -> Response:  # noqa: ARG002
        """Who can speak through the resident base."""
        return JSONResponse({"object": "list", "data": await run_in_threadpool(self._list)})

    async def model(self, request: Request, user: str) -> Response:  # noqa: ARG002
        """One of them; a blend or a revision too."""
        return JSONResponse(await run_in_threadpool(self._show, request.path_params["model"]))

    async def chat(self, request: Request, user: str) -> Response:
        """An answer to a conversation."""
        return await self._answer(request, AskedChat.read(await _body(request)), user)

    async def complete(self, request: Request, user: str) -> Response:
        """What follows a text."""
        return await self._answer(request, AskedText.read(await _body(request)), user)

    async def _answer(self, request: Request, asked: Asked, user: str) -> Response:
        if len(self._open) >= MAX_OPEN:
            raise Refusal(503, f"{MAX_OPEN} requests are being answered; try again in a while.", code="overloaded", retry_s=RETRY_S)
        answers, response = Answers(self._studio, asked, user), None
        self._open.add(answers)
        try:
            await while_here(request, answers.begin())
            if asked.stream:
                response = EventStream(answers, self._end)
                return response
            return JSONResponse(await while_here(request, answers.whole()))
        finally:
            if response is None:
                self._end(answers)

    def _end(self, answers: Answers) -> None:
        """However it went, nothing is computed for these any more."""
        answers.cancel()
        self._open.discard(answers)

    def _list(self) -> list[dict[str, Any]]:
        base = self._base()
        return [_base_model(base), *(_adapter_model(record, base) for record in self._studio.adapters_of(base))]

    def _show(self, name: str) -> dict[str, Any]:
        base = self._base()
        chosen = self._studio.chat.choose(name, base)
        if name == BASE_NAME:
            return _base_model(base)
        newest = max(record.created_at for record, _ in chosen.parts)
        return {**_model(name, newest), "parent": base.name, "adapter_sha256": chosen.sha256}

    def _base(self) -> BaseRecord:
        try:
            return self._studio.default_base()
        except NotFound as error:
            raise BaseUnavailable(str(error)) from None


def _guarded(access: Access, method: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            if request.method != method:
                raise Refusal(405, f"This address takes {method} alone; there are {ADDRESSES}.", code="method_not_allowed")
            return await handler(request, await run_in_threadpool(access.check, request))
        except Refusal as refused:
            return refused.response
        except StudioError as error:
            return refusal(error).response
        except (Gone, ClientDisconnect):
            return Response(status_code=HUNG_UP)
        except Exception:
            log.exception("A request to %s failed.", request.url.path)
            return Refusal(500, "The request failed on an error of the studio itself; its log says more.", code="server_error").response

    return guarded


async def _nothing(request: Request) -> Response:
    text = f"There is nothing at {request.url.path}; there are {ADDRESSES}."
    return Refusal(404, text, code="unknown_url").response


async def _body(request: Request) -> bytes:
    """The body, as far as it may be long.

    Raises:
        Refusal: it is longer. ClientDisconnect: the client hung up.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refusal(413, f"The body is longer than {MAX_BODY >> 20} MB; shorten it.", code="body_too_long")
    return bytes(body)


def _model(name: str, created_at: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_at), "owned_by": "studio"}


def _base_model(base: BaseRecord) -> dict[str, Any]:
    return {**_model(BASE_NAME, base.created_at), "root": base.name}


def _adapter_model(record: AdapterRecord, base: BaseRecord) -> dict[str, Any]:
    return {**_model(record.name, record.created_at), "parent": base.name, "adapter_sha256": record.sha256}
