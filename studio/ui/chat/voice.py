"""Who speaks: the chooser, a weight, a blend of up to four adapters, and one line about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidInput, NotFound
from studio.ui import present
from studio.ui.chat import show
from studio.ui.page import BLEND, QUIET, html, voices

if TYPE_CHECKING:
    from storage.records import AdapterRecord
    from studio.services import Studio

BASE = "base"
PLACES = 4
MAX_WEIGHT, STEP = 2.0, 0.05
NOBODY = ("nobody", "")

Values = dict[Any, Any]


@dataclass(frozen=True)
class VoiceParts:
    """Handles. `names` and `weights` are the places of the blend."""

    adapter: gr.Dropdown
    about: gr.HTML
    alone: gr.Column
    weight: gr.Slider
    blend: gr.Column
    names: list[gr.Dropdown]
    weights: list[gr.Slider]

    @property
    def inputs(self) -> list[Any]:
        """What `voice_of` reads."""
        return [self.adapter, self.weight, *self.names, *self.weights]


def build_chooser() -> gr.Dropdown:
    """The choice, for the row of the message."""
    return gr.Dropdown([(present.BASE_LABEL, BASE)], value=BASE, label="Adapter", elem_id="chat-adapter", scale=3, min_width=180)


def build(adapter: gr.Dropdown) -> VoiceParts:
    """Lay out what belongs to the choice."""
    about = html(elem_id="chat-voice")
    with gr.Column(visible=False, elem_id="chat-weighing") as alone:
        info = "1 is as trained, 0 is the base; 2 doubles what it does."
        weight = gr.Slider(0, MAX_WEIGHT, 1.0, step=STEP, label="Weight", info=info, elem_id="chat-weight")
    names, weights = [], []
    with gr.Column(visible=False, elem_classes="as-blend", elem_id="chat-blend") as blend:
        html('<p class="as-hint">A weighted sum; the next message is answered by what stands here then. Nothing is loaded anew.</p>')
        for place in range(PLACES):
            with gr.Row(elem_classes="as-blend-row"):
                label = f"Adapter {place + 1}"
                names.append(gr.Dropdown([NOBODY], value="", label=label, elem_id=f"chat-blend-name-{place + 1}", scale=2, min_width=140))
                sliding: dict[str, Any] = {"label": f"Weight {place + 1}", "elem_id": f"chat-blend-weight-{place + 1}"}
                weights.append(gr.Slider(0, MAX_WEIGHT, 0.5, step=STEP, scale=3, min_width=180, **sliding))
    return VoiceParts(adapter, about, alone, weight, blend, names, weights)


def voice_of(parts: VoiceParts, values: Values) -> str:
    """Who is chosen, as `chat.voices` reads it.

    Raises:
        InvalidInput: the blend is empty.
    """
    chosen = _chosen(parts, values)
    if values[parts.adapter] == BLEND and not chosen:
        raise InvalidInput("The blend is empty; choose at least one adapter for it.")
    return "+".join(name if weight == 1 and len(chosen) == 1 else f"{name}:{weight:g}" for name, weight in chosen) or BASE


def _chosen(parts: VoiceParts, values: Values) -> list[tuple[str, float]]:
    """Ids of adapters with their weights."""
    adapter = values[parts.adapter] or BASE
    if adapter == BASE:
        return []
    if adapter != BLEND:
        return [(adapter, round(float(values[parts.weight]), 2))]
    pairs = zip(parts.names, parts.weights, strict=True)
    return [(values[name], round(float(values[weight]), 2)) for name, weight in pairs if values[name]]


class Voices:
    """The callbacks."""

    def __init__(self, studio: "Studio", parts: VoiceParts) -> None:
        self.studio, self.parts = studio, parts

    def refresh(self, values: Values) -> Values:
        """Who can speak now; whoever was chosen stays."""
        choices = voices(self.studio, values[self.parts.adapter] or "")
        adapters = [NOBODY, *((name, key) for name, key in choices if key not in (BASE, BLEND))]
        known = {key for _, key in choices}
        before = values[self.parts.adapter]
        kept = before if before in known else BASE
        filled = _filled([values[name] if values[name] in known else "" for name in self.parts.names], [key for _, key in adapters[1:]])
        values = {**values, self.parts.adapter: kept, **dict(zip(self.parts.names, filled, strict=True))}
        updates = {name: gr.Dropdown(choices=adapters, value=values[name]) for name in self.parts.names}
        chooser = gr.Dropdown(choices=choices) if kept == before else gr.Dropdown(choices=choices, value=kept)  # it may change meanwhile
        return {self.parts.adapter: chooser, **updates, **self.look(values)}

    def look(self, values: Values) -> Values:
        """The line about the choice, and what may be set."""
        adapter = values[self.parts.adapter] or BASE
        return {
            self.parts.about: self.line(values),
            self.parts.alone: gr.Column(visible=adapter not in (BASE, BLEND)),
            self.parts.blend: gr.Column(visible=adapter == BLEND),
        }

    def change(self, values: Values) -> Values:
        """Another one was chosen, whose weight is as it was trained."""
        values = {**values, self.parts.weight: 1.0}
        return {self.parts.weight: 1.0, **self.look(values)}

    def line(self, values: Values) -> str:
        """One line about who is chosen."""
        chosen = list(_chosen(self.parts, values))
        known: dict[str, AdapterRecord] = self.studio.watching.adapters([name for name, _ in chosen])
        parts = [(known[name], weight) for name, weight in chosen if name in known]
        try:
            base = self.studio.default_base().name
        except NotFound:
            base = ""
        return show.voice(parts, base)


def _filled(names: list[str], adapters: Sequence[str]) -> list[str]:
    """The places of the blend; the two newest adapters where it is empty."""
    return names if any(names) else [*adapters[:2], *[""] * PLACES][:PLACES]


def wire(parts: VoiceParts, studio: "Studio") -> Voices:
    """Bind the events; returns the callbacks for others."""
    events = Voices(studio, parts)
    looks = [parts.about, parts.alone, parts.blend]
    parts.adapter.change(events.change, set(parts.inputs), [*looks, parts.weight], **QUIET)
    moved = [component.change for component in parts.inputs[1:]]
    gr.on(moved, lambda values: {parts.about: events.line(values)}, set(parts.inputs), [parts.about], trigger_mode="always_last", **QUIET)
    return events
