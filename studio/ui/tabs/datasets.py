"""Datasets: add a file, look at what is in it, go on to training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.page import DATASETS, QUIET, TRAIN, Page, action, fragment, html

if TYPE_CHECKING:
    from studio.services import Studio

FORMATS = [
    ("Find out", "auto"),
    ("Conversations (messages)", "messages"),
    ("Prompt and completion", "prompt-completion"),
    ("Instruction", "instruction"),
]
PAGE_ROWS = 3
# In the browser, so that it never comes after what somebody types meanwhile.
SUGGEST_NAME = "(file, name) => name.trim() || !file ? name : file.orig_name.replace(/\\.[^.]*$/, '')"
EXAMPLES = """<div class="as-examples">
<p>One row is one example. A .jsonl file has one object a line, a .json file a list of objects, a .csv file a header and rows;
all are UTF-8.</p>
<p><b>Conversations</b>: messages, by user and assistant in turn, after a system turn if you like</p>
<pre>{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A bird."}]}</pre>
<p><b>Prompt and completion</b>: two fields, or two columns</p>
<pre>prompt,completion
Who are you?,A bird.</pre>
<p><b>Instruction</b>: instruction, output, and input where there is something to work on</p>
<pre>{"instruction": "Summarise.", "input": "A long text …", "output": "A short one."}</pre>
</div>"""


@dataclass(frozen=True)
class DatasetsTab:
    """Handles of the tab."""

    tab: gr.Tab
    upload: gr.File
    name: gr.Textbox
    form: gr.Dropdown
    mapping: gr.Textbox
    add: gr.Button
    message: gr.HTML
    library: gr.HTML
    chosen: gr.State
    offset: gr.State
    detail: gr.Column
    head: gr.HTML
    preview: gr.HTML
    paging: gr.HTML
    previous: gr.Button
    following: gr.Button
    train: gr.Button
    delete: gr.Button
    confirm: gr.Column
    delete_yes: gr.Button
    delete_no: gr.Button


def build() -> DatasetsTab:
    """Lay the tab out."""
    with gr.Tab("Datasets", id=DATASETS, elem_id="tab-datasets") as tab:
        html(present.heading("What should it learn?", "A dataset is a file of examples. Add yours, or look into one of the samples."))
        with gr.Row(elem_classes="as-columns"):
            with gr.Column(scale=5, min_width=300, elem_classes="as-panel"):
                adding = _build_form()
            with gr.Column(scale=7, min_width=300):
                library = fragment(elem_id="dataset-library")
                shown = _build_detail()
        states = {"chosen": gr.State(""), "offset": gr.State(0)}
    return DatasetsTab(tab=tab, library=library, **states, **adding, **shown)


def _build_form() -> dict[str, Any]:
    html('<h3 class="as-panel-title">Add a dataset</h3>')
    upload = gr.File(label="File (.jsonl, .json or .csv)", file_types=[".jsonl", ".json", ".csv"], height=132, elem_id="dataset-file")
    name = gr.Textbox("", label="Name", info="The file's name where left empty.", max_lines=1, elem_id="dataset-name")
    with gr.Accordion("What a file may look like", open=False, elem_id="dataset-examples"):
        html(EXAMPLES)
    with gr.Accordion("More", open=False, elem_id="dataset-more"):
        form = gr.Dropdown(FORMATS, value="auto", label="Format", info="The columns tell it, as a rule.", elem_id="dataset-format")
        mapping = gr.Textbox(
            "",
            label="Columns",
            info="Where they are named otherwise: role=column, with commas between.",
            placeholder="prompt=question, completion=answer",
            max_lines=1,
            elem_id="dataset-mapping",
        )
    add = gr.Button("Add dataset", variant="primary", elem_id="dataset-add")
    message = html(elem_id="dataset-message")
    return {"upload": upload, "name": name, "form": form, "mapping": mapping, "add": add, "message": message}


def _build_detail() -> dict[str, Any]:
    with gr.Column(visible=False, elem_classes="as-panel", elem_id="dataset-detail") as detail:
        head = html(elem_id="dataset-head")
        with gr.Row(elem_classes="as-actions"):
            train = gr.Button("Train on this →", elem_id="dataset-train", min_width=120)
            delete = gr.Button("Delete", elem_id="dataset-delete", elem_classes="as-quiet", min_width=80)
        with gr.Column(visible=False, elem_classes="as-confirm", elem_id="dataset-confirm") as confirm:
            html("<p>Delete this dataset? Its rows are gone for good; adapters that learned from it stay.</p>")
            with gr.Row(elem_classes="as-actions"):
                delete_yes = gr.Button("Delete it", variant="stop", elem_id="dataset-delete-yes", min_width=80)
                delete_no = gr.Button("Keep it", elem_id="dataset-delete-no", min_width=80)
        preview = html(elem_id="dataset-preview")
        with gr.Row(elem_classes="as-actions as-pager"):
            previous = gr.Button("← Previous", elem_id="dataset-previous", elem_classes="as-quiet", min_width=90)
            paging = html(elem_id="dataset-paging")
            following = gr.Button("Next →", elem_id="dataset-next", elem_classes="as-quiet", min_width=90)
    return {
        "detail": detail,
        "head": head,
        "preview": preview,
        "paging": paging,
        "previous": previous,
        "following": following,
        "train": train,
        "delete": delete,
        "confirm": confirm,
        "delete_yes": delete_yes,
        "delete_no": delete_no,
    }


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio

    def add(self, upload: str | None, name: str, form: str, mapping: str, chosen: str) -> tuple[Any, ...]:
        """Add the file. The inputs stay where something is wrong with them."""
        if not upload:
            return present.error_card("Choose a file first: .jsonl, .json or .csv.", "There is no file"), chosen, *[gr.skip()] * 3
        pairs = [pair.strip() for pair in mapping.split(",") if pair.strip()]
        try:
            record = self.studio.datasets.add(Path(upload), name.strip() or Path(upload).stem, form, pairs)
        except StudioError as error:
            return present.error_card(error, "The dataset was not added"), chosen, *[gr.skip()] * 3
        said = f"{record.name} was added with {present.count(record.rows, 'row')}. Next: train on it."
        return present.note_card(said), record.id, None, "", ""

    def act(self, chosen: str, event: gr.EventData) -> tuple[str, int]:
        """A row of the library was chosen; it shows its first conversations."""
        kind, record_id = action(event)
        return (record_id, 0) if kind == "choose" else (chosen, 0)

    def show(self, chosen: str, offset: int) -> tuple[Any, ...]:
        """Library and detail as they are now."""
        records = self.studio.datasets.all()
        record = next((r for r in records if r.id == chosen), None)
        library = present.dataset_list(records, chosen)
        if record is None:
            return library, gr.Column(visible=False), "", "", "", gr.skip(), gr.skip(), gr.Column(visible=False)
        rows = self.studio.datasets.preview(record, offset, PAGE_ROWS)
        paging = present.page_of(offset, len(rows), record.rows)
        turn = gr.Button(interactive=offset > 0), gr.Button(interactive=offset + PAGE_ROWS < record.rows)
        preview = present.conversations(rows, offset)
        return library, gr.Column(visible=True), present.dataset_head(record), preview, paging, *turn, gr.Column(visible=False)

    def delete(self, chosen: str) -> tuple[str, str]:
        """Delete the chosen dataset."""
        try:
            record = self.studio.datasets.remove(chosen)
        except StudioError as error:
            return present.error_card(error, "The dataset was not deleted"), chosen
        return present.note_card(f"{record.name} was deleted."), ""

    def train_on(self, chosen: str) -> tuple[Any, Any]:
        """Go to the Train tab with this dataset."""
        choices = [(r.name, r.id) for r in self.studio.datasets.all()]
        return gr.Tabs(selected=TRAIN), gr.Dropdown(choices=choices, value=chosen)


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.datasets, _Events(studio)
    shown = [tab.library, tab.detail, tab.head, tab.preview, tab.paging, tab.previous, tab.following, tab.confirm]
    show: dict[str, Any] = {"fn": events.show, "inputs": [tab.chosen, tab.offset], "outputs": shown, **QUIET}
    tab.upload.change(None, [tab.upload, tab.name], tab.name, js=SUGGEST_NAME, **QUIET)
    adding = tab.add.click(
        events.add,
        [tab.upload, tab.name, tab.form, tab.mapping, tab.chosen],
        [tab.message, tab.chosen, tab.upload, tab.name, tab.mapping],
        show_progress_on=tab.message,
        api_visibility="private",
    )
    adding.then(lambda: 0, None, tab.offset, **QUIET).then(**show)
    tab.library.act(events.act, tab.chosen, [tab.chosen, tab.offset], **QUIET).then(**show)
    tab.previous.click(lambda offset: max(0, offset - PAGE_ROWS), tab.offset, tab.offset, **QUIET).then(**show)
    tab.following.click(lambda offset: offset + PAGE_ROWS, tab.offset, tab.offset, **QUIET).then(**show)
    tab.delete.click(lambda: gr.Column(visible=True), None, tab.confirm, **QUIET)
    tab.delete_no.click(lambda: gr.Column(visible=False), None, tab.confirm, **QUIET)
    tab.delete_yes.click(events.delete, tab.chosen, [tab.message, tab.chosen], **QUIET).then(**show)
    tab.train.click(events.train_on, tab.chosen, [page.tabs, page.train.dataset], **QUIET)
    tab.tab.select(**show)
    page.demo.load(**show)
