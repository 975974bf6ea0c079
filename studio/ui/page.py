"""What the tabs share: the page's handles, the manner of quiet events, and the script of clicks inside fragments."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound
from studio.ui import present
from studio.ui.curve import Curves

if TYPE_CHECKING:
    from studio.services import Studio
    from studio.ui.tabs.adapters import AdaptersTab
    from studio.ui.tabs.chat import ChatTab
    from studio.ui.tabs.datasets import DatasetsTab
    from studio.ui.tabs.evaluate import EvaluateTab
    from studio.ui.tabs.train import TrainTab

DATASETS, TRAIN, ADAPTERS, EVALUATE, CHAT = "datasets", "train", "adapters", "evaluate", "chat"
MOST_VOICES = 300  # a longer list is no help; all others open from their pages
BLEND = "blend"  # in place of an adapter: several, with weights
# A tick beside the name of a new adapter.
AS_VERSION: dict[str, Any] = {"label": "Next version of that name", "info": "The name stands for the new one from then on."}
TABS = (DATASETS, TRAIN, ADAPTERS, EVALUATE, CHAT)

# No event is part of an API, and the page itself shows what it waits for.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

CLICKS = Path(__file__).with_name("clicks.js").read_text(encoding="utf-8")
WATCH = Path(__file__).with_name("watch.js").read_text(encoding="utf-8")
RELATIVE_TIME = re.compile(r"(<time [^>]*>)[^<]*")  # the page's script keeps the words inside fresh


@dataclass(frozen=True)
class Page:
    """Every handle that one tab may need of another.

    `linked` says that the page's link was followed, `trying` is the job of who tried the angry bird; `view`, `chosen` and `more`
    say what is looked at on the board (see `jobs.sight.Sight`), `copying` which job fills the form, `talk` and `leaf`
    which conversation is open, up to which message. The browser keeps them all. `pulse` raises `act` when anything changed, and
    `go` when the browser wants another view.
    """

    demo: gr.Blocks
    tabs: gr.Tabs
    linked: gr.Textbox
    trying: gr.Textbox
    view: gr.Textbox
    chosen: gr.Textbox
    more: gr.Textbox
    copying: gr.Textbox
    talk: gr.Textbox
    leaf: gr.Textbox
    pulse: gr.HTML
    status: gr.HTML
    link: gr.HTML
    curves: Curves
    datasets: "DatasetsTab"
    train: "TrainTab"
    adapters: "AdaptersTab"
    evaluate: "EvaluateTab"
    chat: "ChatTab"


def html(value: str = "", **props: Any) -> Any:
    """A fragment in the page's own style instead of Gradio's prose."""
    return gr.HTML(value, apply_default_css=False, **props)


def fragment(value: str = "", **props: Any) -> Any:
    """A fragment whose `data-action` buttons raise the event `act`."""
    return html(value, js_on_load=CLICKS, **props)


def kept(elem_id: str, value: str = "") -> Any:
    """A text that the browser keeps and nobody sees: it is still there after the studio was started anew."""
    return gr.Textbox(value, label=elem_id, max_lines=1, elem_id=elem_id, elem_classes="as-kept", visible="hidden", interactive=False)


def action(event: gr.EventData) -> tuple[str, str, str]:
    """(action, id, value) of a click or a choice inside a fragment."""
    data: dict[str, Any] = event._data or {}
    return str(data.get("action", "")), str(data.get("id", "")), str(data.get("value", ""))


def only_new(shown: dict[str, str], key: str, value: str) -> Any:
    """The value, or a skip where the browser has it already, so that nobody's focus is lost to a poll."""
    lasting = RELATIVE_TIME.sub(r"\1", value)
    if shown.get(key) == lasting:
        return gr.skip()
    shown[key] = lasting
    return value


def open_chat(studio: "Studio", adapter_id: str) -> tuple[Any, Any]:
    """Updates that open Chat on an adapter: of the tabs, and of Chat's choice."""
    return gr.Tabs(selected=CHAT), gr.Dropdown(choices=voices(studio, adapter_id), value=adapter_id)


def names_of(studio: "Studio") -> dict[str, str]:
    """Names of bases and datasets by their ids; of a version that is not the newest, NAME@VERSION."""
    return {base.id: base.name for base in studio.bases.all()} | studio.datasets.labels()


def dataset_choices(studio: "Studio", chosen: str | None) -> list[tuple[str, str]]:
    """(label, id) of the newest version of each dataset, and of the chosen version where it is another."""
    newest = [(record.name, record.id) for record in studio.datasets.all()]
    label = studio.datasets.labels().get(chosen or "")
    return newest if label is None or chosen in {record_id for _, record_id in newest} else [(label, chosen or ""), *newest]


def voices(studio: "Studio", also: str = "") -> list[tuple[str, str]]:
    """Who can speak through the resident base: (name, id), the base itself first, then adapters, then checkpoints of trainings that
    are not done, and a blend where there is something to blend.

    Args:
        also: id of an adapter that may speak though it is archived, an older version, or one of very many.
    """
    try:
        base = studio.default_base()
        adapters = studio.adapters_of(base, MOST_VOICES)
        kept = studio.speakers.checkpoints(base)
        if also not in ("", "base", BLEND, *(a.id for a in adapters), *(one.id for one in kept)):
            named = studio.speakers.get(also)
            adapters = [named, *adapters] if named.base_fingerprint == base.fingerprint else adapters
    except NotFound:
        adapters, kept = [], []
    speakers = [(a.name if a.current else f"{a.name}, version {a.version}", a.id) for a in adapters]
    speakers += [(one.label, one.id) for one in kept]
    blend = [("Blend…", BLEND)] if len(speakers) > 1 else []
    return [(present.BASE_LABEL, "base"), *speakers, *blend]
