"""`python -m studio adapter export|push|xray|compare|map|differ`: adapters go out, and are looked at."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.terminal import Json, opened, say, show

if TYPE_CHECKING:
    from studio.adapters.inspecting import Comparison, XRay
    from studio.difference import Difference

Form = Annotated[str, typer.Option("--format", help="peft, merged, gguf or gguf-merged.")]
Weights = Annotated[str, typer.Option(help="What a merge stands on: trained (the base as the training saw it) or original.")]


def add_commands(app: typer.Typer) -> None:
    """Add these commands to those of adapters."""
    for call in (adapter_export, adapter_push, adapter_xray, adapter_compare, adapter_map, adapter_differ):
        app.command(call.__name__.removeprefix("adapter_"))(call)


class Steps:
    """Tells on stderr how far a long export is, at each tenth."""

    def __init__(self) -> None:
        self._tenth = 0

    def __call__(self, share: float, what: str) -> None:
        """Told by the work."""
        if int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            say(f"{share:.0%}  {what}")


def adapter_export(
    name: str,
    form: Form = "peft",
    out: Annotated[Path | None, typer.Option(help="Folder to write into; the studio's exports where left out.")] = None,
    weights: Weights = "trained",
    with_base: Annotated[bool, typer.Option("--with-base", help="gguf: write the base as GGUF beside the adapter.")] = False,
    as_json: Json = False,
) -> None:
    """Write an adapter for PEFT, merged into its base, or for llama.cpp and Ollama."""
    from studio.adapters.exporting import Wish

    with opened() as studio:
        path = studio.export_adapter(name, Wish(form, weights, with_base), out, Steps())
        show({"adapter": name, "format": form, "path": str(path)}, as_json)


def adapter_push(
    name: str,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that is made; private where left out.")] = False,
    form: Form = "peft",
    weights: Weights = "trained",
    as_json: Json = False,
) -> None:
    """Push an adapter to the Hub with a card; the token is HF_TOKEN's."""
    from studio.adapters.exporting import Wish

    with opened() as studio:
        address = studio.pusher.push(name, repository, public=public, wish=Wish(form, weights), tell=Steps())
        show({"adapter": name, "repository": repository, "commit": address}, as_json)


def adapter_xray(name: str, as_json: Json = False) -> None:
    """Show what an adapter does to each layer: sizes, and how much of its rank it uses."""
    with opened() as studio:
        found = studio.inspector.xray(name, Steps() if sys.stderr.isatty() else None)
        value = {"adapter": found.record.name, "kind": found.record.kind, "rank": found.record.rank, "reading": found.reading}
        value |= {"norm": found.norm, "relative": found.relative, "layers": {key: asdict(view) for key, view in found.views.items()}}
        show(value, as_json, _xray_lines(found))


def adapter_compare(
    names: Annotated[list[str], typer.Argument(metavar="A B [C…]", help="Two to twelve adapters of one base.")], as_json: Json = False
) -> None:
    """Compare adapters: what differs in configuration and figures, and how alike their weights are."""
    with opened() as studio:
        found = studio.inspector.compare(names)
        called = [record.name for record in found.records]
        pairs = [{"of": [called[i], called[j]], **asdict(alike)} for (i, j), alike in found.likeness.items()]
        show({"adapters": called, "differences": dict(found.differences), "likeness": pairs}, as_json, _comparison_lines(found))


def adapter_map(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES…]", help="Two to forty adapters.")] = None,
    search: Annotated[str, typer.Option(help="Those that `adapter list --search` finds, the newest forty.")] = "",
    as_json: Json = False,
) -> None:
    """Show how alike adapters are, each with each of its base: the overlap of what they write into, from 0 to 1."""
    from storage.catalog import Search

    with opened() as studio:
        found = studio.map_adapters(names or [], Search(text=search), Steps())
        islands = [
            {
                "base": studio.bases.get(island.base_id).name,
                "adapters": [record.name for record in island.records],
                "overlaps": island.overlaps,
                "reading": island.reading,
            }
            for island in found.islands
        ]
        pairs = [f"{one.name} and {other.name}: {overlap:.3f}" for island in found.islands for overlap, one, other in island.pairs]
        lines = [*(str(island["reading"]) for island in islands), *pairs, *found.left_out]
        show({"bases": islands, "left_out": found.left_out}, as_json, "\n".join(lines))


def adapter_differ(
    one: Annotated[str, typer.Argument(metavar="A")],
    other: Annotated[str, typer.Argument(metavar="B")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Ask both and the base; may be repeated. Those of their trainings where left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how two adapters differ: options, figures, weights, and what each answers to the same prompts."""
    from studio.difference import sample_prompts

    with opened() as studio:
        first, second = studio.adapters.get(one), studio.adapters.get(other)
        shared = first.base_fingerprint == second.base_fingerprint
        asked = prompt or (sample_prompts(first, second) if shared else [])
        found = studio.differ.differ(first.id, second.id, asked, Steps())
        value: dict[str, Any] = {"adapters": [first.name, second.name], "differences": dict(found.differs), "note": found.note}
        value |= {"likeness": asdict(found.alike) if found.alike else None, "answers": [asdict(answers) for answers in found.answers]}
        show(value, as_json, _difference_lines(found))


def _difference_lines(found: "Difference") -> str:
    names = (found.first.name, found.second.name)
    lines = ["  ".join(["", *names])] if found.differs else [f"{names[0]} and {names[1]} have the same options and figures."]
    lines += ["  ".join([key, *map(_shown, row)]) for key, row in found.differs.items()]
    lines += [f"overlap {found.alike.overlap:.3f}, cosine {found.alike.cosine:+.3f}"] if found.alike else [found.note]
    for answers in found.answers:
        lines += ["", f"> {answers.prompt}", f"base: {answers.base}", f"{names[0]}: {answers.first}", f"{names[1]}: {answers.second}"]
    return "\n".join(lines)


def _xray_lines(found: "XRay") -> str:
    lines = [found.reading]
    for name, view in found.views.items():
        lengths = f", lengths moved by {view.lengths:.2%}" if found.record.kind == "dora" else ""
        lines.append(f"{name}  {view.relative:.2%} of W, {view.carries} carry 95%, entropy rank {view.entropy_rank:.1f}{lengths}")
    return "\n".join(lines)


def _comparison_lines(found: "Comparison") -> str:
    called = [record.name for record in found.records]
    lines = ["  ".join(["", *called])] if found.differences else []
    lines += ["  ".join([key, *map(_shown, row)]) for key, row in found.differences.items()]
    for (i, j), alike in found.likeness.items():
        lines.append(f"{called[i]} and {called[j]}: cosine {alike.cosine:+.3f}, overlap {alike.overlap:.3f}, {alike.layers} common layers")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
