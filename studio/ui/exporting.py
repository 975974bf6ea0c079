"""The choice of a format beside the Download button of an adapter; a long export says how far it is, and can be stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import Interrupted, StudioError
from studio.ui import present
from studio.ui.datasets.show_report import progress
from studio.ui.page import QUIET
from studio.ui.work import Work

if TYPE_CHECKING:
    from studio.services import Studio

FORMS = [("PEFT", "peft"), ("merged, transformers", "merged"), ("GGUF adapter", "gguf"), ("GGUF, merged", "gguf-merged")]
SAID = {
    "peft": "PEFT loads what is in it.",
    "merged": "transformers loads what is in it.",
    "gguf": "llama.cpp and Ollama load what is in it beside the base.",
    "gguf-merged": "llama.cpp and Ollama load what is in it.",
}


@dataclass(frozen=True)
class Exporting:
    """Handles of the choice."""

    form: gr.Dropdown
    stop: gr.Button


def build() -> Exporting:
    """Lay the choice out, in the row of an adapter's buttons."""
    form = gr.Dropdown(FORMS, value="peft", label="Download as", show_label=False, container=False, min_width=140, elem_id="adapter-format")
    stop = gr.Button("Stop", visible=False, elem_id="adapter-export-stop", elem_classes="as-quiet", min_width=60)
    return Exporting(form, stop)


class Events:
    """The callbacks of an export."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self._running: dict[str, Work[Path]] = {}

    def export(self, chosen: str, form: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Write the file: (what is told, the file, the Download button, the Stop button)."""
        session = request.session_hash or ""
        work = Work(lambda work: self._write(work, chosen, form))
        self._running[session] = work
        try:
            for told in work.watch():
                yield progress(*told), gr.skip(), gr.Button(interactive=False), gr.Button(visible=True)
        finally:
            self._running.pop(session, None)
        yield *self._result(work, form), gr.Button(interactive=True), gr.Button(visible=False)

    def stop(self, request: gr.Request) -> None:
        """Stop what this browser asked for."""
        work = self._running.get(request.session_hash or "")
        if work is not None:
            work.stop()

    def _write(self, work: "Work[Path]", chosen: str, form: str) -> Path:
        from studio.adapters.exporting import Wish

        def tell(share: float, what: str) -> None:
            if work.is_stopped():
                raise Interrupted("Stopped; nothing was kept.")
            work.tell(share, what)

        return self.studio.export_adapter(chosen, Wish(form), tell=tell)

    def _result(self, work: "Work[Path]", form: str) -> tuple[Any, Any]:
        try:
            path = work.result()
        except Interrupted as stopped:
            return present.note_card(str(stopped)), None
        except StudioError as error:
            return present.error_card(error, "The file was not made"), None
        return present.note_card(f"{path.name} was made; {SAID[form]}"), str(path)


def wire(choice: Exporting, download: Any, chosen: Any, told: Any, file: Any, studio: "Studio", save: str) -> None:
    """Bind the Download button; `save` is the script that hands the file to the browser."""
    events = Events(studio)
    made = download.click(events.export, [chosen, choice.form], [told, file, download, choice.stop], **QUIET)
    made.success(None, file, None, js=save, **QUIET)
    choice.stop.click(events.stop, None, None, queue=False, **QUIET)
