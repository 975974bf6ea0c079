"""Jobs as the Train tab shows them: the running one, the queue, those that are over, and sweeps side by side. Pure."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape as esc
from typing import TYPE_CHECKING, Any

from studio.jobs.sweep import Comparison
from studio.ui.curve import Curve
from studio.ui.outcome import outcome
from studio.ui.present import STATE_NAMES, button, dots, duration, facts, glyph, hint, loss_change, stage, time_tag

if TYPE_CHECKING:
    from storage.records import AdapterRecord, JobRecord

LOG_LINES = 30
OTHER_ROWS = "These were not measured on the same held-out rows, so their losses compare only roughly."


@dataclass(frozen=True)
class Beside:
    """What the lists say of jobs that the jobs themselves do not.

    Attributes:
        adapters: those that still exist, by id. chats: ids of the adapters that the chat serves. logs: texts of failed
            jobs, by job id. resumes: the step at which a retry goes on, by job id. opened: what came of jobs, as
            HTML, of those whose outcome is open.
    """

    adapters: "Mapping[str, AdapterRecord]" = field(default_factory=dict)
    chats: frozenset[str] = frozenset()
    logs: Mapping[str, str] = field(default_factory=dict)
    resumes: Mapping[str, int] = field(default_factory=dict)
    opened: Mapping[str, str] = field(default_factory=dict)


# The running job


def running_card(job: "JobRecord", curve: Curve, now: float | None = None) -> str:
    """The job that trains now: progress, numbers, curves, samples and notices."""
    progress = job.progress
    step, steps = int(progress.get("step", 0)), int(progress.get("steps", 0))
    waited = duration((time.time() if now is None else now) - (job.started_at or job.created_at))
    busy = "step" not in progress or progress.get("state") == "saving" or job.state in ("pausing", "cancelling")
    where = f"{stage(job).capitalize()}, {waited} so far" if busy else f"Step {step:,} of {steps:,}"
    notices = "".join(f'<p class="as-notice">{esc(text)}</p>' for text in curve.notices)
    return (
        f'<div class="as-card as-job" data-job="{job.id}"><div class="as-job-head"><h3>{esc(job.adapter_name)}</h3>'
        f"<p>{_from(job)}{attempt_note(job, curve)}</p></div>"
        f"{progress_bar(step, steps, f'Training {job.adapter_name}')}"
        f'<p class="as-job-where" id="job-where">{where}</p>{_numbers(progress, curve.kept)}{notices}'
        f"{outcome({'steps': steps}, curve, live=True)}</div>"
    )


def attempt_note(job: "JobRecord", curve: Curve) -> str:
    """Said only where the first attempt was not the last."""
    if job.attempt <= 1:
        return ""
    return f", attempt {job.attempt}" + (f", resumed at step {curve.resumed_at:,}" if curve.resumed_at else "")


def progress_bar(done: int, total: int, label: str) -> str:
    """A bar; it moves by itself where the total is not known."""
    if not total:
        return f'<div class="as-bar as-bar-busy" role="progressbar" aria-label="{esc(label)}"><span></span></div>'
    share = 100 * done / total
    return (
        f'<div class="as-bar" role="progressbar" aria-label="{esc(label)}" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}"><span style="width:{share:.1f}%"></span></div>'
    )


def _numbers(progress: Mapping[str, Any], kept: int) -> str:
    if "step" not in progress:
        return ""
    pairs = [
        ("loss", f"{progress['loss']:.3f}"),
        ("speed", f"{progress['tokens_per_s']:,.0f} tokens/s"),
        ("trained for", duration(progress["elapsed_s"])),
        ("remaining", duration(progress["remaining_s"])),
    ]
    return facts(pairs + ([("checkpoint", f"step {kept:,}")] if kept else []))


# Lists


def entries(jobs: "Iterable[JobRecord]", groups: "Mapping[str, Comparison]") -> "list[JobRecord | Comparison]":
    """The jobs in their order, those of one sweep together where the first of them stands."""
    found: dict[str, JobRecord | Comparison] = {}
    for job in jobs:
        if job.group in groups:
            found.setdefault(job.group, groups[job.group])
        else:
            found[job.id] = job
    return list(found.values())


def waiting_list(queue: "list[JobRecord | Comparison]", beside: Beside, now: float | None = None) -> str:
    """What is in the queue, in the order in which it will run."""
    if not queue:
        return ""
    rows = "".join(_waiting_row(i, entry, beside, now) for i, entry in enumerate(queue, 1))
    return f'<h3 class="as-section">In the queue</h3><ol class="as-list">{rows}</ol>'


def _waiting_row(place: int, entry: "JobRecord | Comparison", beside: Beside, now: float | None) -> str:
    order = f'<span class="as-order">{place}</span>'
    if isinstance(entry, Comparison):
        return _sweep(entry, order, beside, now)
    return (
        f'<li class="as-line">{order}<span class="as-line-main"><b>{esc(entry.adapter_name)}</b>'
        f'<span class="as-row-about">{dots([_from(entry), f"waits since {time_tag(entry.created_at, now)}"])}</span>'
        f"{_why(entry)}</span>{button('Cancel', 'cancel', entry.id, look='quiet', about=entry.adapter_name)}</li>"
    )


def history(over: "list[JobRecord | Comparison]", beside: Beside, now: float | None = None) -> str:
    """What is over, newest first."""
    if not over:
        return ""
    mark = '<span class="as-glyph"></span>'
    rows = "".join(_sweep(e, mark, beside, now) if isinstance(e, Comparison) else _history_row(e, beside, now) for e in over)
    return f'<h3 class="as-section">Earlier</h3><ul class="as-list">{rows}</ul>'


def _history_row(job: "JobRecord", beside: Beside, now: float | None) -> str:
    done, adapter = job.state == "done", beside.adapters.get(job.adapter_id)
    name = adapter.name if adapter else job.adapter_name
    about = [_from(job), loss_change(job.result) if done else "", time_tag(job.finished_at or job.created_at, now)]
    state = "deleted since" if done and adapter is None else STATE_NAMES[job.state]
    mark = glyph(adapter.sha256) if adapter else '<span class="as-glyph"></span>'
    return (
        f'<li class="as-line">{mark}<span class="as-line-main"><span><b>{esc(name)}</b>'
        f'<span class="as-badge as-{job.state}">{state}</span></span>'
        f'<span class="as-row-about">{dots(about)}</span>{_why(job)}{_more(job, beside, name)}{_log(beside.logs.get(job.id, ""))}</span>'
        f"{_buttons(job, beside, name)}</li>"
    )


def _buttons(job: "JobRecord", beside: Beside, name: str, chat: str = "Chat with it →") -> str:
    """What one may do with a job as it stands."""
    if job.finished_at is None:
        return "" if job.state == "cancelling" else button("Cancel", "cancel", job.id, look="quiet", about=name)
    if job.state == "done":
        return button(chat, "chat", job.adapter_id, about=name) if job.adapter_id in beside.chats else ""
    step = beside.resumes.get(job.id)
    if step is None:
        return button("Retry", "retry", job.id, about=name)
    again = button(f"Resume at step {step:,}", "retry", job.id, about=name)
    return f'<span class="as-choice">{again}{button("Start over", "restart", job.id, look="quiet", about=name)}</span>'


def _more(job: "JobRecord", beside: Beside, name: str) -> str:
    """What came of a job, fetched when it is opened."""
    if not job.started_at:
        return ""
    shown = beside.opened.get(job.id)
    inside = (
        '<p class="as-row-about">Reading its events …</p>' if shown is None else shown or '<p class="as-row-about">It measured nothing.</p>'
    )
    return (
        f'<details class="as-more"{"" if shown is None else " open"}><summary data-action="outcome" data-id="{job.id}" '
        f'aria-label="Curves and samples of {esc(name)}">Curves and samples</summary><div class="as-outcome">{inside}</div></details>'
    )


def _from(job: "JobRecord") -> str:
    return f"from {esc(str(job.config.get('dataset_name', '')))}"


def _why(job: "JobRecord") -> str:
    return f'<span class="as-why">{esc(job.reason)}</span>' if job.reason else ""


def _log(text: str) -> str:
    tail = "\n".join(text.strip().splitlines()[-LOG_LINES:])
    return f'<details class="as-log"><summary>Log</summary><pre tabindex="0">{esc(tail)}</pre></details>' if tail else ""


# Sweeps


def _sweep(sweep: Comparison, mark: str, beside: Beside, now: float | None) -> str:
    """A sweep as one entry: how far it is, and its jobs in a table."""
    over = sum(job.finished_at is not None for job in sweep.jobs)
    latest = max(job.finished_at or job.created_at for job in sweep.jobs)
    about = [_from(sweep.jobs[0]), f"{over} of {len(sweep.jobs)} over", time_tag(latest, now)]
    cancel = button("Cancel all", "cancel-group", sweep.jobs[0].group, look="quiet", about=sweep.name) if over < len(sweep.jobs) else ""
    title = f'<b>{esc(sweep.name)}</b><span class="as-badge">sweep</span>'
    return (
        f'<li class="as-line as-sweep">{mark}<span class="as-line-main"><span>{title}</span>'
        f'<span class="as-row-about">{dots(about)}</span></span>{cancel}{sweep_table(sweep, beside)}{_opened_of(sweep, beside)}</li>'
    )


def sweep_table(sweep: Comparison, beside: Beside) -> str:
    """The jobs of a sweep: the values that set each apart, how far it is, what it measured."""
    columns = [esc(option.replace("_", " ")) for option in sweep.options] + [
        "state",
        "held-out loss",
        "tokens/s",
        '<span class="as-sr">what to do</span>',
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    rows = "".join(_sweep_row(job, job.id == sweep.best, beside) for job in sweep.jobs)
    return (
        f'<div class="as-scroll" role="region" tabindex="0" aria-label="Comparison of {esc(sweep.name)}">'
        f'<table class="as-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"{hint('' if sweep.same_rows else OTHER_ROWS)}</div>"
    )


def _sweep_row(job: "JobRecord", best: bool, beside: Beside) -> str:
    adapter = beside.adapters.get(job.adapter_id)
    name = adapter.name if adapter else job.adapter_name
    state = "deleted since" if job.state == "done" and adapter is None else STATE_NAMES[job.state]
    loss = job.result.get("eval_loss", job.progress.get("eval_loss"))
    rate = job.result.get("tokens_per_s")
    first, *others = (esc(value) for value in job.config["sweep"]["options"].values())
    cells = [
        *others,
        f'<span class="as-badge as-{job.state}">{state}</span>{_why(job)}',
        ("" if loss is None else f"{loss:.3f}") + ('<span class="as-badge as-done">best</span>' if best else ""),
        "" if rate is None else f"{rate:,.0f}",
        _look(job, beside, name) + _buttons(job, beside, name, "Chat →"),
    ]
    mark = ' class="as-best"' if best else ""
    return f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _look(job: "JobRecord", beside: Beside, name: str) -> str:
    if not job.started_at or job.state == "running":
        return ""
    return button("Hide" if job.id in beside.opened else "Curves", "outcome", job.id, look="quiet", about=name)


def _opened_of(sweep: Comparison, beside: Beside) -> str:
    return "".join(
        f'<div class="as-outcome"><h4 class="as-section">{esc(job.adapter_name)}</h4>{beside.opened[job.id]}</div>'
        for job in sweep.jobs
        if job.id in beside.opened
    )
