"""The library, the head of a dataset and its versions as HTML. Pure; everything that a person typed or a file said is escaped."""

from collections.abc import Mapping, Sequence
from html import escape as esc
from typing import TYPE_CHECKING

from studio.datasets.forms import FORMS
from studio.ui.present import button, count, dots, empty_card, hint, size, time_tag

if TYPE_CHECKING:
    from storage.records import DatasetRecord


def form_label(form: str) -> str:
    """A form's name for people; of a dataset from several files, all of them. Not escaped."""
    return " + ".join(FORMS[name].label if name in FORMS else name for name in form.split(" + "))


def library_list(records: "Sequence[DatasetRecord]", chosen: str, now: float | None = None) -> str:
    """The newest version of each dataset, a row each. `chosen` is a name."""
    if not records:
        return empty_card("No dataset yet", "Add a file of examples with the form on this page.")
    return f'<ul class="as-list">{"".join(_library_row(r, r.name == chosen, now) for r in records)}</ul>'


def _library_row(record: "DatasetRecord", chosen: bool, now: float | None) -> str:
    badge = '<span class="as-badge">sample</span>' if record.sample else ""
    version = f"version {record.version}" if record.version > 1 else ""
    about = dots([count(record.rows, "row"), version, esc(form_label(record.form)), size(record.size_bytes)])
    return (
        f'<li><button type="button" class="as-row" data-action="choose" data-id="{esc(record.id)}" aria-pressed="{str(chosen).lower()}">'
        f'<span class="as-row-name">{esc(record.name)}{badge}</span><span class="as-row-about">{about}</span>'
        f'<span class="as-row-end">{time_tag(record.created_at, now)}</span></button></li>'
    )


def dataset_head(record: "DatasetRecord", newest: int, now: float | None = None) -> str:
    """Name, version and numbers of the chosen dataset, and what was adapted or left out when it was added."""
    old = f'<span class="as-badge">version {record.version} of {newest}</span>' if newest > 1 else ""
    when = f"{'made' if record.parent_id else 'added'} {time_tag(record.created_at, now)}"
    about = dots([count(record.rows, "row"), count(record.turns, "turn"), esc(form_label(record.form)), size(record.size_bytes), when])
    said = f'<p class="as-hint">{esc(_sentence(record.made_by))}</p>' if record.made_by else ""
    return f'<div class="as-detail-head"><h3>{esc(record.name)}{old}</h3><p>{about}</p>{said}{_notes(record.notes)}</div>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f'<ul class="as-notes" aria-label="What was adapted">{"".join(f"<li>{esc(note)}</li>" for note in notes)}</ul>'


def _sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:]}."


def version_list(records: "Sequence[DatasetRecord]", chosen: str, learned: Mapping[str, Sequence[str]], now: float | None = None) -> str:
    """All versions, the newest first.

    Args:
        chosen: the id of the one that is shown. learned: names of the adapters that learned from each, by its id.
    """
    rows = "".join(_version(r, r.id == chosen, learned.get(r.id, ()), now) for r in records)
    told = hint("A change never touches what is there: it makes a version, and adapters and jobs keep the one that they were given.")
    return f'{told}<ul class="as-list">{rows}</ul>'


def _version(record: "DatasetRecord", chosen: bool, learned: Sequence[str], now: float | None) -> str:
    made = _sentence(record.made_by) if record.made_by else "Added from a file."
    who = f"Learned from by {', '.join(learned)}" if learned else "No adapter learned from it"
    return (
        f'<li><button type="button" class="as-row" data-action="choose" data-id="{esc(record.id)}" aria-pressed="{str(chosen).lower()}">'
        f'<span class="as-row-name">Version {record.version}</span>'
        f'<span class="as-row-about">{dots([esc(made), count(record.rows, "row")])}</span><span class="as-row-about">{esc(who)}</span>'
        f'<span class="as-row-end">{time_tag(record.created_at, now)}</span></button></li>'
    )


def delete_question(record: "DatasetRecord", versions: int, learned: Sequence[str]) -> str:
    """What goes and what stays, before anything is deleted."""
    what = f"Delete {record.name}" + (f" with its {versions} versions?" if versions > 1 else "?")
    rows = "Its rows are gone for good."
    if not learned:
        who = "No adapter learned from it."
    else:
        who = f"{count(len(learned), 'adapter')} learned from it and {'stays' if len(learned) == 1 else 'stay'}: {', '.join(learned)}."
    jobs = "While an unfinished job needs it, it cannot be deleted."
    return f"<p><strong>{esc(what)}</strong> {esc(f'{rows} {who} {jobs}')}</p>"


def made_note(before: "DatasetRecord", made: "Sequence[DatasetRecord]") -> str:
    """What a change made, with a way to it, or back to what was there before."""
    first = made[0]
    if first.name == before.name:
        said = f"{first.name} is at version {first.version} now, with {count(first.rows, 'row')}: {first.made_by}."
        ways = button(f"Back to version {before.version}", "choose", before.id, look="small")
    else:
        named = [f"{record.name} ({count(record.rows, 'row')})" for record in made]
        said = f"Made {' and '.join(named)}."
        ways = "".join(button(f"Open {record.name}", "choose", record.id, look="small") for record in made)
    return f'<div class="as-card as-note as-note-ways" role="status"><p>{esc(said)}</p>{ways}</div>'
