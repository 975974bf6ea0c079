"""The page of one job: its state and what may be done, its curves, its configuration, where it comes from, its attempts, its log. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING, Any

from storage.states import ACTIVE, DONE, PAUSED, READY
from studio.jobs.logs import LogTail
from studio.training.config import DEFAULT_PRESET, PRESETS, TrainConfig, make_config
from studio.ui.curve import Curve
from studio.ui.jobs.parts import PRIORITIES, Beside, actions, badge, choice, copy_button, job_link, priority_name, source, why
from studio.ui.jobs.show_board import attempt_note, progress_bar, where
from studio.ui.jobs.usage import draw_usage
from studio.ui.outcome import outcome
from studio.ui.present import button, count, dots, duration, facts, glyph, hint, plain_number, size, time_tag

if TYPE_CHECKING:
    from storage.records import AttemptRecord, BaseRecord, DatasetRecord, JobRecord

NO_LOG = "Nothing was written yet; the log begins when a worker takes the job."


@dataclass(frozen=True)
class Origin:
    """Where a job comes from, and what it is tied to; None for what is gone or never was."""

    base: "BaseRecord | None" = None
    dataset: "DatasetRecord | None" = None
    copied_from: "JobRecord | None" = None
    after: "JobRecord | None" = None
    group: str = ""
    group_size: int = 0


# Head


def head(job: "JobRecord", beside: Beside, ahead: int | None, others: Mapping[str, str], now: float | None = None) -> str:
    """Who it is, its state, and what may be done with it.

    Args:
        ahead: how many jobs come before it in the queue, where it waits. others: names of jobs that it may run after, by id.
    """
    adapter = beside.adapters.get(job.adapter_id)
    place = "" if ahead is None else "next in the queue" if ahead == 0 else f"place {ahead + 1:,} in the queue"
    about = [source(job), esc(job.device), place, f"added {time_tag(job.created_at, now)}", _ended(job, now)]
    tools = actions(job, beside) + copy_button(job, beside.name(job))
    mark = glyph(adapter.sha256, 6) if adapter else ""
    return (
        f'<div class="as-jobhead" data-job="{esc(job.id)}">{back()}'
        f'<div class="as-job-title">{mark}<h3 tabindex="-1">{esc(beside.name(job))}</h3>{badge(job.state, beside.is_gone(job))}</div>'
        f'<p class="as-row-about">{dots(about)}</p>{why(job)}<div class="as-tools">{tools}</div>{_order(job, ahead, others)}</div>'
    )


def back() -> str:
    """The way to the board."""
    return button("← All trainings", "open", "", look="quiet")


def _ended(job: "JobRecord", now: float | None) -> str:
    if job.finished_at is None:
        return ""
    took = f" after {duration(job.finished_at - job.started_at)}" if job.started_at else ""
    return f"ended {time_tag(job.finished_at, now)}{took}"


def _order(job: "JobRecord", ahead: int | None, others: Mapping[str, str]) -> str:
    """Its place in the queue, to be changed while it has not started."""
    if job.state not in (*READY, PAUSED):
        return ""
    names = {str(value): name for name, value in PRIORITIES.items()}
    names.setdefault(str(job.priority), priority_name(job.priority))
    parts = [choice("Priority", "priority", job.id, names, str(job.priority))]
    if job.state in READY:
        parts.append(choice("Run after", "after", job.id, {"": "no other job", **others}, job.after))
        parts.append(button("To the top", "top", job.id, look="quiet") if ahead else "")
    return f'<div class="as-tools as-ordering">{"".join(parts)}</div>'


# Curves


def live(job: "JobRecord", curve: Curve, beside: Beside, now: float | None = None) -> str:
    """Progress, numbers, notices, curves, evaluation, answers, and what it takes of the machine."""
    runs = job.state in ACTIVE
    steps = int(job.progress.get("steps", 0))
    notices = "".join(f'<p class="as-notice">{esc(text)}</p>' for text in curve.notices)
    came = outcome({"steps": steps} if runs else job.result or {"steps": steps}, curve, live=runs)
    nothing = hint("Curves, evaluation and answers appear here as soon as it trains.") if job.state in READY and not came else ""
    return f'<div class="as-outcome">{_progress(job, curve, beside, now)}{notices}{came}{draw_usage(curve.usage, runs)}{nothing}</div>'


def _progress(job: "JobRecord", curve: Curve, beside: Beside, now: float | None) -> str:
    if job.state not in ACTIVE:
        return ""
    note = attempt_note(job, curve)
    return (
        f'<div class="as-job-now">{progress_bar(job, beside.name(job))}<p class="as-job-where">{where(job, now)}</p>'
        f'<p class="as-row-about">{dots([note, f"checkpoint at step {curve.kept:,}" if curve.kept else ""])}</p></div>'
    )


# Configuration, lineage, attempts


def preset_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset that a configuration is nearest to, and its options that differ from that."""
    found = {preset: _changes(config, make_config(preset).model_dump()) for preset in (DEFAULT_PRESET, *PRESETS)}
    nearest = min(found, key=lambda preset: len(found[preset]))
    return nearest, found[nearest]


def _changes(config: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in expected if key in config and config[key] != expected[key]}


def configuration(config: Mapping[str, Any]) -> str:
    """What it is or was trained with; what differs from the nearest preset comes first."""
    preset, changed = preset_of(config)
    expected = make_config(preset).model_dump()
    rows = "".join(
        f'<tr class="as-changed"><th scope="row">{esc(key.replace("_", " "))}</th><td>{esc(plain_number(value))}</td>'
        f"<td>{esc(plain_number(expected[key]))}</td></tr>"
        for key, value in changed.items()
    )
    head = f'<tr><th scope="col">option</th><th scope="col">here</th><th scope="col">{esc(preset)}</th></tr>'
    table = f'<table class="as-table"><thead>{head}</thead><tbody>{rows}</tbody></table>' if rows else ""
    said = f"The {preset} preset" + (f" with {count(len(changed), 'other value')}:" if changed else ", unchanged.")
    every = facts((key.replace("_", " "), esc(plain_number(config[key]))) for key in TrainConfig.model_fields if key in config)
    return (
        f'<h4 class="as-section">Configuration</h4>{hint(said)}{table}'
        f'<details class="as-more"><summary>Every option</summary>{every}</details>'
    )


def lineage(job: "JobRecord", origin: Origin, beside: Beside) -> str:
    """What went in, what came out, and which jobs it is tied to."""
    dataset, base = origin.dataset, origin.base
    name = esc(str(job.config.get("dataset_name", "")))
    version = f", version {dataset.version}" if dataset and dataset.version > 1 else ""
    digest = str(job.config.get("dataset_hash", ""))
    pairs = [
        ("job", f"<code>{esc(job.id)}</code>"),
        ("dataset", f"{name}{version}" if dataset else f"{name}, deleted since"),
        ("dataset hash", f'<code title="{esc(digest)}">{esc(digest[:12])}…</code>' if digest else "unknown"),
        ("base", esc(base.name) if base else "deleted since"),
        ("copied from", _tied(job.copied_from, origin.copied_from)),
        ("runs after", _tied(job.after, origin.after)),
        ("sweep", button(f"Compare its {origin.group_size} trainings", "open", origin.group, look="link") if origin.group else ""),
        ("adapter", _made(job, beside)),
    ]
    return f'<h4 class="as-section">Where it comes from</h4>{facts(pair for pair in pairs if pair[1])}'


def _tied(job_id: str, job: "JobRecord | None") -> str:
    if not job_id:
        return ""
    return job_link(job.id, job.adapter_name) if job else "a job that is gone"


def _made(job: "JobRecord", beside: Beside) -> str:
    adapter = beside.adapters.get(job.adapter_id)
    if adapter is None:
        return "deleted since" if job.state == DONE else "not made yet"
    show = button("Show it", "adapter", adapter.id, look="link", about=adapter.name)
    return f"{glyph(adapter.sha256)} {esc(adapter.name)}, {size(adapter.size_bytes)} {show}"


def attempts(records: "Sequence[AttemptRecord]", now: float | None = None) -> str:
    """Every time that a worker took the job."""
    if not records:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{a.number}</th><td>{esc(a.device)}</td><td>{time_tag(a.started_at, now)}</td>'
        f"<td>{duration(a.finished_at - a.started_at) if a.finished_at else 'goes on'}</td>"
        f'<td>{badge(a.ended) if a.ended else ""}<span class="as-why">{esc(a.reason)}</span></td></tr>'
        for a in records
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("attempt", "device", "began", "took", "ended"))
    return (
        '<h4 class="as-section">Attempts</h4><div class="as-scroll as-attempts" role="region" tabindex="0" aria-label="Attempts">'
        f'<table class="as-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


# Log


def log(tail: LogTail, search: str = "") -> str:
    """The end of the log, or of the lines that match."""
    if tail.matches is None:
        said = f"{size(tail.size_bytes)}, whole." if tail.whole else f"The last {len(tail.lines):,} lines of {size(tail.size_bytes)}."
    else:
        shown = "." if tail.whole else f"; the last {len(tail.lines):,} are shown."
        said = f"{count(tail.matches, 'line')} with “{search.strip()}”{shown}"
    if not tail.size_bytes:
        return hint(NO_LOG)
    text = esc("\n".join(tail.lines))
    return f'{hint(said)}<pre class="as-logtext" tabindex="0" role="region" aria-label="Log">{text}</pre>'


def gone(error: object) -> str:
    """A job that is not there."""
    return (
        f'<div class="as-jobhead">{back()}<div class="as-card as-error" role="alert"><strong>There is no such training</strong>'
        f"<p>{esc(str(error))}</p></div></div>"
    )
