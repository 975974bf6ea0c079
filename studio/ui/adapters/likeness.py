"""How alike adapters are, in the page: a heat map of each two of a base, as inline SVG. Pure but for the fold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.adapters.sight import Sight
from studio.ui.datasets.show_report import progress
from studio.ui.page import QUIET, html
from studio.ui.work import Work

if TYPE_CHECKING:
    from storage.records import AdapterRecord
    from studio.adapters.mapping import Island, SimilarityMap
    from studio.services import Studio

NAMED = 18  # characters of a name beside the map
LABELS, TOP, SIDE = 165, 26, 520  # pixels: left of the cells, above them, and all cells together at most
NUMBERED = 12  # so many adapters have numbers in their cells
COLOUR = "color-mix(in oklab, var(--ink) {share:.0f}%, var(--paper))"


@dataclass(frozen=True)
class Map:
    """Handles of the fold."""

    names: gr.Textbox
    draw: gr.Button
    shown: gr.HTML


def build() -> Map:
    """Lay the fold out."""
    with gr.Accordion("Map of similarity", open=False, elem_id="adapter-map"):
        names = gr.Textbox(
            "",
            label="Adapters",
            placeholder="wizard, pirate, bird",
            info="Names with commas between them. Left empty, the map is of the adapters in sight, forty at most.",
            max_lines=1,
            elem_id="map-names",
        )
        draw = gr.Button("Draw the map", elem_id="map-draw", elem_classes="as-do")
        shown = html(elem_id="map-shown")
    return Map(names, draw, shown)


def wire(fold: Map, sought: Any, studio: "Studio") -> None:
    """Bind the button."""

    def draw(names: str, sought: str) -> Iterator[str]:
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        work = Work(lambda work: studio.map_adapters(wanted, Sight.read(sought).search, work.say))
        for told in work.watch():
            yield progress(*told)
        try:
            yield picture(work.result(), {base.id: base.name for base in studio.bases.all()})
        except StudioError as error:
            yield present.error_card(error, "There is no map")

    fold.draw.click(draw, [fold.names, sought], fold.shown, **QUIET)


def picture(found: "SimilarityMap", bases: Mapping[str, str]) -> str:
    """A heat map for each base, and who is in none."""
    parts = [_island(island, bases.get(island.base_id, "another base")) for island in found.islands]
    parts += [f'<p class="as-hint">{esc(sentence)}</p>' for sentence in found.left_out]
    hint = "Each cell is the overlap of what two adapters write into, from 0 to 1: stronger is more alike. Sizes and signs do not count."
    return f'<div class="as-xray">{"".join(parts)}{present.hint(hint) if found.islands else ""}</div>'


def _island(island: "Island", base: str) -> str:
    count = len(island.records)
    cell = max(12, min(44, SIDE // count))
    rows = "".join(_row(island, i, cell) for i in range(count))
    heads = "".join(_text(LABELS + cell * (i + 0.5), TOP - 8, str(i + 1), "middle") for i in range(count))
    width, height = LABELS + cell * count + 4, TOP + cell * count + 4
    label = f"Overlap of {present.count(count, 'adapter')} of {base}. {island.reading}"
    return (
        f'<h4 class="as-section">{esc(base)}</h4><p>{esc(island.reading)}</p>'
        f'<div class="as-scroll" tabindex="0" role="region" aria-label="Map of {esc(base)}"><svg role="img" aria-label="{esc(label)}" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="11" fill="var(--soft)">{heads}{rows}</svg></div>'
    )


def _row(island: "Island", i: int, cell: int) -> str:
    record, middle = island.records[i], TOP + cell * (i + 0.5)
    cells = "".join(_cell(island, i, j, cell) for j in range(len(island.records)))
    return _sign(record, middle) + _text(24, middle + 4, f"{i + 1}  {_short(record.name)}", "start") + cells


def _sign(record: "AdapterRecord", middle: float) -> str:
    """Its colour, as it has it everywhere."""
    return f'<circle cx="10" cy="{middle:.1f}" r="5" style="--hue:{present.hue(record.sha256)};fill:var(--voice)"/>'


def _cell(island: "Island", i: int, j: int, cell: int) -> str:
    value, (one, other) = island.overlaps[i][j], (island.records[i], island.records[j])
    x, y = LABELS + cell * j, TOP + cell * i
    drawn = (
        f'<rect x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="2" style="fill:{COLOUR.format(share=5 + 87 * value)}">'
        f"<title>{esc(one.name)} and {esc(other.name)}: {value:.2f}</title></rect>"
    )
    if len(island.records) > NUMBERED or i == j:
        return drawn
    colour = "var(--paper)" if value > 0.5 else "var(--ink)"
    return drawn + _text(x + cell / 2, y + cell / 2 + 4, f"{value:.2f}", "middle", f' style="fill:{colour};pointer-events:none"')


def _short(name: str) -> str:
    return name if len(name) <= NAMED else name[: NAMED - 1].rstrip() + "…"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{more}>{esc(text)}</text>'
