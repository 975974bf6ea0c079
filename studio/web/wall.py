"""What every request passes before the page or the API sees it: by which name it asks, for whose page, how often and how much.

Gradio's own checks are not enough here. It allows every Origin, with credentials, as soon as the Host is not this machine's own name,
and takes bodies of any size at any pace. Whatever is refused is one sentence of plain text.
"""

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.settings import LOOPBACK_NAMES, Settings, on_space

ANY = "*"
READING = frozenset({"GET", "HEAD", "OPTIONS"})
FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded")  # a proxy passed it on
MAX_BODY = 16 << 20  # bytes; a paste into a box is the longest of what is not an upload
UPLOAD, FILES_AT_ONCE = "/gradio_api/upload", 4
BODY_GRACE_S, LEAST_BYTES_PER_S = 20.0, 4096  # slower than a modem is somebody who wants to hold a connection
MAX_BUCKETS = 10_000
# Whatever Gradio draws is its own or inline; pictures that a name, a message or a card points to elsewhere are never asked for.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors {frames}"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Rules:
    """What the wall lets through.

    Args:
        hosts: names that the studio answers to besides this machine's own; `*.example.org` is every name below, `*` every name. Pages
            of those that are spelled out may ask too, since a proxy may call the studio by another name than a visitor does.
        max_upload_bytes: of one file. per_minute: requests of one address that are no mere reading; 0 is no limit.
        frames: sites that may show the page in a frame.
    """

    hosts: tuple[str, ...] = ()
    max_upload_bytes: int = 1 << 30
    per_minute: int = 0
    frames: tuple[str, ...] = ()

    def most_bytes(self, path: str) -> int:
        """Of a body."""
        return FILES_AT_ONCE * self.max_upload_bytes + MAX_BODY if path.endswith(UPLOAD) else MAX_BODY


def rules_of(settings: Settings) -> Rules:
    """The rules that the settings and the platform ask for. The Hub shows a Space in a frame."""
    frames = ("https://huggingface.co", "https://*.hf.space") if on_space() else ()
    return Rules(settings.host_names, settings.max_upload_bytes, settings.requests_per_minute, frames)


class Wall:
    """ASGI middleware.

    Args:
        app: what it stands before. rules: see `Rules`. seen: is told the method and the status of each answer.
        clock: seconds that never go back.
    """

    def __init__(
        self, app: ASGIApp, rules: Rules, seen: Callable[[str, int], None] = lambda *_: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app, self.rules, self._seen, self._clock = app, rules, seen, clock
        self._paces = Paces(rules.per_minute, clock)
        self._headers = {**HEADERS, "content-security-policy": POLICY.format(frames=" ".join(("'self'", *rules.frames)))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if (refused := self._refusal(scope)) is None and scope["type"] == "http":
            await self._pass(scope, receive, self._with_headers(scope, send))
        elif refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await refused(scope, receive, self._with_headers(scope, send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        name = _name(headers.get("host", ""))
        if not is_named(name, self.rules.hosts):
            # It is not repeated: whoever sees it was led here by somebody else's name.
            return PlainTextResponse(
                "The studio does not answer to this name; whoever runs it can add it to STUDIO_HOSTS.", status_code=400
            )
        if is_foreign(headers, self.rules.hosts):
            return PlainTextResponse("The studio answers its own page only.", status_code=403)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return PlainTextResponse("The length of the request is no number.", status_code=400)
        if int(length) > self.rules.most_bytes(scope["path"]):
            return _too_large(self.rules.most_bytes(scope["path"]))
        if scope["type"] == "http" and scope["method"] not in READING and (wait_s := self._paces.wait_s(_address(scope, headers))):
            text = f"More than {self.rules.per_minute} requests came from this address within a minute; try again in {wait_s} s."
            return PlainTextResponse(text, status_code=429, headers={"retry-after": str(wait_s)})
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its body as it comes; what the application says of one that was cut off is not sent."""
        headers = Headers(scope=scope)
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:  # such as a stream that stays open for hours
            await self.app(scope, receive, send)
            return
        body = _Body(receive, self.rules.most_bytes(scope["path"]), self._clock)
        begun = False

        async def send_unless_cut(message: Message) -> None:
            nonlocal begun
            if begun or body.refused is None:
                begun = True
                await send(message)

        try:
            await self.app(scope, body.receive, send_unless_cut)
        except Exception:
            if body.refused is None:  # else it stumbled over a body that was cut off
                raise
        if body.refused is not None and not begun:
            await body.refused(scope, receive, send)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._seen(scope["method"], message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        return with_headers


class _Body:
    """A request's body on its way in. `refused` is the answer where it is too large or too slow; the application then hears that
    its client is gone."""

    def __init__(self, receive: Receive, most_bytes: int, clock: Callable[[], float]) -> None:
        self._receive, self._most, self._clock = receive, most_bytes, clock
        self._began, self._bytes, self._is_whole = clock(), 0, False
        self.refused: Response | None = None

    async def receive(self) -> Message:
        """The next piece; after the last one, what the server says next, however long that takes."""
        if self.refused is not None:
            return {"type": "http.disconnect"}
        if self._is_whole:
            return await self._receive()
        left_s = BODY_GRACE_S + self._bytes / LEAST_BYTES_PER_S - (self._clock() - self._began)
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):  # in this very task: an application may look whether something came and go on
                message = await self._receive()
        except TimeoutError:
            self.refused = PlainTextResponse("The request came too slowly; send it again over a better connection.", status_code=408)
            return {"type": "http.disconnect"}
        self._bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._bytes > self._most:
            self.refused = _too_large(self._most)
            return {"type": "http.disconnect"}
        return message


class Paces:
    """How often addresses may ask: a minute's requests at once, and then as many as come back in time.

    Args:
        per_minute: requests; 0 is no limit. clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by address: (requests, seconds)

    def wait_s(self, address: str) -> int:
        """Count one request; seconds until it may be made, 0 where it may be made now. The empty address is free."""
        if not self._per_minute or not address:
            return 0
        with self._lock:
            now, rate = self._clock(), self._per_minute / 60
            left, at = self._left.pop(address, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - at) * rate)
            allowed = left >= 1
            self._left[address] = (left - 1 if allowed else left, now)
            while len(self._left) > MAX_BUCKETS:  # whoever was silent for the longest has his minute again
                self._left.popitem(last=False)
            return 0 if allowed else math.ceil((1 - left) / rate)


def is_named(name: str, hosts: tuple[str, ...]) -> bool:
    """Whether the studio answers to a name: a browser that was led to this machine by somebody else's says that one."""
    below = (host[1:] for host in hosts if host.startswith("*."))
    return name in LOOPBACK_NAMES or name in hosts or ANY in hosts or any(name.endswith(end) for end in below)


def is_foreign(headers: Headers, hosts: tuple[str, ...] = ()) -> bool:
    """Whether a browser sent this for a page of another host. Programs send no Origin at all."""
    origin = headers.get("origin")
    if origin is None:
        return False
    asked = (headers.get("x-forwarded-host") or headers.get("host", "")).split(",")[0].strip()  # the first proxy's is the visitor's
    return origin.partition("://")[2].lower() != asked.lower() and _name(origin.partition("://")[2]) not in hosts


def _address(scope: Scope, headers: Headers) -> str:
    """Who is counted: an address of IPv4, or the network that a subscriber of IPv6 has. Programs of this machine are not."""
    client = (scope.get("client") or ("", 0))[0]
    try:
        address = ip_address(client)
    except ValueError:
        return client or "unknown"
    if address.is_loopback and not any(name in headers for name in FORWARDED):
        return ""
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else str(address)


def _too_large(most_bytes: int) -> Response:
    text = f"The request is larger than {most_bytes / 2**20:,.0f} MB; send files one by one, or raise STUDIO_MAX_UPLOAD_BYTES."
    return PlainTextResponse(text, status_code=413, headers={"connection": "close"})


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
