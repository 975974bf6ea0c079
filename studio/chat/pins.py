"""Adapters that people keep ready: they lie in slots from the moment their base is resident. Knows nothing of the engine."""

import time
from collections.abc import Callable
from typing import Protocol

from storage.errors import RecordNotFound
from storage.records import AdapterRecord, BaseRecord
from storage.repositories import Pins as Records
from studio.errors import InvalidInput, NotFound


class Adapters(Protocol):
    """Where adapters are looked up."""

    def get(self, name_or_id: str) -> AdapterRecord:
        """One adapter. Raises NotFound."""


class Pins:
    """The pins of the studio; they hold after a restart.

    Args:
        records: the table. adapters: the catalog. slots: adapters that the chat computes with at once. changed: called after
            each change.
    """

    def __init__(self, records: Records, adapters: Adapters, slots: int, changed: Callable[[], None]) -> None:
        self.records, self.adapters, self.slots, self._changed = records, adapters, slots, changed

    def all(self) -> list[AdapterRecord]:
        """Whatever is pinned, the first pin first."""
        return self.records.all()

    def of(self, base: BaseRecord) -> list[AdapterRecord]:
        """What is pinned and speaks through a base."""
        return [record for record in self.all() if record.base_fingerprint == base.fingerprint]

    def pin(self, name_or_id: str) -> AdapterRecord:
        """Keep an adapter ready.

        Raises:
            NotFound. InvalidInput: as many of its base are pinned as there are slots.
        """
        record = self.adapters.get(name_or_id)
        others = [one for one in self.all() if one.base_fingerprint == record.base_fingerprint and one.id != record.id]
        if len(others) >= self.slots:
            raise InvalidInput(
                f"No more adapters can be kept ready than there are slots (STUDIO_SLOTS is {self.slots}); unpin another one first."
            )
        try:
            self.records.add(record.id, time.time())
        except RecordNotFound:
            raise NotFound(f"The adapter {record.name!r} was deleted meanwhile; choose another one.") from None
        self._changed()
        return record

    def unpin(self, name_or_id: str) -> AdapterRecord:
        """Let an adapter make room for others again. Raises NotFound."""
        record = self.adapters.get(name_or_id)
        self.records.remove(record.id)
        self._changed()
        return record
