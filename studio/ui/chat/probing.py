"""Is it really on? What the chosen voice does to the next word of the conversation, as a number and in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidInput, StudioError
from studio.ui import present
from studio.ui.chat import show
from studio.ui.chat.voice import BASE, voice_of
from studio.ui.conversation import Turn, to_model
from studio.ui.page import QUIET, Page

if TYPE_CHECKING:
    from studio.services import Studio

Values = dict[Any, Any]


class Probing:
    """The callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.page, self.tab = studio, page, page.chat

    def probe(self, values: Values) -> Iterator[str]:
        """Ask both for the first token of a reply."""
        try:
            voice = voice_of(self.tab.voice, values)
            if voice == BASE:
                raise InvalidInput("The base is chosen; choose an adapter to see what it changes.")
            turns = to_model(self._turns(values), values[self.tab.system] or "")
            yield present.note_card("Asking the base and the chosen voice for one token each …")
            yield show.probe(self.studio.probe(turns, voice))
        except StudioError as error:
            yield present.error_card(error, "Nothing was measured")

    def _turns(self, values: Values) -> list[Any]:
        """What stands in the box behind the conversation, or the conversation up to its last message of the user."""
        text, talk = str(values[self.tab.prompt]).strip(), values[self.page.talk]
        branch = [placed.message for placed in self.studio.conversations.branch(talk, values[self.page.leaf])] if talk else []
        if text:
            return [*branch, Turn("user", text)]
        while branch and branch[-1].role != "user":
            branch.pop()
        if not branch:
            raise InvalidInput("There is no message to measure with; type one.")
        return branch


def wire(page: Page, studio: "Studio") -> None:
    """Bind the events."""
    tab, events = page.chat, Probing(studio, page)
    inputs = {tab.prompt, tab.system, page.talk, page.leaf, *tab.voice.inputs}
    tab.probe.click(events.probe, inputs, tab.probed, **QUIET)
    gr.on([tab.voice.adapter.change, page.leaf.change], lambda: "", None, tab.probed, **QUIET)  # it would tell of another
