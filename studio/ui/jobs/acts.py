"""What the buttons of the board and of a job's page do. Every mistake ends in one sentence in a card."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from storage.states import CANCELLED, CANCELLING, FAILED, PAUSED, READY
from studio.errors import InvalidInput, StudioError
from studio.jobs.advice import advise
from studio.ui import present
from studio.ui.jobs.sight import MOST_JOBS, Sight
from studio.ui.page import ADAPTERS, open_chat

if TYPE_CHECKING:
    from storage.records import JobRecord
    from studio.services import Studio

SKIP = gr.skip()


@dataclass
class Done:
    """What came of a click: where one looks now, what is said, and what other tabs show."""

    sight: Sight
    said: Any = ""
    tabs: Any = field(default_factory=gr.skip)
    voice: Any = field(default_factory=gr.skip)
    adapter: Any = field(default_factory=gr.skip)
    copying: Any = field(default_factory=gr.skip)


class Acts:
    """One method an action; `act` finds it by its name."""

    def __init__(self, studio: "Studio") -> None:
        self.studio, self.queue = studio, studio.queue
        self._changes: dict[str, Callable[[str, str], str]] = {
            "cancel": self._cancel,
            "cancel-group": self._cancel_group,
            "pause": self._pause,
            "resume": self._resume,
            "retry": self._retry,
            "restart": self._restart,
            "hold": self._hold,
            "release": self._release,
            "stop-after": self._stop_after,
            "priority": self._priority,
            "after": self._after,
        }

    def act(self, sight: Sight, kind: str, record_id: str, value: str) -> Done:
        """Do what a button stands for."""
        try:
            return self._act(sight, kind, record_id, value)
        except StudioError as error:
            return Done(sight, present.error_card(error))

    def _act(self, sight: Sight, kind: str, record_id: str, value: str) -> Done:
        if kind in self._changes:
            return Done(sight, present.note_card(self._changes[kind](record_id, value)))
        if kind in ("up", "down", "top", "place"):
            return Done(sight, self._move(sight, kind, record_id, value))
        if kind == "mend":
            return self._mend(sight, record_id)
        if kind in LOOKS:
            return Done(LOOKS[kind](sight, record_id), "" if kind == "open" else SKIP)
        return self._elsewhere(sight, kind, record_id)

    def _elsewhere(self, sight: Sight, kind: str, record_id: str) -> Done:
        """What leads to another part of the page."""
        if kind == "chat":
            tabs, voice = open_chat(self.studio, record_id)
            return Done(sight, "", tabs, voice)
        if kind == "adapter":
            return Done(sight, "", gr.Tabs(selected=ADAPTERS), adapter=record_id)
        if kind == "copy":
            return Done(sight, "", copying=f"{record_id} {time.time()}")  # the same job twice is a change, too
        return Done(sight, SKIP)

    # Each returns a sentence that says what was done

    def _cancel(self, job_id: str, value: str) -> str:  # noqa: ARG002
        job = self.queue.cancel(job_id)
        return f"The training of {job.adapter_name} {'stops' if job.state == CANCELLING else 'was cancelled'}."

    def _cancel_group(self, group: str, value: str) -> str:  # noqa: ARG002
        return f"{present.count(len(self.queue.cancel_group(group)), 'training')} of the sweep stopped."

    def _pause(self, job_id: str, value: str) -> str:  # noqa: ARG002
        job = self.queue.pause(job_id)
        if job.state == PAUSED:
            return f"{job.adapter_name} is put aside; Resume lets it wait again at its old place."
        return f"{job.adapter_name} ends its step, keeps a checkpoint and pauses."

    def _resume(self, job_id: str, value: str) -> str:  # noqa: ARG002
        return self._back(self.queue.resume(job_id))

    def _retry(self, job_id: str, value: str) -> str:  # noqa: ARG002
        return self._back(self.queue.retry(job_id))

    def _restart(self, job_id: str, value: str) -> str:  # noqa: ARG002
        return self._back(self.queue.retry(job_id, from_start=True))

    def _back(self, job: "JobRecord") -> str:
        step = self.queue.resume_step(job.id)
        where = "" if step is None else f" and resumes at step {step:,}"
        return f"{job.adapter_name} is in the queue again{where}."

    def _hold(self, job_id: str, value: str) -> str:  # noqa: ARG002
        self.queue.hold()
        return "The queue is held: what runs goes on, nothing else starts until you release it."

    def _release(self, job_id: str, value: str) -> str:  # noqa: ARG002
        self.queue.release()
        return "The queue goes on."

    def _stop_after(self, job_id: str, value: str) -> str:  # noqa: ARG002
        failures = _number(value)
        self.queue.stop_after(failures)
        return f"The queue is held after {present.count(failures, 'failure')} in a row." if failures else "No failure holds the queue."

    def _priority(self, job_id: str, value: str) -> str:
        job = self.queue.prioritise(job_id, _number(value))
        return f"{job.adapter_name} has priority {job.priority} now; the highest runs first, 0 is usual."

    def _after(self, job_id: str, value: str) -> str:
        job = self.queue.run_after(job_id, value)
        return (
            f"{job.adapter_name} runs after {self.queue.get(value).adapter_name}." if value else f"{job.adapter_name} waits for no other."
        )

    def _move(self, sight: Sight, kind: str, job_id: str, value: str) -> Any:
        """Another place in the order; says nothing where one sees it."""
        order = [job.id for job in self.queue.open(MOST_JOBS + 2) if job.state in READY]
        if kind != "place" and job_id not in order:
            self.queue.place(job_id)  # says why it has no place
            return SKIP
        at = order.index(job_id) if job_id in order else 0
        if kind == "top":
            before = next((other for other in order if other != job_id), "")
        elif kind == "up":
            before = order[max(0, at - 1)]
        elif kind == "down":
            before = order[at + 2] if at + 2 < len(order) else ""
        else:
            before = value or _behind(order, sight.limits[0])
        if before != job_id:
            self.queue.place(job_id, before)
        return SKIP

    def _mend(self, sight: Sight, job_id: str) -> Done:
        """Do what is advised: a new job with the change, or a retry of this one."""
        job = self.queue.get(job_id)
        advice = advise(job)
        if job.state not in (FAILED, CANCELLED) or not advice.changes:
            return Done(sight, present.note_card(self._retry(job_id, "")))
        new = self.queue.copy(job.id, changes=advice.changes)
        changes = " and ".join(f"{key} {present.plain_number(value)}" for key, value in advice.changes.items())
        said = present.note_card(f"{new.adapter_name} is in the queue, with {changes}.")
        return Done(replace(sight, view=new.id if sight.view else ""), said)


def _toggled(ticked: list[str], job_id: str) -> str:
    return ",".join([other for other in ticked if other != job_id] + ([] if job_id in ticked else [job_id]))


def _grown(more: str, at: int) -> str:
    pages = ([int(part) if part.isdecimal() else 1 for part in more.split(" ")] + [1, 1])[:2]
    pages[at] += 1
    return f"{pages[0]} {pages[1]}"


LOOKS: dict[str, Callable[[Sight, str], Sight]] = {
    "open": lambda sight, view: replace(sight, view=view),
    "tick": lambda sight, job_id: replace(sight, chosen=_toggled(sight.ticked, job_id)),
    "untick": lambda sight, _: replace(sight, chosen=""),
    "more-waiting": lambda sight, _: replace(sight, more=_grown(sight.more, 0)),
    "more-over": lambda sight, _: replace(sight, more=_grown(sight.more, 1)),
}


def _behind(order: list[str], shown: int) -> str:
    """What comes behind the last row that is shown; nothing where that is the last of all."""
    return order[shown] if shown < len(order) else ""


def _number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InvalidInput(f"The value {value!r} is no whole number; choose one of the list.") from None
