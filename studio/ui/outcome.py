"""What came of a training: its curves, what evaluation measured before and after, and answers from both times.

The same for a job that runs, one that is over, and an adapter; what was not measured is left out. Pure.
"""

import math
from collections.abc import Callable, Mapping
from html import escape as esc
from typing import Any

from studio.ui.curve import Curve, draw, draw_small

Samples = list[dict[str, str]]
PROMPT_CHARACTERS = 300
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "eval_loss": ("held-out loss", "{:.3f}".format),
    "perplexity": ("perplexity", "{:,.2f}".format),
    "accuracy": ("tokens predicted right", "{:.1%}".format),
}


def outcome(metrics: Mapping[str, Any], curve: Curve, *, live: bool = False) -> str:
    """Curves, evaluation and samples.

    Args:
        metrics: of the finished job; what is missing there is taken from the curve. live: the job goes on, so the
            newest values are those of now.
    """
    found = known(metrics, curve)
    steps = int(found.get("steps") or 0)
    after = "now" if live else "after"
    return (
        draw(curve, steps)
        + draw_small(curve, steps)
        + evaluation(found, after)
        + samples(found.get("samples_before") or [], found.get("samples") or [], after)
    )


def known(metrics: Mapping[str, Any], curve: Curve) -> dict[str, Any]:
    """The metrics of a job, with what only its events say."""
    said: dict[str, Any] = {}
    if curve.evals:
        last = max(curve.evals)
        for key in MEASURES:
            name = "loss" if key == "eval_loss" else key
            said[key] = curve.evals[last].get(name) if last else None
            said[f"{key}_before"] = curve.evals.get(0, {}).get(name)
    if curve.samples:
        last = max(curve.samples)
        said["samples"] = curve.samples[last] if last else None
        said["samples_before"] = curve.samples.get(0)
    found = {**said, **{key: value for key, value in metrics.items() if value is not None}}
    for end in ("", "_before"):  # an older studio did not store what follows from the loss
        loss = found.get(f"eval_loss{end}")
        if loss is not None and found.get(f"perplexity{end}") is None and loss < 50:
            found[f"perplexity{end}"] = math.exp(loss)
    return found


def evaluation(found: Mapping[str, Any], after: str = "after") -> str:
    """A table of what was measured on the held-out rows; empty where nothing was."""
    rows = "".join(_measure(name, form, found.get(f"{key}_before"), found.get(key)) for key, (name, form) in MEASURES.items())
    if not rows:
        return ""
    head = f'<tr><th scope="col">on the held-out rows</th><th scope="col">before</th><th scope="col">{after}</th></tr>'
    return f'<table class="as-table as-measures"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _measure(name: str, form: Callable[[float], str], before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return ""
    values = "".join(f"<td>{'' if value is None else form(value)}</td>" for value in (before, after))
    return f'<tr><th scope="row">{name}</th>{values}</tr>'


def samples(before: Samples, after: Samples, label: str = "after") -> str:
    """What it answered before and after the training, prompt by prompt; empty where nobody named prompts."""
    if not before and not after:
        return ""
    first = {item["prompt"]: item["text"] for item in before}
    last = {item["prompt"]: item["text"] for item in after}
    blocks = "".join(_sample(prompt, first.get(prompt), last.get(prompt), label) for prompt in {**first, **last})
    return f'<h4 class="as-section">What it answers</h4><div class="as-samples">{blocks}</div>'


def _sample(prompt: str, before: str | None, after: str | None, label: str) -> str:
    sides = "".join(
        f"<div><dt>{when}</dt><dd>{esc(text) or '<em>nothing</em>'}</dd></div>"
        for when, text in (("before", before), (label, after))
        if text is not None
    )
    shown = prompt if len(prompt) <= PROMPT_CHARACTERS else prompt[:PROMPT_CHARACTERS].rstrip() + " …"
    return f'<section><h5>{esc(shown)}</h5><dl class="as-sides">{sides}</dl></section>'
