"""What the board and the page of a job share: names that open a job, badges, buttons, small curves. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as esc
from typing import TYPE_CHECKING, Any

from storage.states import ACTIVE, CANCELLED, CANCELLING, DONE, FAILED, OVER, PAUSED, PAUSING, READY
from studio.jobs.advice import advise
from studio.ui.curve import Point, scale, thinned
from studio.ui.present import STATE_NAMES, button

if TYPE_CHECKING:
    from storage.records import AdapterRecord, JobRecord

SPARK_POINTS = 48
PRIORITIES = {"high": 10, "normal": 0, "low": -10}


@dataclass(frozen=True)
class Beside:
    """What the page says of jobs that the jobs themselves do not.

    Attributes:
        adapters: those that still exist, by id. chats: ids of the adapters that the chat serves. resumes: the step at
            which the next attempt goes on, by job id. sparks: some points of the training loss, by job id.
        chosen: ids of the jobs that are to be compared.
    """

    adapters: "Mapping[str, AdapterRecord]" = field(default_factory=dict)
    chats: frozenset[str] = frozenset()
    resumes: Mapping[str, int] = field(default_factory=dict)
    sparks: Mapping[str, list[Point]] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()

    def name(self, job: "JobRecord") -> str:
        """What the adapter is called now."""
        adapter = self.adapters.get(job.adapter_id)
        return adapter.name if adapter else job.adapter_name

    def is_gone(self, job: "JobRecord") -> bool:
        """Whether what the job made was deleted."""
        return job.state == DONE and job.adapter_id not in self.adapters


def job_link(job_id: str, name: str) -> str:
    """The way to the page of a job: a link, which can be opened in another window and passed on."""
    return f'<a class="as-open" href="?tab=train&amp;job={esc(job_id)}" data-action="open" data-id="{esc(job_id)}">{esc(name)}</a>'


def badge(state: str, gone: bool = False) -> str:
    """The state in a word."""
    return f'<span class="as-badge as-{esc(state)}">{"deleted since" if gone else esc(STATE_NAMES.get(state, state))}</span>'


def priority_name(priority: int) -> str:
    """ "high", "low", or the number where it is another one; "normal" is not worth a word."""
    names = {value: name for name, value in PRIORITIES.items()}
    return names.get(priority, f"{priority:+d}")


def spark(points: Sequence[Point], name: str) -> str:
    """The training loss as a small line without a scale."""
    line = [point for point in points if point[1] == point[1] and abs(point[1]) != float("inf")]
    if len(line) < 2:
        return '<span class="as-spark"></span>'
    low, high, _ = scale([value for _, value in line])
    first, last = line[0][0], line[-1][0]
    places = " ".join(
        f"{100 * (step - first) / max(1, last - first):.1f},{100 * (high - value) / (high - low):.1f}"
        for step, value in thinned(line, SPARK_POINTS)
    )
    words = f"Training loss of {name}: {line[0][1]:.2f} to {line[-1][1]:.2f}"
    return (
        f'<svg class="as-spark" viewBox="0 -6 100 112" preserveAspectRatio="none" role="img" aria-label="{esc(words)}">'
        f'<polyline points="{places}" vector-effect="non-scaling-stroke"/></svg>'
    )


def actions(job: "JobRecord", beside: Beside, *, chat: str = "Chat with it →", advised: bool = True) -> str:
    """The buttons that change a job, as its state allows. `advised`: a failed one also offers what mends it."""
    name, found = beside.name(job), list[str]()
    if job.state == FAILED and advised:
        found.append(advice_button(job, name))
    if job.state in (FAILED, CANCELLED):
        found += _again(job, beside, name)
    if job.state == PAUSED:
        step = beside.resumes.get(job.id)
        found.append(button("Resume" if step is None else f"Resume at step {step:,}", "resume", job.id, about=name))
    if job.state in (*READY, *ACTIVE) and job.state not in (PAUSING, CANCELLING):
        found.append(button("Pause", "pause", job.id, look="quiet", about=name))
    if job.state not in (*OVER, CANCELLING):
        found.append(button("Cancel", "cancel", job.id, look="quiet", about=name))
    if job.state == DONE and job.adapter_id in beside.chats:
        found.append(button(chat, "chat", job.adapter_id, about=name))
    return "".join(found)


def _again(job: "JobRecord", beside: Beside, name: str) -> list[str]:
    step = beside.resumes.get(job.id)
    if step is None:
        return [button("Retry", "retry", job.id, about=name)]
    again = button(f"Resume at step {step:,}", "retry", job.id, about=name)
    return [again, button("Start over", "restart", job.id, look="quiet", about=name)]


def advice_button(job: "JobRecord", name: str) -> str:
    """The button that does what is advised; where the configuration must change by hand, the way to do that."""
    advice = advise(job)
    if not advice.label:
        return copy_button(job, name)
    return button(advice.label, "mend", job.id, about=name) if advice.changes else ""  # a plain retry is offered anyway


def copy_button(job: "JobRecord", name: str) -> str:
    """Fills the form with the job's configuration."""
    return button("Duplicate and change", "copy", job.id, about=name)


def failure(job: "JobRecord") -> str:
    """Why a job failed: the cause that was found, the reason, and what to do."""
    advice = advise(job)
    return (
        f'<span class="as-fail"><strong>{esc(advice.title)}</strong><span>{esc(job.reason)}</span>'
        f'<span class="as-fail-advice">{esc(advice.text)}</span></span>'
    )


def why(job: "JobRecord") -> str:
    """The reason of the state, where there is one."""
    if job.state == FAILED:
        return failure(job)
    return f'<span class="as-why">{esc(job.reason)}</span>' if job.reason else ""


def source(job: "JobRecord") -> str:
    """The dataset."""
    return f"from {esc(str(job.config.get('dataset_name', '')))}"


def choice(label: str, action: str, record_id: str, options: Mapping[str, str], chosen: str) -> str:
    """A choice inside a fragment; `options` maps values to what they are called."""
    items = "".join(
        f'<option value="{esc(value)}"{" selected" if value == chosen else ""}>{esc(text)}</option>' for value, text in options.items()
    )
    return (
        f'<label class="as-inline">{esc(label)} <select data-choice="{action}" data-id="{esc(record_id)}" '
        f'aria-label="{esc(label)}" autocomplete="off">{items}</select></label>'
    )


def number_of(mapping: Mapping[str, Any], key: str) -> float | None:
    """A number that may be missing or null."""
    value = mapping.get(key)
    return None if value is None else float(value)
