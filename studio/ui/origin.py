"""Refuse what another site's page asks for in a visitor's browser.

Gradio allows every Origin, with credentials, as soon as the Host is not this machine's own name, as it is in a local
network or behind a tunnel. A page of the studio itself has the Host as its Origin; programs send no Origin at all.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# Here Gradio is strict itself, and a proxy on the same machine may ask under this Host for pages of another name.
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1"})  # noqa: S104


class SameOrigin:
    """ASGI middleware: 403 for a request whose Origin is another host than the one that was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and is_foreign(Headers(scope=scope)):
            refusal = PlainTextResponse("The studio answers its own page only.", status_code=403)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)


def is_foreign(headers: Headers) -> bool:
    """Whether a browser sent this for a page of another host."""
    origin = headers.get("origin")
    host = (headers.get("x-forwarded-host") or headers.get("host", "")).split(",")[0].strip()  # the first proxy's is the visitor's
    if origin is None or _name(host) in OWN_NAMES:
        return False
    return urlsplit(origin).netloc.lower() != host.lower()


def _name(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""
