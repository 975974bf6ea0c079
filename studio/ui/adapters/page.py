"""The page of one adapter: what is laid out, what is shown of one, and what is written on it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.adapters import cards
from studio.errors import NotFound
from studio.ui import exporting, present, xray
from studio.ui.adapters import differing, pushing, show_page
from studio.ui.curve import Curve, Curves
from studio.ui.evaluation import show as show_evaluations
from studio.ui.outcome import outcome
from studio.ui.page import fragment, html

if TYPE_CHECKING:
    from storage.records import AdapterRecord
    from studio.services import Studio

CHILDREN = 20
EMPTY_CARD = "Left empty, the card is made from what is known."


@dataclass(frozen=True)
class AdapterPage:
    """Handles of the page."""

    column: gr.Column
    head: gr.HTML
    actions: gr.Column
    chat: gr.Button
    download: gr.Button
    file: gr.DownloadButton
    exporting: exporting.Exporting
    xray: tuple[Any, Any]
    differing: differing.Differing
    pushing: pushing.Pushing
    rename: gr.Button
    delete: gr.Button
    naming: gr.Column
    new_name: gr.Textbox
    rename_yes: gr.Button
    rename_no: gr.Button
    confirm: gr.Column
    delete_yes: gr.Button
    delete_no: gr.Button
    card: gr.Markdown
    editing: gr.Accordion
    tags: gr.Textbox
    collections: gr.Textbox
    licence: gr.Textbox
    text: gr.Textbox
    version_of: gr.Textbox
    save: gr.Button
    lineage: gr.HTML
    came: gr.HTML
    held: gr.HTML
    facts: gr.HTML

    @property
    def folds(self) -> list[Any]:
        """What is folded and emptied when another adapter is chosen: what is in it then is not of that one."""
        fold, shown = self.xray
        return [fold, self.differing.fold, self.pushing.fold, shown, self.differing.shown, self.pushing.shown]

    @property
    def written(self) -> list[Any]:
        """What a person writes on an adapter, in the order of `Pages.write`."""
        return [self.tags, self.collections, self.licence, self.text, self.version_of]

    @property
    def shown(self) -> list[Any]:
        """What follows from the adapter, in the order of `Pages.show`."""
        folds = [self.naming, self.confirm, self.editing]
        return [self.head, self.actions, self.card, *self.written, self.lineage, self.came, self.held, self.facts, self.new_name, *folds]


def build() -> AdapterPage:
    """Lay the page out."""
    with gr.Column(visible=False, elem_id="adapter-page") as column:
        head = fragment(elem_id="adapter-head")
        with gr.Column(elem_id="adapter-detail") as actions:
            made = _build_actions()
            lineage = fragment(elem_id="adapter-lineage")
            with gr.Row(elem_classes="as-columns"):
                with gr.Column(scale=6, min_width=300, elem_classes="as-panel"):
                    card = gr.Markdown("", elem_id="adapter-card", elem_classes="as-cardtext")
                    editing, written = _build_editing()
                with gr.Column(scale=6, min_width=300):
                    came = html(elem_id="adapter-came")
                    held = fragment(elem_id="adapter-evaluations")
                    looked = xray.build()
                    pushed = pushing.build()
                    facts = fragment(elem_id="adapter-facts")
            differed = differing.build()
    parts = {
        "xray": looked,
        "differing": differed,
        "pushing": pushed,
        "card": card,
        "editing": editing,
        "lineage": lineage,
        "came": came,
        "held": held,
        "facts": facts,
    }
    return AdapterPage(column=column, head=head, actions=actions, **made, **parts, **written)


def _build_actions() -> dict[str, Any]:
    with gr.Row(elem_classes="as-actions"):
        chat = gr.Button("Chat with it →", variant="primary", elem_id="adapter-chat", min_width=120)
        download = gr.Button("Download", elem_id="adapter-download", min_width=90)
        choice = exporting.build()
        rename = gr.Button("Rename", elem_id="adapter-rename", elem_classes="as-quiet", min_width=80)
        delete = gr.Button("Delete", elem_id="adapter-delete", elem_classes="as-quiet", min_width=80)
        file = gr.DownloadButton("Save the file", visible="hidden", elem_id="adapter-file")
    choice.told.render()
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
    buttons = {"chat": chat, "download": download, "file": file, "exporting": choice, "rename": rename, "delete": delete, "naming": naming}
    asked = {"new_name": new_name, "rename_yes": rename_yes, "rename_no": rename_no}
    return {**buttons, **asked, "confirm": confirm, "delete_yes": delete_yes, "delete_no": delete_no}


def _build_editing() -> tuple[gr.Accordion, dict[str, Any]]:
    with gr.Accordion("Edit card and labels", open=False, elem_id="adapter-editing") as editing:
        with gr.Row(elem_classes="as-grid"):
            tags = gr.Textbox("", label="Tags", info="With commas between them.", max_lines=1, elem_id="adapter-tags")
            collections = gr.Textbox("", label="Collections", info="With commas between them.", max_lines=1, elem_id="adapter-collections")
            licence = gr.Textbox("", label="Licence", placeholder="apache-2.0", max_lines=1, elem_id="adapter-licence")
            version_of = gr.Textbox("", label="Next version of", info="Another adapter's name.", max_lines=1, elem_id="adapter-version-of")
        text = gr.Textbox("", label="Card", info="Markdown.", placeholder=EMPTY_CARD, lines=8, max_lines=24, elem_id="adapter-card-text")
        save = gr.Button("Save", elem_id="adapter-save", elem_classes="as-do")
    return editing, {"tags": tags, "collections": collections, "licence": licence, "text": text, "version_of": version_of, "save": save}


class Pages:
    """What the page shows of an adapter, and what is written on it."""

    def __init__(self, studio: "Studio", curves: Curves) -> None:
        self.studio, self.curves, self.finder = studio, curves, studio.finder

    def show(self, adapter_id: str) -> list[Any]:
        """The values of `AdapterPage.shown`."""
        folded = [gr.Column(visible=False), gr.Column(visible=False), gr.Accordion(open=False)]
        try:
            record = self.studio.adapters.get(adapter_id)
        except NotFound as error:
            return [show_page.gone(error), gr.Column(visible=False), "", *[""] * 5, "", "", "", "", "", *folded]
        family = self.family(record)
        body = cards.body(record, family.base, family.dataset)
        written = [", ".join(record.tags), ", ".join(record.collections), record.licence, body, ""]
        return [
            show_page.head(record, self.studio.votes.rates().get(record.id)),
            gr.Column(visible=True),
            show_page.shown_markdown(body),
            *written,
            show_page.lineage(record, family),
            self._outcome(record),
            show_evaluations.of_adapter(self.studio.evaluations.of_adapter(record.id)),
            show_page.details(record, family),
            record.name,
            *folded,
        ]

    def family(self, record: "AdapterRecord") -> show_page.Family:
        """What it is tied to."""
        try:
            job = self.studio.queue.get(record.job_id) if record.job_id else None
        except NotFound:
            job = None
        return show_page.Family(
            base=self.finder.base_of(record),
            dataset=self.finder.dataset_of(record),
            job=job,
            parents=self.studio.watching.adapters([str(parent.get("id", "")) for parent in record.parents]),
            children=self.finder.children(record, CHILDREN),
            versions=self.finder.versions(record),
        )

    def _outcome(self, record: "AdapterRecord") -> str:
        """What came of the training that made it, with its curves where the job is known."""
        if record.origin != "training":
            return ""
        try:
            job = self.studio.queue.get(record.job_id)
            curve = self.curves.of(job.id, job.attempt)
        except NotFound:
            curve = Curve()
        return f'<div class="as-outcome">{outcome(record.metrics, curve)}</div>'

    def write(self, adapter_id: str, tags: str, collections: str, licence: str, text: str, version_of: str) -> str:
        """Keep what was written; a card as it would be made anyway is not kept. Raises StudioError, in words for people."""
        record = self.studio.adapters.get(adapter_id)
        unchanged = text.strip() == cards.made(record, self.finder.base_of(record), self.finder.dataset_of(record)).strip()
        self.finder.set_tags(record.id, _listed(tags))
        self.finder.collect(record.id, _listed(collections))
        self.finder.write_card(record.id, "" if unchanged else text, licence)
        if version_of.strip():
            record = self.finder.make_version(record.id, version_of.strip())
            return present.note_card(f"Saved. It is version {record.version} of {record.name} now, and the current one.")
        return present.note_card("Saved.")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
