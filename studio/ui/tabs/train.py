"""Train: say what to learn from and how, start, watch the queue. Every control of "More" comes from the config itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidInput, NotFound, StudioError
from studio.jobs.sweep import parse_axes
from studio.training.config import TrainConfig, make_config
from studio.ui import form, present
from studio.ui.jobs import board
from studio.ui.jobs.parts import PRIORITIES
from studio.ui.jobs.show_job import preset_of
from studio.ui.page import QUIET, TRAIN, Page, dataset_choices, html, names_of

if TYPE_CHECKING:
    from studio.services import Studio

COPIED_INTO = 7  # controls beside the options
OTHERS_SHOWN = 100  # jobs that a new one may run after
TRY_IT = (
    '<div class="as-try"><strong>New here? Train the angry bird.</strong>'
    "<p>One click trains an adapter on 96 sample rows, here on this machine, and opens the chat with it when it is done.</p></div>"
)


@dataclass(frozen=True)
class TrainTab:
    """Handles of the tab. `fields` are the controls of "More" by the config's field names; `copied` is the job that filled the form."""

    tab: gr.Tab
    try_it: gr.Row
    try_button: gr.Button
    trouble: gr.HTML
    dataset: gr.Dropdown
    name: gr.Textbox
    version: gr.Checkbox
    base: gr.Dropdown
    cost: gr.HTML
    preset: gr.Radio
    fields: dict[str, Any]
    sweep: gr.Textbox
    priority: gr.Dropdown
    after: gr.Dropdown
    memory: gr.HTML
    start: gr.Button
    message: gr.HTML
    command: gr.Textbox
    copied: gr.State
    board: board.Board


def build(several_gpus: bool) -> TrainTab:
    """Lay the tab out."""
    with gr.Tab("Train", id=TRAIN, elem_id="tab-train") as tab:
        html(present.heading("Train an adapter", "The base stays as it is; a few megabytes beside it learn from your examples."))
        with gr.Row(visible=False, elem_classes="as-try-row", elem_id="try-it") as try_it:
            html(TRY_IT)
            try_button = gr.Button("Try it", variant="primary", elem_id="try-it-button", min_width=120, scale=0)
        trouble = html(elem_id="train-trouble")
        with gr.Row(elem_classes="as-columns"):
            with gr.Column(scale=5, min_width=300, elem_classes="as-panel"):
                filled = form.build(several_gpus)
            with gr.Column(scale=7, min_width=300, elem_id="train-live"):
                live = board.build()
        copied = gr.State("")  # inside: a component between two tabs would be counted as one, and the next ones shown twice
    return TrainTab(tab=tab, try_it=try_it, try_button=try_button, trouble=trouble, **filled, copied=copied, board=live)


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self.several_gpus = studio.gpus() > 1

    def refresh(self, dataset: str | None, base: str | None, after: str | None) -> tuple[Any, ...]:
        """Choices as they are now; what was chosen stays chosen."""
        datasets, bases = self.studio.datasets.all(), self.studio.bases.all()
        choices = dataset_choices(self.studio, dataset)
        try:
            fallback, trouble = self.studio.default_base().id, ""
        except NotFound as error:
            fallback, trouble = None, present.error_card(error, "The base model is not here yet")
        others = self.studio.queue.open(OTHERS_SHOWN)
        newcomer = not trouble and not others and not self.studio.watching.has_adapters()
        first = next((d.id for d in datasets if not d.sample), datasets[0].id if datasets else None)
        return (
            gr.Dropdown(choices=choices, value=dataset if dataset in {key for _, key in choices} else first),
            gr.Dropdown(choices=[(b.name, b.id) for b in bases], value=_kept(base, bases, fallback)),
            trouble,
            gr.Button(interactive=not trouble, variant="secondary" if newcomer else "primary"),  # one main action at a time
            gr.Row(visible=newcomer),
            gr.Dropdown(choices=[form.NO_OTHER, *((job.adapter_name, job.id) for job in others)], value=_kept(after, others, "")),
        )

    def kind(self, method: str) -> list[Any]:
        """Which options this kind of adapter has."""
        return [gr.update(visible=form.is_shown(key, method, self.several_gpus)) for key in TrainConfig.model_fields]

    def cost(self, base: str | None, quantization: str) -> str:
        """What the chosen form costs the chosen base."""
        return present.hint(self.studio.quantization_cost(base, quantization)) if base else ""

    def command(
        self,
        dataset: str | None,
        name: str,
        base: str | None,
        preset: str,
        sweep: str,
        priority: int,
        after: str | None,
        version: bool,
        *values: Any,
    ) -> str:
        """The equal command line."""
        names, bases = names_of(self.studio), self.studio.bases.all()
        shown_base = names.get(base or "", "") if len(bases) > 1 else ""  # the only base need not be named
        try:
            axes = parse_axes([sweep])
        except StudioError:  # it is half typed; Start would say what is wrong
            axes = {}
        changes = form.changed_fields(preset, values)
        words = (
            names.get(dataset or "", "DATASET"),
            name.strip() or "NAME",
            shown_base,
            preset,
            changes,
            axes,
            priority,
            after or "",
            version,
        )
        return form.command_line(*words)

    def memory(self, dataset: str | None, base: str | None, preset: str, sweep: str, *values: Any) -> str:
        """What the training would need of the memory, or what is wrong with the form."""
        if not base:
            return ""
        try:
            axes = parse_axes([sweep])
            found = self.studio.foresight.estimate(dataset, base, preset, form.changed_fields(preset, values), axes)
        except StudioError as error:
            return present.hint(str(error))
        return present.memory_line(found, math.prod(map(len, axes.values())))

    def start(
        self,
        dataset: str | None,
        name: str,
        base: str | None,
        preset: str,
        sweep: str,
        priority: int,
        after: str | None,
        version: bool,
        copied: str,
        *values: Any,
    ) -> tuple[str, Any, Any]:
        """Queue a job, or those of a sweep. The form stays as it is where something is wrong with it."""
        if not dataset:
            return present.error_card("Choose a dataset to learn from.", "There is no dataset"), gr.skip(), gr.skip()
        changes = form.changed_fields(preset, values)
        place: dict[str, Any] = {"priority": priority, "after": after or ""}
        try:
            axes = parse_axes([sweep])
            if axes and version:
                raise InvalidInput("A sweep makes several adapters, which are no versions of one name; leave one of them out.")
            if axes:
                jobs = self.studio.sweep(dataset, name, base, preset, changes, axes, **place)
                said = f"{present.count(len(jobs), 'training')} of {name.strip()} are in the queue, to be compared."
                return present.note_card(said), "", ""
            job = self.studio.train(
                dataset, name, base, preset, changes, copied_from=copied, as_version_of=name.strip() if version else "", **place
            )
        except StudioError as error:
            return present.error_card(error, "The training was not started"), gr.skip(), gr.skip()
        return present.note_card(f"{job.adapter_name} is in the queue."), "", ""

    def copy(self, copying: str) -> list[Any]:
        """Fill the form with the configuration of a job, under a name that is free."""
        job_id = copying.partition(" ")[0]
        try:
            job = self.studio.queue.get(job_id)
        except StudioError as error:
            return [present.error_card(error), *[gr.skip()] * (COPIED_INTO + len(TrainConfig.model_fields))]
        preset, changed = preset_of(job.config)
        dataset = self.studio.queue.datasets.find(job.dataset_id)
        note = f"The form holds the configuration of {job.adapter_name}: change what you like, then start it."
        gone = f"{note} Its dataset {job.config['dataset_name']!r} was deleted; choose another one."
        return [
            present.note_card(note if dataset else gone),
            gr.Dropdown(choices=dataset_choices(self.studio, job.dataset_id), value=dataset.id) if dataset else gr.skip(),
            self.studio.queue.free_name(job.adapter_name),
            job.base_id,
            preset,
            "",
            job.priority if job.priority in PRIORITIES.values() else 0,
            job.id,
            *form.controls({**make_config(preset).model_dump(), **changed}),
        ]

    def try_it(self) -> tuple[str, str]:
        """Queue the angry bird and remember to open the chat with it."""
        try:
            job = self.studio.try_it()
        except StudioError as error:
            return "", present.error_card(error, "The training was not started")
        return job.id, present.note_card(f"{job.adapter_name} is in the queue; the chat opens when it is done.")


def _kept(value: str | None, records: Sequence[Any], otherwise: str | None) -> str | None:
    return value if any(record.id == value for record in records) else otherwise


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    live = board.wire(page, studio)
    _wire_form(page, _Events(studio), live)
    page.train.tab.select(**live)


def _wire_form(page: Page, events: _Events, live: dict[str, Any]) -> None:
    """What follows from the form: the command, the cost, the memory, and which options mean anything."""
    tab, fields = page.train, list(page.train.fields.values())
    placed = [tab.priority, tab.after, tab.version]
    filled = [tab.dataset, tab.name, tab.base, tab.preset, tab.sweep, *placed, *fields]
    method = tab.fields["method"]
    command: dict[str, Any] = {"fn": events.command, "inputs": filled, "outputs": tab.command, **QUIET}
    cost: dict[str, Any] = {"fn": events.cost, "inputs": [tab.base, tab.fields["quantization"]], "outputs": tab.cost, **QUIET}
    asked = [tab.dataset, tab.base, tab.preset, tab.sweep, *fields]
    memory: dict[str, Any] = {"fn": events.memory, "inputs": asked, "outputs": tab.memory, **QUIET}
    kind: dict[str, Any] = {"fn": events.kind, "inputs": method, "outputs": fields, **QUIET}
    refreshed = [tab.dataset, tab.base, tab.trouble, tab.start, tab.try_it, tab.after]
    refresh: dict[str, Any] = {"fn": events.refresh, "inputs": [tab.dataset, tab.base, tab.after], "outputs": refreshed, **QUIET}
    tab.tab.select(**refresh).then(**command).then(**cost).then(**memory)
    # Only what a person chose: a job that fills the form sets the preset, too, and then the options.
    tab.preset.input(form.preset_controls, tab.preset, fields, **QUIET).then(**kind).then(**command).then(**cost).then(**memory)
    method.input(**kind)
    # Text that is pasted is a change, but no input, of a Textbox.
    inputs = [f.change if isinstance(f, gr.Textbox) else f.input for f in (tab.dataset, tab.base, tab.sweep, *fields)]
    gr.on([tab.name.change, *(f.input for f in placed), *inputs], trigger_mode="always_last", **command)
    gr.on(inputs, trigger_mode="always_last", **memory)
    gr.on([tab.base.input, tab.fields["quantization"].input], **cost)
    started = tab.start.click(events.start, [*filled[:8], tab.copied, *fields], [tab.message, tab.name, tab.copied], **QUIET)
    started.then(**live).then(**refresh).then(**command)
    tab.try_button.click(events.try_it, None, [page.trying, tab.message], **QUIET).then(**live).then(**refresh)
    into = [tab.dataset, tab.name, tab.base, tab.preset, tab.sweep, tab.priority, tab.copied]
    copied = page.copying.change(events.copy, page.copying, [tab.message, *into, *fields], **QUIET)
    copied.then(None, None, None, js=board.SHOW_FORM, **QUIET).then(**kind).then(**command).then(**cost).then(**memory)
