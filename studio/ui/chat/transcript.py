"""The conversation that is open: what is shown of it, and the buttons under its messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.chat.stamp import stamp_of
from studio.errors import NotFound
from studio.ui import present
from studio.ui.chat import show
from studio.ui.page import Page, fragment, html

if TYPE_CHECKING:
    from studio.chat.conversations import Placed
    from studio.services import Studio
    from studio.ui.conversation import Turn

PROMPTS = ("Who are you?", "What is the capital of Italy?", "Tell me a joke.", "What should I cook tonight?")
SAY_SOMETHING = "### Say something\nto the base, or to an adapter that you choose below"

# Buttons under messages stand inside the transcript, which raises no events of its own for them.
CLICKS = """
const copied = async (text) => {
  try { await navigator.clipboard.writeText(text); } catch {  // a page without TLS may not; this way it may
    const box = document.createElement('textarea');
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand('copy');
    box.remove();
  }
};
document.addEventListener('click', (event) => {
  const hit = event.target.closest?.('#chat [data-action]');
  if (!hit || !element.isConnected || hit.getAttribute('aria-disabled') === 'true') return;
  const {action, id, text} = hit.dataset;
  if (action !== 'copy') { trigger(action === 'again' ? 'again' : 'act', {action, id}); return; }
  copied(text);
  hit.textContent = 'Copied';
  setTimeout(() => { hit.textContent = 'Copy'; }, 1500);
});
"""


@dataclass(frozen=True)
class Transcript:
    """Handles. `edited` is the id of the message that the next one is a version of; `note` says so."""

    alone: gr.Column
    chat: gr.Chatbot
    chips: gr.HTML
    clicks: gr.HTML
    edited: gr.State
    note: gr.HTML


def build() -> Transcript:
    """Lay it out."""
    with gr.Column(elem_id="chat-alone") as alone:
        chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            elem_id="chat",
            elem_classes="as-chat",
            height="max(320px, calc(100vh - 500px))",
            buttons=[],
            feedback_options=None,
            layout="bubble",
            placeholder=SAY_SOMETHING,
        )
        chips = fragment(present.chips("Try one of these", PROMPTS), elem_id="chat-prompts")
        clicks = html(js_on_load=CLICKS, elem_id="chat-clicks")
    note = fragment(elem_id="chat-editing")
    return Transcript(alone, chat, chips, clicks, gr.State(""), note)


def messages(branch: "Sequence[Placed]", *, busy: bool = False) -> list[dict[str, Any]]:
    """A branch as a Chatbot shows it. What stands under a message is a part of its own beside the text.

    Args:
        busy: a reply is on its way, so that nothing else can be done.
    """
    shown = []
    for placed in branch:
        stamp = stamp_of(placed.message)
        under = (present.stamp_line(stamp) if stamp else "") + ("" if busy else show.tools(placed, placed is branch[-1]))
        shown.append(_message(placed.message.role, placed.message.content, under))
    return shown


def on_its_way(turns: "Sequence[Turn]") -> list[dict[str, Any]]:
    """What is being said."""
    return [_message(turn.role, turn.content, "") for turn in turns]


def _message(role: str, content: str, under: str) -> dict[str, Any]:
    parts: list[Any] = [present.safe_markdown(content)] if content else []
    if under:
        parts.append(html(under))
    return {"role": role, "content": parts or ["…"]}


class Looks:
    """What the buttons under messages show; nothing is said anew."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.talks, self.page, self.parts = studio.conversations, page, page.chat.transcript

    def shown(self, talk: str, leaf: str = "") -> dict[Any, Any]:
        """A conversation up to a message, or as it was looked at last.

        Raises:
            NotFound.
        """
        branch = self.talks.branch(talk, leaf) if talk else []
        return {
            self.page.talk: talk,
            self.page.leaf: branch[-1].message.id if branch else "",
            self.parts.chat: messages(branch),
            self.parts.edited: "",
            self.parts.note: "",
        }

    def act(self, values: dict[Any, Any], kind: str, message_id: str) -> dict[Any, Any]:
        """Go to a sibling, begin a branch, or write another version of a message.

        Raises:
            NotFound.
        """
        talk = values[self.page.talk]
        if kind == "edit":
            return self._edit(talk, values[self.page.leaf], message_id)
        leaf = self.talks.end_of(talk, message_id) if kind == "sibling" else message_id
        shown = self.shown(talk, leaf)
        self.talks.look(talk, leaf)
        return shown

    def _edit(self, talk: str, leaf: str, message_id: str) -> dict[Any, Any]:
        text = next((placed.message.content for placed in self.talks.branch(talk, leaf) if placed.message.id == message_id), None)
        if text is None:
            raise NotFound("This message is not there any more; open its conversation again.")
        return {self.page.chat.prompt: text, self.parts.edited: message_id, self.parts.note: show.editing(text)}
