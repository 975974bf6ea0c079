"""Rows of a dataset: page through them, see each as a conversation, as it is stored or as tokens, and edit one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import orjson

from studio.errors import InvalidInput, StudioError
from studio.training.config import DEFAULT_PRESET, make_config
from studio.ui import present
from studio.ui.datasets.show_rows import MASK, TALK, VIEWS, ShownRow, mask_legend, page_of, rows_page
from studio.ui.page import action, fragment, html

if TYPE_CHECKING:
    from storage.records import DatasetRecord
    from studio.datasets.forms import Conversation
    from studio.datasets.store import StoredRow
    from studio.services import Studio

PAGE_ROWS = 5
MOST_TURNS = 8  # that have a box of their own; a longer conversation is edited as JSON
FIRST, PREVIOUS, NEXT, LAST = "first", "previous", "next", "last"


@dataclass(frozen=True)
class Rows:
    """Handles of the view. `offset` is the first row that is shown, from 0; `views` says which rows have a view of their own."""

    view: gr.Radio
    tokens: gr.Column
    base: gr.Dropdown
    max_length: gr.Number
    preview: gr.HTML
    paging: gr.HTML
    turns: dict[str, gr.Button]
    goto: gr.Number
    offset: gr.State
    views: gr.State
    editor: gr.Column
    title: gr.HTML
    boxes: list[gr.Textbox]
    as_json: gr.Textbox
    editing: gr.State
    save: gr.Button
    cancel: gr.Button
    message: gr.HTML

    @property
    def seen(self) -> list[Any]:
        """What decides which rows are shown and how."""
        return [self.offset, self.view, self.views, self.base, self.max_length]

    @property
    def drawn(self) -> list[Any]:
        """What is drawn from that."""
        return [self.preview, self.paging, self.tokens, self.goto, *self.turns.values()]


def build() -> Rows:
    """Lay the view out."""
    view = gr.Radio(
        VIEWS, value=TALK, label="Show rows as", show_label=False, container=False, elem_id="dataset-view", elem_classes="as-segments"
    )
    with gr.Column(visible=False, elem_classes="as-source", elem_id="dataset-mask-options") as tokens:
        html(mask_legend())
        with gr.Row(elem_classes="as-grid"):
            base = gr.Dropdown([], label="Base", info="Its chat template writes the tokens.", elem_id="dataset-mask-base")
            max_length = gr.Number(
                make_config(DEFAULT_PRESET).max_length,
                label="max_length",
                info="Tokens behind it are cut.",
                precision=0,
                minimum=1,
                elem_id="dataset-mask-length",
            )
    editor = _build_editor()
    preview = fragment(elem_id="dataset-preview")
    with gr.Row(elem_classes="as-actions as-pager"):
        labels = {FIRST: "⇤ First", PREVIOUS: "← Previous", NEXT: "Next →", LAST: "Last ⇥"}
        turns = {
            which: gr.Button(label, elem_id=f"dataset-{which}", elem_classes="as-quiet", min_width=60) for which, label in labels.items()
        }
        paging = html(elem_id="dataset-paging")
        goto = gr.Number(1, label="Go to row", precision=0, minimum=1, elem_id="dataset-goto", min_width=90, scale=0)
    states = {"offset": gr.State(0), "views": gr.State({})}
    return Rows(
        view=view,
        tokens=tokens,
        base=base,
        max_length=max_length,
        preview=preview,
        paging=paging,
        turns=turns,
        goto=goto,
        **states,
        **editor,
    )


def _build_editor() -> dict[str, Any]:
    with gr.Column(visible=False, elem_classes="as-confirm", elem_id="dataset-editor") as editor:
        title = html()
        boxes = [gr.Textbox("", visible=False, lines=2, max_lines=12, elem_id=f"dataset-turn-{i}") for i in range(MOST_TURNS)]
        as_json = gr.Textbox("", visible=False, label="Turns as JSON", lines=10, max_lines=20, elem_id="dataset-turns-json")
        message = html(elem_id="dataset-edit-message")
        with gr.Row(elem_classes="as-actions"):
            save = gr.Button("Save as a new version", elem_id="dataset-edit-save", min_width=120)
            cancel = gr.Button("Leave it", elem_id="dataset-edit-cancel", elem_classes="as-quiet", min_width=80)
    editing = gr.State([])  # the dataset's id, the row's number, then the roles of its turns; empty where no row is edited
    parts = {"editor": editor, "title": title, "boxes": boxes, "as_json": as_json, "editing": editing}
    return {**parts, "save": save, "cancel": cancel, "message": message}


class Events:
    """The view's callbacks."""

    def __init__(self, studio: "Studio", rows: Rows) -> None:
        self.studio, self.rows = studio, rows

    def shown(
        self, record: "DatasetRecord", offset: int, view: str, views: Mapping[str, str], base: str | None, max_length: int
    ) -> dict[Any, Any]:
        """One page of rows."""
        try:
            stored = self.studio.datasets.store(record).page(offset, PAGE_ROWS)
        except StudioError as error:
            return {self.rows.preview: present.error_card(error, "The rows cannot be shown")}
        found = [self._row(record, offset + i, row, views.get(str(offset + i), view), base, max_length) for i, row in enumerate(stored)]
        back, forth = offset > 0, offset + PAGE_ROWS < record.rows
        able = {FIRST: back, PREVIOUS: back, NEXT: forth, LAST: forth}
        return {
            self.rows.preview: rows_page(found),
            self.rows.goto: offset + 1,
            self.rows.paging: page_of(offset, len(stored), record.rows),
            self.rows.tokens: gr.Column(visible=any(row.view == MASK for row in found)),
            **{self.rows.turns[which]: gr.Button(interactive=able[which]) for which in able},
        }

    def _row(self, record: "DatasetRecord", number: int, row: "StoredRow", view: str, base: str | None, max_length: int) -> ShownRow:
        if view != MASK:
            return ShownRow(number, row, view)
        try:
            return ShownRow(number, row, view, self.studio.foresight.pieces(record.id, number, base, int(max_length or 0)))
        except StudioError as error:
            return ShownRow(number, row, view, trouble=str(error))

    def turn(self, which: str, rows: int, offset: int) -> int:
        """Where the first, previous, next or last page of some rows begins."""
        last = (rows - 1) // PAGE_ROWS * PAGE_ROWS
        return {FIRST: 0, PREVIOUS: max(0, offset - PAGE_ROWS), NEXT: min(last, offset + PAGE_ROWS), LAST: last}[which]

    def act(self, views: dict[str, str], event: gr.EventData) -> tuple[dict[str, str], str]:
        """A row shall be shown in another way, or be edited: (views, number of the row to edit or "")."""
        kind, row, _ = action(event)
        if kind == "edit":
            return views, row
        return {**views, row: kind}, ""

    def open_editor(self, record: "DatasetRecord", row: int) -> dict[Any, Any]:
        """The row's turns in boxes, or as JSON where they are too many."""
        [found] = self.studio.datasets.store(record).page(row, 1)
        turns = found.conversation
        in_boxes = len(turns) <= MOST_TURNS
        shown: dict[Any, Any] = {box: gr.Textbox(visible=False) for box in self.rows.boxes}
        if in_boxes:
            for box, turn in zip(self.rows.boxes, turns, strict=False):
                shown[box] = gr.Textbox(turn["content"], label="passage" if turn["role"] == "text" else turn["role"], visible=True)
        text = "" if in_boxes else orjson.dumps(turns, option=orjson.OPT_INDENT_2).decode()
        return {
            **shown,
            self.rows.as_json: gr.Textbox(text, visible=not in_boxes),
            self.rows.editing: [record.id, row, *(turn["role"] for turn in turns if in_boxes)],
            self.rows.title: f"<p><strong>Edit row {row + 1:,}</strong></p>",
            self.rows.editor: gr.Column(visible=True),
            self.rows.message: "",
        }

    def save(self, record: "DatasetRecord", editing: list[Any], as_json: str, *boxes: str) -> "DatasetRecord":
        """Make the version with the edited row.

        Raises:
            StudioError: the row cannot be like this.
        """
        _, row, *roles = editing
        turns = [{"role": role, "content": text} for role, text in zip(roles, boxes, strict=False)] if roles else parse_turns(as_json)
        return self.studio.changes.edit_row(record, int(row), turns)


def parse_turns(text: str) -> "Conversation":
    """The turns that were typed as JSON.

    Raises:
        InvalidInput: they are no list of objects with role and content.
    """
    try:
        turns = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"Line {error.lineno}, character {error.colno} is no JSON: {error.msg}; mend it there.") from None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidInput('The turns are no list of objects; write them as [{"role": …, "content": …}, …].')
    return turns


def closed(rows: Rows) -> dict[Any, Any]:
    """The editor, put away."""
    return {rows.editor: gr.Column(visible=False), rows.editing: [], rows.message: ""}


def failed(rows: Rows, error: StudioError) -> dict[Any, Any]:
    """Why the row was not saved; what was typed stays."""
    return {rows.message: present.error_card(error, "The row stays as it was")}
