"""One prompt to several voices, or to one with several seeds, in one batch; who is who is shown after a blind vote."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidInput, StudioError
from studio.ui import present
from studio.ui.chat import show
from studio.ui.chat.speaking import LOADING, Hearing, Speaking, sampling_of, seed_of, user_of
from studio.ui.chat.voice import BASE, voice_of
from studio.ui.conversation import Turn, paced, to_model
from studio.ui.page import BLEND, QUIET, Page, action, fragment, voices

if TYPE_CHECKING:
    from studio.chat.service import Stream
    from studio.chat.stamp import Stamp
    from studio.services import Studio

MOST = 6
CHOSEN = "chosen"  # whatever is chosen as the adapter, with its weights
CHOICES = [(present.BASE_LABEL, BASE), ("The one chosen above", CHOSEN)]
SEED_BELOW = 2**31

Values = dict[Any, Any]


@dataclass(frozen=True)
class Compare:
    """Handles. `duel` is what was answered, for the vote."""

    on: gr.Checkbox
    box: gr.Column
    board: gr.HTML
    options: gr.Column
    who: gr.Dropdown
    each: gr.Slider
    duel: gr.State


@dataclass(frozen=True)
class Duel:
    """Replies in the order in which they are shown. `winner`: see `show.comparison`."""

    prompt: str
    system: str
    texts: tuple[str, ...]
    stamps: "tuple[Stamp, ...]"
    seeds: tuple[int | None, ...]
    winner: int | None = None

    def html(self) -> str:
        """As one sees it now."""
        columns = [show.Column(text, stamp) for text, stamp in zip(self.texts, self.stamps, strict=True)]
        return show.comparison(self.prompt, columns, self.winner, is_over=True, seeds=self.seeds)


def build_board() -> tuple[gr.Column, gr.HTML]:
    """Where the replies stand."""
    with gr.Column(visible=False, elem_id="chat-compare-box") as box:
        board = fragment(EMPTY, elem_id="chat-duel")
    return box, board


def build_options() -> tuple[gr.Column, gr.Dropdown, gr.Slider]:
    """Who answers."""
    with gr.Column(visible=False, elem_id="chat-compare-options") as options, gr.Row():
        info = f"Each gets the same message, beside the others, up to {MOST} replies. The open conversation is left as it is."
        who = gr.Dropdown(
            CHOICES,
            value=[BASE, CHOSEN],
            multiselect=True,
            label="Who answers",
            info=info,
            elem_id="chat-compare-who",
            scale=3,
            min_width=240,
        )
        each = gr.Slider(
            1,
            MOST,
            1,
            step=1,
            label="Replies of each",
            info="Several have a seed each.",
            elem_id="chat-compare-each",
            scale=2,
            min_width=200,
        )
    return options, who, each


EMPTY = present.empty_card("Nothing is compared yet", "Send a message: the replies come side by side, without names until you have voted.")


class Comparing:
    """The callbacks."""

    def __init__(self, studio: "Studio", page: Page, speaking: Speaking) -> None:
        self.studio, self.page, self.tab, self.speaking = studio, page, page.chat, speaking
        self.parts = page.chat.compare

    def refresh(self, who: list[str]) -> Values:
        """Who can be compared now."""
        adapters = [(name, key) for name, key in voices(self.studio) if key not in (BASE, BLEND)]
        known = {BASE, CHOSEN, *(key for _, key in adapters)}
        return {self.parts.who: gr.Dropdown(choices=[*CHOICES, *adapters], value=[key for key in who or [] if key in known])}

    def toggle(self, on: bool) -> Values:
        """Replies side by side in the place of the conversation."""
        return {
            self.tab.transcript.alone: gr.Column(visible=not on),
            self.parts.box: gr.Column(visible=on),
            self.parts.options: gr.Column(visible=on),
        }

    def run(self, values: Values, session: str) -> Iterator[Values]:
        """Answer side by side; the message comes back into its box where nobody can answer."""
        text = str(values[self.tab.prompt]).strip()
        try:
            yield from self._run(values, session, text)
        except StudioError as error:
            card = present.error_card(error, "Nothing was compared")
            yield {**self.speaking.ready(), self.tab.prompt: text, self.tab.trouble: card, self.parts.board: EMPTY}

    def _run(self, values: Values, session: str, text: str) -> Iterator[Values]:
        asked, seeds = self._asked(values)
        system = str(values[self.tab.system] or "")
        turns = to_model([Turn("user", text)], system)
        waits = [show.Column("" if self.studio.status().base_loaded else LOADING.strip("*"))] * len(asked)
        board = show.comparison(text, waits, None, is_over=False)
        hearing = self.speaking.heard[session] = Hearing()
        yield {**self.speaking.busy(), self.parts.board: board, self.parts.duel: None, self.tab.trouble: ""}
        streams: dict[str, Stream] = {}
        try:
            for place, (voice, seed) in enumerate(zip(asked, seeds, strict=True)):
                sampling = {**sampling_of(self.page, values), "seed": seed}
                streams[str(place)] = self.studio.stream(turns, voice, user=user_of(session), **sampling)
                hearing.add(streams[str(place)])
            for said in paced(streams):
                columns = [show.Column(said[key]) for key in streams]
                yield {self.parts.board: show.comparison(text, columns, None, is_over=False)}
        finally:
            self.speaking.heard.pop(session, None)
            hearing.stop()
        duel = Duel(text, system, tuple(said.values()), tuple(stream.stamp for stream in streams.values()), tuple(seeds))
        yield {**self.speaking.ready(), self.parts.board: duel.html(), self.parts.duel: duel}

    def _asked(self, values: Values) -> tuple[list[str], list[int | None]]:
        """Voices with their seeds, in an order that tells nothing.

        Raises:
            InvalidInput: there are too few or too many, or one stands twice.
        """
        each = int(values[self.parts.each])
        chosen = [voice_of(self.tab.voice, values) if who == CHOSEN else who for who in values[self.parts.who]]
        if not 2 <= len(chosen) * each <= MOST:
            raise InvalidInput(f"These are {len(chosen) * each} replies; choose voices and replies of each for 2 to {MOST}.")
        if len(set(chosen)) < len(chosen):
            raise InvalidInput("The same voice stands twice; choose an adapter to compare with the base, or take one of them out.")
        first = seed_of(self.page, values)
        start = secrets.randbelow(SEED_BELOW) if first is None else first
        known = each > 1 or first is not None
        pairs: list[tuple[str, int | None]] = [(voice, start + n if known else None) for voice in chosen for n in range(each)]
        secrets.SystemRandom().shuffle(pairs)
        return [voice for voice, _ in pairs], [seed for _, seed in pairs]

    def act(self, duel: Duel | None, event: gr.EventData) -> Values:
        """A vote, or the way on from one of the replies."""
        kind, place, _ = action(event)
        if duel is None or (kind == "vote" and duel.winner is not None):
            return {self.tab.trouble: ""}
        try:
            if kind == "go-on":
                return self._go_on(duel, int(place))
            if kind == "vote":
                self.studio.votes.vote(duel.prompt, duel.stamps, int(place))
        except StudioError as error:
            return {self.tab.trouble: present.error_card(error)}
        duel = replace(duel, winner=int(place) if kind == "vote" else -1)
        return {self.parts.board: duel.html(), self.parts.duel: duel}

    def _go_on(self, duel: Duel, place: int) -> Values:
        """Make a conversation of it, in which the other replies are siblings."""
        talks = self.studio.conversations
        question = talks.ask(talks.make(duel.system).id, "", duel.prompt)
        replies = [talks.answer(question, text, stamp) for text, stamp in zip(duel.texts, duel.stamps, strict=True)]
        talks.look(question.conversation_id, replies[place].id)
        return {self.parts.on: False, **self.toggle(False), **self.speaking.looks.shown(question.conversation_id, replies[place].id)}


def wire(page: Page, studio: "Studio", speaking: Speaking, draw: dict[str, Any]) -> Comparing:
    """Bind the events; returns the callbacks for others."""
    tab, parts, events = page.chat, page.chat.compare, Comparing(studio, page, speaking)
    shown = [tab.transcript.alone, parts.box, parts.options]
    parts.on.change(events.toggle, parts.on, shown, **QUIET)
    opened = [page.talk, page.leaf, tab.transcript.chat, tab.transcript.edited, tab.transcript.note]
    parts.board.act(events.act, parts.duel, [parts.on, *shown, parts.board, parts.duel, tab.trouble, *opened], **QUIET).then(**draw)
    return events
