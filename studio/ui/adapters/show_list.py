"""The list of adapters as HTML: filters, a gallery of cards, or a table. Pure; every name that a person typed is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as esc
from typing import TYPE_CHECKING

from storage.catalog import MOST_COUNTED
from studio.ui.adapters.picture import picture
from studio.ui.adapters.sight import MOST_PAGES, PAGE, TABLE, Sight
from studio.ui.present import ORIGINS, button, count, dots, empty_card, glyph, hint, hue, kind, loss_change, size, time_tag, won

if TYPE_CHECKING:
    from storage.records import AdapterRecord
    from studio.chat.votes import Rate

SORT_NAMES = {
    "": "newest",
    "name": "name",
    "loss": "lowest held-out loss",
    "gain": "largest gain",
    "won": "most often liked best",
    "rank": "highest rank",
    "size": "smallest",
}
KIND_NAMES = {"lora": "LoRA", "dora": "DoRA", "prefix": "prefix"}
ORIGIN_NAMES = {"training": "trained here", **ORIGINS}
TAGS_SHOWN = 4
Facets = Mapping[str, Sequence[tuple[str, int]]]


@dataclass(frozen=True)
class Known:
    """What the list says of adapters that their records do not: names of bases and datasets, and blind votes, by ids."""

    names: Mapping[str, str] = field(default_factory=dict)
    rates: "Mapping[str, Rate]" = field(default_factory=dict)

    def base(self, record: "AdapterRecord") -> str:
        """The name of its base."""
        return self.names.get(record.base_id, "another base")

    def learned(self, record: "AdapterRecord") -> str:
        """What it learned from, or how else it came."""
        if record.origin in ORIGINS:
            return ORIGINS[record.origin]
        return self.names.get(record.dataset_id, "a deleted dataset")


def link(record_id: str, label: str, *, inside: str = "") -> str:
    """The way to the page of an adapter: a link, which can be opened in another window and passed on."""
    return (
        f'<a class="as-open" href="?tab=adapters&amp;adapter={esc(record_id)}" data-action="show" data-id="{esc(record_id)}">'
        f"{inside}{esc(label)}</a>"
    )


# Filters


def filters(sight: Sight, facets: Facets, names: Mapping[str, str], found: int) -> str:
    """Choices with how many adapters have each, and how many were found."""
    choices = [
        _choice("Tag", "tag", sight.tag, facets.get("tag", ()), {}),
        _choice("Collection", "collection", sight.collection, facets.get("collection", ()), {}),
        _choice("Base", "base", sight.base, facets.get("base", ()), names),
        _choice("Dataset", "dataset", sight.dataset, facets.get("dataset", ()), {}),
        _choice("Kind", "kind", sight.kind, facets.get("kind", ()), KIND_NAMES),
        _choice("Made", "origin", sight.origin, facets.get("origin", ()), ORIGIN_NAMES),
    ]
    more = "over " if found >= MOST_COUNTED else ""
    told = f"{more}{count(found, 'adapter')}" + (" in the archive" if sight.archived else "")
    clear = button("Clear all", "clear", look="quiet") if sight.is_narrow else ""
    ranges = _range("Rank", "rank", sight.rank_from, sight.rank_to, "1") + _range(
        "Held-out loss", "loss", sight.loss_from, sight.loss_to, "0.1"
    )
    opened = " open" if sight.rank_from or sight.rank_to or sight.loss_from or sight.loss_to else ""
    return (
        f'<div class="as-filters">{"".join(choices)}</div>'
        f'<details class="as-more as-ranges"{opened}><summary>Rank and loss</summary><div class="as-filters">{ranges}</div></details>'
        f'<div class="as-found"><p class="as-paging" role="status">{told}</p>{clear}{_toggles(sight)}{_sort(sight)}</div>'
    )


def _choice(label: str, key: str, chosen: str, values: Sequence[tuple[str, int]], names: Mapping[str, str]) -> str:
    """A choice among what there is; what is chosen stays in it, also where nothing has it any more."""
    if not values and not chosen:
        return ""
    known = dict(values)
    options = [f'<option value=""{"" if chosen else " selected"}>any</option>']
    for value in [*known, *([chosen] if chosen and chosen not in known else [])]:
        selected = " selected" if value == chosen else ""
        options.append(f'<option value="{esc(value)}"{selected}>{esc(names.get(value, value))} ({known.get(value, 0):,})</option>')
    return _labelled(label, key, "".join(options))


def _labelled(label: str, key: str, options: str) -> str:
    return f'<label class="as-filter">{label}<select data-choice="{key}" aria-label="{label}" autocomplete="off">{options}</select></label>'


def _range(label: str, key: str, low: str, high: str, step: str) -> str:
    ends = "".join(
        f'<input type="number" min="0" step="{step}" data-choice="{key}_{end}" value="{esc(value)}" placeholder="{words}" '
        f'aria-label="{label} {words}" autocomplete="off">'
        for end, value, words in (("from", low, "from"), ("to", high, "to"))
    )
    return f'<span class="as-filter">{label}<span class="as-range">{ends}</span></span>'


def _toggles(sight: Sight) -> str:
    pressed = [
        ("★ Favourites", "favourites", bool(sight.favourite)),
        ("Archive", "archive-view", bool(sight.archived)),
        ("Gallery", "gallery", sight.view != TABLE),
        ("Table", "table", sight.view == TABLE),
    ]
    buttons = [
        f'<button type="button" class="as-button as-button-toggle" data-action="{action}" data-id="" '
        f'aria-pressed="{str(on).lower()}">{label}</button>'
        for label, action, on in pressed
    ]
    return f'<span class="as-toggles">{"".join(buttons[:2])}</span><span class="as-toggles as-joined">{"".join(buttons[2:])}</span>'


def _sort(sight: Sight) -> str:
    options = "".join(
        f'<option value="{value}"{" selected" if value == sight.sort else ""}>{name}</option>' for value, name in SORT_NAMES.items()
    )
    return f'<label class="as-inline">Sort by <select data-choice="sort" aria-label="Sort by" autocomplete="off">{options}</select></label>'


# What was found


def catalog(records: "Sequence[AdapterRecord]", sight: Sight, known: Known, has_more: bool, now: float | None = None) -> str:
    """A page of adapters as one looks at them, and the way to more."""
    if not records:
        return nothing(sight)
    drawn = table(records, known, now) if sight.view == TABLE else gallery(records, known, now)
    more = ""
    if has_more and sight.shown < PAGE * MOST_PAGES:
        more = f'<p class="as-center">{button(f"Show {PAGE} more", "more")}</p>'
    elif has_more:
        more = hint("There are more; search or filter to see them.")
    return drawn + more


def nothing(sight: Sight) -> str:
    """Why there is nothing to see, and what to do."""
    if sight.is_narrow:
        clear = button("Show all adapters", "clear")
        return empty_card("Nothing is like that", "No adapter has all of this; leave out a word or a filter.", clear)
    go = button("Train one →", "train")
    return empty_card("No adapter yet", "An adapter appears here as soon as a training is done, or when you import one.", go)


def gallery(records: "Sequence[AdapterRecord]", known: Known, now: float | None = None) -> str:
    """Cards with pictures."""
    return f'<ul class="as-gallery">{"".join(card(record, known, now) for record in records)}</ul>'


def card(record: "AdapterRecord", known: Known, now: float | None = None) -> str:
    """One adapter: its picture, what it is, and what came of it."""
    lineage = dots([esc(known.base(record)), esc(known.learned(record)), kind(record)])
    result = dots([loss_change(record.metrics), size(record.size_bytes), time_tag(record.created_at, now), won(known.rates.get(record.id))])
    return (
        f'<li class="as-shelved" style="--hue:{hue(record.sha256)}"><button type="button" class="as-adapter" data-action="show" '
        f'data-id="{esc(record.id)}">{picture(record)}<span class="as-line-main"><span class="as-adapter-name">{esc(record.name)}</span>'
        f'<span class="as-row-about">{lineage}</span><span class="as-row-about">{result}</span>{tags(record)}</span></button>'
        f"{star(record)}</li>"
    )


def tags(record: "AdapterRecord") -> str:
    """Its first tags as small labels."""
    more = [f"+{len(record.tags) - TAGS_SHOWN}"] if len(record.tags) > TAGS_SHOWN else []
    labels = "".join(f'<span class="as-tag">{esc(tag)}</span>' for tag in [*record.tags[:TAGS_SHOWN], *more])
    return f'<span class="as-tags">{labels}</span>' if labels else ""


def star(record: "AdapterRecord") -> str:
    """A favourite, or not yet."""
    return (
        f'<button type="button" class="as-star" data-action="star" data-id="{esc(record.id)}" '
        f'aria-pressed="{str(record.favourite).lower()}" aria-label="Favourite: {esc(record.name)}">'
        f"{'★' if record.favourite else '☆'}</button>"
    )


def table(records: "Sequence[AdapterRecord]", known: Known, now: float | None = None) -> str:
    """Rows to compare."""
    names = ("adapter", "base", "learned from", "kind", "held-out loss", "size", "votes", "made")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_row(record, known, now) for record in records)
    return (
        '<div class="as-scroll as-catalog-table" tabindex="0" role="region" aria-label="Adapters"><table class="as-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(record: "AdapterRecord", known: Known, now: float | None) -> str:
    name = link(record.id, record.name, inside=glyph(record.sha256) + " ")
    loss = record.metrics.get("eval_loss")
    cells = [
        esc(known.base(record)),
        esc(known.learned(record)),
        kind(record),
        "" if loss is None else f"{loss:.3f}",
        size(record.size_bytes),
        won(known.rates.get(record.id)),
        time_tag(record.created_at, now),
    ]
    return (
        f'<tr style="--hue:{hue(record.sha256)}"><th scope="row"><span class="as-named">{star(record)}<span>{name}{tags(record)}</span>'
        f"</span></th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    )
