"""Adapters: all that were made, to be found again; in the list's place the page of one opens."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import exporting, importing, present, xray
from studio.ui.adapters import differing, likeness, making, pushing, show_list
from studio.ui.adapters import page as adapter_page
from studio.ui.adapters.sight import Sight
from studio.ui.page import ADAPTERS, DATASETS, EVALUATE, QUIET, TRAIN, Page, action, fragment, html, kept, names_of, open_chat

if TYPE_CHECKING:
    from studio.services import Studio

Values = dict[Any, Any]
# The file is made when it is asked for; a second, hidden button then hands it to the browser.
SAVE_FILE = "(file) => { if (file) setTimeout(() => document.querySelector('#adapter-file')?.click(), 50); }"
# A tab that opens looks at its choices anew; the form is filled behind that.
WHEN_OPEN = "() => new Promise((go) => setTimeout(go, 400))"
# What was clicked is gone with the list; whoever uses the keyboard goes on at the page's title.
TO_THE_TITLE = (
    "() => { if (document.activeElement === document.body) document.querySelector('#adapter-page h3')?.focus({preventScroll: true}); }"
)
TO_THE_TOP = "() => { if (scrollY > 120) scrollTo(0, 0); }"


@dataclass(frozen=True)
class AdaptersTab:
    """Handles of the tab. The browser keeps `chosen`, whose page is open, `sought`, a `Sight`, and `bump`, which is another text after
    something was changed; `again` is the job whose configuration fills the training form, `seen` whose page was drawn last."""

    tab: gr.Tab
    message: gr.HTML
    listed: gr.Column
    search: gr.Textbox
    filters: gr.HTML
    catalog: gr.HTML
    importing: importing.Importing
    map: likeness.Map
    making: making.Making
    page: adapter_page.AdapterPage
    chosen: gr.Textbox
    sought: gr.Textbox
    bump: gr.Textbox
    again: gr.Textbox
    seen: gr.State


def build() -> AdaptersTab:
    """Lay the tab out."""
    with gr.Tab("Adapters", id=ADAPTERS, elem_id="tab-adapters") as tab:
        message = html(elem_id="adapter-message")
        with gr.Column(elem_id="adapter-list") as listed:
            html(present.heading("Your adapters", "Each has its own colour and sign; you meet them again on the replies it writes."))
            search = gr.Textbox(
                "",
                label="Search adapters",
                placeholder="Name, tag, base, dataset, or a word of its card",
                max_lines=1,
                elem_id="adapter-search",
            )
            filters = fragment(elem_id="adapter-filters")
            catalog = fragment(elem_id="adapter-catalog")
            fold = importing.build()
            mapped = likeness.build()
            made = making.build()
        shown = adapter_page.build()
        chosen, sought, bump, again = [kept(f"adapter-{name}") for name in ("shown", "sought", "bump", "again")]
        seen = gr.State("")
    return AdaptersTab(tab, message, listed, search, filters, catalog, fold, mapped, made, shown, chosen, sought, bump, again, seen)


class _Events:
    """The tab's callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.page, self.tab = studio, page, page.adapters
        self.pages = adapter_page.Pages(studio, page.curves)
        self._elsewhere: dict[str, Callable[[str], Values]] = {
            "train": lambda _: {page.tabs: gr.Tabs(selected=TRAIN)},
            "job": lambda job_id: {page.tabs: gr.Tabs(selected=TRAIN), page.view: job_id},
            "dataset": lambda dataset_id: {page.tabs: gr.Tabs(selected=DATASETS), page.datasets.chosen: dataset_id},
            "evaluation": lambda key: {page.tabs: gr.Tabs(selected=EVALUATE), page.evaluate.chosen: key},
            "reproduce": lambda job_id: {page.tabs: gr.Tabs(selected=TRAIN), self.tab.again: f"{job_id} {_now()}"},
        }
        self._changes: dict[str, Callable[[str], str]] = {"star": self._star, "archive": self._archive, "current": self._current}

    # What is seen

    def show(self, chosen: str, sought: str, seen: str) -> Values:
        """The page of one, or the list, as they are now. The folds of a page close when it is another's."""
        tab = self.tab
        places: Values = {tab.listed: gr.Column(visible=not chosen), tab.page.column: gr.Column(visible=bool(chosen))}
        if chosen != seen:
            closed = [gr.Accordion(open=False)] * 3 + [""] * 3
            places |= {tab.seen: chosen, **dict(zip(tab.page.folds, closed, strict=True))}
        if chosen:
            return places | dict(zip(tab.page.shown, self.pages.show(chosen), strict=True))
        sight = Sight.read(sought)
        found = self.studio.finder.page(sight.search, sight.shown)
        known = show_list.Known(names_of(self.studio), self.studio.votes.rates())
        facets, count = self.studio.finder.facets(sight.search.state), self.studio.finder.count(sight.search)
        catalog = show_list.catalog(found.records, sight, known, found.next is not None)
        return places | {tab.filters: show_list.filters(sight, facets, known.names, count), tab.catalog: catalog}

    def type(self, text: str, sought: str) -> Any:
        """Something was typed into the search."""
        sight = Sight.read(sought)
        return gr.skip() if sight.text == text else str(sight.turned("text", text))

    # What is done

    def act(self, sought: str, event: gr.EventData) -> Values:
        """A button, a link or a choice inside one of the fragments."""
        kind, record_id, value = action(event)
        try:
            return self._act(kind, record_id, value, sought)
        except StudioError as error:
            return {self.tab.message: present.error_card(error)}

    def _act(self, kind: str, record_id: str, value: str, sought: str) -> Values:
        tab = self.tab
        if kind == "show":
            return {tab.chosen: record_id, tab.message: ""}
        if kind in self._elsewhere:
            return self._elsewhere[kind](record_id)
        if kind in self._changes:
            said = self._changes[kind](record_id)
            return {tab.bump: _now(), tab.message: present.note_card(said) if said else ""}
        if kind in ("tag", "collection") and record_id:  # a label on a page, which leads to all that have it
            return {tab.chosen: "", tab.search: "", tab.sought: str(Sight().turned(kind, record_id))}
        sight = Sight.read(sought).turned(kind, value)
        return {tab.sought: str(sight), **({tab.search: ""} if kind == "clear" else {})}

    # Each returns a sentence that says what was done, or nothing where one sees it

    def _star(self, record_id: str) -> str:
        self.studio.finder.favourite(record_id, not self.studio.adapters.get(record_id).favourite)
        return ""

    def _archive(self, record_id: str) -> str:
        record = self.studio.finder.archive(record_id, self.studio.adapters.get(record_id).archived_at is None)
        there = "is in the archive: no list shows it, and the chat does not offer it." if record.archived_at else "is listed again."
        return f"{record.name} {there}"

    def _current(self, record_id: str) -> str:
        record = self.studio.finder.make_current(record_id)
        return f"{record.name} stands for version {record.version} now."

    def rename(self, chosen: str, name: str) -> Values:
        """Give it another name."""
        try:
            record = self.studio.adapters.rename(chosen, name)
        except StudioError as error:
            return {self.tab.message: present.error_card(error, "The name stays as it was")}
        return {self.tab.message: present.note_card(f"It is called {record.name} now."), self.tab.bump: _now()}

    def write(self, chosen: str, *written: str) -> Values:
        """Keep its card and labels. The form stays as it is where something is wrong with it."""
        try:
            return {self.tab.message: self.pages.write(chosen, *written), self.tab.bump: _now()}
        except StudioError as error:
            return {self.tab.message: present.error_card(error, "Not all of it was saved")}

    def delete(self, chosen: str) -> Values:
        """Delete it."""
        try:
            record = self.studio.adapters.remove(chosen)
        except StudioError as error:
            return {self.tab.message: present.error_card(error, "The adapter was not deleted")}
        return {self.tab.message: present.note_card(f"{record.name} was deleted."), self.tab.chosen: ""}


def _now() -> str:
    return str(time.time())


def wire(page: Page, studio: "Studio") -> None:
    """Bind the tab's events."""
    tab, events = page.adapters, _Events(studio, page)
    shown = [tab.listed, tab.filters, tab.catalog, tab.page.column, *tab.page.shown, *tab.page.folds, tab.seen]
    show: dict[str, Any] = {"fn": events.show, "inputs": [tab.chosen, tab.sought, tab.seen], "outputs": shown, **QUIET}
    drawn = gr.on([tab.tab.select, tab.chosen.change, tab.sought.change, tab.bump.change], trigger_mode="always_last", **show)
    drawn.then(None, None, None, js=TO_THE_TITLE, **QUIET)
    tab.chosen.change(None, None, None, js=TO_THE_TOP, **QUIET)
    tab.search.change(events.type, [tab.search, tab.sought], tab.sought, trigger_mode="always_last", **QUIET)
    acted = [
        tab.chosen,
        tab.sought,
        tab.bump,
        tab.again,
        tab.search,
        tab.message,
        page.tabs,
        page.view,
        page.datasets.chosen,
        page.evaluate.chosen,
    ]
    for part in (tab.filters, tab.catalog, tab.page.head, tab.page.lineage, tab.page.held, tab.page.facts):
        part.act(events.act, tab.sought, acted, trigger_mode="multiple", **QUIET)
    tab.again.change(None, None, None, js=WHEN_OPEN, **QUIET).then(lambda job: job, tab.again, page.copying, **QUIET)
    importing.wire(tab.importing, tab.tab, studio, tab.message, tab.chosen)
    likeness.wire(tab.map, tab.sought, studio)
    making.wire(tab.making, studio, tab.message, tab.chosen)
    _wire_page(page, studio, events)


def _wire_page(page: Page, studio: "Studio", events: _Events) -> None:
    """The buttons of the page of one."""
    tab, one = page.adapters, page.adapters.page
    one.chat.click(lambda chosen: open_chat(studio, chosen), tab.chosen, [page.tabs, page.chat.adapter], **QUIET)
    exporting.wire(one.exporting, one.download, tab.chosen, one.file, studio, SAVE_FILE)
    xray.wire(*one.xray, tab.chosen, studio)
    differing.wire(one.differing, tab.chosen, studio)
    pushing.wire(one.pushing, tab.chosen, studio)
    one.rename.click(lambda: (gr.Column(visible=True), gr.Column(visible=False)), None, [one.naming, one.confirm], **QUIET)
    one.delete.click(lambda: (gr.Column(visible=False), gr.Column(visible=True)), None, [one.naming, one.confirm], **QUIET)
    one.rename_no.click(lambda: gr.Column(visible=False), None, one.naming, **QUIET)
    one.delete_no.click(lambda: gr.Column(visible=False), None, one.confirm, **QUIET)
    gr.on([one.rename_yes.click, one.new_name.submit], events.rename, [tab.chosen, one.new_name], [tab.message, tab.bump], **QUIET)
    one.save.click(events.write, [tab.chosen, *one.written], [tab.message, tab.bump], **QUIET)
    one.delete_yes.click(events.delete, tab.chosen, [tab.message, tab.chosen], **QUIET)
