"""Finished adapters. They appear when their files are complete, and leave with their files."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage import files
from storage.errors import DuplicateName, RecordNotFound
from storage.records import AdapterRecord, BaseRecord
from storage.repositories import Adapters
from studio.errors import IncompatibleAdapter, InvalidInput, NameTaken, NotFound
from studio.lora.files import AdapterWeights, BadAdapter, adapter_sha256, read_adapter, read_revision
from studio.names import checked_name, listed, looks
from studio.quota import Room, unlimited
from studio.training.run import LINEAGE_FILE

MIN_REVISION = 6  # characters of a content hash
NAMES_TOLD = 9


@dataclass(frozen=True)
class Added:
    """An adapter as it is in the catalog now, and sentences about what was adapted, left out or could not be known."""

    record: AdapterRecord
    notices: list[str]


class AdapterCatalog:
    """Adapters under one folder, each in a folder named by its id.

    Args:
        records: the table. folder: where adapters are kept. has_room: is asked before one is added.
    """

    def __init__(self, records: Adapters, folder: Path, has_room: Room = unlimited) -> None:
        self.records, self.folder, self.has_room = records, folder, has_room
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[AdapterRecord]:
        """All adapters, newest first."""
        return self.records.all()

    def get(self, name_or_id: str) -> AdapterRecord:
        """One adapter: by its name, which stands for its current version, by its id, or by NAME@ and the start of a SHA-256.

        Raises:
            NotFound: with the names that there are.
        """
        try:
            return self.records.get(name_or_id)
        except RecordNotFound:
            name, _, revision = name_or_id.rpartition("@")
            if name and len(revision) >= MIN_REVISION:
                for record in self.records.versions(name):
                    if record.sha256.startswith(revision.lower()):
                        return record
            raise NotFound(f"There is no adapter named {name_or_id!r}; there are {listed(self.records.names(NAMES_TOLD))}.") from None

    def path(self, record: AdapterRecord) -> Path:
        """The folder with PEFT's two files."""
        return self.folder / record.id

    def read(self, record: AdapterRecord) -> AdapterWeights:
        """The adapter's weights, of the very content that its record names.

        Raises:
            NotFound: its files are gone, broken, or others by now; the record stays, so that they can be restored from a backup.
        """
        try:
            return read_revision(self.path(record), record.sha256)
        except BadAdapter as error:
            how = "Restore them from a backup, or delete it and train it again."
            raise NotFound(f"The files of adapter {record.name!r} cannot be used: {error}. {how}") from None

    def free_name(self, name: str) -> str:
        """The name for a new adapter, as it will be written.

        Raises:
            InvalidInput: it is not usable. NameTaken: an adapter has it, or one that looks the same.
        """
        clean = checked_name("adapter", name)
        look = looks(clean)
        for name in self.records.names():
            if name == clean:
                raise NameTaken(f"There is already an adapter named {clean!r}; choose another name.")
            if looks(name) == look and name.casefold() != clean.casefold():
                raise NameTaken(f"The name {clean!r} looks like that of the adapter {name!r}; choose one that can be told from it.")
        return clean

    def place(self, name: str, as_version_of: str) -> tuple[str, AdapterRecord | None]:
        """The name of a new adapter, and the one of which it is the next version, if it is to be one.

        Raises:
            InvalidInput. NameTaken: as `free_name`. NotFound: there is none to be a version of.
        """
        if not as_version_of:
            return self.free_name(name), None
        head = self.get(as_version_of)
        return head.name, head

    def add(self, draft: AdapterRecord, fill: Callable[[Path], None], head: AdapterRecord | None = None) -> AdapterRecord:
        """Publish an adapter that was not trained here: its folder appears complete or not at all, then it is listed.

        Args:
            draft: the record but for what the files say. fill: writes PEFT's two files into an empty folder. head: the adapter of whose
                name it is the next version, and the current one from now on; None where its name is its own.

        Raises:
            NameTaken. NotFound: the head is gone. InvalidInput: the head is of another base, or what was written is no adapter that can be
            used. OutOfSpace: it would be more than the studio may keep. OSError: the disk is full.
        """
        self.has_room("another adapter", draft.size_bytes)
        if head is not None:
            check_version(draft.name, draft.base_fingerprint, head)
        target = self.path(draft)
        lineage: dict[str, Any] = {
            "name": draft.name,
            "base_fingerprint": draft.base_fingerprint,
            "code_version": draft.code_version,
            "config": draft.config,
        }
        lineage |= {"origin": draft.origin, "source": draft.source, "parents": draft.parents}
        try:
            with files.publish_folder(target) as partial:
                fill(partial)
                (partial / LINEAGE_FILE).write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")
                read_adapter(partial)
            record = replace(draft, sha256=adapter_sha256(target), size_bytes=files.size_of(target))
            return self.records.add(record) if head is None else self.records.add_version(record, head.id)
        except BadAdapter as error:
            raise InvalidInput(f"The adapter {draft.name!r} cannot be used: {error}. Make it anew.") from None
        except DuplicateName:
            files.remove_folder(target)
            raise NameTaken(f"There is already an adapter named {draft.name!r}; choose another name.") from None
        except RecordNotFound:
            files.remove_folder(target)
            raise NotFound(f"The adapter {draft.name!r} was deleted meanwhile; give the new one a name of its own.") from None
        except BaseException:
            files.remove_folder(target)
            raise

    def rename(self, name_or_id: str, new_name: str) -> AdapterRecord:
        """Change an adapter's name; its files stay where they are.

        Raises:
            NotFound. NameTaken. InvalidInput: the new name is not usable.
        """
        record, name = self.get(name_or_id), checked_name("adapter", new_name)
        try:
            return self.records.rename(record.id, name)
        except DuplicateName:
            raise NameTaken(f"There is already an adapter named {name!r}; choose another name.") from None

    def remove(self, name_or_id: str) -> AdapterRecord:
        """Delete an adapter: first it is not listed any more, then its files go."""
        record = self.get(name_or_id)
        self.records.remove(record.id)
        files.remove_folder(self.path(record))
        return record


def check_base(record: AdapterRecord, base: BaseRecord) -> None:
    """Make sure that the adapter was trained on this very base.

    Raises:
        IncompatibleAdapter: its fingerprint is another's.
    """
    if record.base_fingerprint != base.fingerprint:
        raise IncompatibleAdapter(
            f"The adapter {record.name!r} was trained on another base than the resident {base.name!r}; "
            "make its own base resident, or choose an adapter of this one."
        )


def check_version(name: str, fingerprint: str, head: AdapterRecord) -> None:
    """Make sure that a new adapter can be a version of another's name.

    Raises:
        InvalidInput: it is of another base.
    """
    if fingerprint != head.base_fingerprint:
        raise InvalidInput(f"The adapter {name!r} is of another base than {head.name!r}; versions of a name share their base.")
