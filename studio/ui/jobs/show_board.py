"""The board: what holds for the whole queue, what runs, what waits in which order, what is put aside, what is over. Pure."""

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape as esc
from typing import TYPE_CHECKING, Any

from storage.states import CANCELLING, DONE, PAUSING
from studio.jobs.sweep import Comparison
from studio.ui.curve import Curve
from studio.ui.jobs.parts import Beside, actions, badge, job_link, priority_name, source, spark, why
from studio.ui.jobs.parts import choice as choice_of
from studio.ui.jobs.show_sweep import sweep_entry
from studio.ui.present import button, count, dots, duration, empty_card, glyph, loss_change, stage, time_tag

if TYPE_CHECKING:
    from storage.records import JobRecord, QueueRecord
    from storage.watching import Tally

STOPS = (0, 1, 2, 3, 5, 10)
NOTIFY = (
    '<button type="button" class="as-button as-button-quiet as-notify" data-notify aria-pressed="false">'
    '<span class="as-notify-off">Notify me</span><span class="as-notify-on">Notifications are on</span></button>'
)


# The whole queue


def bar(running: int, paused: int, tally: "Tally", queue: "QueueRecord") -> str:
    """How many jobs are where, and the switches of the whole queue."""
    numbers = [f"{running:,} running", f"{tally.waiting:,} waiting", f"{paused:,} paused" if paused else "", f"{tally.over:,} over"]
    hold = button("Release the queue", "release") if queue.held else button("Hold the queue", "hold", look="quiet")
    stops = {str(n): "never" if n == 0 else count(n, "failure") for n in sorted({*STOPS, queue.stop_after})}
    stop = choice_of("Hold it after", "stop-after", "", stops, str(queue.stop_after)) + '<span class="as-hint">in a row</span>'
    return (
        f'<div class="as-boardbar"><p class="as-counts">{dots(numbers)}</p>'
        f'<div class="as-switches">{hold}<span class="as-stop">{stop}</span>{NOTIFY}</div>{_held(queue)}</div>'
    )


def _held(queue: "QueueRecord") -> str:
    if not queue.held:
        return ""
    why = f"{queue.reason} What runs goes on; nothing else starts."
    return f'<div class="as-card as-warning" role="status"><strong>The queue is held</strong><p>{esc(why.strip())}</p></div>'


def chosen_bar(chosen: Sequence[str], most: int) -> str:
    """What may be done with the jobs that were ticked."""
    if not chosen:
        return ""
    view = ",".join(chosen)
    go = button(f"Compare {len(chosen)}", "open", view) if 1 < len(chosen) <= most else ""
    hint = "Tick another one to compare them." if len(chosen) == 1 else "" if go else f"At most {most} can be compared; untick some."
    return (
        f'<div class="as-chosenbar" role="status"><span>{count(len(chosen), "training")} ticked. {hint}</span>'
        f"{go}{button('Untick all', 'untick', look='quiet')}</div>"
    )


# What runs


def running_list(jobs: "Sequence[JobRecord]", curves: Mapping[str, Curve], beside: Beside, now: float | None = None) -> str:
    """The jobs that a worker holds."""
    rows = "".join(_running_row(job, curves.get(job.id, Curve()), beside, now) for job in jobs)
    return f'<h3 class="as-section">Running</h3><ul class="as-list as-jobs">{rows}</ul>' if rows else ""


def _running_row(job: "JobRecord", curve: Curve, beside: Beside, now: float | None) -> str:
    name = beside.name(job)
    about = [source(job), esc(job.device), f"started {time_tag(job.started_at or job.created_at, now)}", attempt_note(job, curve)]
    line = spark(curve.train, name)
    return (
        f'<li class="as-line" data-job="{esc(job.id)}">{_tick(job, beside)}<span class="as-line-main">{_title(job, beside)}'
        f'<span class="as-row-about">{dots(about)}</span>{progress_bar(job, name)}'
        f'<span class="as-job-where">{where(job, now)}</span>{why(job)}</span>'
        f'<span class="as-side">{line}<span class="as-choice">{actions(job, beside)}</span></span></li>'
    )


def where(job: "JobRecord", now: float | None = None) -> str:
    """How far it is, how fast, and how long it will take; or what it waits for."""
    progress = job.progress
    if "step" not in progress or progress.get("state") == "saving" or job.state in (PAUSING, CANCELLING):
        since = job.started_at or job.created_at
        waited = duration((time.time() if now is None else now) - since)
        return f'{stage(job).capitalize()}, <time data-since="{since:.0f}">{waited}</time> so far'
    step, steps = int(progress["step"]), int(progress["steps"])
    parts = [
        f"Step {step:,} of {steps:,}",
        f"{100 * step / max(1, steps):.0f} %",
        f"{progress['tokens_per_s']:,.0f} tokens/s",
        f"{duration(progress['remaining_s'])} left",
        f"loss {progress['loss']:.2f}",
    ]
    return dots(parts)


def attempt_note(job: "JobRecord", curve: Curve) -> str:
    """Said only where the first attempt was not the last."""
    if job.attempt <= 1:
        return ""
    return f"attempt {job.attempt}" + (f", resumed at step {curve.resumed_at:,}" if curve.resumed_at else "")


def progress_bar(job: "JobRecord", name: str) -> str:
    """A bar; it moves by itself where the total is not known."""
    done, total, label = int(job.progress.get("step", 0)), int(job.progress.get("steps", 0)), esc(f"Training {name}")
    if not total:
        return f'<span class="as-bar as-bar-busy" role="progressbar" aria-label="{label}"><span></span></span>'
    return (
        f'<span class="as-bar" role="progressbar" aria-label="{label}" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}"><span style="width:{100 * done / total:.1f}%"></span></span>'
    )


def nothing_runs(waiting: int, over: int, worker: bool, held: bool) -> str:
    """What to do, or what is waited for, where nothing runs."""
    if waiting and held:
        return empty_card("Nothing starts while the queue is held", "Release it, and the first job begins.", button("Release", "release"))
    if waiting and not worker:
        return empty_card("No worker runs in this studio", "Jobs wait until one is started: python -m studio worker")
    if waiting:
        return empty_card("The next training starts in a moment", "A worker takes the first job that has what it needs.")
    return empty_card("Nothing is training", "" if over else "Start one with the form; it shows here, step by step.")


# What waits, and what was put aside


def waiting_list(jobs: "Sequence[JobRecord]", waiting: int, beside: Beside, now: float | None = None) -> str:
    """What is in the queue, in the order in which it will run; `waiting` is how many there are in all."""
    if not jobs:
        return ""
    rows = "".join(_waiting_row(place, job, jobs, beside, now) for place, job in enumerate(jobs, 1))
    return f'<h3 class="as-section">In the queue</h3><ol class="as-list as-jobs">{rows}</ol>{_more("more-waiting", waiting - len(jobs))}'


def _waiting_row(place: int, job: "JobRecord", jobs: "Sequence[JobRecord]", beside: Beside, now: float | None) -> str:
    priority = f"{priority_name(job.priority)} priority" if job.priority else ""
    about = [source(job), priority, f"waits since {time_tag(job.created_at, now)}"]
    up = _arrow("↑", "up", "Earlier", job, place > 1)
    down = _arrow("↓", "down", "Later", job, place < len(jobs))
    return (
        f'<li class="as-line" data-job="{esc(job.id)}" draggable="true">{_tick(job, beside)}<span class="as-order">{place}</span>'
        f'<span class="as-line-main">{_title(job, beside)}<span class="as-row-about">{dots(about)}</span>{why(job)}</span>'
        f'<span class="as-side"><span class="as-arrows">{up}{down}</span>'
        f'<span class="as-choice">{actions(job, beside)}</span></span></li>'
    )


def _arrow(sign: str, action: str, words: str, job: "JobRecord", possible: bool) -> str:
    off = "" if possible else ' aria-disabled="true"'
    return (
        f'<button type="button" class="as-button as-arrow" data-action="{action}" data-id="{esc(job.id)}" title="{words}"{off} '
        f'aria-label="{words}: {esc(job.adapter_name)}">{sign}</button>'
    )


def paused_list(jobs: "Sequence[JobRecord]", beside: Beside, now: float | None = None) -> str:
    """What was paused; it keeps its place in the order."""
    rows = "".join(
        f'<li class="as-line" data-job="{esc(job.id)}">{_tick(job, beside)}<span class="as-line-main">{_title(job, beside)}'
        f'<span class="as-row-about">{dots([source(job), f"added {time_tag(job.created_at, now)}"])}</span>{why(job)}</span>'
        f'<span class="as-side">{spark(beside.sparks.get(job.id, []), beside.name(job))}'
        f'<span class="as-choice">{actions(job, beside)}</span></span></li>'
        for job in jobs
    )
    return f'<h3 class="as-section">Paused</h3><ul class="as-list as-jobs">{rows}</ul>' if rows else ""


# What is over


def entries(jobs: "Iterable[JobRecord]", groups: "Mapping[str, Comparison]") -> "list[JobRecord | Comparison]":
    """The jobs in their order, those of one sweep together where the first of them stands."""
    found: dict[str, JobRecord | Comparison] = {}
    for job in jobs:
        if job.group in groups:
            found.setdefault(job.group, groups[job.group])
        else:
            found[job.id] = job
    return list(found.values())


def sweeps_list(sweeps: "Iterable[Comparison]", beside: Beside, now: float | None = None) -> str:
    """Sweeps of which something is not over, each as a table."""
    rows = "".join(sweep_entry(sweep, beside, now) for sweep in sweeps)
    return f'<h3 class="as-section">Sweeps under way</h3><ul class="as-list">{rows}</ul>' if rows else ""


def history(over: "list[JobRecord | Comparison]", beside: Beside, more: int = 0, now: float | None = None) -> str:
    """What is over, newest first; `more` older jobs are not shown."""
    if not over:
        return ""
    rows = "".join(sweep_entry(e, beside, now) if isinstance(e, Comparison) else _history_row(e, beside, now) for e in over)
    return f'<h3 class="as-section">Earlier</h3><ul class="as-list as-jobs">{rows}</ul>{_more("more-over", more)}'


def _history_row(job: "JobRecord", beside: Beside, now: float | None) -> str:
    done, adapter = job.state == DONE, beside.adapters.get(job.adapter_id)
    took = duration(job.finished_at - job.started_at) if job.finished_at and job.started_at else ""
    about = [source(job), loss_change(job.result) if done else "", took, time_tag(job.finished_at or job.created_at, now)]
    mark = glyph(adapter.sha256) if adapter else '<span class="as-glyph"></span>'
    line = spark(beside.sparks.get(job.id, []), beside.name(job))
    return (
        f'<li class="as-line" data-job="{esc(job.id)}">{_tick(job, beside)}{mark}<span class="as-line-main">{_title(job, beside)}'
        f'<span class="as-row-about">{dots(about)}</span>{why(job)}</span>'
        f'<span class="as-side">{line}<span class="as-choice">{actions(job, beside)}</span></span></li>'
    )


# Parts of a row


def _title(job: "JobRecord", beside: Beside) -> str:
    sweep: Mapping[str, Any] = job.config.get("sweep") or {}
    group = f'<span class="as-badge">sweep {esc(str(sweep.get("name", "")))}</span>' if sweep else ""
    return f"<span>{job_link(job.id, beside.name(job))}{badge(job.state, beside.is_gone(job))}{group}</span>"


def _tick(job: "JobRecord", beside: Beside) -> str:
    checked = " checked" if job.id in beside.chosen else ""
    return (
        f'<input type="checkbox" class="as-tick" data-action="tick" data-id="{esc(job.id)}"{checked} autocomplete="off" '
        f'aria-label="Compare: {esc(beside.name(job))}" title="Tick to compare">'
    )


def _more(action: str, left: int) -> str:
    return f'<div class="as-more-row">{button(f"More ({left:,})", action, look="quiet")}</div>' if left > 0 else ""
