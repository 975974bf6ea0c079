"""The right side of the Train tab: the board of all trainings, in whose place the page of one opens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.jobs.acts import Acts
from studio.ui.jobs.sight import PARTS, Shown, Sight
from studio.ui.page import QUIET, TRAIN, Page, action, fragment, html, open_chat

if TYPE_CHECKING:
    from studio.services import Studio

SAVE_FILE = "() => document.querySelector('#job-file').click()"
SHOW_FORM = "() => document.querySelector('#train-name').scrollIntoView({behavior: 'smooth', block: 'center'})"
# The end of the log stays in sight, unless somebody scrolled up.
STAY_AT_THE_END = """
let atEnd = true;
element.addEventListener('scroll', (event) => {
  const box = event.target;
  atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
}, true);
new MutationObserver(() => {
  const box = element.querySelector('pre');
  if (!box) atEnd = true;
  else if (atEnd) box.scrollTop = box.scrollHeight;
}).observe(element, {childList: true, subtree: true, characterData: true});
"""


@dataclass(frozen=True)
class Board:
    """Handles. `parts` are the fragments by the names of `PARTS`; which of them one sees follows from what they hold (page.css)."""

    message: gr.HTML
    parts: dict[str, gr.HTML]
    search: gr.Textbox
    download: gr.Button
    file: gr.DownloadButton
    shown: gr.State


def build() -> Board:
    """Lay both out."""
    message = html(elem_id="board-message")
    with gr.Column(elem_id="board", elem_classes="as-board"):
        parts = {part: fragment(elem_id=f"train-{part}") for part in ("bar", "running", "waiting", "paused", "sweeps", "history")}
    with gr.Column(elem_id="job-page", elem_classes="as-board"):
        parts |= {part: fragment(elem_id=f"job-{part}") for part in ("head", "live", "facts")}
        with gr.Column(elem_id="job-logs"):
            html('<h4 class="as-section">Log</h4>')
            with gr.Row(elem_classes="as-actions"):
                search = gr.Textbox("", label="Search the log", placeholder="words in a line", max_lines=1, elem_id="job-search")
                download = gr.Button("Download", elem_id="job-download", min_width=90, scale=0)
                file = gr.DownloadButton("Save the file", visible="hidden", elem_id="job-file")
            parts["log"] = html(elem_id="job-log", js_on_load=STAY_AT_THE_END)
    return Board(message, parts, search, download, file, gr.State({}))


class _Events:
    """The callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.acts = studio, Acts(studio)
        self.view = Shown(studio, page.curves)

    def live(self, view: str, chosen: str, more: str, search: str, shown: dict[str, str]) -> list[Any]:
        """What this browser looks at, as it is now."""
        return self.view.parts(_sight(view, chosen, more, search, shown), shown)

    def tick(self, trying: str, view: str, chosen: str, more: str, search: str, shown: dict[str, str], event: gr.EventData) -> list[Any]:
        """What has changed: the tab where it is open, and the way into the chat for who tried the angry bird."""
        opened, looks = (event._data or {}).get("tab"), (view, chosen, more, search, shown)
        live = self.live(*looks) if opened == TRAIN else [gr.skip()] * len(PARTS)
        job = self.studio.queue.get(trying) if trying else None
        if job is None or job.finished_at is None:
            return [*live, gr.skip(), gr.skip(), gr.skip()]
        if job.state == "done" and opened == TRAIN:
            return [*live, "", *open_chat(self.studio, job.adapter_id)]
        return [*live, "", gr.skip(), gr.skip()]

    def act(self, view: str, chosen: str, more: str, search: str, shown: dict[str, str], event: gr.EventData) -> list[Any]:
        """A button, a choice or a row that was dropped."""
        done = self.acts.act(_sight(view, chosen, more, search, shown), *action(event))
        sight = _look(done.sight, shown)
        texts = [sight.view, sight.chosen, sight.more, done.said, done.tabs, done.voice, done.adapter, done.copying]
        return [*texts, *self.view.parts(sight, shown)]

    def go(self, chosen: str, more: str, search: str, shown: dict[str, str], event: gr.EventData) -> list[Any]:
        """The browser's way back and forth, or a notification."""
        wanted: dict[str, Any] = event._data or {}
        before = _sight("", chosen, more, search, shown)
        sight = _look(Sight(str(wanted.get("view", "")), before.chosen, before.more, search), shown)
        return [sight.view, gr.Tabs(selected=TRAIN), *self.view.parts(sight, shown)]

    def download(self, view: str) -> tuple[Any, Any]:
        """Put the whole log into one file."""
        try:
            return "", str(self.studio.export_log(view))
        except StudioError as error:
            return present.error_card(error, "The log was not saved"), gr.skip()


def _look(sight: Sight, shown: dict[str, str]) -> Sight:
    """Remember where a browser looks from now on."""
    shown["places"] = "\n".join((sight.view, sight.chosen, sight.more))
    return sight


def _sight(view: str, chosen: str, more: str, search: str, shown: dict[str, str]) -> Sight:
    """Where a browser looks: as the last answer to it says, which may be on its way there still; else as the browser says."""
    if "places" in shown:
        view, chosen, more = shown["places"].split("\n")
    return Sight(view, chosen, more, search)


def wire(page: Page, studio: "Studio") -> dict[str, Any]:
    """Bind the events; returns the one that shows what is now, for others to chain."""
    board, events = page.train.board, _Events(studio, page)
    looks = [page.view, page.chosen, page.more, board.search, board.shown]
    parts = [board.parts[part] for part in PARTS]
    live: dict[str, Any] = {"fn": events.live, "inputs": looks, "outputs": parts, **QUIET}
    places = [page.view, page.chosen, page.more, board.message, page.tabs, page.chat.adapter, page.adapters.chosen, page.copying]
    for part in PARTS[:-1]:
        board.parts[part].act(events.act, looks, [*places, *parts], trigger_mode="multiple", **QUIET)
    page.pulse.act(events.tick, [page.trying, *looks], [*parts, page.trying, page.tabs, page.chat.adapter], **QUIET)
    page.pulse.go(events.go, looks[1:], [page.view, page.tabs, *parts], **QUIET)
    gr.on([board.search.change, board.search.submit], trigger_mode="always_last", **live)
    saved = board.download.click(events.download, page.view, [board.message, board.file], **QUIET)
    saved.success(None, None, None, js=SAVE_FILE, **QUIET)
    return live
