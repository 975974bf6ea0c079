"""A report as HTML: quiet tiles of numbers, the lengths as a drawing, the findings with what can be done. Pure; all text is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape as esc
from typing import TYPE_CHECKING

from studio.datasets.languages import language_name
from studio.ui.curve import scale
from studio.ui.datasets.show_adding import percent
from studio.ui.present import button, count, duration, hint, memory_sentence

if TYPE_CHECKING:
    from studio.datasets.report import Finding, Report
    from studio.outlook import Outlook

ACTIONS = {
    "deduplicate": "Remove the duplicates",
    "near-deduplicate": "Remove near duplicates",
    "redact": "Redact them",
    "drop-overlap": "Drop the overlap",
    "drop-untrained": "Drop these rows",
}
LEVELS = {"error": "Error", "warning": "Warning", "notice": "Notice", "good": "Good"}
ROWS_NAMED = 6
MANY_LANGUAGES = 6


def outlook(found: "Outlook", base: str) -> str:
    """The whole report: what matters first, then numbers, then lengths and languages."""
    report, expected = found.found, found.expected
    parts = [
        f'<p class="as-expected">{esc(expected.sentence)} {esc(memory_sentence(expected.memory))}</p>',
        findings(report.findings),
        tiles(_numbers(report)),
        histogram(report.histogram, report.max_length),
        languages(report.languages),
        hint(f"Counted with the tokenizer and chat template of {base}, at max_length {report.max_length:,}."),
    ]
    return f'<div class="as-report">{"".join(parts)}</div>'


def _numbers(report: "Report") -> list[tuple[str, str, str]]:
    """(name, value, what goes with it)."""
    cut = f"{report.truncated:,} cut, {report.dropped:,} left out"
    return [
        ("rows", f"{report.rows:,}", count(report.turns, "turn")),
        ("tokens", f"{report.tokens:,}", f"{report.tokens / max(report.rows, 1):,.0f} a row"),
        ("trained", f"{report.trained_tokens:,}", f"{percent(report.trained_share)} of the tokens"),
        ("longest row", f"{report.longest:,}", f"median {report.median:,}, 95 % up to {report.p95:,}"),
        ("behind max_length", f"{report.cut_tokens:,}", cut if report.truncated or report.dropped else "nothing is cut"),
        ("duplicates", f"{report.exact_duplicates:,}", f"{report.near_duplicates:,} near ones"),
        ("in held-out rows too", f"{report.overlap:,}", "rows"),
    ]


def tiles(numbers: Iterable[tuple[str, str, str]]) -> str:
    """Numbers with their names under them."""
    parts = "".join(
        f'<div class="as-tile"><dt>{esc(name)}</dt><dd><b>{esc(value)}</b><span>{esc(about)}</span></dd></div>'
        for name, value, about in numbers
    )
    return f'<dl class="as-tiles">{parts}</dl>'


def histogram(bins: Sequence[tuple[int, int, int]], max_length: int) -> str:
    """Rows by their length in tokens, with a line where max_length cuts.

    Args:
        bins: (from, below, rows), in order; the last may be wider than the others, and is drawn as wide as they are.
    """
    if not bins:
        return ""
    _, top, ticks = scale([0.0, float(max(rows for _, _, rows in bins))], parts=2)
    bars = "".join(_bar(at, len(bins), span, top) for at, span in enumerate(bins) if span[2])
    grid = "".join(
        f'<span class="as-curve-tick" style="top:{100 * (top - t) / top:.2f}%"><b>{t:,.0f}</b></span>' for t in ticks if t == int(t)
    )
    first, last = bins[0][0], bins[-1][1] - 1
    said = f"Rows by length: from {first:,} to {last:,} tokens, most of them around {_peak(bins):,}."
    plot = f'{grid}<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>{_cutoff(bins, max_length)}'
    beyond = f"<span>all rows fit max_length {max_length:,}</span>" if max_length > last else ""
    return (
        f'<figure class="as-curve as-histogram" role="img" aria-label="{esc(said)}"><figcaption>rows by length in tokens</figcaption>'
        f'<div class="as-curve-plot">{plot}</div>'
        f'<div class="as-curve-x"><span>{first:,} tokens</span>{beyond}<span>{last:,} tokens</span></div></figure>'
    )


def _bar(at: int, bars: int, span: tuple[int, int, int], top: float) -> str:
    """One bar; the gap to the next one is a tenth of its width."""
    start, below, rows = span
    height = max(100 * rows / top, 0.6)
    place = f'x="{100 * at / bars:.3f}" y="{100 - height:.3f}" width="{90 / bars:.3f}" height="{height:.3f}"'
    return f"<rect {place}><title>{start:,} to {below - 1:,} tokens: {count(rows, 'row')}</title></rect>"


def _cutoff(bins: Sequence[tuple[int, int, int]], max_length: int) -> str:
    """The line behind which tokens are cut; none where no row is that long."""
    if max_length >= bins[-1][1]:
        return ""
    at = next((i for i, (_, below, _) in enumerate(bins) if max_length < below), 0)
    start, below, _ = bins[at]
    left = 100 * (at + min(max((max_length - start) / (below - start), 0.0), 1.0)) / len(bins)
    side = " as-cutoff-left" if left > 60 else ""
    return f'<span class="as-cutoff{side}" style="left:{left:.2f}%"><b>max_length {max_length:,}</b></span>'


def _peak(bins: Sequence[tuple[int, int, int]]) -> int:
    start, below, _ = max(bins, key=lambda found: found[2])
    return (start + below) // 2


def languages(shares: Mapping[str, float]) -> str:
    """Which languages the rows are in, as far as they could be guessed."""
    if not shares:
        return ""
    named = [f"{language_name(code)} {percent(share)}" for code, share in list(shares.items())[:MANY_LANGUAGES]]
    others = len(shares) - len(named)
    return f'<p class="as-languages"><b>Languages</b> {esc(", ".join(named))}{f" and {others} more" if others > 0 else ""}</p>'


def findings(found: "Sequence[Finding]") -> str:
    """Everything there is to say, the worst first."""
    return f'<ul class="as-findings" aria-label="Findings">{"".join(map(_finding, found))}</ul>'


def _finding(finding: "Finding") -> str:
    act = button(ACTIONS[finding.action], "mend", finding.action, about=finding.said) if finding.action in ACTIONS else ""
    named = finding.rows[:ROWS_NAMED] if finding.level != "good" else []
    rows = "".join(button(f"{row + 1:,}", "row", str(row), look="link", about="show row") for row in named)
    more = ", …" if len(finding.rows) > len(named) and named else ""
    where = f'<span class="as-finding-rows">Rows {rows}{more}</span>' if rows else ""
    advice = f'<span class="as-finding-advice">{esc(finding.advice)}</span>' if finding.advice else ""
    return (
        f'<li class="as-finding as-finding-{finding.level}"><span class="as-level">{LEVELS.get(finding.level, esc(finding.level))}</span>'
        f'<span class="as-finding-text"><span>{esc(finding.said)}</span>{advice}{where}</span>{act}</li>'
    )


def progress(share: float | None, what: str, seconds: float) -> str:
    """What is waited for, how far it is and for how long."""
    bar = (
        '<div class="as-bar as-bar-busy"><span></span></div>'
        if share is None
        else f'<div class="as-bar"><span style="width:{100 * min(max(share, 0), 1):.0f}%"></span></div>'
    )
    far = "" if share is None else f"{100 * share:.0f} %, "
    said = f"{what[:1].upper()}{what[1:]}"
    return f'<div class="as-card as-busy" role="status"><p>{esc(said)} <span class="as-hint">{far}{duration(seconds)}</span></p>{bar}</div>'
