"""Chat: talk to the base and to adapters in one conversation, or let two answer side by side. Each reply is stamped."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidInput, NotFound, StudioError
from studio.ui import present
from studio.ui.conversation import LEFT, RIGHT, SINGLE, Talk, Turn, empty_talk, paced, to_model
from studio.ui.page import CHAT, QUIET, TRAIN, Page, action, fragment, html, voices

if TYPE_CHECKING:
    from studio.chat.service import Stream
    from studio.services import Studio

BASE = "base"
PROMPTS = ("Who are you?", "What is the capital of Italy?", "Tell me a joke.", "What should I cook tonight?")
PANES = (SINGLE, LEFT, RIGHT)
SAY_SOMETHING = "### Say something\nto the base, or to an adapter that you choose below"
LOADING = "*The base model is being loaded into memory. This takes some seconds, once.*"


@dataclass(frozen=True)
class ChatTab:
    """Handles of the tab. `panes` are the transcripts: alone, and side by side."""

    tab: gr.Tab
    trouble: gr.HTML
    panes: dict[str, gr.Chatbot]
    prompts: gr.HTML
    alone: gr.Column
    pair: gr.Row
    heads: dict[str, gr.HTML]
    talk: gr.State
    adapter: gr.Dropdown
    prompt: gr.Textbox
    send: gr.Button
    stop: gr.Button
    compare: gr.Checkbox
    fresh: gr.Button
    system: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    length: gr.Slider
    seed: gr.Number
    unload: gr.Button


def build() -> ChatTab:
    """Lay the tab out."""
    with gr.Tab("Chat", id=CHAT, elem_id="tab-chat") as tab:
        html(present.heading("Talk to it", "Change the adapter whenever you like; every reply says who wrote it."))
        trouble = fragment(elem_id="chat-trouble")
        with gr.Column(elem_id="chat-alone") as alone:
            panes = {SINGLE: _transcript("chat", "Conversation", SAY_SOMETHING)}
            prompts = fragment(present.chips("Try one of these", PROMPTS), elem_id="chat-prompts")
        with gr.Row(visible=False, elem_id="chat-pair") as pair:
            heads = {}
            for pane, label in ((LEFT, "The base answers"), (RIGHT, "The adapter answers")):
                with gr.Column(min_width=280):
                    heads[pane] = html(elem_id=f"chat-{pane}-head")
                    panes[pane] = _transcript(f"chat-{pane}", label, "Both get the same message.")
        composer = _build_composer()
        talk = gr.State(empty_talk())
    return ChatTab(tab=tab, trouble=trouble, panes=panes, prompts=prompts, alone=alone, pair=pair, heads=heads, talk=talk, **composer)


def _transcript(elem_id: str, label: str, placeholder: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=label,
        show_label=False,
        elem_id=elem_id,
        elem_classes="as-chat",
        height="max(300px, calc(100vh - 524px))",
        buttons=[],
        feedback_options=None,
        layout="bubble",
        placeholder=placeholder,
    )


def _build_composer() -> dict[str, Any]:
    with gr.Row(elem_classes="as-composer", elem_id="chat-composer"):
        adapter = gr.Dropdown([(present.BASE_LABEL, BASE)], value=BASE, label="Adapter", elem_id="chat-adapter", scale=3, min_width=180)
        prompt = gr.Textbox(
            "", label="Message", placeholder="Ask something", lines=1, max_lines=6, elem_id="chat-prompt", scale=8, min_width=240
        )
        send = gr.Button("Send", variant="primary", elem_id="chat-send", scale=0, min_width=96)
        stop = gr.Button("Stop", visible=False, elem_id="chat-stop", scale=0, min_width=96)
    with gr.Row(elem_classes="as-actions as-under"):
        compare = gr.Checkbox(label="Compare with base", elem_id="chat-compare", container=False, min_width=160, scale=0)
        fresh = gr.Button("New conversation", elem_id="chat-new", elem_classes="as-quiet", min_width=150, scale=0)
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
            seed = gr.Number(
                label="Seed",
                info="The same seed draws the same; empty draws anew.",
                precision=0,
                elem_id="chat-seed",
                value=None,
                placeholder="anew each time",  # without one, Gradio makes an empty number 0
            )
        unload = gr.Button("Give back the base's memory", elem_id="chat-unload", elem_classes="as-quiet", scale=0)
    return {
        "adapter": adapter,
        "prompt": prompt,
        "send": send,
        "stop": stop,
        "compare": compare,
        "fresh": fresh,
        "system": system,
        "temperature": temperature,
        "top_p": top_p,
        "length": length,
        "seed": seed,
        "unload": unload,
    }


def messages(turns: list[Turn]) -> list[dict[str, Any]]:
    """Turns as a Chatbot shows them. The stamp is a part of its own beside the text."""
    shown: list[dict[str, Any]] = []
    for turn in turns:
        parts: list[Any] = [present.safe_markdown(turn.content)] if turn.content else []
        if turn.stamp is not None:
            parts.append(html(present.stamp_line(turn.stamp)))
        shown.append({"role": turn.role, "content": parts or ["…"]})
    return shown


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self.speaking: dict[str, list[Stream]] = {}  # by browser session, for Stop

    def refresh(self, adapter: str) -> tuple[Any, ...]:
        """Who can speak now; whoever was chosen stays."""
        choices = voices(self.studio)
        kept = adapter if any(value == adapter for _, value in choices) else BASE
        return gr.Dropdown(choices=choices, value=kept), self.trouble(len(choices) > 1), *self.heads(kept)

    def trouble(self, some_adapter: bool) -> str:
        """What is missing before this tab makes sense."""
        try:
            self.studio.default_base()
        except NotFound as error:
            return present.error_card(error, "The base model is not here yet")
        if some_adapter:
            return ""
        go = present.button("Train an adapter →", "train")
        return present.empty_card("Only the base can answer yet", "Train an adapter, and it can answer here as well.", go)

    def heads(self, adapter: str) -> tuple[str, str]:
        """Names over the two columns."""
        record = next((a for a in self.studio.adapters.all() if a.id == adapter), None)
        right = present.voice_label(record.name, record.sha256) if record else present.voice_label("Choose an adapter", "")
        return present.voice_label(present.BASE_LABEL, ""), right

    def speak(
        self,
        text: str,
        talk: Talk,
        adapter: str,
        compare: bool,
        system: str,
        temperature: float,
        top_p: float,
        length: float,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer in one pane or in two; the message comes back into its box where nobody can answer."""
        asked = {pane: [*talk[pane], Turn("user", text.strip())] for pane in _voices_of(compare, adapter)}
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": int(length),
            "seed": None if seed is None else int(seed),
        }
        waits = Turn("assistant", "" if self.studio.status().base_loaded else LOADING)
        yield self._update(talk, {pane: [*turns, waits] for pane, turns in asked.items()}, "", busy=True)
        try:
            if compare and adapter == BASE:
                raise InvalidInput("Choose an adapter to compare with the base.")
            streams: dict[str, Stream] = {}
            heard = self.speaking[str(request.session_hash)] = []
            for pane, voice in _voices_of(compare, adapter).items():
                streams[pane] = self.studio.stream(to_model(asked[pane], system), voice, **sampling)
                heard.append(streams[pane])
            yield from self._answers(talk, asked, streams)
        except StudioError as error:
            yield self._update(talk, {pane: talk[pane] for pane in asked}, text, busy=False, trouble=present.error_card(error, "No reply"))
        finally:
            for stream in self.speaking.pop(str(request.session_hash), []):
                stream.cancel()

    def _answers(self, talk: Talk, asked: Talk, streams: "dict[str, Stream]") -> Iterator[tuple[Any, ...]]:
        for said in paced(streams):
            yield self._update(talk, {pane: [*asked[pane], Turn("assistant", said[pane])] for pane in asked}, "", busy=True)
        done = {pane: [*asked[pane], Turn("assistant", said[pane], stream.stamp)] for pane, stream in streams.items()}
        yield self._update(talk, done, "", busy=False)

    def _update(self, talk: Talk, changed: Talk, text: str, *, busy: bool, trouble: str = "") -> tuple[Any, ...]:
        """Values for the outputs of `speak`: the panes, the talk, the message box, Send, Stop, New and the trouble."""
        shown = [messages(changed[pane]) if pane in changed else gr.skip() for pane in PANES]
        kept = talk if busy else {**talk, **changed}
        return *shown, kept, text, gr.Button(visible=not busy), gr.Button(visible=busy), gr.Button(interactive=not busy), trouble

    def unload(self) -> str:
        """Make room for a training; the next message loads the base again."""
        if self.studio.chat.unload():
            return present.note_card("The base is out of memory until the next message.")
        return present.error_card(
            "Somebody is being answered right now; wait for the end of the reply, then try again.", "The base is in use"
        )

    def stop(self, request: gr.Request) -> None:
        """Stop what this browser hears; what was said so far stands."""
        for stream in self.speaking.get(str(request.session_hash), []):
            stream.cancel()


def _voices_of(compare: bool, adapter: str) -> dict[str, str]:
    return {LEFT: BASE, RIGHT: adapter} if compare else {SINGLE: adapter}


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.chat, _Events(studio)
    panes = [tab.panes[pane] for pane in PANES]
    heads = [tab.heads[LEFT], tab.heads[RIGHT]]
    inputs = [tab.prompt, tab.talk, tab.adapter, tab.compare, tab.system, tab.temperature, tab.top_p, tab.length, tab.seed]
    outputs = [*panes, tab.talk, tab.prompt, tab.send, tab.stop, tab.fresh, tab.trouble]
    speak: dict[str, Any] = {"fn": events.speak, "inputs": inputs, "outputs": outputs, "concurrency_limit": None, **QUIET}
    tab.tab.select(events.refresh, tab.adapter, [tab.adapter, tab.trouble, *heads], **QUIET)
    ready: dict[str, Any] = {"fn": _ready, "inputs": None, "outputs": [tab.send, tab.stop, tab.fresh], **QUIET}
    gr.on([tab.send.click, tab.prompt.submit], **speak).then(**ready)
    tab.prompts.act(_example, None, tab.prompt, **QUIET).then(**speak).then(**ready)
    tab.stop.click(events.stop, None, None, concurrency_limit=None, **QUIET)
    tab.unload.click(events.unload, None, tab.trouble, **QUIET)
    tab.adapter.change(events.heads, tab.adapter, heads, **QUIET)
    tab.compare.change(lambda on: (gr.Column(visible=not on), gr.Row(visible=on)), tab.compare, [tab.alone, tab.pair], **QUIET)
    tab.fresh.click(lambda: ([], [], [], empty_talk()), None, [*panes, tab.talk], **QUIET)
    tab.trouble.act(lambda: gr.Tabs(selected=TRAIN), None, page.tabs, **QUIET)


def _example(event: gr.EventData) -> str:
    return action(event)[1]


def _ready() -> tuple[Any, Any, Any]:
    """Whatever ended a reply, the next message can be sent."""
    return gr.Button(visible=True), gr.Button(visible=False), gr.Button(interactive=True)
