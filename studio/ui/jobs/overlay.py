"""Several runs in one picture: their losses, the options in which they differ, and what came of each. Pure."""

from collections.abc import Mapping, Sequence
from html import escape as esc
from typing import TYPE_CHECKING, Any

from storage.states import ACTIVE
from studio.training.config import TrainConfig
from studio.ui.curve import Curve, Point, finite, grid, places, scale
from studio.ui.jobs.parts import Beside, badge, job_link, number_of
from studio.ui.jobs.show_job import back
from studio.ui.outcome import known
from studio.ui.present import count, duration, hint, plain_number

if TYPE_CHECKING:
    from storage.records import JobRecord

MOST = 8  # so many colours and dashes can still be told apart
OTHERS = {"dataset_name": "dataset"}  # beside the options of the training
Run = tuple["JobRecord", Curve]


def overlay(runs: Sequence[Run], beside: Beside, bases: Mapping[str, str], left_out: int = 0) -> str:
    """The whole comparison. `bases` are names by id; `left_out` runs are not shown."""
    names = ", ".join(beside.name(job) for job, _ in runs)
    said = f"{count(left_out, 'training')} more cannot be told apart in one picture and were left out." if left_out else ""
    title = f'<div class="as-job-title"><h3 tabindex="-1">{len(runs)} trainings side by side</h3></div>'
    return (
        f'<div class="as-jobhead as-overlay">{back()}{title}'
        f'<p class="as-row-about">{esc(names)}</p>{hint(said)}{picture(runs, beside)}'
        f'<h4 class="as-section">Where they differ</h4>{table(runs, beside, bases)}</div>'
    )


def picture(runs: Sequence[Run], beside: Beside) -> str:
    """The training loss of each as a line in a colour and dashes of its own, held-out losses as dots."""
    lines = [(finite(curve.train), finite(curve.held_out)) for _, curve in runs]
    every = [point for line, dots in lines for point in (*line, *dots)]
    if len(every) < 2:
        return hint("None of them has measured a loss yet.")
    last = max(step for step, _ in every) or 1
    low, high, ticks = scale([loss for _, loss in every])
    drawn = "".join(_line(i, line, last, low, high) for i, (line, _) in enumerate(lines))
    marks = "".join(_marks(i, points, last, low, high) for i, (_, points) in enumerate(lines))
    key = "".join(f"<li>{_sample(i)}{job_link(job.id, beside.name(job))}</li>" for i, (job, _) in enumerate(runs))
    words = "; ".join(f"{beside.name(job)} {_ends(curve)}" for job, curve in runs)
    return (
        f'<figure class="as-curve"><div class="as-curve-plot as-tall" role="img" aria-label="Loss by step: {esc(words)}">'
        f'{grid(low, high, ticks)}<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>{marks}</div>'
        f'<div class="as-curve-x"><span>step 0</span><span>step {last:,}</span></div>'
        f"<figcaption>training loss as lines, held-out loss as dots <em>nats a token</em></figcaption></figure>"
        f'<ul class="as-key">{key}</ul>'
    )


def _line(i: int, points: list[Point], last: int, low: float, high: float) -> str:
    return f'<polyline class="as-run as-run-{i}" points="{places(points, last, low, high)}" vector-effect="non-scaling-stroke"/>'


def _marks(i: int, points: list[Point], last: int, low: float, high: float) -> str:
    return "".join(
        f'<span class="as-curve-dot as-run-{i}" style="left:{100 * s / last:.2f}%;top:{100 * (high - v) / (high - low):.2f}%" '
        f'title="held-out loss {v:.3f} at step {s}"></span>'
        for s, v in points
    )


def _sample(i: int) -> str:
    return (
        '<svg class="as-key-run" viewBox="0 0 34 8" aria-hidden="true">'
        f'<line class="as-run as-run-{i}" x1="0" y1="4" x2="34" y2="4"/></svg>'
    )


def _ends(curve: Curve) -> str:
    return f"{curve.train[0][1]:.2f} to {curve.train[-1][1]:.2f}" if curve.train else "not measured"


# The table


def table(runs: Sequence[Run], beside: Beside, bases: Mapping[str, str]) -> str:
    """One column a run: the options in which they differ, then what came of each."""
    head = "".join(f'<th scope="col">{_sample(i)}{esc(beside.name(job))}</th>' for i, (job, _) in enumerate(runs))
    differing = [_row(name, values) for name, values in differences([job for job, _ in runs], bases).items()]
    same = "" if differing else f'<tr><td colspan="{len(runs) + 1}">Their configurations are the same.</td></tr>'
    results = [_row(name, values) for name, values in _results(runs).items() if any(values)]
    states = "".join(f"<td>{badge(job.state, beside.is_gone(job))}</td>" for job, _ in runs)
    body = "".join(differing) + same + f'<tr class="as-divide"><th scope="row">state</th>{states}</tr>' + "".join(results)
    return (
        '<div class="as-scroll" role="region" tabindex="0" aria-label="Differences and results"><table class="as-table as-differ">'
        f'<thead><tr><th scope="col"><span class="as-sr">option</span></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def differences(jobs: "Sequence[JobRecord]", bases: Mapping[str, str]) -> dict[str, list[str]]:
    """The options in which these jobs differ, with the value of each job."""
    found = {"base": [bases.get(job.base_id, "deleted since") for job in jobs]}
    found |= {name: [str(job.config.get(key, "")) for job in jobs] for key, name in OTHERS.items()}
    found |= {key: [plain_number(job.config[key]) if key in job.config else "" for job in jobs] for key in TrainConfig.model_fields}
    return {key.replace("_", " "): values for key, values in found.items() if len(set(values)) > 1}


def _results(runs: Sequence[Run]) -> dict[str, list[str]]:
    last = [known(job.result or {"steps": job.progress.get("step")}, curve) for job, curve in runs]
    return {
        "steps": [_said(found, "steps", "{:,.0f}") for found in last],
        "training loss": [_said(found, "train_loss", "{:.3f}") or _newest(curve) for found, (_, curve) in zip(last, runs, strict=True)],
        "held-out loss before": [_said(found, "eval_loss_before", "{:.3f}") for found in last],
        "held-out loss": [_said(found, "eval_loss", "{:.3f}") for found in last],
        "perplexity": [_said(found, "perplexity", "{:,.2f}") for found in last],
        "tokens/s": [_said({**job.progress, **job.result}, "tokens_per_s", "{:,.0f}") for job, _ in runs],
        "time of the loop": [_time(job) for job, _ in runs],
    }


def _said(found: Mapping[str, Any], key: str, form: str) -> str:
    value = number_of(found, key)
    return "" if value is None else form.format(value)


def _newest(curve: Curve) -> str:
    return f"{curve.train[-1][1]:.3f}" if curve.train else ""


def _time(job: "JobRecord") -> str:
    seconds = number_of(job.result, "seconds")
    seconds = number_of(job.progress, "elapsed_s") if seconds is None else seconds
    return "" if seconds is None else duration(seconds) + (" so far" if job.state in ACTIVE else "")


def _row(name: str, values: Sequence[str]) -> str:
    cells = "".join(f"<td>{esc(value)}</td>" for value in values)
    return f'<tr><th scope="row">{esc(name)}</th>{cells}</tr>'
