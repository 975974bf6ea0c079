"""Evaluations as HTML: how far one is, what its voices reached as a table and in bars, and what they said row by row. Pure."""

from collections.abc import Mapping, Sequence
from html import escape as esc
from typing import TYPE_CHECKING, Any

from studio.evaluation.plan import METRICS, Metric, ordered
from studio.ui.present import button, count, dots, empty_card, glyph, hue, time_tag

if TYPE_CHECKING:
    from storage.records import EvaluationAnswerRecord, EvaluationCaseRecord, EvaluationRecord, EvaluationVoiceRecord
    from studio.evaluation.service import Result

    Read = Sequence[tuple[EvaluationCaseRecord, Sequence[EvaluationAnswerRecord]]]

PAGE = 5  # rows side by side at a time
STATES = {"running": "running", "done": "done", "stopped": "stopped", "interrupted": "interrupted", "failed": "failed"}
MOST_CHARACTERS = 1200


def one(found: "Result", read: "Read", offset: int, now: float | None = None) -> str:
    """All of one evaluation."""
    record = found.record
    about = [
        STATES[record.state],
        esc(record.base_name),
        count(record.rows, "row") if record.rows else "",
        count(len(found.voices), "voice"),
        time_tag(record.created_at, now),
    ]
    rows = _rows(found, read, offset) if read else ""
    return (
        f'<section class="as-evaluation" data-evaluation="{esc(record.id)}"><h3 class="as-section">{esc(record.dataset_name)}</h3>'
        f'<p class="as-about">{dots(about)}</p>{_progress(found)}{_ways(found)}{table(found.voices)}{bars(found.voices)}{rows}</section>'
    )


def _progress(found: "Result") -> str:
    if found.record.state == "done":
        return ""
    share = 100 * found.done / max(found.of, 1)
    reason = f'<p class="as-hint">{esc(found.record.reason)}</p>' if found.record.reason else ""
    return (
        f'<div class="as-bar" role="progressbar" aria-label="Rows done" aria-valuemin="0" aria-valuemax="{found.of}" '
        f'aria-valuenow="{found.done}"><span style="width:{share:.1f}%"></span></div>'
        f'<p class="as-about">{found.done:,} of {found.of:,} answers and losses are there</p>{reason}'
    )


def _ways(found: "Result") -> str:
    key = found.record.id
    if found.record.state == "running":
        return f'<div class="as-tools">{button("Stop", "stop", key)}</div>'
    on = button("Go on with it", "resume", key) if found.can_go_on else ""
    return f'<div class="as-tools">{on}{button("Delete", "remove", key, look="quiet", about=found.record.dataset_name)}</div>'


def speaker(voice: "EvaluationVoiceRecord") -> str:
    """Who it is, with colour and sign."""
    name = "The base alone" if voice.label == "base" else voice.label
    return f'<span class="as-speaker" style="--hue:{hue(voice.sha256 or "0" * 6)}">{glyph(voice.sha256)} {esc(name)}</span>'


def measured(voices: "Sequence[EvaluationVoiceRecord]") -> list[Metric]:
    """What there is anything of, in the order of the metrics."""
    return ordered(key for voice in voices for key, value in voice.values.items() if _number(value) is not None)


def best(metric: Metric, voices: "Sequence[EvaluationVoiceRecord]") -> float | None:
    """The best number, where one is better than another."""
    values = {float(voice.values[metric.key]) for voice in voices if _number(voice.values.get(metric.key)) is not None}
    return None if len(values) < 2 else min(values) if metric.is_loss else max(values)


def table(voices: "Sequence[EvaluationVoiceRecord]") -> str:
    """Voices by metrics, the best of each marked."""
    metrics = measured(voices)
    if not metrics:
        return '<p class="as-hint">No numbers yet; the first ones come with the first rows.</p>'
    head = "".join(f'<th scope="col" title="{esc(metric.about)}">{esc(metric.title)}</th>' for metric in metrics)
    tops = {metric.key: best(metric, voices) for metric in metrics}
    rows = "".join(_row(voice, metrics, tops) for voice in voices)
    return (
        '<div class="as-scroll"><table class="as-table as-results"><thead><tr><th scope="col">Voice</th>'
        f'{head}<th scope="col">Rows</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(voice: "EvaluationVoiceRecord", metrics: Sequence[Metric], tops: Mapping[str, float | None]) -> str:
    cells = "".join(_cell(metric, voice.values.get(metric.key), tops[metric.key]) for metric in metrics)
    errors = f' <span class="as-badge">{count(voice.errors, "error")}</span>' if voice.errors else ""
    return f'<tr><th scope="row">{speaker(voice)}</th>{cells}<td>{voice.rows:,}{errors}</td></tr>'


def _cell(metric: Metric, value: Any, top: float | None) -> str:
    number = _number(value)
    if number is None:
        return "<td>–</td>"
    text = metric.form.format(number)
    return f'<td><strong class="as-best" title="the best">{text}</strong></td>' if number == top else f"<td>{text}</td>"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def bars(voices: "Sequence[EvaluationVoiceRecord]") -> str:
    """A small figure for each metric: a bar for each voice, in its colour. Perplexity and accuracy follow the loss, and are left out."""
    drawn = [_figure(metric, voices) for metric in measured(voices) if metric.key not in ("perplexity", "rouge1", "rouge2")]
    return f'<div class="as-bars">{"".join(drawn)}</div>' if len(voices) > 1 and drawn else ""


def _figure(metric: Metric, voices: "Sequence[EvaluationVoiceRecord]") -> str:
    values = [(voice, _number(voice.values.get(metric.key))) for voice in voices]
    most = max((value for _, value in values if value is not None), default=0.0) or 1.0
    lines = "".join(_bar(metric, voice, value, most) for voice, value in values if value is not None)
    words = ", ".join(f"{voice.label} {metric.form.format(value)}" for voice, value in values if value is not None)
    better = "lower is better" if metric.is_loss else "higher is better"
    label = esc(f"{metric.title} by voice: {words}")
    return f'<figure role="img" aria-label="{label}"><figcaption>{esc(metric.title)} <small>{better}</small></figcaption>{lines}</figure>'


def _bar(metric: Metric, voice: "EvaluationVoiceRecord", value: float, most: float) -> str:
    width = max(100 * value / most, 0.5)
    fill = "as-bar-base" if not voice.sha256 else "as-bar-voice"
    return (
        f'<div class="as-bar-line" style="--hue:{hue(voice.sha256 or "0" * 6)}"><span>{esc(voice.label)}</span>'
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{fill}" width="{width:.2f}" height="8"/></svg><b>{metric.form.format(value)}</b></div>'
    )


def _rows(found: "Result", read: "Read", offset: int) -> str:
    """Some rows with what each voice said to them."""
    blocks = "".join(_sides(case, answers, found.voices) for case, answers in read)
    last = offset + len(read)
    earlier = button("← Earlier rows", "rows", f"{found.record.id} {max(offset - PAGE, 0)}", look="quiet") if offset else ""
    later = button("More rows →", "rows", f"{found.record.id} {last}", look="quiet") if last < found.record.rows else ""
    title = f"Rows {offset + 1:,} to {last:,} of {found.record.rows:,}"
    return f'<h4 class="as-section">{title}</h4><div class="as-samples">{blocks}</div><div class="as-tools">{earlier}{later}</div>'


def _sides(case: "EvaluationCaseRecord", answers: "Sequence[EvaluationAnswerRecord]", voices: "Sequence[EvaluationVoiceRecord]") -> str:
    reference = f"<div><dt>reference</dt><dd>{_text(case.reference)}</dd></div>"
    sides = "".join(f"<div><dt>{speaker(voices[each.place])}{_scores(each)}</dt><dd>{_said(each)}</dd></div>" for each in answers)
    asked = case.prompt or f"row {case.row + 1}"
    return f'<section><h5>{_text(asked)}</h5><dl class="as-sides">{reference}{sides}</dl></section>'


def _said(answer: "EvaluationAnswerRecord") -> str:
    if answer.error:
        return f"<em>{esc(answer.error)}</em>"
    return _text(answer.answer) or "<em>nothing</em>"


def _scores(answer: "EvaluationAnswerRecord") -> str:
    told = [f"loss {answer.nats / answer.tokens:.2f}"] if answer.nats is not None and answer.tokens else []
    told += [
        f"{METRICS[key].title} {METRICS[key].form.format(answer.scores[key])}" for key in ("rougeL", "chrf", "f1") if key in answer.scores
    ]
    return f" <small>{esc(', '.join(told))}</small>" if told else ""


def _text(text: str) -> str:
    return esc(text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " …")


def listed(found: "Sequence[Result]", chosen: str, now: float | None = None) -> str:
    """Earlier evaluations, each of which opens."""
    if not found:
        return ""
    rows = "".join(_listed(each, each.record.id == chosen, now) for each in found)
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Dataset", "Voices", "State", "Best", "Begun"))
    drawn = f'<div class="as-scroll"><table class="as-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f'<h4 class="as-section">All evaluations</h4>{drawn}'


def _listed(found: "Result", is_open: bool, now: float | None) -> str:
    record = found.record
    names = ", ".join(voice.label for voice in found.voices)
    opened = button(record.dataset_name, "open", record.id, look="link", about=f"evaluation of {names}")
    state = STATES[record.state] + (f", {100 * found.done // max(found.of, 1)} %" if record.state != "done" else "")
    changed = ' class="as-changed" aria-current="true"' if is_open else ""
    return (
        f'<tr{changed}><th scope="row">{opened}</th><td>{esc(names[:120])}</td><td>{state}</td><td>{esc(_winner(found.voices))}</td>'
        f"<td>{time_tag(record.created_at, now)}</td></tr>"
    )


def _winner(voices: "Sequence[EvaluationVoiceRecord]") -> str:
    """Who is best by the first metric that tells them apart."""
    for metric in measured(voices):
        top = best(metric, voices)
        if top is not None:
            return next(
                f"{v.label}, {metric.title.lower()} {metric.form.format(top)}" for v in voices if _number(v.values.get(metric.key)) == top
            )
    return ""


def nothing() -> str:
    """Where none was made yet."""
    text = "Choose a dataset and who is to be held to it; the base alone shows what an adapter adds."
    return empty_card("No evaluation yet", text)


def of_adapter(found: "Sequence[tuple[EvaluationRecord, EvaluationVoiceRecord]]", now: float | None = None) -> str:
    """What one adapter reached, for its page; empty where it was never evaluated."""
    if not found:
        return ""
    metrics = measured([voice for _, voice in found])
    head = "".join(f'<th scope="col" title="{esc(metric.about)}">{esc(metric.title)}</th>' for metric in metrics)
    rows = ""
    for record, voice in found:
        cells = "".join(_cell(metric, voice.values.get(metric.key), None) for metric in metrics)
        state = "" if record.state == "done" else f' <span class="as-badge">{STATES[record.state]}</span>'
        opened = button(record.dataset_name, "evaluation", record.id, look="link", about="its evaluation")
        rows += f'<tr><th scope="row">{opened}{state}</th>{cells}<td>{voice.rows:,}</td><td>{time_tag(record.created_at, now)}</td></tr>'
    frame = f'<thead><tr><th scope="col">Dataset</th>{head}<th scope="col">Rows</th><th scope="col">When</th></tr></thead>'
    return (
        f'<h4 class="as-section">Evaluations</h4><div class="as-scroll"><table class="as-table">{frame}<tbody>{rows}</tbody></table></div>'
    )
