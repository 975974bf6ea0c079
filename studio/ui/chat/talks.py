"""The conversations that there are: a list with a search, and what one does with one of them."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound, StudioError
from studio.ui import present
from studio.ui.chat import show
from studio.ui.chat.transcript import Looks
from studio.ui.chat.voice import as_said
from studio.ui.page import QUIET, Page, action, fragment, html, kept

if TYPE_CHECKING:
    from studio.services import Studio

PAGE = 20
SAVE_FILE = "(made) => { if (made) setTimeout(() => document.querySelector('#talk-file').click(), 100); }"

Values = dict[Any, Any]


@dataclass(frozen=True)
class TalkList:
    """Handles. `before` is the key behind which the list begins; empty for the newest. `made` changes with each file that is made."""

    search: gr.Textbox
    rows: gr.HTML
    before: gr.State
    message: gr.HTML
    naming: gr.Column
    title: gr.Textbox
    rename_yes: gr.Button
    rename_no: gr.Button
    confirm: gr.Column
    delete_yes: gr.Button
    delete_no: gr.Button
    file: gr.DownloadButton
    made: gr.Textbox


def build() -> TalkList:
    """Lay it out."""
    search = gr.Textbox(
        "", label="Conversations", placeholder="Search titles and texts", max_lines=1, elem_id="talk-search", elem_classes="as-search"
    )
    message = html(elem_id="talk-message")
    with gr.Column(visible=False, elem_classes="as-confirm", elem_id="talk-naming") as naming:
        title = gr.Textbox("", label="New title", max_lines=1, elem_id="talk-title")
        with gr.Row(elem_classes="as-actions"):
            rename_yes = gr.Button("Rename it", elem_id="talk-rename-yes", min_width=80)
            rename_no = gr.Button("Leave it", elem_id="talk-rename-no", elem_classes="as-quiet", min_width=80)
    with gr.Column(visible=False, elem_classes="as-confirm", elem_id="talk-confirm") as confirm:
        html("<p>Delete this conversation? All its branches are gone for good, unless you exported them.</p>")
        with gr.Row(elem_classes="as-actions"):
            delete_yes = gr.Button("Delete it", variant="stop", elem_id="talk-delete-yes", min_width=80)
            delete_no = gr.Button("Keep it", elem_id="talk-delete-no", min_width=80)
    rows = fragment(elem_id="talk-list")
    file = gr.DownloadButton("Save the file", visible="hidden", elem_id="talk-file")
    return TalkList(
        search, rows, gr.State(""), message, naming, title, rename_yes, rename_no, confirm, delete_yes, delete_no, file, kept("talk-made")
    )


class Talks:
    """The callbacks."""

    def __init__(self, studio: "Studio", page: Page, looks: Looks) -> None:
        self.studio, self.talks, self.page, self.looks, self.list = studio, studio.conversations, page, looks, page.chat.talks

    def rows(self, talk: str, search: str, before: str) -> str:
        """The list as it is now."""
        found = self.talks.page(PAGE + 1, _key(before), search or "")
        older = f"{found[PAGE - 1].updated_at!r} {found[PAGE - 1].id}" if len(found) > PAGE else ""
        return show.talks(found[:PAGE], talk, older, not before, search, time.time())

    def search(self, talk: str, search: str) -> tuple[str, str]:
        """The newest that hold some words."""
        return self.rows(talk, search, ""), ""

    def open(self, talk: str, system: str = "") -> Values:
        """Show a conversation; one that is gone is told so."""
        closed = {self.list.naming: gr.Column(visible=False), self.list.confirm: gr.Column(visible=False)}
        try:
            told = self.talks.get(talk).system if talk else system
            said = {self.page.chat.system: told, self.list.message: "", self.page.chat.trouble: ""}
            return {**closed, **said, **self.looks.shown(talk), **self._last_voice(talk)}
        except NotFound as error:
            gone = present.error_card(error, "No such conversation")
            return {**closed, **self.looks.shown(""), self.list.message: gone}

    def _last_voice(self, talk: str) -> Values:
        """Choose whoever spoke last, with its weights, where it can speak now."""
        branch = self.talks.branch(talk) if talk else []
        replies = [placed.message for placed in branch if placed.message.role == "assistant"]
        return as_said(self.studio, self.page.chat.voice, replies[-1]) if replies else {}

    def act(self, values: Values, event: gr.EventData) -> Values:
        """A button of the list."""
        kind, record_id, _ = action(event)
        try:
            return self._act(values, kind, record_id)
        except StudioError as error:
            return {self.list.message: present.error_card(error)}

    def _act(self, values: Values, kind: str, record_id: str) -> Values:
        if kind == "talk":
            shown = self.open(record_id)
            return {**shown, self.page.chat.compare.on: False, self.list.rows: self._again(values, shown[self.page.talk])}
        if kind == "page":
            return {self.list.before: record_id, self.list.rows: self.rows(values[self.page.talk], values[self.list.search], record_id)}
        if kind in ("markdown", "json"):
            path = self.talks.export(record_id, kind)
            return {
                self.list.message: present.note_card(f"{path.name} was made."),
                self.list.file: str(path),
                self.list.made: f"{time.time()}",
            }
        naming, title = kind == "rename", self.talks.get(record_id).title
        opened = {self.list.naming: gr.Column(visible=naming), self.list.confirm: gr.Column(visible=not naming)}
        return {**opened, self.list.title: title, self.list.message: ""}

    def rename(self, values: Values) -> Values:
        """Give the open one another title."""
        try:
            self.talks.rename(values[self.page.talk], values[self.list.title])
        except StudioError as error:
            return {self.list.message: present.error_card(error, "The title stays as it was")}
        return {self.list.message: "", self.list.naming: gr.Column(visible=False), self.list.rows: self._again(values)}

    def delete(self, values: Values) -> Values:
        """Delete the open one."""
        try:
            record = self.talks.remove(values[self.page.talk])
        except StudioError as error:
            return {self.list.message: present.error_card(error, "It was not deleted")}
        said = present.note_card(f"“{record.title}” was deleted.")
        return {**self.open("", values[self.page.chat.system]), self.list.message: said, self.list.rows: self._again(values, "")}

    def _again(self, values: Values, talk: str | None = None) -> str:
        chosen = values[self.page.talk] if talk is None else talk
        return self.rows(chosen, values[self.list.search], values[self.list.before])


def _key(before: str) -> tuple[float, str] | None:
    at, _, record_id = before.partition(" ")
    try:
        return (float(at), record_id) if before else None
    except ValueError:
        return None


def wire(page: Page, studio: "Studio", looks: Looks) -> dict[str, Any]:
    """Bind the events; returns the one that draws the list again, for others to chain."""
    parts, events, tab = page.chat.talks, Talks(studio, page, looks), page.chat
    opened = [page.talk, page.leaf, tab.transcript.chat, tab.transcript.edited, tab.transcript.note, tab.system, tab.trouble]
    opened += tab.voice.set_together
    own = [tab.compare.on, parts.rows, parts.before, parts.message, parts.naming, parts.confirm, parts.title, parts.file, parts.made]
    inputs = {page.talk, page.chat.system, parts.search, parts.before, parts.title}
    draw: dict[str, Any] = {"fn": events.rows, "inputs": [page.talk, parts.search, parts.before], "outputs": parts.rows, **QUIET}
    gr.on(
        [parts.search.change, parts.search.submit], events.search, [page.talk, parts.search], [parts.rows, parts.before],
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    parts.rows.act(events.act, inputs, [*opened, *own], **QUIET)
    parts.made.change(None, parts.made, None, js=SAVE_FILE, **QUIET)
    gr.on([parts.rename_yes.click, parts.title.submit], events.rename, inputs, [parts.message, parts.naming, parts.rows], **QUIET)
    parts.delete_yes.click(events.delete, inputs, [*opened, *own], **QUIET)
    parts.rename_no.click(lambda: gr.Column(visible=False), None, parts.naming, **QUIET)
    parts.delete_no.click(lambda: gr.Column(visible=False), None, parts.confirm, **QUIET)
    page.talk.change(trigger_mode="always_last", **draw)
    tab.fresh.click(lambda: {**events.open(""), tab.compare.on: False}, None, [*opened, *own], **QUIET)
    page.linked.change(lambda talk: events.open(talk) if talk else {page.talk: ""}, page.talk, [*opened, *own], **QUIET)
    return draw
