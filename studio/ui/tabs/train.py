"""Train: say what to learn from and how, start, watch the queue. Every control of "More" comes from the config itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound, StudioError
from studio.training.config import DEFAULT_PRESET, PRESETS, TrainConfig, field_choices, field_help, make_config
from studio.ui import present
from studio.ui.page import QUIET, TRAIN, Page, action, fragment, html, names_of, only_new, open_chat

if TYPE_CHECKING:
    from storage.records import JobRecord
    from studio.services import Studio

PRESET_LINES = {"quick": "a first impression", "balanced": "good for most sets", "thorough": "slow, for sets of many rows"}
SHOWN_JOBS = 12
TRY_IT = (
    '<div class="as-try"><strong>New here? Train the angry bird.</strong>'
    "<p>One click trains an adapter on 96 sample rows, here on this machine, and opens the chat with it when it is done.</p></div>"
)


@dataclass(frozen=True)
class TrainTab:
    """Handles of the tab. `fields` are the controls of "More" by the config's field names."""

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
    start: gr.Button
    message: gr.HTML
    command: gr.Textbox
    running: gr.HTML
    running_id: gr.State
    cancel: gr.Button
    waiting: gr.HTML
    history: gr.HTML
    shown: gr.State


def build() -> TrainTab:
    """Lay the tab out."""
    with gr.Tab("Train", id=TRAIN, elem_id="tab-train") as tab:
        html(present.heading("Train an adapter", "The base stays as it is; a few megabytes beside it learn from your examples."))
        with gr.Row(visible=False, elem_classes="as-try-row", elem_id="try-it") as try_it:
            html(TRY_IT)
            try_button = gr.Button("Try it", variant="primary", elem_id="try-it-button", min_width=120, scale=0)
        trouble = html(elem_id="train-trouble")
        with gr.Row(elem_classes="as-columns"):
            with gr.Column(scale=6, min_width=300, elem_classes="as-panel"):
                form = _build_form()
            with gr.Column(scale=6, min_width=300, elem_id="train-live"):
                live = _build_live()
        states = {"running_id": gr.State(""), "shown": gr.State({})}
    return TrainTab(tab=tab, try_it=try_it, try_button=try_button, trouble=trouble, **states, **form, **live)


def _build_form() -> dict[str, Any]:
    dataset = gr.Dropdown([], label="Dataset", info="What the adapter learns from.", elem_id="train-dataset")
    name = gr.Textbox("", label="Adapter name", placeholder="Angry bird", max_lines=1, elem_id="train-name")
    preset = gr.Radio(
        [(f"{key.capitalize()}: {preset_line(key)}", key) for key in PRESETS],
        value=DEFAULT_PRESET,
        label="Preset",
        elem_id="train-preset",
        elem_classes="as-radio-lines",
    )
    base = gr.Dropdown([], label="Base", elem_id="train-base")
    cost = html(elem_id="train-cost")
    with gr.Accordion("More", open=False, elem_id="train-more"), gr.Row(elem_classes="as-grid"):
        defaults = make_config().model_dump()
        fields = {key: build_field(key, defaults[key]) for key in TrainConfig.model_fields}
    start = gr.Button("Start training", variant="primary", elem_id="train-start")
    message = html(elem_id="train-message")
    command = gr.Textbox(
        "", label="The same as a command", lines=2, interactive=False, buttons=["copy"], elem_id="train-command", elem_classes="as-command"
    )
    return {
        "dataset": dataset,
        "name": name,
        "preset": preset,
        "base": base,
        "cost": cost,
        "fields": fields,
        "start": start,
        "message": message,
        "command": command,
    }


def _build_live() -> dict[str, Any]:
    running = html(elem_id="train-running")
    cancel = gr.Button("Cancel this training", visible=False, elem_id="train-cancel", elem_classes="as-quiet")
    waiting = fragment(elem_id="train-waiting")
    history = fragment(elem_id="train-history")
    return {"running": running, "cancel": cancel, "waiting": waiting, "history": history}


def preset_line(preset: str) -> str:
    """What a preset means, in its own numbers."""
    config = make_config(preset)
    return f"rank {config.rank}, {config.epochs:g} epochs; {PRESET_LINES[preset]}"


def build_field(key: str, value: Any) -> Any:
    """The control of one field of the config: a choice, a number or a text, with its help and range."""
    shared: dict[str, Any] = {
        "value": value,
        "label": key.replace("_", " ").capitalize(),
        "info": field_help(key),
        "elem_id": f"train-{key.replace('_', '-')}",
        "min_width": 180,
    }
    if choices := field_choices(key):
        return gr.Dropdown(choices, **shared)
    if isinstance(value, str):
        return gr.Textbox(max_lines=1, **shared)
    return gr.Number(precision=0 if isinstance(value, int) else None, **shared)


def changed_fields(preset: str, values: Sequence[Any]) -> dict[str, Any]:
    """The fields that differ from the preset; an emptied number means the preset's own."""
    expected = make_config(preset).model_dump()
    given = zip(expected, values, strict=True)
    return {key: value for key, value in given if value is not None and value != expected[key]}


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.curves = studio, page.curves
        self._logs: dict[tuple[str, int], str] = {}

    def refresh(self, dataset: str | None, base: str | None) -> tuple[Any, ...]:
        """Choices as they are now; what was chosen stays chosen."""
        datasets, bases = self.studio.datasets.all(), self.studio.bases.all()
        try:
            fallback, trouble = self.studio.default_base().id, ""
        except NotFound as error:
            fallback, trouble = None, present.error_card(error, "The base model is not here yet")
        newcomer = not trouble and not self.studio.adapters.all() and not self.studio.queue.open()
        first = next((d.id for d in datasets if not d.sample), datasets[0].id if datasets else None)
        return (
            gr.Dropdown(choices=[(d.name, d.id) for d in datasets], value=_kept(dataset, datasets, first)),
            gr.Dropdown(choices=[(b.name, b.id) for b in bases], value=_kept(base, bases, fallback)),
            trouble,
            gr.Button(interactive=not trouble, variant="secondary" if newcomer else "primary"),  # one main action at a time
            gr.Row(visible=newcomer),
        )

    def preset_values(self, preset: str) -> list[Any]:
        """The preset's value of every field."""
        return list(make_config(preset).model_dump().values())

    def cost(self, base: str | None, quantization: str) -> str:
        """What the chosen form costs the chosen base."""
        return present.hint(self.studio.quantization_cost(base, quantization)) if base else ""

    def command(self, dataset: str | None, name: str, base: str | None, preset: str, *values: Any) -> str:
        """The equal command line."""
        names, bases = names_of(self.studio), self.studio.bases.all()
        shown_base = names.get(base or "", "") if len(bases) > 1 else ""  # the only base need not be named
        changes = changed_fields(preset, values)
        return present.command_line(names.get(dataset or "", "DATASET"), name.strip() or "NAME", shown_base, preset, changes)

    def start(self, dataset: str | None, name: str, base: str | None, preset: str, *values: Any) -> tuple[str, Any]:
        """Queue a job. The form stays as it is where something is wrong with it."""
        if not dataset:
            return present.error_card("Choose a dataset to learn from.", "There is no dataset"), gr.skip()
        try:
            job = self.studio.train(dataset, name, base, preset, changed_fields(preset, values))
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

    def live(self, shown: dict[str, str]) -> tuple[Any, ...]:
        """The running job, the waiting ones and those that are over."""
        jobs = self.studio.queue.open()
        running = next((job for job in jobs if job.state == "running"), None)
        waiting = [job for job in jobs if job.state == "queued"]
        over = [job for job in self.studio.queue.all() if job.finished_at is not None][:SHOWN_JOBS]
        adapters = {a.id: a for a in self.studio.adapters.all()}
        return (
            only_new(shown, "running", self._running(running, bool(waiting), bool(over))),
            running.id if running else "",
            gr.Button(visible=running is not None, interactive=running is not None and not running.cancel_requested),
            only_new(shown, "waiting", present.waiting_list(waiting)),
            only_new(shown, "history", present.history(over, adapters, self._failed_logs(over))),
        )

    def _running(self, job: "JobRecord | None", some_wait: bool, some_over: bool) -> str:
        if job is not None:
            return present.running_card(job, self.curves.of(job.id, job.attempt))
        if some_wait and not self.studio.settings.worker:
            return present.empty_card("No worker runs in this studio", "Jobs wait until one is started: python -m studio worker")
        if some_wait:
            return present.empty_card("The next training starts in a moment", "The worker takes the oldest waiting job.")
        return present.empty_card("Nothing is training", "" if some_over else "Start one with the form; it shows here, step by step.")

    def _failed_logs(self, jobs: "list[JobRecord]") -> dict[str, str]:
        """Log texts of failed jobs, each read once."""
        failed = [job for job in jobs if job.state == "failed"]
        self._logs = {(job.id, job.attempt): self._logs.get((job.id, job.attempt)) or self.studio.job_log(job.id) for job in failed}
        return {job_id: text for (job_id, _), text in self._logs.items()}

    def tick(self, opened: str, trying: str, shown: dict[str, str]) -> tuple[Any, ...]:
        """What a second changed: the tab where it is open, and the way into the chat for who tried it."""
        live = self.live(shown) if opened == TRAIN else (gr.skip(),) * 5
        job = self.studio.queue.get(trying) if trying else None
        if job is None or job.state in ("queued", "running"):
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
        return present.note_card(f"The training of {job.adapter_name} {'stops' if job.state == 'running' else 'was cancelled'}.")

    def act(self, event: gr.EventData) -> tuple[Any, Any, Any]:
        """A button in the lists: cancel, retry or chat."""
        kind, record_id = action(event)
        if kind == "chat":
            return "", *open_chat(self.studio, record_id)
        if kind == "cancel":
            return self.cancel(record_id), gr.skip(), gr.skip()
        try:
            said = present.note_card(f"{self.studio.queue.retry(record_id).adapter_name} is in the queue again.")
        except StudioError as error:
            said = present.error_card(error)
        return said, gr.skip(), gr.skip()


def _kept(value: str | None, records: Sequence[Any], otherwise: str | None) -> str | None:
    return value if any(record.id == value for record in records) else otherwise


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.train, _Events(studio, page)
    fields = list(tab.fields.values())
    form = [tab.dataset, tab.name, tab.base, tab.preset, *fields]
    live: dict[str, Any] = {
        "fn": events.live,
        "inputs": tab.shown,
        "outputs": [tab.running, tab.running_id, tab.cancel, tab.waiting, tab.history],
        **QUIET,
    }
    command: dict[str, Any] = {"fn": events.command, "inputs": form, "outputs": tab.command, **QUIET}
    cost: dict[str, Any] = {"fn": events.cost, "inputs": [tab.base, tab.fields["quantization"]], "outputs": tab.cost, **QUIET}
    chat = [page.tabs, page.chat.adapter]
    refreshed = [tab.dataset, tab.base, tab.trouble, tab.start, tab.try_it]
    refresh: dict[str, Any] = {"fn": events.refresh, "inputs": [tab.dataset, tab.base], "outputs": refreshed, **QUIET}
    tab.tab.select(**refresh).then(**command).then(**cost)
    tab.tab.select(**live)
    tab.preset.change(events.preset_values, tab.preset, fields, **QUIET).then(**command).then(**cost)
    gr.on([tab.dataset.input, tab.name.input, tab.base.input, *(f.input for f in fields)], trigger_mode="always_last", **command)
    gr.on([tab.base.input, tab.fields["quantization"].input], **cost)
    tab.start.click(events.start, form, [tab.message, tab.name], **QUIET).then(**live).then(**refresh).then(**command)
    tab.try_button.click(events.try_it, None, [page.trying, tab.message], **QUIET).then(**live).then(**refresh)
    tab.cancel.click(events.cancel, tab.running_id, tab.message, **QUIET).then(**live)
    tab.waiting.act(events.act, None, [tab.message, *chat], **QUIET).then(**live)
    tab.history.act(events.act, None, [tab.message, *chat], **QUIET).then(**live)
    page.pulse.tick(events.tick, [page.opened, page.trying, tab.shown], [*live["outputs"], page.trying, *chat], **QUIET)
