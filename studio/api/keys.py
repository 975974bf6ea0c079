"""The rules of keys: made once and shown once, found by their first characters, held to a number of requests a minute."""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from storage.api_keys import ApiKeys
from storage.errors import RecordNotFound
from storage.records import ApiKeyRecord
from studio.errors import InvalidInput, NotFound
from studio.names import checked_name, listed

PREFIX = "sk-studio-"
SECRET_BYTES = 32
SHOWN = len(PREFIX) + 4  # the rest has more than 200 bits that nobody sees
MAX_PER_MINUTE = 1_000_000
NOTED_EVERY_S = 60.0  # a key that is used all the time is not a write to the database each time
MAX_BUCKETS = 10_000
ENVIRONMENT = "environment"  # the label and id of the key that STUDIO_API_KEY holds


@dataclass
class _Bucket:
    """Requests that a key may still make at a time, in seconds."""

    left: float
    at: float


class Keys:
    """The keys of one studio.

    Args:
        records: the table. clock: seconds that never go back. now: seconds since 1970. secret: one more key, of the environment;
            empty is none.
    """

    def __init__(
        self,
        records: ApiKeys,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        secret: str = "",
    ) -> None:
        self._records, self._clock, self._now = records, clock, now
        self._own = ApiKeyRecord(ENVIRONMENT, ENVIRONMENT, _hash(secret), "", 0, 0.0) if secret else None
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}
        self._any = False

    def make(self, label: str, per_minute: int = 0) -> tuple[str, ApiKeyRecord]:
        """A new key, which nobody can be told again, and what is kept of it.

        Args:
            label: who has it. per_minute: requests; 0 is no limit.

        Raises:
            InvalidInput: the label is not usable, or the limit is out of bounds.
        """
        if not 0 <= per_minute <= MAX_PER_MINUTE:
            raise InvalidInput(f"The limit is {per_minute} requests a minute; choose one from 0, for none, to {MAX_PER_MINUTE}.")
        key = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        name = checked_name("key", label)
        return key, self._records.add(ApiKeyRecord(secrets.token_hex(16), name, _hash(key), key[:SHOWN], per_minute, self._now()))

    def all(self) -> list[ApiKeyRecord]:
        """All keys, revoked ones too, newest first."""
        return self._records.all()

    def revoke(self, key: str) -> ApiKeyRecord:
        """End a key.

        Args:
            key: its id, or the first characters that are shown.

        Raises:
            NotFound: with the keys that there are.
        """
        usable = self._records.starting(key)
        try:
            return self._records.revoke(usable[0].id if len(usable) == 1 else key, self._now())
        except RecordNotFound:
            there = listed([record.start for record in self.all() if record.revoked_at is None])
            raise NotFound(f"There is no key {key!r}; there are {there}. Name it by its id or by these characters.") from None

    def exist(self) -> bool:
        """Whether a key was ever made; a revoked one counts, and that of the environment."""
        self._any = self._any or self._own is not None or not self._records.is_empty()
        return self._any

    def find(self, key: str) -> ApiKeyRecord | None:
        """What is kept of a key, or None where it is wrong or revoked. Takes as long for one that is nearly right."""
        digest, found = _hash(key), None
        if self._own is not None and hmac.compare_digest(self._own.sha256, digest):
            return self._own
        for record in self._records.starting(key[:SHOWN]):
            if hmac.compare_digest(record.sha256, digest):
                found = record
        if found is not None and self._now() - (found.last_used_at or 0.0) > NOTED_EVERY_S:
            self._records.used(found.id, self._now())
        return found

    def wait_s(self, record: ApiKeyRecord) -> float:
        """Count a request; 0 where it may be made, or the seconds until one may.

        A token bucket that holds a minute's requests, so that a minute may be used up at once.
        """
        if not record.per_minute:
            return 0.0
        with self._lock:
            now, rate = self._clock(), record.per_minute / 60
            bucket = self._buckets.get(record.id)
            if bucket is None:
                self._forget_old(now)
                bucket = self._buckets[record.id] = _Bucket(record.per_minute, now)
            bucket.left, bucket.at = min(record.per_minute, bucket.left + (now - bucket.at) * rate), now
            if bucket.left < 1:
                return (1 - bucket.left) / rate
            bucket.left -= 1
            return 0.0

    def _forget_old(self, now: float) -> None:
        """Buckets are full again after a minute."""
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets = {key_id: bucket for key_id, bucket in self._buckets.items() if now - bucket.at < 60}


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
