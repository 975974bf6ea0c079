"""A sweep as one entry of a list: how far it is, and its jobs side by side. Pure."""

from html import escape as esc
from typing import TYPE_CHECKING

from studio.jobs.sweep import Comparison
from studio.ui.jobs.parts import Beside, actions, badge, source
from studio.ui.present import button, dots, hint, time_tag

if TYPE_CHECKING:
    from storage.records import JobRecord

OTHER_ROWS = "These were not measured on the same held-out rows, so their losses compare only roughly."


def sweep_entry(sweep: Comparison, beside: Beside, now: float | None = None) -> str:
    """How far a sweep is, and its table."""
    over = sum(job.finished_at is not None for job in sweep.jobs)
    latest = max(job.finished_at or job.created_at for job in sweep.jobs)
    about = [source(sweep.jobs[0]), f"{over} of {len(sweep.jobs)} over", time_tag(latest, now)]
    group = sweep.jobs[0].group
    cancel = button("Cancel all", "cancel-group", group, look="quiet", about=sweep.name) if over < len(sweep.jobs) else ""
    curves = button("Compare curves", "open", group, look="quiet", about=sweep.name) if any(job.started_at for job in sweep.jobs) else ""
    title = f'<b>{esc(sweep.name)}</b><span class="as-badge">sweep</span>'
    return (
        f'<li class="as-line as-sweep"><span class="as-line-main"><span>{title}</span>'
        f'<span class="as-row-about">{dots(about)}</span></span>{curves}{cancel}{sweep_table(sweep, beside)}</li>'
    )


def sweep_table(sweep: Comparison, beside: Beside) -> str:
    """The jobs of a sweep: the values that set each apart, how far it is, what it measured."""
    columns = [esc(option.replace("_", " ")) for option in sweep.options]
    columns += ["state", "held-out loss", "tokens/s", '<span class="as-sr">what to do</span>']
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    rows = "".join(_row(job, job.id == sweep.best, beside) for job in sweep.jobs)
    return (
        f'<div class="as-scroll" role="region" tabindex="0" aria-label="Comparison of {esc(sweep.name)}">'
        f'<table class="as-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"{hint('' if sweep.same_rows else OTHER_ROWS)}</div>"
    )


def _row(job: "JobRecord", best: bool, beside: Beside) -> str:
    loss = job.result.get("eval_loss", job.progress.get("eval_loss"))
    rate = job.result.get("tokens_per_s")
    first, *others = (esc(value) for value in job.config["sweep"]["options"].values())
    reason = f'<span class="as-why">{esc(job.reason)}</span>' if job.reason else ""
    look = button("Look", "open", job.id, look="quiet", about=beside.name(job))
    cells = [
        *others,
        badge(job.state, beside.is_gone(job)) + reason,
        ("" if loss is None else f"{loss:.3f}") + ('<span class="as-badge as-done">best</span>' if best else ""),
        "" if rate is None else f"{rate:,.0f}",
        look + actions(job, beside, chat="Chat →", advised=False),
    ]
    mark = ' class="as-best"' if best else ""
    return f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
