"""Datasets: what there is, on the left; on the right the one that was chosen, or the form by which one is added."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound, StudioError
from studio.ui import present
from studio.ui.datasets import adding, changing, report, rows, show_library, show_report
from studio.ui.page import DATASETS, QUIET, TRAIN, Page, action, dataset_choices, fragment, html
from studio.ui.work import Work

if TYPE_CHECKING:
    from storage.records import DatasetRecord
    from studio.services import Studio

ROWS, REPORT, CHANGE, VERSIONS = "rows", "report", "change", "versions"
SHOW_MESSAGE = "() => document.querySelector('#dataset-message')?.scrollIntoView({block: 'nearest'})"
SHOW_EDITOR = "() => document.querySelector('#dataset-editor')?.scrollIntoView({block: 'nearest'})"
# On a phone the pane lies under the list.
SHOW_PANE = "() => { if (innerWidth <= 700) document.querySelector('#dataset-pane')?.scrollIntoView(); }"
SAVE_FILE = "() => setTimeout(() => document.querySelector('#dataset-export-file')?.click(), 50)"


@dataclass(frozen=True)
class DatasetsTab:
    """Handles of the tab. `chosen` is the id of the version that is shown, empty while one is added."""

    tab: gr.Tab
    library: gr.HTML
    new: gr.Button
    message: gr.HTML
    chosen: gr.State
    adding: adding.Adding
    detail: gr.Column
    head: gr.HTML
    train: gr.Button
    export: gr.Button
    file: gr.DownloadButton
    left_out: gr.Button
    delete: gr.Button
    confirm: gr.Column
    question: gr.HTML
    delete_yes: gr.Button
    delete_no: gr.Button
    views: gr.Tabs
    rows: rows.Rows
    report: report.Report
    changing: changing.Changing
    versions: gr.HTML


def build() -> DatasetsTab:
    """Lay the tab out."""
    with gr.Tab("Datasets", id=DATASETS, elem_id="tab-datasets") as tab:
        html(
            present.heading(
                "What should it learn?", "A dataset is a set of examples. Add yours, whatever file it is in, or look into a sample."
            )
        )
        with gr.Row(elem_classes="as-columns as-list-and-pane"):
            with gr.Column(scale=4, min_width=260):
                new = gr.Button("Add a dataset", elem_id="dataset-new", variant="secondary")
                library = fragment(elem_id="dataset-library")
            with gr.Column(scale=9, min_width=300, elem_id="dataset-pane"):
                message = fragment(elem_id="dataset-message")
                form = adding.build()
                shown = _build_detail()
        chosen = gr.State("")
    return DatasetsTab(tab=tab, library=library, new=new, message=message, chosen=chosen, adding=form, **shown)


def _build_detail() -> dict[str, Any]:
    with gr.Column(visible=False, elem_classes="as-panel", elem_id="dataset-detail") as detail:
        head = html(elem_id="dataset-head")
        actions = _build_actions()
        with gr.Tabs(elem_id="dataset-views", elem_classes="as-views") as views:
            with gr.Tab("Rows", id=ROWS):
                shown_rows = rows.build()
            with gr.Tab("Report", id=REPORT):
                shown_report = report.build()
            with gr.Tab("Change", id=CHANGE):
                changes = changing.build()
            with gr.Tab("Versions", id=VERSIONS):
                versions = fragment(elem_id="dataset-versions")
    parts = {"rows": shown_rows, "report": shown_report, "changing": changes, "versions": versions}
    return {"detail": detail, "head": head, "views": views, **actions, **parts}


def _build_actions() -> dict[str, Any]:
    with gr.Row(elem_classes="as-actions"):
        train = gr.Button("Train on this →", variant="primary", elem_id="dataset-train", min_width=120)
        export = gr.Button("Export as JSONL", elem_id="dataset-export", min_width=110)
        left_out = gr.Button("Rows left out", visible=False, elem_id="dataset-left-out", elem_classes="as-quiet", min_width=90)
        delete = gr.Button("Delete", elem_id="dataset-delete", elem_classes="as-quiet", min_width=80)
        file = gr.DownloadButton("Save the file", visible="hidden", elem_id="dataset-export-file")
    with gr.Column(visible=False, elem_classes="as-confirm", elem_id="dataset-confirm") as confirm:
        question = html(elem_id="dataset-question")
        with gr.Row(elem_classes="as-actions"):
            delete_yes = gr.Button("Delete it", variant="stop", elem_id="dataset-delete-yes", min_width=80)
            delete_no = gr.Button("Keep it", elem_id="dataset-delete-no", min_width=80)
    made = {"train": train, "export": export, "left_out": left_out, "delete": delete, "file": file}
    return {**made, "confirm": confirm, "question": question, "delete_yes": delete_yes, "delete_no": delete_no}


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio", tab: DatasetsTab) -> None:
        self.studio, self.tab = studio, tab
        self.rows = rows.Events(studio, tab.rows)
        self.report = report.Events(studio)
        self.changing = changing.Events(studio)

    def find(self, chosen: str) -> "DatasetRecord | None":
        """The version with this id, while there is one."""
        try:
            return self.studio.datasets.get(chosen) if chosen else None
        except NotFound:
            return None

    def show(self, chosen: str, made_for: str, editing: list[Any], *seen: Any) -> dict[Any, Any]:
        """The library, and beside it the chosen dataset or the form. A row that is edited stays open while its dataset is shown."""
        tab, record = self.tab, self.find(chosen)
        library = show_library.library_list(self.studio.datasets.all(), record.name if record else "")
        panes = {tab.adding.panel: gr.Column(visible=record is None), tab.detail: gr.Column(visible=record is not None)}
        shown = {tab.library: library, **panes, tab.confirm: gr.Column(visible=False)}
        if editing and editing[0] != chosen:
            shown |= rows.closed(tab.rows)
        if record is None:
            return {**shown, tab.chosen: "", tab.new: gr.Button(visible=False)}
        return {**shown, tab.new: gr.Button(visible=True), **self._detail(record, made_for, *seen)}

    def _detail(self, record: "DatasetRecord", made_for: str, *seen: Any) -> dict[Any, Any]:
        tab = self.tab
        versions = self.studio.datasets.versions(record.name)
        learned = self.learned_from([version.id for version in versions])
        return {
            tab.head: show_library.dataset_head(record, versions[0].version),
            tab.left_out: gr.Button(visible=self.studio.datasets.errors_path(record) is not None),
            tab.versions: show_library.version_list(versions, record.id, learned),
            **self.rows.shown(record, *seen),
            **self.report.shown(record.id, made_for, tab.report),
            **self.changing.shown(record, tab.changing),
        }

    def learned_from(self, ids: list[str]) -> dict[str, list[str]]:
        """Names of the adapters that learned from each version, by its id."""
        return self.studio.adapters.records.learned_from(ids)

    def show_rows(self, chosen: str, *seen: Any) -> dict[Any, Any]:
        """The rows alone."""
        record = self.find(chosen)
        return self.rows.shown(record, *seen) if record else {self.tab.rows.preview: gr.skip()}

    def choose(self, chosen: str, event: gr.EventData) -> tuple[str, int, dict[str, str], str]:
        """A row of a list was chosen; it shows its first rows: (id, offset, views of rows, message)."""
        kind, record_id, _ = action(event)
        return (record_id if kind == "choose" else chosen), 0, {}, ""

    def turn(self, chosen: str, offset: int, which: str) -> int:
        """Another page of rows."""
        record = self.find(chosen)
        return self.rows.turn(which, record.rows, offset) if record else offset

    def go_to(self, chosen: str, row: float | None, offset: int) -> int:
        """The row with this number first; the last rows where there are fewer."""
        record = self.find(chosen)
        return max(0, min(int(row), record.rows) - 1) if record and row else offset

    def act_on_row(self, chosen: str, views: dict[str, str], event: gr.EventData) -> dict[Any, Any]:
        """Show a row in another way, or edit it."""
        views, row = self.rows.act(views, event)
        record = self.find(chosen)
        return {self.tab.rows.views: views, **(self.rows.open_editor(record, int(row)) if record and row else {})}

    def save_row(self, chosen: str, editing: list[Any], as_json: str, *boxes: str) -> dict[Any, Any]:
        """Make a version with the edited row."""
        try:
            record = self.studio.datasets.get(chosen)
            made = self.rows.save(record, editing, as_json, *boxes)
        except StudioError as error:
            return rows.failed(self.tab.rows, error)
        return {self.tab.message: show_library.made_note(record, [made]), self.tab.chosen: made.id, **rows.closed(self.tab.rows)}

    def act_on_report(self, chosen: str, base: str | None, preset: str, event: gr.EventData) -> Iterator[dict[Any, Any]]:
        """Show a row that a finding names, or do what it offers."""
        kind, what, _ = action(event)
        if kind == "row":
            yield {self.tab.views: gr.Tabs(selected=ROWS), self.tab.rows.offset: int(what)}
        elif kind == "mend":
            yield from self._make(chosen, lambda record: [self.studio.foresight.mend(record.id, what, base, preset)])

    def change(self, chosen: str, *inputs: Any, name: str) -> Iterator[dict[Any, Any]]:
        """Do one of the changes."""
        yield from self._make(chosen, lambda record: self.changing.calls[name](record, *inputs))

    def _make(self, chosen: str, call: "Callable[[DatasetRecord], list[DatasetRecord]]") -> Iterator[dict[Any, Any]]:
        """Make a version, which is shown then, or datasets of their own, which are named."""
        tab = self.tab
        work = Work(lambda work: self._called(chosen, call, work))
        for told in work.watch():
            yield {tab.message: show_report.progress(*told)}
        try:
            record, made = work.result()
        except StudioError as error:
            yield {tab.message: present.error_card(error, "Nothing was changed")}
        else:
            newer = {tab.chosen: made[0].id, tab.rows.offset: 0} if made[0].name == record.name else {}
            yield {tab.message: show_library.made_note(record, made), **newer}

    def _called(self, chosen: str, call: "Callable[[DatasetRecord], list[DatasetRecord]]", work: "Work[Any]") -> Any:
        work.tell(None, "making it")
        record = self.studio.datasets.get(chosen)
        return record, call(record)

    def export(self, chosen: str, left_out: bool) -> tuple[str, Any]:
        """Write the file that is downloaded."""
        try:
            record = self.studio.datasets.get(chosen)
            path = self.studio.datasets.export_left_out(record) if left_out else self.studio.datasets.export(record)
        except StudioError as error:
            return present.error_card(error, "The file was not made"), gr.skip()
        return present.note_card(f"{path.name} was made."), str(path)

    def ask(self, chosen: str) -> tuple[Any, str]:
        """Ask before it is deleted."""
        record = self.find(chosen)
        if record is None:
            return gr.Column(visible=False), ""
        versions = self.studio.datasets.versions(record.name)
        learned = self.learned_from([version.id for version in versions])
        return gr.Column(visible=True), show_library.delete_question(
            record, len(versions), [name for names in learned.values() for name in names]
        )

    def delete(self, chosen: str) -> tuple[str, str]:
        """Delete the chosen dataset with all its versions."""
        try:
            record = self.studio.datasets.remove(self.studio.datasets.get(chosen).name)
        except StudioError as error:
            return present.error_card(error, "The dataset was not deleted"), chosen
        return present.note_card(f"{record.name} was deleted."), ""

    def train_on(self, chosen: str) -> tuple[Any, Any]:
        """Go to the Train tab with this dataset."""
        return gr.Tabs(selected=TRAIN), gr.Dropdown(choices=dataset_choices(self.studio, chosen), value=chosen)

    def bases(self) -> tuple[Any, Any]:
        """The bases that there are; the default one is chosen."""
        records = self.studio.bases.all()
        default: str | None
        try:
            default = self.studio.default_base().id
        except NotFound:
            default = records[0].id if records else None
        choices = [(base.name, base.id) for base in records]
        return gr.Dropdown(choices=choices, value=default), gr.Dropdown(choices=choices, value=default)


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.datasets, _Events(studio, page.datasets)
    view = tab.rows
    looks = [tab.library, tab.chosen, tab.new, tab.adding.panel, tab.detail, tab.head, tab.confirm, tab.left_out, tab.versions]
    others = [tab.report.result, tab.report.told, tab.report.made_for, *tab.changing.columns, tab.changing.others]
    shown = [*looks, *others, *view.drawn, view.editor, view.editing, view.message]
    show: dict[str, Any] = {
        "fn": events.show,
        "inputs": [tab.chosen, tab.report.made_for, view.editing, *view.seen],
        "outputs": shown,
        **QUIET,
    }
    chosen = [tab.chosen, view.offset, view.views, tab.message]
    for listed in (tab.library, tab.versions, tab.message):
        listed.act(events.choose, tab.chosen, chosen, **QUIET).then(**show).then(None, None, None, js=SHOW_PANE, **QUIET)
    tab.new.click(lambda: ("", 0, {}, ""), None, chosen, **QUIET).then(**show).then(None, None, None, js=SHOW_PANE, **QUIET)
    _wire_actions(page, events, show)
    _wire_adding(tab, studio, show)
    _wire_rows(tab, events, show)
    _wire_report(tab, events, show)
    bases: dict[str, Any] = {"fn": events.bases, "inputs": None, "outputs": [view.base, tab.report.base], **QUIET}
    tab.tab.select(**show)
    page.demo.load(**bases).then(**show)


def _wire_actions(page: Page, events: _Events, show: dict[str, Any]) -> None:
    tab = page.datasets
    tab.train.click(events.train_on, tab.chosen, [page.tabs, page.train.dataset], **QUIET)
    for pressed, left_out in ((tab.export, False), (tab.left_out, True)):
        made = pressed.click(partial(events.export, left_out=left_out), tab.chosen, [tab.message, tab.file], **QUIET)
        made.success(None, None, None, js=SAVE_FILE, **QUIET)
    tab.delete.click(events.ask, tab.chosen, [tab.confirm, tab.question], **QUIET)
    tab.delete_no.click(lambda: gr.Column(visible=False), None, tab.confirm, **QUIET)
    tab.delete_yes.click(events.delete, tab.chosen, [tab.message, tab.chosen], **QUIET).then(**show)


def _wire_adding(tab: DatasetsTab, studio: "Studio", show: dict[str, Any]) -> None:
    for added in adding.wire(tab.adding, studio, tab.message, tab.chosen):
        first = added.then(lambda: (0, {}), None, [tab.rows.offset, tab.rows.views], **QUIET)
        first.then(**show).then(None, None, None, js=SHOW_MESSAGE, **QUIET)


def _wire_rows(tab: DatasetsTab, events: _Events, show: dict[str, Any]) -> None:
    view = tab.rows
    draw: dict[str, Any] = {"fn": events.show_rows, "inputs": [tab.chosen, *view.seen], "outputs": view.drawn, **QUIET}
    for which, pressed in view.turns.items():
        pressed.click(partial(events.turn, which=which), [tab.chosen, view.offset], view.offset, **QUIET).then(**draw)
    view.goto.submit(events.go_to, [tab.chosen, view.goto, view.offset], view.offset, **QUIET).then(**draw)
    view.view.input(lambda: {}, None, view.views, **QUIET).then(**draw)
    gr.on([view.base.input, view.max_length.change], trigger_mode="always_last", **draw)
    opened = [view.views, view.editor, view.title, view.as_json, view.editing, view.message, *view.boxes]
    acted = view.preview.act(events.act_on_row, [tab.chosen, view.views], opened, **QUIET).then(**draw)
    acted.then(None, None, None, js=SHOW_EDITOR, **QUIET)
    view.cancel.click(lambda: rows.closed(view), None, [view.editor, view.editing, view.message], **QUIET)
    saved = [tab.message, tab.chosen, view.editor, view.editing, view.message]
    view.save.click(events.save_row, [tab.chosen, view.editing, view.as_json, *view.boxes], saved, **QUIET).then(**show)


def _wire_report(tab: DatasetsTab, events: _Events, show: dict[str, Any]) -> None:
    view = tab.report
    asked = [tab.chosen, view.base, view.preset]
    view.start.click(events.report.start, asked, [view.told, view.result, view.made_for, view.start, view.cancel], **QUIET)
    view.cancel.click(events.report.cancel, None, view.told, **QUIET)
    made = [tab.message, tab.chosen, tab.rows.offset]
    view.result.act(events.act_on_report, asked, [*made, tab.views], **QUIET).then(**show).then(None, None, None, js=SHOW_MESSAGE, **QUIET)
    for name, pressed in tab.changing.buttons.items():
        call = partial(events.change, name=name)
        changed = pressed.click(call, [tab.chosen, *tab.changing.inputs[name]], made, **QUIET)
        changed.then(**show).then(None, None, None, js=SHOW_MESSAGE, **QUIET)
