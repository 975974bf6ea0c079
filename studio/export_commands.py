"""`python -m studio adapter export|push|xray|compare`: adapters go out, and are looked at."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.terminal import Json, opened, say, show

if TYPE_CHECKING:
    from studio.adapters.inspecting import Comparison, XRay

Form = Annotated[str, typer.Option("--format", help="peft, merged, gguf or gguf-merged.")]
Weights = Annotated[str, typer.Option(help="What a merge stands on: trained (the base as the training saw it) or original.")]


def add_commands(app: typer.Typer) -> None:
    """Add these commands to those of adapters."""
    for name, call in (("export", adapter_export), ("push", adapter_push), ("xray", adapter_xray), ("compare", adapter_compare)):
        app.command(name)(call)


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
