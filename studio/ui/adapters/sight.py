"""What one looks for in the Adapters tab, as a short text that the address holds. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qsl, urlencode

from storage.catalog import SORTS, Search
from storage.shelf import ARCHIVED, LISTED

PAGE = 24  # adapters
MOST_PAGES = 40
GALLERY, TABLE = "gallery", "table"
LONGEST = 300  # characters of one thing that is looked for


@dataclass(frozen=True)
class Sight:
    """What is looked for, and how it is shown. All are texts, as they stand in the address; what is empty does not matter."""

    text: str = ""
    tag: str = ""
    base: str = ""
    dataset: str = ""
    kind: str = ""
    origin: str = ""
    collection: str = ""
    favourite: str = ""
    archived: str = ""
    rank_from: str = ""
    rank_to: str = ""
    loss_from: str = ""
    loss_to: str = ""
    sort: str = ""
    view: str = ""
    pages: str = ""

    @classmethod
    def read(cls, text: str) -> "Sight":
        """What an address says; what it does not know is left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value[:LONGEST] for key, value in parse_qsl(text[:4000]) if key in known})

    def __str__(self) -> str:
        return urlencode({field.name: value for field in fields(self) if (value := getattr(self, field.name))})

    @property
    def search(self) -> Search:
        """The question to the catalog."""
        return Search(
            text=self.text,
            tags=(self.tag,) if self.tag else (),
            base=self.base,
            dataset=self.dataset,
            kind=self.kind,
            origin=self.origin,
            collection=self.collection,
            favourite=bool(self.favourite),
            ranks=(_number(self.rank_from), _number(self.rank_to)),
            losses=(_number(self.loss_from), _number(self.loss_to)),
            state=ARCHIVED if self.archived else LISTED,
            sort=self.sort if self.sort in SORTS else "newest",
        )

    @property
    def shown(self) -> int:
        """How many adapters are shown."""
        return PAGE * min(MOST_PAGES, int(self.pages) if self.pages.isdecimal() and len(self.pages) < 4 else 1)

    @property
    def is_narrow(self) -> bool:
        """Whether anything is left out that is listed."""
        return replace(self, sort="", view="", pages="") != Sight()

    def turned(self, kind: str, value: str) -> "Sight":
        """After a click or a choice; what is another question begins at its first page."""
        if kind in TURNS:
            return TURNS[kind](self)
        if kind not in {field.name for field in fields(self)}:
            return self
        return replace(self, **{kind: value[:LONGEST], "pages": ""})


def _more(sight: Sight) -> Sight:
    return replace(sight, pages=str(sight.shown // PAGE + 1))


TURNS: dict[str, Callable[[Sight], Sight]] = {
    "more": _more,
    "favourites": lambda sight: replace(sight, favourite="" if sight.favourite else "1", pages=""),
    "archive-view": lambda sight: replace(sight, archived="" if sight.archived else "1", pages=""),
    "gallery": lambda sight: replace(sight, view=""),
    "table": lambda sight: replace(sight, view=TABLE),
    "clear": lambda sight: Sight(sort=sight.sort, view=sight.view),
}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None
