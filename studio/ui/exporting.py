"""The choice of a format beside the Download button of an adapter; a long export says how far it is, and can be stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import Interrupted, StudioError
from studio.ui import present
from studio.ui.datasets.show_report import progress
from studio.ui.page import QUIET, html
from studio.ui.work import Runs, Work

if TYPE_CHECKING:
    from studio.services import Studio

FORMS = [("PEFT", "peft"), ("merged, transformers", "merged"), ("GGUF adapter", "gguf"), ("GGUF, merged", "gguf-merged")]
SAID = {
    "peft": "PEFT loads what is in it.",
    "merged": "transformers loads what is in it.",
    "gguf": "llama.cpp and Ollama load what is in it beside the base.",
    "gguf-merged": "llama.cpp and Ollama load what is in it.",
}

# What was made while nobody looked is saved by hand: this button presses the hidden one that has the file.
SAVE = '<p><button type="button" class="as-button as-save">Save the file</button></p>'
CLICK_FILE = """element.addEventListener('click', (event) => {
  if (event.target.closest('.as-save')) document.querySelector('#adapter-file').click();
});"""


@dataclass(frozen=True)
class Exporting:
    """Handles of the choice."""

    form: gr.Dropdown
    stop: gr.Button
    told: gr.HTML


def build() -> Exporting:
    """Lay the choice out, in the row of an adapter's buttons."""
    form = gr.Dropdown(FORMS, value="peft", label="Download as", show_label=False, container=False, min_width=140, elem_id="adapter-format")
    stop = gr.Button("Stop", visible=False, elem_id="adapter-export-stop", elem_classes="as-quiet", min_width=60)
    told = html(elem_id="adapter-export-message", render=False, js_on_load=CLICK_FILE)
    return Exporting(form, stop, told)


class Events:
    """The callbacks of an export. It goes on in the app's process whoever watches it, so that a page that is opened again shows it.

    Each yields (what is told, the file, the Download button, the Stop button).
    """

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self.runs: Runs[Path] = Runs()
        self._looking: dict[str, str] = {}  # the adapter whose export each browser watches

    def export(self, chosen: str, form: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Write the file, or watch the export of this adapter that goes on."""
        self._looking[request.session_hash or ""] = chosen
        yield from self._watch(chosen, self.runs.start(chosen, lambda work: self._write(work, chosen, form)), request)

    def again(self, chosen: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """What a page shows that is opened: an export that goes on, what came of one, or nothing."""
        self._looking[request.session_hash or ""] = chosen
        if not chosen:
            del self._looking[request.session_hash or ""]
        yield "", None, gr.Button(interactive=True), gr.Button(visible=False)
        if (work := self.runs.find(chosen)) is not None:
            yield from self._watch(chosen, work, request)

    def stop(self, chosen: str) -> None:
        """Stop the export of this adapter."""
        if (work := self.runs.find(chosen)) is not None:
            work.stop()

    def _watch(self, chosen: str, work: "Work[Path]", request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = request.session_hash or ""
        for told in work.watch(goes_on=True):
            if self._looking.get(session) != chosen:  # the browser looks at another adapter's page by now
                return
            yield progress(*told), gr.skip(), gr.Button(interactive=False), gr.Button(visible=True)
        if self._looking.get(session) == chosen:
            yield *self._result(work), gr.Button(interactive=True), gr.Button(visible=False)
        if work.failed:  # it was told; a file stays to be fetched
            self.runs.forget(chosen, work)

    def _write(self, work: "Work[Path]", chosen: str, form: str) -> Path:
        from studio.adapters.exporting import Wish

        return self.studio.export_adapter(chosen, Wish(form), tell=work.say)

    def _result(self, work: "Work[Path]") -> tuple[Any, Any]:
        try:
            path = work.result()
        except Interrupted as stopped:
            return present.note_card(str(stopped)), None
        except StudioError as error:
            return present.error_card(error, "The file was not made"), None
        if not path.exists():  # cleared away since
            return "", None
        form = next((form for form in reversed(SAID) if path.stem.endswith(f"-{form}")), "peft")
        return f"{present.note_card(f'{path.name} was made; {SAID[form]}')}{SAVE}", str(path)


def wire(choice: Exporting, download: Any, chosen: Any, file: Any, studio: "Studio", save: str) -> None:
    """Bind the Download button; `save` is the script that hands the file to the browser."""
    events = Events(studio)
    shown = [choice.told, file, download, choice.stop]
    made = download.click(events.export, [chosen, choice.form], shown, **QUIET)
    made.success(None, file, None, js=save, **QUIET)
    chosen.change(events.again, chosen, shown, trigger_mode="always_last", **QUIET)
    choice.stop.click(events.stop, chosen, None, queue=False, **QUIET)
