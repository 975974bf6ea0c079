"""Who may ask: whoever has a key, and programs of this machine as long as no key was ever made."""

import math
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request

from studio.api.errors import Refusal
from studio.api.keys import Keys
from studio.settings import LOOPBACK_NAMES

FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded")  # it came from elsewhere, through a proxy
HOW = "Make one with: python -m studio key add LABEL, or set STUDIO_API_KEY, and send it as: Authorization: Bearer KEY."


class Access:
    """The door of the API.

    Args:
        keys: of the studio. host: the address that the server listens on. is_shared: whether a tunnel leads to it.
    """

    def __init__(self, keys: Keys, host: str, is_shared: bool) -> None:
        self.keys = keys
        self._is_local = host in LOOPBACK_NAMES and not is_shared

    def is_here(self, request: Request) -> bool:
        """Whether a program or a browser of this machine asks, on a server that serves nobody else."""
        return self._is_local and _is_from_here(request)

    def check(self, request: Request) -> str:
        """Who asks, for fairness: the id of a key, or nothing.

        Raises:
            Refusal: there is no key, it is wrong, or it was used too often.
        """
        if self.is_here(request) and not self.keys.exist():
            return ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refusal(401, f"A key is needed. {HOW}", code="missing_api_key")
        record = self.keys.find(key.strip())
        if record is None:
            raise Refusal(401, f"The key is wrong or was revoked. {HOW}", code="invalid_api_key")
        wait_s = math.ceil(self.keys.wait_s(record))
        if wait_s:
            text = f"The key {record.label!r} may make {record.per_minute} requests a minute; try again in {wait_s} s."
            raise Refusal(429, text, code="rate_limit_exceeded", retry_s=wait_s)
        return record.id


def _is_from_here(request: Request) -> bool:
    """Whether a program of this machine asks, and neither a proxy nor another site's page in a browser."""
    if any(name in request.headers for name in FORWARDED) or request.client is None:
        return False
    asked = [urlsplit(f"//{request.headers.get('host', '')}").hostname]
    if (origin := request.headers.get("origin")) is not None:
        asked.append(urlsplit(origin).hostname)
    return _is_loopback(request.client.host) and all(name in LOOPBACK_NAMES for name in asked)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
