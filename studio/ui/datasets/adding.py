"""Add a dataset: choose where it comes from, see at once what it would become, correct that, add it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.datasets.errors import BadRows
from studio.datasets.forms import FORMS
from studio.datasets.ingest import Options
from studio.datasets.reading import SUFFIXES
from studio.errors import StudioError
from studio.ui import present
from studio.ui.datasets import show_adding, show_report
from studio.ui.datasets.filled import FILES, HUB, MOST_ROLES, NOT_THERE, PASTE, SOURCES, Filled
from studio.ui.page import QUIET, html
from studio.ui.present import hint
from studio.ui.work import Work

if TYPE_CHECKING:
    from storage.records import DatasetRecord
    from studio.datasets.ingest import Inspection
    from studio.services import Studio

KINDS = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)

# In the browser, so that it never comes after what somebody types meanwhile.
SUGGEST_NAME = (
    "(files, name) => name.trim() || !files || !files.length ? name : files[0].orig_name.replace(/(\\.[A-Za-z0-9]{1,7}){1,2}$/, '')"
)


@dataclass(frozen=True)
class Adding:
    """Handles of the form. `roles` are the columns' dropdowns, as many as the form with the most roles needs."""

    panel: gr.Column
    filling: gr.Column
    source: gr.Radio
    groups: dict[str, gr.Column]
    upload: gr.File
    paste: gr.Textbox
    repository: gr.Textbox
    revision: gr.Textbox
    name: gr.Textbox
    look: gr.HTML
    more: gr.Accordion
    form: gr.Dropdown
    roles: list[gr.Dropdown]
    system: gr.Textbox
    seen: gr.State
    add: gr.Button
    trouble: gr.Column
    table: gr.HTML
    save: gr.DownloadButton
    leave_out: gr.Button
    stop: gr.Button

    @property
    def changed(self) -> list[Any]:
        """What a look, an addition or a refusal may change."""
        looked = [self.look, self.more, self.form, self.seen, *self.roles]
        filled = [self.upload, self.paste, self.repository, self.name, self.system]
        return [*looked, *filled, self.filling, self.trouble, self.table, self.leave_out, self.save]

    @property
    def filled(self) -> list[Any]:
        """What was filled in, in the order of `Filled`."""
        sources = [self.source, self.upload, self.paste, self.repository, self.revision]
        return [*sources, self.name, self.form, self.system, self.seen, *self.roles]


def build() -> Adding:
    """Lay the form out."""
    with gr.Column(elem_classes="as-panel", elem_id="dataset-adding") as panel:
        with gr.Column(elem_id="dataset-filling") as filling:
            html('<h3 class="as-panel-title">Add a dataset</h3>')
            parts = _build_sources() | _build_look()
            name = gr.Textbox("", label="Name", info="The file's name where left empty.", max_lines=1, elem_id="dataset-name")
            add = gr.Button("Add dataset", variant="primary", elem_id="dataset-add")
        trouble = _build_trouble()
    return Adding(panel=panel, filling=filling, name=name, add=add, seen=gr.State({}), **parts, **trouble)


def _build_sources() -> dict[str, Any]:
    source = gr.Radio(
        SOURCES, value=FILES, label="Where from", show_label=False, container=False, elem_id="dataset-source", elem_classes="as-segments"
    )
    with gr.Column(elem_classes="as-source") as files:
        upload = gr.File(label="Files", file_count="multiple", file_types=list(SUFFIXES), height=132, elem_id="dataset-file")
        html(hint(f"One or several, which become one dataset: {KINDS}."))
    with gr.Column(visible=False, elem_classes="as-source") as pasted:
        paste = gr.Textbox(
            "",
            label="Rows",
            info="Lines of JSON, a JSON list, or a table with a header, as a spreadsheet copies it.",
            lines=7,
            max_lines=14,
            placeholder='{"prompt": "Who are you?", "completion": "A bird."}',
            elem_id="dataset-paste",
        )
    with gr.Column(visible=False, elem_classes="as-source") as hub, gr.Row(elem_classes="as-grid"):
        repository = gr.Textbox("", label="Dataset", placeholder="owner/name", max_lines=1, elem_id="dataset-repository")
        revision = gr.Textbox(
            "main", label="Revision", info="Branch, tag or commit; the commit is written down.", max_lines=1, elem_id="dataset-revision"
        )
    groups = {FILES: files, PASTE: pasted, HUB: hub}
    return {"source": source, "groups": groups, "upload": upload, "paste": paste, "repository": repository, "revision": revision}


def _build_look() -> dict[str, Any]:
    look = html(elem_id="dataset-look")
    with gr.Accordion("How it is read: form, columns, system prompt", open=False, elem_id="dataset-more") as more:
        with gr.Row(elem_classes="as-grid"):
            form = gr.Dropdown(
                show_adding.form_choices([]), value="auto", label="Form", info="The columns tell it, as a rule.", elem_id="dataset-format"
            )
            roles = [
                gr.Dropdown([], visible=False, allow_custom_value=True, elem_id=f"dataset-role-{number}") for number in range(MOST_ROLES)
            ]
        system = gr.Textbox(
            "", label="System prompt", info="For all rows that have none of their own.", lines=2, max_lines=6, elem_id="dataset-system"
        )
    return {"look": look, "more": more, "form": form, "roles": roles, "system": system}


def _build_trouble() -> dict[str, Any]:
    with gr.Column(visible=False, elem_id="dataset-trouble-panel") as trouble:
        table = html(elem_id="dataset-errors")
        with gr.Row(elem_classes="as-actions"):
            leave_out = gr.Button("Leave them out", variant="primary", elem_id="dataset-leave-out", min_width=120)
            stop = gr.Button("Stop: I will mend the file", elem_id="dataset-stop", min_width=120)
            save = gr.DownloadButton("Download the table", elem_id="dataset-errors-file", elem_classes="as-textlink", min_width=120)
    return {"trouble": trouble, "table": table, "save": save, "leave_out": leave_out, "stop": stop}


class Events:
    """The form's callbacks. Each returns {component: its update}."""

    def __init__(self, studio: "Studio", adding: Adding) -> None:
        self.studio, self.adding = studio, adding

    def choose_source(self, source: str) -> dict[Any, Any]:
        """Show the inputs of one source."""
        return {group: gr.Column(visible=name == source) for name, group in self.adding.groups.items()}

    def look_anew(self, *values: Any) -> dict[Any, Any]:
        """Other files or another text: their form is found out again."""
        filled = Filled.of(values)
        return self._look(filled, Options("auto", {}, filled.system))

    def look_as(self, *values: Any) -> dict[Any, Any]:
        """Another form was chosen: its columns are found again."""
        filled = Filled.of(values)
        return self._look(filled, Options(filled.form, {}, filled.system))

    def look_again(self, *values: Any) -> dict[Any, Any]:
        """Other columns or another system prompt. With a column of one's own the form is chosen, too."""
        filled = Filled.of(values)
        form = filled.seen.get("form", "") or filled.form
        mapping = filled.mapping(form)
        untouched = filled.form == "auto" and mapping == filled.seen.get("mapping", {})
        return self._look(filled, filled.options() if untouched else Options(form, mapping, filled.system))

    def _look(self, filled: Filled, options: Options) -> dict[Any, Any]:
        adding = self.adding
        if filled.source == HUB or not filled.is_there:
            form = gr.Dropdown(choices=show_adding.form_choices([]), value=options.form)
            seen = _seen(options.form, options.mapping, [])
            return {adding.look: "", adding.seen: seen, **self._form(options.form, [], options.mapping), adding.form: form}
        try:
            found = self._inspect(filled, options)
        except StudioError as error:
            return self._refused(filled, options, error)
        form, mapping = (found.chosen.form, found.chosen.mapping) if found.chosen else (options.form, options.mapping)
        choices = show_adding.form_choices(found.fits)
        fits = found.chosen is not None and found.chosen.share >= show_adding.SURE
        return {
            adding.look: show_adding.look(found, len(filled.paths) if filled.source == FILES else 1),
            adding.seen: _seen(form, mapping, found.columns),
            adding.more: gr.skip() if fits else gr.Accordion(open=True),
            **self._form(form, found.columns, mapping),
            adding.form: gr.Dropdown(choices=choices, value=options.form),
        }

    def _refused(self, filled: Filled, options: Options, error: StudioError) -> dict[Any, Any]:
        """The columns cannot be read like this, or not at all: what is missing, beside the rows as they stand."""
        adding, columns = self.adding, filled.seen.get("columns", [])
        missing = [role for role in FORMS[options.form].required if not options.mapping.get(role)] if options.form in FORMS else []
        if not columns:
            looked = show_adding.refused(error)
        elif missing:
            looked = show_adding.asked(missing, self._inspect(filled, Options()))
        else:
            looked = show_adding.refused(error, self._inspect(filled, Options()))
        seen = _seen(options.form, options.mapping, columns)
        return {adding.look: looked, adding.seen: seen, **self._form(options.form, columns, options.mapping)}

    def _inspect(self, filled: Filled, options: Options) -> "Inspection":
        if filled.source == PASTE:
            return self.studio.look_at_pasted(filled.paste, options)
        return self.studio.datasets.inspect(filled.paths, options)

    def _form(self, form: str, columns: list[str], mapping: Mapping[str, str]) -> dict[Any, Any]:
        """One dropdown for each role of the form."""
        roles = FORMS[form].roles if form in FORMS else ()
        shown: dict[Any, Any] = {}
        for number, dropdown in enumerate(self.adding.roles):
            if number >= len(roles):
                shown[dropdown] = gr.Dropdown(visible=False, value="")
                continue
            role = roles[number]
            choices = [*([] if role.required else [("none", "")]), *((column, column) for column in columns)]
            label = f"{role.name.capitalize()} column"
            shown[dropdown] = gr.Dropdown(
                choices=choices, value=mapping.get(role.name, ""), label=label, info=role.help.capitalize() + ".", visible=True
            )
        return shown

    def add(self, message: Any, chosen: Any, *values: Any, drop: bool = False) -> Iterator[dict[Any, Any]]:
        """Add it: `message` says how far it is and what came of it, `chosen` becomes its id. Where something is wrong the inputs stay."""
        filled, adding = Filled.of(values), self.adding
        if not filled.is_there:
            yield {message: present.error_card(NOT_THERE[filled.source], "There is nothing to add yet")}
            return
        work = Work(lambda work: self._add(filled, drop, work))
        for told in work.watch():
            yield {message: show_report.progress(*told)}
        try:
            record = work.result()
        except BadRows as bad:
            yield {message: "", **self._trouble(bad)}
        except StudioError as error:
            yield {message: present.error_card(error, "The dataset was not added"), **closed(adding)}
        else:
            said = f"{record.name} was added with {present.count(record.rows, 'row')}. Next: train on it."
            yield {message: present.note_card(said), chosen: record.id, **closed(adding), **cleared(adding)}

    def _add(self, filled: Filled, drop: bool, work: "Work[DatasetRecord]") -> "DatasetRecord":
        options, name = filled.options(drop), filled.label()

        def tell(rows: int) -> None:
            work.tell(None, f"{present.count(rows, 'row')} so far")

        work.tell(None, "fetching it from the Hub" if filled.source == HUB else "reading the rows")
        if filled.source == HUB:
            return self.studio.add_from_hub(filled.repository.strip(), filled.revision.strip() or "main", name, options, tell)
        if filled.source == PASTE:
            return self.studio.add_pasted(filled.paste, name, options, tell)
        return self.studio.datasets.add(filled.paths, name, options, progress=tell)

    def _trouble(self, bad: BadRows) -> dict[Any, Any]:
        """The table of wrong rows in the place of the form, and the file with all of them."""
        try:
            save = gr.DownloadButton(value=str(self.studio.datasets.export_errors(bad.errors)), visible=True)
        except StudioError:  # the disk is full; the table on the page is what matters
            save = gr.DownloadButton(visible=False)
        return {
            self.adding.filling: gr.Column(visible=False),
            self.adding.trouble: gr.Column(visible=True),
            self.adding.table: show_adding.bad_rows(bad),
            self.adding.leave_out: gr.Button(show_adding.leave_out_label(bad.errors.total, bad.good), visible=bad.good > 0),
            self.adding.save: save,
        }


def closed(adding: Adding) -> dict[Any, Any]:
    """The form instead of the table of wrong rows; what was filled in is still there."""
    return {adding.filling: gr.Column(visible=True), adding.trouble: gr.Column(visible=False), adding.table: ""}


def _seen(form: str, mapping: Mapping[str, str], columns: list[str]) -> dict[str, Any]:
    return {"form": form, "mapping": dict(mapping), "columns": columns}


def cleared(adding: Adding) -> dict[Any, Any]:
    """The form as it was before anything was filled in."""
    empty: dict[Any, Any] = {
        adding.upload: None,
        adding.paste: "",
        adding.repository: "",
        adding.name: "",
        adding.system: "",
        adding.look: "",
        adding.seen: {},
    }
    roles = {dropdown: gr.Dropdown(visible=False, value="") for dropdown in adding.roles}
    return {
        **empty,
        **roles,
        adding.form: gr.Dropdown(choices=show_adding.form_choices([]), value="auto"),
        adding.more: gr.Accordion(open=False),
    }


def wire(form: Adding, studio: "Studio", message: Any, chosen: Any) -> list[Any]:
    """Bind the form's events; returns those after which `message` and `chosen` say what was added."""
    events = Events(studio, form)
    anew: dict[str, Any] = {"fn": events.look_anew, "inputs": form.filled, "outputs": form.changed, **QUIET}
    again: dict[str, Any] = {"fn": events.look_again, "inputs": form.filled, "outputs": form.changed, **QUIET}
    form.source.input(events.choose_source, form.source, list(form.groups.values()), **QUIET).then(**anew)
    form.upload.change(None, [form.upload, form.name], form.name, js=SUGGEST_NAME, **QUIET)
    form.upload.change(**anew)
    form.paste.change(trigger_mode="always_last", **anew)
    form.form.input(events.look_as, form.filled, form.changed, **QUIET)
    gr.on([role.input for role in form.roles], trigger_mode="always_last", **again)
    form.system.blur(**again)
    form.stop.click(lambda: closed(form), None, [form.filling, form.trouble, form.table], **QUIET)
    outputs = [message, chosen, *form.changed]
    adds = ((form.add, False), (form.leave_out, True))
    return [pressed.click(partial(events.add, message, chosen, drop=drop), form.filled, outputs, **QUIET) for pressed, drop in adds]
