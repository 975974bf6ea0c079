"""Who speaks: the chooser, a weight, a blend of up to four adapters, and one line about it, where an adapter can be kept ready."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidInput, NotFound, StudioError
from studio.ui import present
from studio.ui.chat import show
from studio.ui.page import BLEND, QUIET, action, fragment, html, voices

if TYPE_CHECKING:
    from storage.records import MessageRecord
    from studio.services import Studio

BASE = "base"
PLACES = 4
MAX_WEIGHT, STEP = 2.0, 0.05
NOBODY = ("nobody", "")
# What writes the line about the choice runs in the order in which it was asked for, so that no answer about an earlier choice comes last.
IN_TURN: dict[str, Any] = {"concurrency_id": "voice", "concurrency_limit": 1, **QUIET}

Values = dict[Any, Any]


@dataclass(frozen=True)
class VoiceParts:
    """Handles. `names` and `weights` are the places of the blend. `restored` is the choice whose weights were set together with it."""

    adapter: gr.Dropdown
    about: gr.HTML
    alone: gr.Column
    weight: gr.Slider
    blend: gr.Column
    names: list[gr.Dropdown]
    weights: list[gr.Slider]
    restored: gr.State

    @property
    def inputs(self) -> list[Any]:
        """What `voice_of` reads."""
        return [self.adapter, self.weight, *self.names, *self.weights]

    @property
    def set_together(self) -> list[Any]:
        """What `as_said` sets."""
        return [*self.inputs, self.restored, self.about]


def build_chooser() -> gr.Dropdown:
    """The choice, for the row of the message."""
    return gr.Dropdown([(present.BASE_LABEL, BASE)], value=BASE, label="Adapter", elem_id="chat-adapter", scale=3, min_width=180)


def build(adapter: gr.Dropdown) -> VoiceParts:
    """Lay out what belongs to the choice."""
    about = fragment(elem_id="chat-voice")
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
    return VoiceParts(adapter, about, alone, weight, blend, names, weights, gr.State(""))


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
        """Who can speak now; whoever was chosen stays. `look` comes behind it, on what is chosen then."""
        choices = voices(self.studio, values[self.parts.adapter] or "")
        updates = {name: _kept(values[name], [NOBODY, *_blendable(choices)], "") for name in self.parts.names}
        return {self.parts.adapter: _kept(values[self.parts.adapter], choices, BASE), **updates}

    def look(self, values: Values) -> Values:
        """The line about the choice, and what may be set."""
        return {self.parts.about: self.line(values), **self._settable(values)}

    def _settable(self, values: Values) -> Values:
        adapter = values[self.parts.adapter] or BASE
        return {
            self.parts.alone: gr.Column(visible=adapter not in (BASE, BLEND)),
            self.parts.blend: gr.Column(visible=adapter == BLEND),
        }

    def change(self, values: Values) -> Values:
        """Another one was chosen, whose weight is as it was trained; a blend begins with the two newest. What `as_said` set stays, and
        the line that it wrote: not all of it need have arrived here."""
        if values[self.parts.restored] == values[self.parts.adapter]:
            return self._settable(values)
        updates: Values = {self.parts.restored: "", self.parts.weight: 1.0}
        values = {**values, self.parts.weight: 1.0}
        if values[self.parts.adapter] == BLEND and not any(values[name] for name in self.parts.names):
            speakers = _blendable(voices(self.studio))
            for name, (_, key) in zip(self.parts.names, speakers[:2], strict=False):
                values[name], updates[name] = key, gr.Dropdown(choices=[NOBODY, *speakers], value=key)
        return {**updates, **self.look(values)}

    def act(self, values: Values, event: gr.EventData) -> Values:
        """Keep the adapter ready, or let it go."""
        kind, adapter_id, _ = action(event)
        change = self.studio.pins.pin if kind == "pin" else self.studio.pins.unpin
        try:
            change(adapter_id)
        except StudioError as error:
            return {self.parts.about: self.line(values) + present.error_card(error, "It is not kept ready")}
        return {self.parts.about: self.line(values)}

    def line(self, values: Values) -> str:
        """One line about who is chosen."""
        return _line(self.studio, _chosen(self.parts, values))


def _blendable(choices: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of those who can speak, those of whom a blend is made."""
    return [(name, key) for name, key in choices if key not in (BASE, BLEND)]


def _kept(value: str, choices: list[tuple[str, str]], instead: str) -> gr.Dropdown:
    """New choices. The value is set only where it is none of them: it may change meanwhile."""
    return gr.Dropdown(choices=choices) if value in {key for _, key in choices} else gr.Dropdown(choices=choices, value=instead)


def as_said(studio: "Studio", parts: VoiceParts, message: "MessageRecord") -> Values:
    """Choose whoever wrote a reply, with the weights of then; nothing is set where one of them cannot speak now."""
    choices = voices(studio)
    said, speakers = _speakers_of(studio, message), _blendable(choices)
    if said is None or len(said) > PLACES or not {key for key, _ in said} <= {key for _, key in speakers}:
        return {}
    told = {parts.about: _line(studio, said)}
    if len(said) < 2:
        key, weight = said[0] if said else (BASE, 1.0)
        return {parts.adapter: gr.Dropdown(choices=choices, value=key), parts.weight: weight, parts.restored: key, **told}
    updates: Values = {parts.adapter: gr.Dropdown(choices=choices, value=BLEND), parts.restored: BLEND, **told}
    places = [*said, *[("", 0.5)] * (PLACES - len(said))]
    for name, slider, (key, weight) in zip(parts.names, parts.weights, places, strict=True):
        updates |= {name: gr.Dropdown(choices=[NOBODY, *speakers], value=key), slider: weight}
    return updates


def _line(studio: "Studio", chosen: list[tuple[str, float]]) -> str:
    """One line about adapters with their weights."""
    try:
        found = [(studio.speakers.get(key), weight) for key, weight in chosen]
    except NotFound as error:  # such as a checkpoint that a newer one replaced
        return present.hint(str(error))
    try:
        base = studio.default_base().name
    except NotFound:
        base = ""
    return show.voice(found, base, pinned={record.id for record in studio.pins.all()})


def _speakers_of(studio: "Studio", message: "MessageRecord") -> list[tuple[str, float]] | None:
    """Ids with weights of who wrote a reply; None where its label means nobody any more."""
    from studio.chat.voices import choose

    try:
        found = [(record.id, weight) for record, weight in choose(message.voice, studio.speakers.get).parts]
    except StudioError:
        return [(message.adapter_id, 1.0)] if message.adapter_id else None  # it was renamed since, or is gone
    if message.adapter_id and [key for key, _ in found] != [message.adapter_id]:  # the name is another's by now
        return [(message.adapter_id, 1.0)]
    return found


def wire(parts: VoiceParts, studio: "Studio") -> Voices:
    """Bind the events; returns the callbacks for others."""
    events = Voices(studio, parts)
    looks = [parts.about, parts.alone, parts.blend]
    parts.adapter.change(events.change, {*parts.inputs, parts.restored}, [*looks, parts.weight, *parts.names, parts.restored], **IN_TURN)
    parts.about.act(events.act, set(parts.inputs), [parts.about], **IN_TURN)
    moved = [component.input for component in parts.inputs[1:]]  # by a person; whoever else sets them writes the line as well
    gr.on(moved, lambda values: {parts.about: events.line(values)}, set(parts.inputs), [parts.about], trigger_mode="always_last", **IN_TURN)
    return events
