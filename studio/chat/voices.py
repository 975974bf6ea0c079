"""Who is to speak, as people and programs write it: "base", an adapter, one of its revisions, or a blend of several.

wizard                     an adapter by its name or id
wizard@3f9c02              one version of this name, by the start of its SHA-256
wizard:0.7+pirate:0.3      a weighted sum; a weight goes from 0 to 2, and is 1 where left out
job:wizard@120             a training as it stood at a checkpoint (see `speakers`), also with a weight or in a sum
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage.records import AdapterRecord
from studio.chat.bank import BASE, Part, Voice
from studio.chat.host import AdapterSource
from studio.errors import InvalidInput, NotFound
from studio.lora.files import AdapterWeights

BASE_NAME = "base"
CHECKPOINT = re.compile(r"job:(?P<job>.+)@(?P<step>[0-9]{1,9})", re.DOTALL)
MAX_PARTS = 8
MAX_WEIGHT = 2.0
MIN_REVISION = 6  # characters of a content hash


@dataclass(frozen=True)
class Chosen:
    """Who speaks: adapters of the catalog with their weights; none is the base."""

    parts: tuple[tuple[AdapterRecord, float], ...] = ()

    @property
    def label(self) -> str:
        """What is written on a reply; `choose` reads it."""
        if not self.parts:
            return BASE_NAME
        if len(self.parts) == 1 and self.parts[0][1] == 1:
            return _name(self.parts[0][0])
        return "+".join(f"{_name(record)}:{weight:g}" for record, weight in self.parts)

    @property
    def adapter_id(self) -> str:
        """Of a single adapter; empty for the base and for blends."""
        return self.parts[0][0].id if len(self.parts) == 1 else ""

    @property
    def sha256(self) -> str:
        """The content hash of a single adapter, or one over all hashes and weights; empty for the base."""
        if len(self.parts) == 1 and self.parts[0][1] == 1:
            return self.parts[0][0].sha256
        text = "+".join(f"{record.sha256}:{weight!r}" for record, weight in self.parts)
        return hashlib.sha256(text.encode()).hexdigest() if text else ""

    def voice(self, read: Callable[[AdapterRecord], AdapterWeights], folder: Callable[[AdapterRecord], Path]) -> Voice:
        """What a backend is asked for. Adapters of weight 0 say nothing and are left out.

        Args:
            read, folder: an adapter's weights, and where its files are.
        """
        spoken = [(AdapterSource(r.sha256, partial(read, r), folder(r)), weight) for r, weight in self.parts if weight]
        return Voice(tuple(Part(source, weight) for source, weight in spoken)) if spoken else BASE


def _name(record: AdapterRecord) -> str:
    """What `choose` finds this very version by."""
    return record.name if record.current else f"{record.name}@{record.sha256[:12]}"


def choose(text: str, get: Callable[[str], AdapterRecord]) -> Chosen:
    """Read who is to speak.

    Args:
        get: one adapter by its name or id; raises NotFound.

    Raises:
        NotFound: with the names that there are. InvalidInput: a weight is out of bounds, or an adapter stands twice.
    """
    if text == BASE_NAME:
        return Chosen()
    try:
        return Chosen(((get(text), 1.0),))  # a name may hold any sign
    except NotFound:
        if not any(sign in text for sign in "+:@"):
            raise
    parts = tuple(_part(term.strip(), get) for term in text.split("+"))
    if len(parts) > MAX_PARTS:
        raise InvalidInput(f"The blend holds {len(parts)} adapters; leave some out, {MAX_PARTS} are possible.")
    ids = [record.id for record, _ in parts]
    if twice := next((record.name for record, _ in parts if ids.count(record.id) > 1), ""):
        raise InvalidInput(f"The adapter {twice!r} stands in the blend twice; write it once, with the sum of its weights.")
    return Chosen(parts)


def _part(term: str, get: Callable[[str], AdapterRecord]) -> tuple[AdapterRecord, float]:
    name, sign, tail = term.rpartition(":")
    weight = 1.0
    if sign:
        try:
            weight = float(tail)
        except ValueError:
            name = term
        if not 0 <= weight <= MAX_WEIGHT:
            raise InvalidInput(f"The weight of {name!r} is {tail}; choose one from 0 to {MAX_WEIGHT:g}.")
    else:
        name = term
    return _revision(name, get), weight


def _revision(name: str, get: Callable[[str], AdapterRecord]) -> AdapterRecord:
    try:
        return get(name)
    except NotFound:
        if CHECKPOINT.fullmatch(name):
            raise
        name, sign, revision = name.rpartition("@")
        if not sign:
            raise
    record = get(name)
    if len(revision) < MIN_REVISION or not record.sha256.startswith(revision.lower()):
        raise NotFound(
            f"The adapter {name!r} has no revision {revision!r}; it is at {record.sha256[:12]}. "
            f"Write at least {MIN_REVISION} characters of that, or the name alone."
        )
    return record
