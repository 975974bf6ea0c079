"""The fold about keeping, at the foot of the Adapters tab: room by kind, a backup, a check and its mends. Closed, it computes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.api.access import Access
from studio.errors import Interrupted, InvalidInput, StudioError
from studio.ui import present, show_keeping
from studio.ui.datasets.show_report import progress
from studio.ui.page import QUIET, action, fragment
from studio.ui.work import Work

if TYPE_CHECKING:
    from studio.keeping.findings import Finding
    from studio.services import Studio

SAVE_FILE = "(file) => { if (file) setTimeout(() => document.querySelector('#keeping-file')?.click(), 50); }"
MOST_SESSIONS = 20
FAILED = "That was not done"
Told = Iterator[tuple[str, Any]]  # (what is told, a file to download)


@dataclass(frozen=True)
class Keeping:
    """Handles of the fold."""

    fold: gr.Accordion
    shown: gr.HTML
    file: gr.DownloadButton


def build() -> Keeping:
    """Lay the fold out."""
    with gr.Accordion("Keeping: backup, check, room", open=False, elem_id="keeping") as fold:
        shown = fragment(elem_id="keeping-shown")
        file = gr.DownloadButton("Save the file", visible="hidden", elem_id="keeping-file")
    return Keeping(fold, shown, file)


class Events:
    """The fold's callbacks. Each asks who asks: a backup holds what everybody wrote."""

    def __init__(self, studio: "Studio", access: Access) -> None:
        self.studio, self.keeper, self.access = studio, studio.keeper, access
        self._found: dict[str, list[Finding]] = {}
        self._acts: dict[str, Callable[[str, str], Told]] = {
            "backup": self._backup,
            "check": self._check,
            "mend": self._mend,
            "free": self._free,
        }

    def unfold(self, request: gr.Request) -> str:
        """What takes room now."""
        return self._overview(self.access.is_here(request))

    def act(self, request: gr.Request, event: gr.EventData) -> Iterator[tuple[str, Any]]:
        """A button of the fold: (what is shown, a file to download)."""
        kind, value, _ = action(event)
        here = self.access.is_here(request)
        seen = self._overview(here)
        try:
            if not here:
                raise InvalidInput(show_keeping.ELSEWHERE)
            for told, file in self._acts[kind](value, request.session_hash or ""):  # noqa: B007 - the last one is the file
                yield seen + told, None
        except StudioError as error:
            yield seen + present.error_card(error, FAILED), None
            return
        yield self._overview(here) + told, file

    def _overview(self, here: bool) -> str:
        try:
            return show_keeping.overview(self.keeper.disk.use(), here)
        except StudioError as error:
            return present.error_card(error)

    def _backup(self, wanted: str, _session: str) -> Told:
        work = Work(lambda work: self.keeper.backup(with_bases=wanted == "bases", tell=_teller(work)))
        for told in work.watch():
            yield progress(*told), None
        made = work.result()
        said = f"{made.path.name} was made, {present.size(made.size_bytes)}; it lies among the exports, too. " + " ".join(made.notes)
        yield present.note_card(said.strip()), str(made.path)

    def _check(self, how: str, session: str) -> Told:
        work = Work(lambda work: self.keeper.check(how == "quick", _teller(work)))
        for told in work.watch():
            yield progress(*told), None
        while len(self._found) >= MOST_SESSIONS:
            self._found.pop(next(iter(self._found)))
        self._found[session] = work.result()
        yield show_keeping.findings(self._found[session]), None

    def _mend(self, mend: str, session: str) -> Told:
        found = self._found.pop(session, [])
        done = self.keeper.mend([one for one in found if one.mend == mend])
        self._found[session] = left = [one for one in found if one.mend != mend]
        said = present.note_card(" ".join(done) or "There is nothing to mend any more; check again.")
        yield said + (show_keeping.findings(left) if left else ""), None

    def _free(self, kind: str, _session: str) -> Told:
        yield present.note_card(f"{present.size(self.keeper.disk.free(kind))} were freed."), None


def _teller(work: "Work[Any]") -> Callable[[float, str], None]:
    def tell(share: float, what: str) -> None:
        if work.is_stopped():
            raise Interrupted("Stopped; nothing was kept.")
        work.tell(share, what)

    return tell


def wire(keeping: Keeping, studio: "Studio", access: Access) -> None:
    """Bind the fold's events."""
    events = Events(studio, access)
    keeping.fold.expand(events.unfold, None, keeping.shown, **QUIET)
    done = keeping.shown.act(events.act, None, [keeping.shown, keeping.file], **QUIET)
    done.success(None, keeping.file, None, js=SAVE_FILE, **QUIET)
