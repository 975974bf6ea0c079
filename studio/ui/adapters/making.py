"""The fold in the Adapters tab by which an adapter is made of others: up to four with weights, and how they become one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import Interrupted, StudioError
from studio.ui import present
from studio.ui.datasets.show_report import progress
from studio.ui.page import AS_VERSION, MOST_VOICES, QUIET, html
from studio.ui.work import Runs

if TYPE_CHECKING:
    from studio.adapters.catalog import Added
    from studio.adapters.making import Recipe
    from studio.services import Studio

PLACES = 4
NOBODY = ("nobody", "")
METHODS = [("weighted sum", "sum"), ("TIES", "ties"), ("DARE", "dare")]
REFUSED = "The adapter was not made"


@dataclass(frozen=True)
class Making:
    """Handles of the fold. `names` and `weights` are its places."""

    fold: gr.Accordion
    names: list[gr.Dropdown]
    weights: list[gr.Number]
    method: gr.Dropdown
    rank: gr.Number
    density: gr.Slider
    seed: gr.Number
    name: gr.Textbox
    version: gr.Checkbox
    expected: gr.HTML
    make: gr.Button
    stop: gr.Button

    @property
    def recipe(self) -> list[Any]:
        """What `Events.expect` reads."""
        return [self.method, self.rank, self.density, self.seed, *self.names, *self.weights]


def build() -> Making:
    """Lay the fold out."""
    names, weights = [], []
    with gr.Accordion("Make one from others", open=False, elem_id="adapter-make") as fold:
        html('<p class="as-hint">LoRA adapters of one base, with weights; one below 0 takes away.</p>')
        for place in range(1, PLACES + 1):
            with gr.Row(elem_classes="as-blend-row"):
                who: dict[str, Any] = {"label": f"Adapter {place}", "elem_id": f"make-name-{place}", "scale": 3, "min_width": 180}
                names.append(gr.Dropdown([NOBODY], value="", **who))
                weight: dict[str, Any] = {"label": f"Weight {place}", "elem_id": f"make-weight-{place}", "scale": 1, "min_width": 90}
                weights.append(gr.Number(1.0 if place == 1 else 0.5, minimum=-10, maximum=10, step=0.05, **weight))
        parts = _build_recipe()
    return Making(fold, names, weights, **parts)


def _build_recipe() -> dict[str, Any]:
    with gr.Row(elem_classes="as-grid"):
        method = gr.Dropdown(METHODS, value="sum", label="Method", elem_id="make-method")
        rank = gr.Number(0, label="Rank", info="0 is exact for a sum, else the largest.", minimum=0, precision=0, elem_id="make-rank")
        density = gr.Slider(0.05, 1, 0.5, step=0.05, label="Density", info="Of TIES and DARE.", elem_id="make-density")
        seed = gr.Number(0, label="Seed", info="What DARE draws.", minimum=0, precision=0, elem_id="make-seed")
        name = gr.Textbox("", label="Name", max_lines=1, elem_id="make-name")
        version = gr.Checkbox(False, **AS_VERSION, elem_id="make-version")
    expected = html(elem_id="make-expected")
    with gr.Row(elem_classes="as-actions"):
        make = gr.Button("Make it", variant="primary", elem_id="make-go", min_width=110)
        stop = gr.Button("Stop", visible=False, elem_id="make-stop", elem_classes="as-quiet", min_width=60)
    parts: dict[str, Any] = {"method": method, "rank": rank, "density": density, "seed": seed, "name": name, "version": version}
    return {**parts, "expected": expected, "make": make, "stop": stop}


class Events:
    """The fold's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self.runs: Runs[Added] = Runs()

    def choices(self, *chosen: str) -> list[Any]:
        """The LoRAs that there are now; what was chosen stays."""
        from storage.catalog import Search

        found = self.studio.finder.page(Search(kind="lora"), MOST_VOICES).records
        options = [NOBODY, *((record.name, record.id) for record in found)]
        known = {key for _, key in options}
        return [gr.Dropdown(choices=options, value=key if key in known else "") for key in chosen]

    def expect(self, *filled: Any) -> str:
        """What will come of it, or why nothing will."""
        try:
            formula, recipe = _read(*filled)
            return present.hint(self.studio.maker.expected(formula, recipe)) if formula else ""
        except StudioError as error:
            return present.error_card(error, "This cannot be made")

    def make(self, request: gr.Request, name: str, version: bool, *filled: Any) -> Iterator[tuple[Any, ...]]:
        """Make it: (what is told, the message, the adapter's id, the Make button, the Stop button)."""
        stay = (gr.skip(), gr.skip())
        try:
            formula, recipe = _read(*filled)
        except StudioError as error:
            yield present.error_card(error, REFUSED), *stay, gr.skip(), gr.skip()
            return
        if not formula:
            yield present.error_card("Choose an adapter first.", REFUSED), *stay, gr.skip(), gr.skip()
            return
        work = self.runs.start(
            request.session_hash or "",
            lambda work: self.studio.make_adapter(formula, name, recipe, as_version_of=name.strip() if version else "", tell=work.say),
        )
        for told in work.watch():
            yield progress(*told), *stay, gr.Button(interactive=False), gr.Button(visible=True)
        yield *self._result(work), gr.Button(interactive=True), gr.Button(visible=False)

    def stop(self, request: gr.Request) -> None:
        """Stop what this browser makes."""
        if (work := self.runs.find(request.session_hash or "")) is not None:
            work.stop()

    def _result(self, work: Any) -> tuple[Any, Any, Any]:
        try:
            made: Added = work.result()
        except Interrupted as stopped:
            return present.note_card(str(stopped)), gr.skip(), gr.skip()
        except StudioError as error:
            return present.error_card(error, REFUSED), gr.skip(), gr.skip()
        said = " ".join([f"{made.record.name} was made from {made.record.source}.", *made.notices])
        return "", present.note_card(said), made.record.id


def _read(method: str, rank: float | None, density: float, seed: float | None, *parts: Any) -> "tuple[str, Recipe]":
    """A formula of ids, empty where nobody is chosen, and the recipe."""
    from studio.adapters.making import Recipe

    chosen = [(key, weight) for key, weight in zip(parts[:PLACES], parts[PLACES:], strict=True) if key]
    formula = "+".join(f"{key}:{1.0 if weight is None else float(weight):g}" for key, weight in chosen)
    return formula, Recipe(method, int(rank or 0), float(density), int(seed or 0))


def wire(fold: Making, studio: "Studio", message: Any, chosen: Any) -> None:
    """Bind the fold's events; `message` and `chosen` say what was made."""
    events = Events(studio)
    fold.fold.expand(events.choices, fold.names, fold.names, **QUIET)
    gr.on([part.change for part in fold.recipe], events.expect, fold.recipe, fold.expected, trigger_mode="always_last", **QUIET)
    outputs = [fold.expected, message, chosen, fold.make, fold.stop]
    fold.make.click(events.make, [fold.name, fold.version, *fold.recipe], outputs, **QUIET)
    fold.stop.click(events.stop, None, None, queue=False, **QUIET)
