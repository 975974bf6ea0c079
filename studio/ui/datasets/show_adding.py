"""The first look at files, and the table of wrong rows, as HTML. Pure; all that a file says is escaped."""

from collections.abc import Sequence
from html import escape as esc
from typing import TYPE_CHECKING

from studio.datasets.forms import FORMS
from studio.ui.datasets.show_rows import bubbles, raw_json
from studio.ui.present import count, hint

if TYPE_CHECKING:
    from studio.datasets.errors import BadRows
    from studio.datasets.forms import Fit
    from studio.datasets.ingest import Inspection, Sample
    from studio.datasets.rows import RowError

SURE = 0.98  # share of rows that fit from which on nobody need be asked


def percent(share: float) -> str:
    """A share of rows; 100 % and 0 % are said only where they are true."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share * 100:.0f} %"


def look(found: "Inspection", files: int = 1) -> str:
    """What the files are taken for, and what their first rows become."""
    notices = "".join(f"<li>{esc(text)}</li>" for text in found.notices)
    told = f'<ul class="as-notes">{notices}</ul>' if notices else ""
    first = (
        hint(f"These are rows of the first of {files} files; each file is read in the form that its own rows tell.") if files > 1 else ""
    )
    return f'<div class="as-look">{_verdict(found)}{told}{first}{_samples(found.samples)}</div>'


def _verdict(found: "Inspection") -> str:
    fit = found.chosen
    if fit is None:
        columns = ", ".join(found.columns[:20]) or "none"
        said = f"No form fits by itself. The columns are: {columns}. Choose a form below and say which column has which part."
        return f'<p class="as-verdict as-verdict-bad">{esc(said)}</p>' if found.columns else ""
    read = ", ".join(f"{esc(role)} from <code>{esc(column)}</code>" for role, column in fit.mapping.items())
    others = [other for other in found.fits if other.form != fit.form]
    also = f" It could also be {', '.join(esc(_label(other)) for other in others)}." if others else ""
    sure = "" if fit.share >= SURE else " as-verdict-bad"
    return (
        f'<p class="as-verdict{sure}">Read as <b>{esc(FORMS[fit.form].label)}</b>: {read}. '
        f"<b>{percent(fit.share)}</b> of the first rows fit.{also}</p>"
    )


def _label(fit: "Fit") -> str:
    return f"{FORMS[fit.form].label} ({percent(fit.share)})"


def form_choices(fits: "Sequence[Fit]") -> list[tuple[str, str]]:
    """Choices of the form: to find it out, those that fit, and the others."""
    fitting = [(f"{FORMS[fit.form].label} · {percent(fit.share)} fit", fit.form) for fit in fits]
    named = {fit.form for fit in fits}
    return [("Find out", "auto"), *fitting, *((form.label, form.name) for form in FORMS.values() if form.name not in named)]


def _samples(samples: "Sequence[Sample]") -> str:
    if not samples:
        return ""
    head = '<div class="as-pair as-pair-head" aria-hidden="true"><span>In the file</span><span>What it becomes</span></div>'
    pairs = f"{head}{''.join(map(_sample, samples))}"
    return f'<div class="as-pairs" role="region" tabindex="0" aria-label="The first rows">{pairs}</div>'


def _sample(sample: "Sample") -> str:
    raw = raw_json(sample.raw) if sample.raw is not None else hint("This line cannot be read.")
    becomes = _why(sample.error) if sample.error else bubbles(sample.conversation or [])
    return (
        f'<section class="as-pair" aria-label="line {sample.line}"><div><span class="as-place">line {sample.line:,}</span>{raw}</div>'
        f"<div>{becomes}</div></section>"
    )


def _why(error: "RowError") -> str:
    field = f"<code>{esc(error.field)}</code>: " if error.field else ""
    return f'<div class="as-row-bad"><b>Not a row yet.</b> {field}{esc(error.problem)}; {esc(error.fix)}.</div>'


def refused(error: object) -> str:
    """Why there is nothing to look at."""
    return f'<div class="as-look"><p class="as-verdict as-verdict-bad" role="alert">{esc(str(error))}</p></div>'


def bad_rows(bad: "BadRows") -> str:
    """How many rows are wrong, of which kinds, and the first of them with place, reason and mend."""
    errors = bad.errors
    what = (
        f"{count(errors.total, 'row')} {'is' if errors.total == 1 else 'are'} wrong, {bad.good:,} {'is' if bad.good == 1 else 'are'} right"
    )
    chips = "".join(f'<li class="as-badge">{esc(kind)} <b>{number:,}</b></li>' for kind, number in errors.kinds.most_common())
    shown = "" if len(errors.shown) == errors.total else hint(f"The first {len(errors.shown):,} of {errors.total:,} are shown.")
    return (
        f'<div class="as-bad" role="alert"><h3 class="as-panel-title">{what}</h3><p class="as-hint">Nothing was added yet.</p></div>'
        f'<ul class="as-kinds" aria-label="Kinds of errors">{chips}</ul>{error_table(errors.shown)}{shown}'
    )


def error_table(errors: "Sequence[RowError]") -> str:
    """Errors with their place, what stands there, and how to mend it. The file is named where there are several."""
    several = len({error.file for error in errors}) > 1
    names = [*(["File"] if several else []), "Line", "Column", "Field", "What is wrong", "What stands there", "How to mend it"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_error(error, several) for error in errors)
    return (
        '<div class="as-scroll as-error-table" role="region" tabindex="0" aria-label="Wrong rows">'
        f'<table class="as-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _error(error: "RowError", several: bool) -> str:
    excerpt = f"<code>{esc(error.excerpt)}</code>" if error.excerpt else ""
    cells = [str(error.column or ""), esc(error.field), esc(error.problem), excerpt, esc(error.fix)]
    first = [f"<td>{esc(error.file)}</td>"] if several else []
    line = f'<th scope="row">{error.line:,}</th>'
    return f"<tr>{''.join(first)}{line}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def leave_out_label(total: int, good: int) -> str:
    """The button that adds what is right."""
    return f"Leave {'this row' if total == 1 else f'these {total:,} rows'} out and add the other {good:,}"
