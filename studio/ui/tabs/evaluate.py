"""Evaluate: hold adapters to the rows of a dataset, watch, compare. It runs in the studio and goes on when the browser is closed."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.evaluation.plan import FAMILIES, FAMILY_NAMES, MOST_ROWS, MOST_TOKENS, MOST_VOICES, Plan
from studio.ui import present
from studio.ui.evaluation import show
from studio.ui.page import BLEND, EVALUATE, QUIET, Page, action, dataset_choices, fragment, html, kept, only_new, voices

if TYPE_CHECKING:
    from studio.services import Studio

LISTED = 30
PLAN = Plan()
ROWS = 50  # a first answer within minutes, on a laptop, too


@dataclass(frozen=True)
class EvaluateTab:
    """Handles of the tab. The browser keeps `chosen`: id and first row of the evaluation that is looked at. `drawn` is what it has."""

    tab: gr.Tab
    dataset: gr.Dropdown
    voices: gr.Dropdown
    metrics: gr.CheckboxGroup
    rows: gr.Number
    held_out: gr.Checkbox
    max_tokens: gr.Number
    temperature: gr.Number
    seed: gr.Number
    start: gr.Button
    message: gr.HTML
    command: gr.Textbox
    one: gr.HTML
    chosen: gr.Textbox
    drawn: gr.State

    @property
    def form(self) -> list[Any]:
        """The controls, in the order of `_Events.start`."""
        return [self.dataset, self.voices, self.metrics, self.rows, self.held_out, self.max_tokens, self.temperature, self.seed]


def build() -> EvaluateTab:
    """Lay the tab out."""
    with gr.Tab("Evaluate", id=EVALUATE, elem_id="tab-evaluate") as tab:
        html(
            present.heading("Evaluate adapters", "Hold several to the same rows: how likely the rows are, and how close the answers come.")
        )
        message = html(elem_id="evaluate-message")
        with gr.Row(elem_classes="as-columns"):
            with gr.Column(scale=4, min_width=300, elem_classes="as-panel"):
                form = _build_form()
            with gr.Column(scale=8, min_width=300):
                one = fragment(elem_id="evaluate-one")
        chosen, drawn = kept("evaluate-chosen"), gr.State({})
    return EvaluateTab(tab=tab, message=message, one=one, chosen=chosen, drawn=drawn, **form)


def _build_form() -> dict[str, Any]:
    made: dict[str, Any] = {
        "dataset": gr.Dropdown([], label="Dataset", elem_id="evaluate-dataset"),
        "voices": gr.Dropdown(
            [],
            label="Adapters",
            info="The base alone shows what an adapter adds.",
            multiselect=True,
            max_choices=MOST_VOICES,
            elem_id="evaluate-voices",
        ),
        "metrics": gr.CheckboxGroup(
            [(FAMILY_NAMES[key], key) for key in FAMILIES],
            value=list(PLAN.metrics),
            label="Metrics",
            info="All but the loss need answers, which take longer.",
            elem_id="evaluate-metrics",
        ),
        "rows": gr.Number(
            ROWS,
            label="Rows",
            info="At most so many, drawn by the seed; 0 for all.",
            minimum=0,
            maximum=MOST_ROWS,
            precision=0,
            elem_id="evaluate-rows",
        ),
    }
    made |= _build_more()
    start = gr.Button("Evaluate", variant="primary", elem_id="evaluate-start", elem_classes="as-do")
    command = gr.Textbox(
        "",
        label="The same on the command line",
        lines=2,
        interactive=False,
        buttons=["copy"],
        elem_id="evaluate-command",
        elem_classes="as-command",
    )
    return {**made, "start": start, "command": command}


def _build_more() -> dict[str, Any]:
    with gr.Accordion("More", open=False, elem_id="evaluate-more"):
        held = gr.Checkbox(
            False,
            label="Only rows that the training held out",
            info="For an adapter that learned from this dataset.",
            elem_id="evaluate-held-out",
        )
        with gr.Row(elem_classes="as-grid"):
            tokens = gr.Number(
                PLAN.max_tokens,
                label="Longest answer",
                info="In tokens.",
                minimum=1,
                maximum=MOST_TOKENS,
                precision=0,
                elem_id="evaluate-tokens",
            )
            warmth = gr.Number(
                PLAN.temperature,
                label="Temperature",
                info="0 takes the likeliest word.",
                minimum=0,
                maximum=5,
                step=0.1,
                elem_id="evaluate-temperature",
            )
            seed = gr.Number(
                PLAN.seed, label="Seed", info="Which rows are drawn.", minimum=0, maximum=2**31 - 1, precision=0, elem_id="evaluate-seed"
            )
    return {"held_out": held, "max_tokens": tokens, "temperature": warmth, "seed": seed}


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio, self.evaluations = studio, studio.evaluations
        self._acts: dict[str, Callable[[str], str]] = {"stop": self._stop, "resume": self._resume, "remove": self._remove}

    def refresh(self, dataset: str | None, chosen_voices: list[str] | None, *form: Any) -> tuple[Any, Any, str]:
        """Choices as they are now; what was chosen stays chosen."""
        choices = dataset_choices(self.studio, dataset)
        value = dataset if dataset in {key for _, key in choices} else (choices[0][1] if choices else None)
        speakers = [(label, key) for label, key in voices(self.studio) if key != BLEND]
        known = [key for _, key in speakers]
        who = [key for key in chosen_voices or [] if key in known] or known[:2]
        return gr.Dropdown(choices=choices, value=value), gr.Dropdown(choices=speakers, value=who), self.command(value, who, *form)

    def draw(self, chosen: str, drawn: dict[str, str]) -> Any:
        """The evaluation that is looked at, or the newest one, and the list of all."""
        found = self.evaluations.all(LISTED)
        key, _, at = chosen.partition(" ")
        offset = int(at) if at.isdecimal() else 0
        if not found:
            return only_new(drawn, "one", show.nothing())
        seen = next((each for each in found if each.record.id == key), None)
        if seen is None:
            seen, offset = found[0], 0
            if key:
                try:
                    seen = self.evaluations.get(key)
                except StudioError:  # deleted meanwhile, maybe elsewhere: the newest one takes its place
                    seen = found[0]
        read = self.evaluations.read(seen.record.id, offset, show.PAGE)
        return only_new(drawn, "one", show.one(seen, read, offset) + show.listed(found, seen.record.id))

    def tick(self, chosen: str, drawn: dict[str, str], event: gr.EventData) -> Any:
        """Something changed; nothing is drawn for whoever looks elsewhere."""
        looks_here = str((event._data or {}).get("tab", "")) == EVALUATE
        return self.draw(chosen, drawn) if looks_here else gr.skip()

    def start(self, dataset: str | None, who: list[str], metrics: Sequence[str], *rest: Any) -> tuple[Any, Any]:
        """Begin one."""
        try:
            record = self.evaluations.add(dataset or "", who or [], _plan(metrics, *rest))
            self.evaluations.start(record.id)
        except StudioError as error:
            return present.error_card(error, "The evaluation was not started"), gr.skip()
        return "", record.id

    def act(self, event: gr.EventData) -> tuple[Any, Any]:
        """A button inside the fragment: what is said, and what is looked at then."""
        kind, key, _ = action(event)
        if kind in ("open", "rows"):
            return "", key
        try:
            return present.note_card(self._acts[kind](key)), "" if kind == "remove" else key
        except StudioError as error:
            return present.error_card(error), gr.skip()

    def _stop(self, key: str) -> str:
        self.evaluations.stop(key)
        return "It stops; what is done stays, and you can go on with it."

    def _resume(self, key: str) -> str:
        self.evaluations.start(key)
        return "It goes on where it stopped."

    def _remove(self, key: str) -> str:
        return f"The evaluation on {self.evaluations.remove(key).dataset_name} was deleted."

    def command(self, dataset: str | None, who: list[str] | None, metrics: Sequence[str] = (), *rest: Any) -> str:
        """The equal command line."""
        plan = _plan(metrics, *rest)
        named = {key: label for label, key in voices(self.studio)}
        words = ["python", "-m", "studio", "evaluate", "--dataset", self.studio.datasets.labels().get(dataset or "", "DATASET")]
        for key in who or []:
            words += ["--adapter", key if key.startswith(("base", "job:")) else named.get(key, key)]
        words += ["--metrics", ",".join(plan.metrics)] if plan.metrics != PLAN.metrics else []
        words += ["--held-out"] if plan.held_out else []
        for option in ("rows", "max_tokens", "temperature", "seed"):
            if getattr(plan, option) != getattr(PLAN, option):
                words += [f"--{option.replace('_', '-')}", f"{getattr(plan, option):g}"]
        return shlex.join(words)


def _plan(metrics: Sequence[str], rows: Any = 0, held_out: bool = False, tokens: Any = None, temperature: Any = 0, seed: Any = 0) -> Plan:
    """What the form says; an empty field stands for the usual."""
    chosen = tuple(family for family in FAMILIES if family in metrics)
    length = PLAN.max_tokens if tokens is None else int(tokens)
    return Plan(chosen, int(rows or 0), bool(held_out), length, float(temperature or 0), int(seed or 0))


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.evaluate, _Events(studio)
    draw: dict[str, Any] = {"fn": events.draw, "inputs": [tab.chosen, tab.drawn], "outputs": tab.one, **QUIET}
    tab.tab.select(events.refresh, tab.form, [tab.dataset, tab.voices, tab.command], **QUIET)
    gr.on([tab.tab.select, tab.chosen.change], trigger_mode="always_last", **draw)
    tab.start.click(events.start, tab.form, [tab.message, tab.chosen], **QUIET).then(**draw)
    tab.one.act(events.act, None, [tab.message, tab.chosen], trigger_mode="multiple", **QUIET).then(**draw)
    page.pulse.act(events.tick, [tab.chosen, tab.drawn], tab.one, **QUIET)
    changed = [control.change if isinstance(control, gr.Number) else control.input for control in tab.form]
    gr.on(changed, events.command, tab.form, tab.command, trigger_mode="always_last", **QUIET)
