"""Finding adapters again, and what people write on them: tags, collections, a card, a licence, versions. Names are resolved here."""

import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from storage.catalog import SORTS, Catalog, Found, Key, Search
from storage.records import AdapterRecord, BaseRecord, DatasetRecord
from storage.repositories import Bases, Datasets
from studio.adapters.cards import full_card
from studio.adapters.catalog import AdapterCatalog, check_version
from studio.errors import InvalidInput

MAX_TAG, MAX_TAGS = 40, 30
MAX_COLLECTION, MAX_COLLECTIONS = 80, 30
MAX_CARD = 200_000  # characters
MAX_LICENCE = 80


class Finder:
    """Questions to the catalog, and changes of what is written on an adapter.

    Args:
        index: the questions; what it lacks is added to it now. adapters: the catalog itself. bases, datasets: what cards tell of.

    Every name may be an id, or NAME@ and the start of a SHA-256.
    """

    def __init__(self, index: Catalog, adapters: AdapterCatalog, bases: Bases, datasets: Datasets) -> None:
        self.index, self.adapters, self.bases, self.datasets = index, adapters, bases, datasets
        index.catch_up()

    def page(self, search: Search, limit: int, after: Key | None = None) -> Found:
        """Some adapters in the order that is asked for; `after` is where the page before ended.

        Raises:
            InvalidInput: there is no such order.
        """
        if search.sort not in SORTS:
            raise InvalidInput(f"The order {search.sort!r} is not known; choose {', '.join(SORTS)}.")
        return self.index.page(search, limit, after)

    def count(self, search: Search) -> int:
        """How many there are, up to `storage.catalog.MOST_COUNTED`."""
        return self.index.count(search)

    def facets(self, state: str) -> dict[str, list[tuple[str, int]]]:
        """See `Catalog.facets`."""
        return self.index.facets(state)

    def children(self, record: AdapterRecord, most: int) -> list[AdapterRecord]:
        """Adapters that were made of this one."""
        return self.index.page(Search(parent=record.id), most).records

    def voices(self, fingerprint: str, most: int | None = None) -> list[AdapterRecord]:
        """Those of a base that are listed: favourites first, then the newest."""
        return self.index.with_base(fingerprint, most)

    def versions(self, record: AdapterRecord) -> list[AdapterRecord]:
        """All versions of its name, newest first."""
        return self.adapters.records.versions(record.name)

    def base_of(self, record: AdapterRecord) -> BaseRecord | None:
        """Its base, while that is there."""
        return self.bases.find(record.base_id)

    def dataset_of(self, record: AdapterRecord) -> DatasetRecord | None:
        """The version of the dataset that it learned from, while that is there."""
        return self.datasets.find(record.dataset_id) if record.dataset_id else None

    def card(self, name: str) -> str:
        """Its card with the metadata, as it stands in a repository of the Hub. Raises NotFound."""
        record = self.adapters.get(name)
        return full_card(record, self.base_of(record), self.dataset_of(record))

    # Changes

    def tag(self, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> AdapterRecord:
        """Put tags on an adapter, and take others off.

        Raises:
            NotFound. InvalidInput: a tag is too long, holds a comma or what cannot be seen, or there are too many.
        """
        record, gone = self.adapters.get(name), {checked_tag(tag) for tag in remove}
        return self.set_tags(record.id, [*(tag for tag in record.tags if tag not in gone), *add])

    def set_tags(self, name: str, tags: Iterable[str]) -> AdapterRecord:
        """Let it have these tags and no others. Raises as `tag`."""
        checked = list(dict.fromkeys(checked_tag(tag) for tag in tags))
        if len(checked) > MAX_TAGS:
            raise InvalidInput(f"The adapter has {len(checked)} tags; leave some out, {MAX_TAGS} are possible.")
        return self.adapters.records.change(self.adapters.get(name).id, tags=checked)

    def collect(self, name: str, collections: Iterable[str]) -> AdapterRecord:
        """Put it into these collections and no others; one that nothing is in is no more.

        Raises:
            NotFound. InvalidInput: a name is not usable, or there are too many.
        """
        checked = list(dict.fromkeys(_checked("collection", name, MAX_COLLECTION) for name in collections))
        if len(checked) > MAX_COLLECTIONS:
            raise InvalidInput(f"The adapter is in {len(checked)} collections; leave some out, {MAX_COLLECTIONS} are possible.")
        return self.adapters.records.change(self.adapters.get(name).id, collections=checked)

    def favourite(self, name: str, on: bool = True) -> AdapterRecord:
        """Make it a favourite, or none. Raises NotFound."""
        return self.adapters.records.change(self.adapters.get(name).id, favourite=on)

    def archive(self, name: str, on: bool = True) -> AdapterRecord:
        """Take it out of the lists and of the chat's voices, or put it back; it can still be opened by its name. Raises NotFound."""
        record = self.adapters.get(name)
        return record if (record.archived_at is not None) == on else self._archived(record, on)

    def _archived(self, record: AdapterRecord, on: bool) -> AdapterRecord:
        return self.adapters.records.change(record.id, archived_at=time.time() if on else None)

    def write_card(self, name: str, text: str, licence: str | None = None) -> AdapterRecord:
        """Keep a card in Markdown; an empty one is made from what is known. What is known always stands before it, so a block
        of metadata at its top is left out.

        Raises:
            NotFound. InvalidInput: the card or the licence is too long.
        """
        body = without_metadata(text).strip()
        if len(body) > MAX_CARD:
            raise InvalidInput(f"The card has {len(body):,} characters; shorten it to {MAX_CARD:,}.")
        values = {"card": body}
        if licence is not None:
            values["licence"] = _checked("licence", licence, MAX_LICENCE) if licence.strip() else ""
        return self.adapters.records.change(self.adapters.get(name).id, **values)

    # Versions

    def make_version(self, name: str, of: str) -> AdapterRecord:
        """Make an adapter the next version of another one's name, which then stands for it.

        Raises:
            NotFound. InvalidInput: it has that name already, or is of another base.
        """
        record, head = self.adapters.get(name), self.adapters.get(of)
        if record.name == head.name:
            raise InvalidInput(f"The adapter {record.name!r} is a version of that name already; make it the current one instead.")
        check_version(record.name, record.base_fingerprint, head)
        return self.adapters.records.follow(record.id, head.name)

    def make_current(self, name: str) -> AdapterRecord:
        """Let its name stand for this version. Raises NotFound."""
        return self.adapters.records.make_current(self.adapters.get(name).id)


def checked_tag(tag: str) -> str:
    """A tag as it is kept: in small letters.

    Raises:
        InvalidInput: it is empty, too long, holds a comma or what cannot be seen.
    """
    return _checked("tag", tag.casefold(), MAX_TAG)


def _checked(what: str, text: str, longest: int) -> str:
    clean = " ".join(unicodedata.normalize("NFC", text).split())
    if not clean or len(clean) > longest:
        raise InvalidInput(f"The {what} {clean[:longest]!r} has {len(clean)} characters; write 1 to {longest}.")
    if "," in clean or any(unicodedata.category(char).startswith("C") for char in clean):
        raise InvalidInput(f"The {what} {clean!r} holds a comma or a character that cannot be seen; write it without.")
    return clean


def without_metadata(text: str) -> str:
    """Markdown without the block of YAML that it may begin with."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return text
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    return text if end is None else "\n".join(lines[end + 1 :])


def read_card(path: Path) -> str:
    """A card from a file.

    Raises:
        InvalidInput: it cannot be read, or is no text.
    """
    try:
        if path.stat().st_size > 4 * MAX_CARD:
            raise InvalidInput(f"The file {path.name!r} is too large for a card; shorten it to {MAX_CARD:,} characters.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"The file {path.name!r} is no text in UTF-8; save it as such.") from None
    except OSError as error:
        raise InvalidInput(f"The file {path.name!r} cannot be read: {error.strerror}.") from None
