"""Train: say what to learn from and how, start, watch the queue. Every control of "More" comes from the config itself."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from storage.states import ACTIVE, READY
from studio.errors import NotFound, StudioError
from studio.jobs.sweep import parse_axes
from studio.training.config import TrainConfig
from studio.ui import form, joblist, present
from studio.ui.outcome import outcome
from studio.ui.page import QUIET, TRAIN, Page, action, dataset_choices, fragment, html, names_of, only_new, open_chat

if TYPE_CHECKING:
    from storage.records import AdapterRecord, JobRecord
    from studio.services import Studio

SHOWN_JOBS = 12
TRY_IT = (
    '<div class="as-try"><strong>New here? Train the angry bird.</strong>'
    "<p>One click trains an adapter on 96 sample rows, here on this machine, and opens the chat with it when it is done.</p></div>"
)


@dataclass(frozen=True)
class TrainTab:
    """Handles of the tab. `fields` are the controls of "More" by the config's field names; `outcomes` the jobs whose curves are open."""

    tab: gr.Tab
    try_it: gr.Row
    try_button: gr.Button
    trouble: gr.HTML
    dataset: gr.Dropdown
    name: gr.Textbox
    base: gr.Dropdown
    cost: gr.HTML
    preset: gr.Radio
    fields: dict[str, Any]
    kind_hint: gr.HTML
    sweep: gr.Textbox
    memory: gr.HTML
    start: gr.Button
    message: gr.HTML
    command: gr.Textbox
    running: gr.HTML
    running_id: gr.State
    cancel: gr.Button
    waiting: gr.HTML
    history: gr.HTML
    shown: gr.State
    outcomes: gr.State


def build(several_gpus: bool) -> TrainTab:
    """Lay the tab out."""
    with gr.Tab("Train", id=TRAIN, elem_id="tab-train") as tab:
        html(present.heading("Train an adapter", "The base stays as it is; a few megabytes beside it learn from your examples."))
        with gr.Row(visible=False, elem_classes="as-try-row", elem_id="try-it") as try_it:
            html(TRY_IT)
            try_button = gr.Button("Try it", variant="primary", elem_id="try-it-button", min_width=120, scale=0)
        trouble = html(elem_id="train-trouble")
        with gr.Row(elem_classes="as-columns"):
            with gr.Column(scale=6, min_width=300, elem_classes="as-panel"):
                filled = form.build(several_gpus)
            with gr.Column(scale=6, min_width=300, elem_id="train-live"):
                live = _build_live()
        states = {"running_id": gr.State(""), "shown": gr.State({}), "outcomes": gr.State([])}
    return TrainTab(tab=tab, try_it=try_it, try_button=try_button, trouble=trouble, **states, **filled, **live)


def _build_live() -> dict[str, Any]:
    running = html(elem_id="train-running")
    cancel = gr.Button("Cancel this training", visible=False, elem_id="train-cancel", elem_classes="as-quiet")
    waiting = fragment(elem_id="train-waiting")
    history = fragment(elem_id="train-history")
    return {"running": running, "cancel": cancel, "waiting": waiting, "history": history}


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.curves = studio, page.curves
        self.several_gpus = studio.gpus() > 1
        self._logs: dict[tuple[str, int], str] = {}

    def refresh(self, dataset: str | None, base: str | None) -> tuple[Any, ...]:
        """Choices as they are now; what was chosen stays chosen."""
        datasets, bases = self.studio.datasets.all(), self.studio.bases.all()
        choices = dataset_choices(self.studio, dataset)
        try:
            fallback, trouble = self.studio.default_base().id, ""
        except NotFound as error:
            fallback, trouble = None, present.error_card(error, "The base model is not here yet")
        newcomer = not trouble and not self.studio.adapters.all() and not self.studio.queue.open()
        first = next((d.id for d in datasets if not d.sample), datasets[0].id if datasets else None)
        return (
            gr.Dropdown(choices=choices, value=dataset if dataset in {key for _, key in choices} else first),
            gr.Dropdown(choices=[(b.name, b.id) for b in bases], value=_kept(base, bases, fallback)),
            trouble,
            gr.Button(interactive=not trouble, variant="secondary" if newcomer else "primary"),  # one main action at a time
            gr.Row(visible=newcomer),
        )

    def kind(self, method: str) -> list[Any]:
        """Which options this kind of adapter has, and what one should know of it."""
        shown = [gr.update(visible=form.is_shown(key, method, self.several_gpus)) for key in TrainConfig.model_fields]
        return [*shown, form.kind_hint(method)]

    def cost(self, base: str | None, quantization: str) -> str:
        """What the chosen form costs the chosen base."""
        return present.hint(self.studio.quantization_cost(base, quantization)) if base else ""

    def command(self, dataset: str | None, name: str, base: str | None, preset: str, sweep: str, *values: Any) -> str:
        """The equal command line."""
        names, bases = names_of(self.studio), self.studio.bases.all()
        shown_base = names.get(base or "", "") if len(bases) > 1 else ""  # the only base need not be named
        try:
            axes = parse_axes([sweep])
        except StudioError:  # it is half typed; Start would say what is wrong
            axes = {}
        changes = form.changed_fields(preset, values)
        return form.command_line(names.get(dataset or "", "DATASET"), name.strip() or "NAME", shown_base, preset, changes, axes)

    def memory(self, dataset: str | None, base: str | None, preset: str, sweep: str, *values: Any) -> str:
        """What the training would need of the memory, or what is wrong with the form."""
        if not base:
            return ""
        try:
            axes = parse_axes([sweep])
            found = self.studio.estimate(dataset, base, preset, form.changed_fields(preset, values), axes)
        except StudioError as error:
            return present.hint(str(error))
        return present.memory_line(found, math.prod(map(len, axes.values())))

    def start(self, dataset: str | None, name: str, base: str | None, preset: str, sweep: str, *values: Any) -> tuple[str, Any]:
        """Queue a job, or those of a sweep. The form stays as it is where something is wrong with it."""
        if not dataset:
            return present.error_card("Choose a dataset to learn from.", "There is no dataset"), gr.skip()
        changes = form.changed_fields(preset, values)
        try:
            axes = parse_axes([sweep])
            if axes:
                jobs = self.studio.sweep(dataset, name, base, preset, changes, axes)
                return present.note_card(f"{present.count(len(jobs), 'training')} of {name.strip()} are in the queue, to be compared."), ""
            job = self.studio.train(dataset, name, base, preset, changes)
        except StudioError as error:
            return present.error_card(error, "The training was not started"), gr.skip()
        return present.note_card(f"{job.adapter_name} is in the queue."), ""

    def try_it(self) -> tuple[str, str]:
        """Queue the angry bird and remember to open the chat with it."""
        try:
            job = self.studio.try_it()
        except StudioError as error:
            return "", present.error_card(error, "The training was not started")
        return job.id, present.note_card(f"{job.adapter_name} is in the queue; the chat opens when it is done.")

    def live(self, shown: dict[str, str], outcomes: list[str]) -> tuple[Any, ...]:
        """The running job, the queue, and what is over."""
        jobs = self.studio.queue.open()
        running = next((job for job in jobs if job.state in ACTIVE), None)
        unfinished = {job.group for job in jobs if job.group}
        over = [job for job in self.studio.queue.all() if job.finished_at is not None and job.group not in unfinished]
        newest = set(list(dict.fromkeys(job.group or job.id for job in over))[:SHOWN_JOBS])
        over = [job for job in over if (job.group or job.id) in newest]
        groups = {group: self.studio.queue.compare(group) for group in unfinished | {job.group for job in over if job.group}}
        queue = [job for job in jobs if job.group or job.state not in ACTIVE]
        beside = self._beside([*over, *(job for group in groups.values() for job in group.jobs)], outcomes)
        return (
            only_new(shown, "running", self._running(running, any(job.state in READY for job in jobs), bool(over))),
            running.id if running else "",
            gr.Button(visible=running is not None, interactive=running is not None and running.state != "cancelling"),
            only_new(shown, "waiting", joblist.waiting_list(joblist.entries(queue, groups), beside)),
            only_new(shown, "history", joblist.history(joblist.entries(over, groups), beside)),
        )

    def _beside(self, jobs: "Iterable[JobRecord]", outcomes: list[str]) -> joblist.Beside:
        """What the lists say beside the jobs."""
        by_id = {job.id: job for job in jobs}
        stopped = [job for job in by_id.values() if job.state in ("failed", "cancelled")]
        steps = {job.id: self.studio.queue.resume_step(job.id) for job in stopped}
        return joblist.Beside(
            adapters={a.id: a for a in self.studio.adapters.all()},
            chats=frozenset(a.id for a in _voices(self.studio)),
            logs=self._failed_logs([job for job in stopped if job.state == "failed"]),
            resumes={job_id: step for job_id, step in steps.items() if step is not None},
            opened={job_id: self._outcome(by_id[job_id]) for job_id in outcomes if job_id in by_id},
        )

    def _outcome(self, job: "JobRecord") -> str:
        return outcome(job.result or {"steps": job.progress.get("steps")}, self.curves.of(job.id, job.attempt))

    def _running(self, job: "JobRecord | None", some_wait: bool, some_over: bool) -> str:
        if job is not None:
            return joblist.running_card(job, self.curves.of(job.id, job.attempt))
        if some_wait and not self.studio.settings.worker:
            return present.empty_card("No worker runs in this studio", "Jobs wait until one is started: python -m studio worker")
        if some_wait:
            return present.empty_card("The next training starts in a moment", "The worker takes the oldest waiting job.")
        return present.empty_card("Nothing is training", "" if some_over else "Start one with the form; it shows here, step by step.")

    def _failed_logs(self, failed: "list[JobRecord]") -> dict[str, str]:
        """Log texts of failed jobs, each read once."""
        self._logs = {(job.id, job.attempt): self._logs.get((job.id, job.attempt)) or self.studio.job_log(job.id) for job in failed}
        return {job_id: text for (job_id, _), text in self._logs.items()}

    def tick(self, opened: str, trying: str, shown: dict[str, str], outcomes: list[str]) -> tuple[Any, ...]:
        """What a second changed: the tab where it is open, and the way into the chat for who tried it."""
        live = self.live(shown, outcomes) if opened == TRAIN else (gr.skip(),) * 5
        job = self.studio.queue.get(trying) if trying else None
        if job is None or job.finished_at is None:
            return *live, trying, gr.skip(), gr.skip()
        if job.state == "done" and opened == TRAIN:
            return *live, "", *open_chat(self.studio, job.adapter_id)
        return *live, "", gr.skip(), gr.skip()

    def cancel(self, job_id: str) -> str:
        """Cancel a running or waiting job."""
        try:
            job = self.studio.queue.cancel(job_id)
        except StudioError as error:
            return present.error_card(error)
        return present.note_card(f"The training of {job.adapter_name} {'stops' if job.state == 'cancelling' else 'was cancelled'}.")

    def act(self, outcomes: list[str], event: gr.EventData) -> tuple[Any, Any, Any, Any]:
        """A button in the lists: cancel, retry, chat, or what came of a job."""
        kind, record_id = action(event)
        if kind == "chat":
            return "", *open_chat(self.studio, record_id), gr.skip()
        if kind == "outcome":
            opened = [job_id for job_id in outcomes if job_id != record_id]
            return gr.skip(), gr.skip(), gr.skip(), opened if len(opened) < len(outcomes) else [*outcomes, record_id]
        return self._change(kind, record_id), gr.skip(), gr.skip(), gr.skip()

    def _change(self, kind: str, record_id: str) -> str:
        if kind == "cancel":
            return self.cancel(record_id)
        try:
            if kind == "cancel-group":
                return present.note_card(
                    f"{present.count(len(self.studio.queue.cancel_group(record_id)), 'training')} of the sweep stopped."
                )
            job = self.studio.queue.retry(record_id, from_start=kind == "restart")
        except StudioError as error:
            return present.error_card(error)
        step = self.studio.queue.resume_step(job.id)
        where = "" if step is None else f" and resumes at step {step:,}"
        return present.note_card(f"{job.adapter_name} is in the queue again{where}.")


def _voices(studio: "Studio") -> "list[AdapterRecord]":
    """Adapters that the chat could open now."""
    try:
        return studio.adapters_of(studio.default_base())
    except NotFound:
        return []


def _kept(value: str | None, records: Sequence[Any], otherwise: str | None) -> str | None:
    return value if any(record.id == value for record in records) else otherwise


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.train, _Events(studio, page)
    chat = [page.tabs, page.chat.adapter]
    live: dict[str, Any] = {
        "fn": events.live,
        "inputs": [tab.shown, tab.outcomes],
        "outputs": [tab.running, tab.running_id, tab.cancel, tab.waiting, tab.history],
        **QUIET,
    }
    _wire_form(page, events, live)
    tab.tab.select(**live)
    tab.cancel.click(events.cancel, tab.running_id, tab.message, **QUIET).then(**live)
    for listed in (tab.waiting, tab.history):
        listed.act(events.act, tab.outcomes, [tab.message, *chat, tab.outcomes], **QUIET).then(**live)
    ticked = [page.opened, page.trying, tab.shown, tab.outcomes]
    page.pulse.tick(events.tick, ticked, [*live["outputs"], page.trying, *chat], **QUIET)


def _wire_form(page: Page, events: _Events, live: dict[str, Any]) -> None:
    """What follows from the form: the command, the cost, the memory, and which options mean anything."""
    tab, fields = page.train, list(page.train.fields.values())
    filled = [tab.dataset, tab.name, tab.base, tab.preset, tab.sweep, *fields]
    asked = [tab.dataset, tab.base, tab.preset, tab.sweep, *fields]
    method = tab.fields["method"]
    command: dict[str, Any] = {"fn": events.command, "inputs": filled, "outputs": tab.command, **QUIET}
    cost: dict[str, Any] = {"fn": events.cost, "inputs": [tab.base, tab.fields["quantization"]], "outputs": tab.cost, **QUIET}
    memory: dict[str, Any] = {"fn": events.memory, "inputs": asked, "outputs": tab.memory, **QUIET}
    kind: dict[str, Any] = {"fn": events.kind, "inputs": method, "outputs": [*fields, tab.kind_hint], **QUIET}
    refreshed = [tab.dataset, tab.base, tab.trouble, tab.start, tab.try_it]
    refresh: dict[str, Any] = {"fn": events.refresh, "inputs": [tab.dataset, tab.base], "outputs": refreshed, **QUIET}
    tab.tab.select(**refresh).then(**command).then(**cost).then(**memory)
    tab.preset.change(form.preset_controls, tab.preset, fields, **QUIET).then(**kind).then(**command).then(**cost).then(**memory)
    method.input(**kind)
    # Text that is pasted is a change, but no input, of a Textbox.
    inputs = [f.change if isinstance(f, gr.Textbox) else f.input for f in (tab.dataset, tab.base, tab.sweep, *fields)]
    gr.on([tab.name.change, *inputs], trigger_mode="always_last", **command)
    gr.on(inputs, trigger_mode="always_last", **memory)
    gr.on([tab.base.input, tab.fields["quantization"].input], **cost)
    started = tab.start.click(events.start, [*filled], [tab.message, tab.name], **QUIET)
    started.then(**live).then(**refresh).then(**command)
    tab.try_button.click(events.try_it, None, [page.trying, tab.message], **QUIET).then(**live).then(**refresh)
