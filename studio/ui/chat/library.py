"""Messages that are kept under a name, to be sent again."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.chat import show
from studio.ui.page import QUIET, Page, action, fragment, html

if TYPE_CHECKING:
    from studio.services import Studio


@dataclass(frozen=True)
class Library:
    """Handles."""

    message: gr.HTML
    rows: gr.HTML
    name: gr.Textbox
    keep: gr.Button


def build() -> Library:
    """Lay it out."""
    with gr.Accordion("Kept prompts", open=False, elem_id="chat-library"):
        message = html(elem_id="chat-library-message")
        rows = fragment(elem_id="chat-library-rows")
        with gr.Row(elem_classes="as-composer"):
            info = "What stands in the message box is kept."
            name = gr.Textbox("", label="Name", info=info, max_lines=1, elem_id="chat-library-name", scale=4, min_width=180)
            keep = gr.Button("Keep the message", elem_id="chat-library-keep", scale=0, min_width=180)
    return Library(message, rows, name, keep)


class Prompts:
    """The callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.prompts = studio.prompts

    def rows(self) -> str:
        """All that is kept."""
        return show.prompts(self.prompts.all())

    def keep(self, name: str, text: str) -> tuple[Any, Any, Any]:
        """Keep the message under a name."""
        try:
            kept = self.prompts.keep(name, text)
        except StudioError as error:
            return present.error_card(error, "It was not kept"), gr.skip(), gr.skip()
        return present.note_card(f"{kept.name} was kept."), self.rows(), ""

    def act(self, event: gr.EventData) -> tuple[Any, Any, Any]:
        """Insert a prompt, or delete it."""
        kind, prompt_id, _ = action(event)
        try:
            if kind == "insert":
                return "", self.prompts.get(prompt_id).text, gr.skip()
            record = self.prompts.remove(prompt_id)
        except StudioError as error:
            return present.error_card(error), gr.skip(), self.rows()
        return present.note_card(f"{record.name} was deleted."), gr.skip(), self.rows()


def wire(page: Page, studio: "Studio") -> None:
    """Bind the events."""
    tab, parts, events = page.chat, page.chat.library, Prompts(studio)
    tab.tab.select(events.rows, None, parts.rows, **QUIET)
    kept = {"fn": events.keep, "inputs": [parts.name, tab.prompt], "outputs": [parts.message, parts.rows, parts.name]}
    gr.on([parts.keep.click, parts.name.submit], **kept, **QUIET)
    parts.rows.act(events.act, None, [parts.message, tab.prompt, parts.rows], **QUIET)
