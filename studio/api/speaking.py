"""Answers on their way to a client: no thread waits for them, and a client that is gone frees their rows at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from studio.api.asked import Asked
from studio.api.errors import refusal
from studio.api.replies import Choice, Form
from studio.chat.service import Stream
from studio.errors import BaseUnavailable, NotFound, StudioError
from studio.services import Studio

DONE = b"data: [DONE]\n\n"
Made = TypeVar("Made")


class Gone(Exception):
    """The client has hung up."""


class Answers:
    """All answers to one request.

    Args:
        studio: who answers. asked: the request. user: for fairness.
    """

    def __init__(self, studio: Studio, asked: Asked, user: str) -> None:
        self._studio, self._asked, self._user = studio, asked, user
        self._streams: list[Stream] = []
        self._is_cancelled = False
        self._form = Form(asked)
        self._choices: list[Choice] = []
        self._come = asyncio.Event()

    async def begin(self) -> None:
        """Submit, and wait until there is something to say: whatever goes wrong up to there can still have a status of HTTP.

        Raises:
            StudioError, Refusal: the request cannot be answered, in words for its sender.
        """
        await run_in_threadpool(self._submit)
        self._choices = [Choice(index, stream.texts) for index, stream in enumerate(self._streams)]
        loop = asyncio.get_running_loop()

        def heard() -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._come.set)

        self._come.clear()
        for stream in self._streams:
            stream.ticket.listen(heard)
        self._pieces = self._listen()
        self._first = await anext(self._pieces)

    def cancel(self) -> None:
        """Nobody wants the rest. Safe at any time, from any thread."""
        self._is_cancelled = True
        for stream in list(self._streams):
            stream.cancel()

    async def whole(self) -> dict[str, Any]:
        """The reply, when all is said.

        Raises:
            StudioError: an answer failed.
        """
        first, text, _ = self._first
        first.text += text
        async for choice, text, _ in self._pieces:
            choice.text += text
        for choice in self._choices:
            choice.said = self._streams[choice.index].ticket.logprobs
        return self._form.whole(self._choices)

    async def events(self) -> AsyncIterator[bytes]:
        """Events of a stream, the last one [DONE]. What goes wrong from now on is an event too."""
        try:
            for chunk in self._form.opening(self._choices):
                yield _event(chunk)
            told = [0] * len(self._choices)
            yield _event(self._chunk(*self._first, told))
            async for choice, text, known in self._pieces:
                yield _event(self._chunk(choice, text, known, told))
            for chunk in self._form.usage(self._choices):
                yield _event(chunk)
        except StudioError as error:
            yield _event(refusal(error).body)
        finally:
            self.cancel()
        yield DONE

    def _submit(self) -> None:
        asked, chat = self._asked, self._studio.chat
        sampling = asked.sampling
        try:
            base = self._studio.default_base()
        except NotFound as error:
            raise BaseUnavailable(str(error)) from None
        for prompt in asked.prompts:
            user = self._user or asked.user
            fit = asked.wished_tokens is None
            self._streams += chat.answers(prompt, asked.model, base, sampling, user, asked.n, fit)
            if self._is_cancelled:
                self.cancel()
                return

    async def _listen(self) -> AsyncIterator[tuple[Choice, str, int]]:
        """Pieces of any answer, with the number of its log-probabilities by then; after the last one its stamp is there."""
        left = list(self._choices)
        while left:
            await self._come.wait()
            self._come.clear()
            for choice in list(left):
                stream = self._streams[choice.index]
                for piece in stream.ticket.ready():
                    if piece is None:
                        left.remove(choice)
                        choice.stamp = stream.stamp
                        yield choice, "", 0
                    else:
                        yield choice, piece.text, piece.told

    def _chunk(self, choice: Choice, text: str, known: int, told: list[int]) -> dict[str, Any]:
        if choice.stamp is not None:
            return self._form.end(choice)
        said = self._streams[choice.index].ticket.logprobs[told[choice.index] : known]
        told[choice.index] = known
        return self._form.piece(choice, text, said)


class EventStream(StreamingResponse):
    """Answers as server-sent events; `ended` is called however it ends."""

    def __init__(self, answers: Answers, ended: Callable[[Answers], None]) -> None:
        super().__init__(answers.events(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._answers, self._ended = answers, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is, as long as the client listens."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended(self._answers)


async def while_here(request: Request, work: Coroutine[Any, Any, Made]) -> Made:
    """Do something for a client unless it hangs up first.

    Args:
        request: whose body was read.

    Raises:
        Gone: it did; the work is cancelled. Else what `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
