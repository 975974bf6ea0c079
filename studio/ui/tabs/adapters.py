"""Adapters: what was made, where it comes from, and what one does with it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound, StudioError
from studio.ui import exporting, importing, present, xray
from studio.ui.curve import Curve
from studio.ui.outcome import outcome
from studio.ui.page import ADAPTERS, QUIET, TRAIN, Page, action, fragment, html, names_of, open_chat

if TYPE_CHECKING:
    from storage.records import AdapterRecord
    from studio.services import Studio

# The file is made when it is asked for; a second, hidden button then hands it to the browser.
SAVE_FILE = "(file) => { if (file) setTimeout(() => document.querySelector('#adapter-file')?.click(), 50); }"


@dataclass(frozen=True)
class AdaptersTab:
    """Handles of the tab."""

    tab: gr.Tab
    message: gr.HTML
    catalog: gr.HTML
    importing: importing.Importing
    chosen: gr.State
    detail: gr.Column
    head: gr.HTML
    chat: gr.Button
    download: gr.Button
    file: gr.DownloadButton
    exporting: exporting.Exporting
    xray: tuple[Any, Any]
    rename: gr.Button
    delete: gr.Button
    naming: gr.Column
    new_name: gr.Textbox
    rename_yes: gr.Button
    rename_no: gr.Button
    confirm: gr.Column
    delete_yes: gr.Button
    delete_no: gr.Button
    facts: gr.HTML


def build() -> AdaptersTab:
    """Lay the tab out."""
    with gr.Tab("Adapters", id=ADAPTERS, elem_id="tab-adapters") as tab:
        html(present.heading("Your adapters", "Each has its own colour and sign; you meet them again on the replies it writes."))
        message = html(elem_id="adapter-message")
        with gr.Row(elem_classes="as-columns"):
            with gr.Column(scale=6, min_width=300):
                catalog = fragment(elem_id="adapter-catalog")
                fold = importing.build()
            with gr.Column(scale=6, min_width=300, visible=False, elem_classes="as-panel", elem_id="adapter-detail") as detail:
                shown = _build_detail()
        chosen = gr.State("")
    return AdaptersTab(tab=tab, message=message, catalog=catalog, importing=fold, chosen=chosen, detail=detail, **shown)


def _build_detail() -> dict[str, Any]:
    head = html(elem_id="adapter-head")
    with gr.Row(elem_classes="as-actions"):
        chat = gr.Button("Chat with it →", variant="primary", elem_id="adapter-chat", min_width=120)
        download = gr.Button("Download", elem_id="adapter-download", min_width=90)
        choice = exporting.build()
        rename = gr.Button("Rename", elem_id="adapter-rename", elem_classes="as-quiet", min_width=80)
        delete = gr.Button("Delete", elem_id="adapter-delete", elem_classes="as-quiet", min_width=80)
        file = gr.DownloadButton("Save the file", visible="hidden", elem_id="adapter-file")
    with gr.Column(visible=False, elem_classes="as-confirm", elem_id="adapter-naming") as naming:
        new_name = gr.Textbox("", label="New name", max_lines=1, elem_id="adapter-new-name")
        with gr.Row(elem_classes="as-actions"):
            rename_yes = gr.Button("Rename it", elem_id="adapter-rename-yes", min_width=80)
            rename_no = gr.Button("Leave it", elem_id="adapter-rename-no", elem_classes="as-quiet", min_width=80)
    with gr.Column(visible=False, elem_classes="as-confirm", elem_id="adapter-confirm") as confirm:
        html("<p>Delete this adapter? Its files are gone for good, unless you downloaded them.</p>")
        with gr.Row(elem_classes="as-actions"):
            delete_yes = gr.Button("Delete it", variant="stop", elem_id="adapter-delete-yes", min_width=80)
            delete_no = gr.Button("Keep it", elem_id="adapter-delete-no", min_width=80)
    looked = xray.build()
    facts = html(elem_id="adapter-facts")
    return {
        "head": head,
        "chat": chat,
        "download": download,
        "file": file,
        "exporting": choice,
        "xray": looked,
        "rename": rename,
        "delete": delete,
        "naming": naming,
        "new_name": new_name,
        "rename_yes": rename_yes,
        "rename_no": rename_no,
        "confirm": confirm,
        "delete_yes": delete_yes,
        "delete_no": delete_no,
        "facts": facts,
    }


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.curves = studio, page.curves

    def show(self, chosen: str) -> tuple[Any, ...]:
        """Catalog and detail as they are now; the newest adapter is shown where none was chosen."""
        records = self.studio.adapters.all()
        if not records:
            go = present.button("Train one →", "train")
            empty = present.empty_card(
                "No adapter yet", "An adapter appears here as soon as a training is done, or when you import one.", go
            )
            return "", empty, gr.Column(visible=False), "", "", "", *self._closed()
        record = next((r for r in records if r.id == chosen), records[0])
        names = names_of(self.studio)
        catalog = present.adapter_cards(records, record.id, names, rates=self.studio.votes.rates())
        facts = present.adapter_detail(
            record, names.get(record.base_id, "another base"), names.get(record.dataset_id, "deleted since"), self._outcome(record)
        )
        shown = gr.Column(visible=True), present.adapter_head(record), facts, record.name
        return record.id, catalog, *shown, *self._closed()

    def _closed(self) -> tuple[Any, Any]:
        return gr.Column(visible=False), gr.Column(visible=False)

    def _outcome(self, record: "AdapterRecord") -> str:
        """What came of the training that made it, with its curves where the job is known."""
        if record.origin != "training":
            return ""
        try:
            job = self.studio.queue.get(record.job_id)
        except NotFound:
            return outcome(record.metrics, Curve())
        return outcome(record.metrics, self.curves.of(job.id, job.attempt))

    def act(self, chosen: str, event: gr.EventData) -> tuple[str, Any]:
        """A card was chosen, or the way to training."""
        kind, record_id, _ = action(event)
        return (record_id, gr.skip()) if kind == "choose" else (chosen, gr.Tabs(selected=TRAIN))

    def rename(self, chosen: str, name: str) -> str:
        """Give it another name."""
        try:
            record = self.studio.adapters.rename(chosen, name)
        except StudioError as error:
            return present.error_card(error, "The name stays as it was")
        return present.note_card(f"It is called {record.name} now.")

    def delete(self, chosen: str) -> str:
        """Delete it."""
        try:
            record = self.studio.adapters.remove(chosen)
        except StudioError as error:
            return present.error_card(error, "The adapter was not deleted")
        return present.note_card(f"{record.name} was deleted.")


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.adapters, _Events(studio, page)
    shown = [tab.chosen, tab.catalog, tab.detail, tab.head, tab.facts, tab.new_name, tab.naming, tab.confirm]
    show: dict[str, Any] = {"fn": events.show, "inputs": tab.chosen, "outputs": shown, **QUIET}
    tab.tab.select(**show)
    tab.catalog.act(events.act, tab.chosen, [tab.chosen, page.tabs], **QUIET).then(**show)
    importing.wire(tab.importing, tab.tab, studio, tab.message, tab.chosen).then(**show)
    tab.chat.click(lambda chosen: open_chat(studio, chosen), tab.chosen, [page.tabs, page.chat.adapter], **QUIET)
    exporting.wire(tab.exporting, tab.download, tab.chosen, tab.message, tab.file, studio, SAVE_FILE)
    xray.wire(*tab.xray, tab.chosen, studio)
    tab.rename.click(lambda: (gr.Column(visible=True), gr.Column(visible=False)), None, [tab.naming, tab.confirm], **QUIET)
    tab.delete.click(lambda: (gr.Column(visible=False), gr.Column(visible=True)), None, [tab.naming, tab.confirm], **QUIET)
    tab.rename_no.click(lambda: gr.Column(visible=False), None, tab.naming, **QUIET)
    tab.delete_no.click(lambda: gr.Column(visible=False), None, tab.confirm, **QUIET)
    gr.on([tab.rename_yes.click, tab.new_name.submit], events.rename, [tab.chosen, tab.new_name], tab.message, **QUIET).then(**show)
    tab.delete_yes.click(events.delete, tab.chosen, tab.message, **QUIET).then(**show)
