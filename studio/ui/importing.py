"""The fold in the Adapters tab by which an adapter comes in that was made elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.page import AS_VERSION, QUIET, html
from studio.ui.work import Work

if TYPE_CHECKING:
    from studio.adapters.catalog import Added
    from studio.services import Studio

FILES, HUB = "files", "hub"
SOURCES = [("Files", FILES), ("Hugging Face Hub", HUB)]
NOT_THERE = {FILES: "Choose a zip, or the two files, first.", HUB: "Name the repository first, such as owner/name."}
ANY_BASE = ("the one that it fits", "")
REFUSED = "The adapter was not imported"


@dataclass(frozen=True)
class Importing:
    """Handles of the fold."""

    fold: gr.Accordion
    source: gr.Radio
    files: gr.Column
    hub: gr.Column
    upload: gr.File
    repository: gr.Textbox
    name: gr.Textbox
    base: gr.Dropdown
    version: gr.Checkbox
    add: gr.Button
    told: gr.HTML

    @property
    def filled(self) -> list[Any]:
        """What was filled in, in the order of `Events.add`."""
        return [self.source, self.upload, self.repository, self.name, self.base, self.version]

    @property
    def emptied(self) -> list[Any]:
        """What an import empties and folds."""
        return [self.upload, self.repository, self.name, self.version, self.fold]


def build() -> Importing:
    """Lay the fold out."""
    with gr.Accordion("Import an adapter", open=False, elem_id="adapter-import") as fold:
        source = gr.Radio(
            SOURCES, value=FILES, label="Where from", show_label=False, container=False, elem_id="import-source", elem_classes="as-segments"
        )
        with gr.Column(elem_classes="as-source") as files:
            upload = gr.File(label="Files", file_count="multiple", height=110, elem_id="import-file")
            html(present.hint("One zip, or adapter_model.safetensors with its adapter_config.json. Pickles (.bin, .pt) are never read."))
        with gr.Column(visible=False, elem_classes="as-source") as hub:
            repository = gr.Textbox(
                "",
                label="Repository",
                placeholder="owner/name",
                info="owner/name@revision for another than the newest; the commit is written down.",
                max_lines=1,
                elem_id="import-repository",
            )
        with gr.Row(elem_classes="as-grid"):
            name = gr.Textbox("", label="Name", max_lines=1, elem_id="import-name")
            base = gr.Dropdown([ANY_BASE], value="", label="Base", info="Told by its layers, as a rule.", elem_id="import-base")
            version = gr.Checkbox(False, **AS_VERSION, elem_id="import-version")
        add = gr.Button("Import it", variant="primary", elem_id="import-add")
        told = html(elem_id="import-message")
    return Importing(fold, source, files, hub, upload, repository, name, base, version, add, told)


class Events:
    """The fold's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio

    def choose_source(self, source: str) -> tuple[Any, Any]:
        """Show the inputs of one source."""
        return gr.Column(visible=source == FILES), gr.Column(visible=source == HUB)

    def bases(self) -> Any:
        """The bases that there are now."""
        return gr.Dropdown(choices=[ANY_BASE, *((base.name, base.id) for base in self.studio.bases.all())])

    def add(self, source: str, upload: list[str] | None, repository: str, name: str, base: str, version: bool) -> Iterator[tuple[Any, ...]]:
        """Import it: (what is told in the fold, what came of it, the adapter's id, the emptied inputs, which stay where it is refused)."""
        stay = (gr.skip(),) * 7
        if not (upload if source == FILES else repository.strip()):
            yield present.error_card(NOT_THERE[source], "There is nothing to import yet"), *stay
            return

        def add(_work: "Work[Added]") -> "Added":
            from studio.adapters.sources import Repository  # a text is never taken for a path of the studio's machine

            wanted = [Path(path) for path in upload or []] if source == FILES else Repository.read(repository)
            return self.studio.import_adapter(wanted, name, base or "", name.strip() if version else "")

        work = Work(add)
        for told in work.watch():
            yield present.note_card(f"The adapter is being checked and copied ({present.duration(told.seconds)})."), *stay
        try:
            found = work.result()
        except StudioError as error:
            yield present.error_card(error, REFUSED), *stay
            return
        said = " ".join([f"{found.record.name} was imported from {found.record.source}.", *found.notices])
        yield "", present.note_card(said), found.record.id, None, "", "", False, gr.Accordion(open=False)


def wire(fold: Importing, tab: Any, studio: "Studio", message: Any, chosen: Any) -> Any:
    """Bind the fold's events; returns the one after which `message` and `chosen` say what was imported."""
    events = Events(studio)
    tab.select(events.bases, None, fold.base, **QUIET)
    fold.source.input(events.choose_source, fold.source, [fold.files, fold.hub], **QUIET)
    return fold.add.click(events.add, fold.filled, [fold.told, message, chosen, *fold.emptied], **QUIET)
