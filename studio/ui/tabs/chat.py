"""Chat: conversations with the base and with adapters, kept as trees; replies side by side; each reply is stamped."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound, StudioError
from studio.ui import present
from studio.ui.chat import comparing, library, probing, talks, transcript, voice
from studio.ui.chat.comparing import Compare, Comparing
from studio.ui.chat.library import Library
from studio.ui.chat.speaking import Speaking
from studio.ui.chat.talks import TalkList
from studio.ui.chat.transcript import Transcript
from studio.ui.chat.voice import VoiceParts, Voices
from studio.ui.page import CHAT, QUIET, TRAIN, Page, action, fragment, html, voices

if TYPE_CHECKING:
    from studio.services import Studio

Values = dict[Any, Any]


@dataclass(frozen=True)
class ChatTab:
    """Handles of the tab."""

    tab: gr.Tab
    trouble: gr.HTML
    talks: TalkList
    transcript: Transcript
    voice: VoiceParts
    compare: Compare
    library: Library
    prompt: gr.Textbox
    send: gr.Button
    stop: gr.Button
    fresh: gr.Button
    probe: gr.Button
    probed: gr.HTML
    system: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    length: gr.Slider
    seed: gr.Textbox
    unload: gr.Button

    @property
    def adapter(self) -> gr.Dropdown:
        """Who speaks; other tabs set it."""
        return self.voice.adapter


def build() -> ChatTab:
    """Lay the tab out."""
    with gr.Tab("Chat", id=CHAT, elem_id="tab-chat") as tab:
        html(present.heading("Talk to it", "Change the adapter whenever you like; every reply says who wrote it."))
        with gr.Row(elem_classes="as-columns", elem_id="chat-columns"):
            with gr.Column(scale=1, min_width=210, elem_id="chat-side"):
                fresh = gr.Button("New conversation", elem_id="chat-new")
                kept = talks.build()
            with gr.Column(scale=4, min_width=300, elem_id="chat-main"):
                trouble = fragment(elem_id="chat-trouble")
                shown = transcript.build()
                box, board = comparing.build_board()
                parts = _build_composer(box, board)
    return ChatTab(tab=tab, trouble=trouble, talks=kept, transcript=shown, fresh=fresh, **parts)


def _build_composer(box: gr.Column, board: gr.HTML) -> dict[str, Any]:
    with gr.Row(elem_classes="as-composer", elem_id="chat-composer"):
        adapter = voice.build_chooser()
        prompt = gr.Textbox(
            "", label="Message", placeholder="Ask something", lines=1, max_lines=6, elem_id="chat-prompt", scale=8, min_width=220
        )
        send = gr.Button("Send", variant="primary", elem_id="chat-send", scale=0, min_width=96)
        stop = gr.Button("Stop", visible=False, elem_id="chat-stop", scale=0, min_width=96)
    speaker = voice.build(adapter)
    with gr.Row(elem_classes="as-actions as-under"):
        on = gr.Checkbox(label="Compare side by side", elem_id="chat-compare", container=False, min_width=180, scale=0)
        probe = gr.Button("Is it really on?", elem_id="chat-probe", elem_classes="as-quiet", min_width=130, scale=0)
    options, who, each = comparing.build_options()
    probed = html(elem_id="chat-probed")
    compare = Compare(on, box, board, options, who, each, gr.State(None))
    kept = library.build()
    drawing = _build_more()
    return {
        "prompt": prompt,
        "send": send,
        "stop": stop,
        "voice": speaker,
        "compare": compare,
        "library": kept,
        "probe": probe,
        "probed": probed,
        **drawing,
    }


def _build_more() -> dict[str, Any]:
    with gr.Accordion("More", open=False, elem_id="chat-more"):
        system = gr.Textbox(
            "", label="System prompt", info="What the model is told before the conversation.", lines=2, elem_id="chat-system"
        )
        with gr.Row(elem_classes="as-grid"):
            temperature = gr.Slider(
                0, 2, 0.7, step=0.05, label="Temperature", info="0 always takes the likeliest token.", elem_id="chat-temperature"
            )
            top_p = gr.Slider(
                0.05, 1, 0.9, step=0.05, label="Top-p", info="Draw among the likeliest that make up this share.", elem_id="chat-top-p"
            )
            length = gr.Slider(16, 1024, 256, step=16, label="Length", info="Most tokens of a reply.", elem_id="chat-length")
            seed = gr.Textbox(  # an empty gr.Number is 0
                "", label="Seed", info="The same seed draws the same; empty draws anew.", max_lines=1, elem_id="chat-seed"
            )
        unload = gr.Button("Give back the base's memory", elem_id="chat-unload", elem_classes="as-quiet", scale=0)
    return {"system": system, "temperature": temperature, "top_p": top_p, "length": length, "seed": seed, "unload": unload}


class _Events:
    """What belongs to no part alone."""

    def __init__(self, studio: "Studio", page: Page, speaking: Speaking, comparing: Comparing, voices: Voices) -> None:
        self.studio, self.page, self.tab = studio, page, page.chat
        self.speaking, self.comparing, self.voices = speaking, comparing, voices

    def refresh(self, values: Values) -> Values:
        """Who can speak now, and what is missing."""
        who = self.comparing.refresh(values[self.tab.compare.who])
        return {**self.voices.refresh(values), **who, self.tab.trouble: self.trouble()}

    def trouble(self) -> str:
        """What is missing before this tab makes sense."""
        try:
            self.studio.default_base()
        except NotFound as error:
            return present.error_card(error, "The base model is not here yet")
        if len(voices(self.studio)) > 1:
            return ""
        go = present.button("Train an adapter →", "train")
        return present.empty_card("Only the base can answer yet", "Train an adapter, and it can answer here as well.", go)

    def send(self, values: Values, request: gr.Request) -> Iterator[Values]:
        """Answer in the conversation, or side by side."""
        answering = self.comparing.run if values[self.tab.compare.on] else self.speaking.speak
        yield from answering(values, str(request.session_hash))

    def act(self, values: Values, event: gr.EventData) -> Values:
        """A button under a message."""
        kind, message_id, _ = action(event)
        try:
            return self.speaking.looks.act(values, kind, message_id)
        except StudioError as error:
            return {self.tab.trouble: present.error_card(error)}

    def unload(self) -> str:
        """Make room for a training; the next message loads the base again."""
        if self.studio.chat.unload():
            return present.note_card("The base is out of memory until the next message.")
        return present.error_card(
            "Somebody is being answered right now; wait for the end of the reply, then try again.", "The base is in use"
        )


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, speaking = page.chat, Speaking(studio, page)
    draw = talks.wire(page, studio, speaking.looks)
    compared = comparing.wire(page, studio, speaking, draw)
    events = _Events(studio, page, speaking, compared, voice.wire(tab.voice, studio))
    library.wire(page, studio)
    probing.wire(page, studio)
    parts = tab.voice
    looks: dict[str, Any] = {"inputs": set(parts.inputs), "outputs": [parts.about, parts.alone, parts.blend], **voice.IN_TURN}
    there = [parts.adapter, *parts.names, tab.compare.who, tab.trouble]
    refreshed = tab.tab.select(events.refresh, {*parts.inputs, tab.compare.who}, there, **voice.IN_TURN)
    refreshed.then(events.voices.look, **looks).then(**draw)
    _wire_speaking(page, events, draw)
    tab.unload.click(events.unload, None, tab.trouble, **QUIET)
    tab.trouble.act(lambda: gr.Tabs(selected=TRAIN), None, page.tabs, **QUIET)


def _wire_speaking(page: Page, events: _Events, draw: dict[str, Any]) -> None:
    tab, shown = page.chat, page.chat.transcript
    asked = {tab.prompt, tab.system, tab.temperature, tab.top_p, tab.length, tab.seed, *tab.voice.inputs}
    inputs = {*asked, page.talk, page.leaf, shown.edited, tab.compare.on, tab.compare.who, tab.compare.each}
    opened = [page.talk, page.leaf, shown.chat, shown.edited, shown.note, tab.prompt, tab.trouble]
    outputs = [*opened, tab.send, tab.stop, tab.fresh, tab.compare.board, tab.compare.duel]
    both: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "concurrency_limit": None, **QUIET}
    ready: dict[str, Any] = {"fn": _ready, "inputs": None, "outputs": [tab.send, tab.stop, tab.fresh], **QUIET}
    gr.on([tab.send.click, tab.prompt.submit], events.send, **both).then(**ready).then(**draw)
    shown.chips.act(_example, None, tab.prompt, **QUIET).then(events.send, **both).then(**ready).then(**draw)
    shown.clicks.again(events.speaking.again, **both).then(**ready).then(**draw)
    shown.clicks.act(events.act, inputs, opened, **QUIET)
    shown.note.act(lambda: ("", "", ""), None, [shown.edited, shown.note, tab.prompt], **QUIET)
    tab.stop.click(events.speaking.stop, None, None, concurrency_limit=None, **QUIET)


def _example(event: gr.EventData) -> str:
    return action(event)[1]


def _ready() -> tuple[Any, Any, Any]:
    """Whatever ended a reply, the next message can be sent."""
    return gr.Button(visible=True), gr.Button(visible=False), gr.Button(interactive=True)
