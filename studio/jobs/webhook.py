"""Tells a webhook what jobs have come to: JSON, signed, and tried again until it is taken or a day is over.

An entry is told at least once: a teller that dies after the webhook answered tells it again, under the same id.
"""

import asyncio
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
import orjson

from storage import files
from storage.errors import DatabaseUnavailable
from storage.outbox import Outbox
from storage.records import NotificationRecord
from studio.errors import StudioError

TIMEOUT_S = 10.0
LEASE_S = 60.0  # far longer than a try may take
POLL_S = 1.0
# Seconds to the next try, after the first try, the second and so on: 12 tries in 22 hours.
DELAYS_S = tuple(5 * 2.5**number for number in range(11))
GONE = 410
KEPT_S = 14 * 24 * 3600.0  # entries that were sent or given up
PRUNE_EVERY_S = 3600.0
log = logging.getLogger(__name__)


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """What the header X-Studio-Signature says of a body that is sent at a timestamp."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """Delivers the entries of an outbox, in a thread of its own.

    Args:
        outbox: the entries. url, secret: where they go and what signs them. delays_s: between the tries of an entry.
    """

    def __init__(self, outbox: Outbox, url: str, secret: str, delays_s: Sequence[float] = DELAYS_S) -> None:
        self.outbox, self._url, self._secret, self.delays_s = outbox, url, secret, delays_s
        self.host = urlsplit(url).hostname or ""  # an address may hold a secret, so only its host is ever told
        self.owner = files.new_id()
        self._pruned = float("-inf")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Deliver until `stop`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Deliver what is due, within one try's time, and end; the rest waits in the outbox."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT_S + 1)

    def deliver_one(self) -> bool:
        """Try the entry that has been due for longest; False where none is due."""
        entry = self.outbox.take(self.owner, time.time(), LEASE_S)
        if entry is None:
            return False
        status, problem = self._post(entry)
        now = time.time()
        if not problem:
            self.outbox.sent(entry, now)
        elif status == GONE or entry.tries > len(self.delays_s):
            log.warning("Notification %s is given up: %s", entry.id, problem)
            self.outbox.give_up(entry, problem, now)
        else:
            log.info("Notification %s is tried again: %s", entry.id, problem)
            self.outbox.put_off(entry, now + self.delays_s[entry.tries - 1], problem)
        return True

    def _run(self) -> None:
        until = float("inf")
        while time.monotonic() < until:
            delivered = False
            try:
                delivered = self.deliver_one()
                self._prune_where_due()
            except (StudioError, DatabaseUnavailable):
                log.exception("The webhook's outbox cannot be read; it is tried again.")
            if self._stopping.is_set():
                until = min(until, time.monotonic() + TIMEOUT_S)
                if not delivered:
                    return
            if not delivered:
                self._stopping.wait(POLL_S)

    def _prune_where_due(self) -> None:
        if time.monotonic() - self._pruned > PRUNE_EVERY_S:
            self._pruned = time.monotonic()
            self.outbox.prune(time.time() - KEPT_S)

    def _post(self, entry: NotificationRecord) -> tuple[int, str]:
        """The status of the answer, 0 where there is none, and what is wrong with it, in a sentence."""
        body, timestamp = orjson.dumps(entry.body), str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "adapter-studio",
            "X-Studio-Delivery": entry.id,
            "X-Studio-Timestamp": timestamp,
            "X-Studio-Signature": sign(self._secret, timestamp, body),
        }
        try:
            status = asyncio.run(self._send(body, headers))
        except TimeoutError:
            return 0, f"The webhook at {self.host} did not answer within {TIMEOUT_S:.0f} seconds."
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return 0, f"The webhook at {self.host} could not be reached ({type(error).__name__})."
        if 200 <= status < 300:
            return status, ""
        if 300 <= status < 400:
            return status, f"The webhook at {self.host} answered {status}; name the address that it leads to, since none is followed."
        return status, f"The webhook at {self.host} answered {status}."

    async def _send(self, body: bytes, headers: dict[str, str]) -> int:
        # httpx counts its timeouts anew with each byte that comes; this one bounds the whole try.
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream("POST", self._url, content=body, headers=headers) as answer,
        ):
            return answer.status_code
