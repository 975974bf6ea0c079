"""`python -m studio evaluate` and `evaluation …`: one thin function a command."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import StudioError
from studio.terminal import Json, opened, say, show, show_all

if TYPE_CHECKING:
    from studio.evaluation.service import Result

evaluation_app = typer.Typer(no_args_is_help=True)


def evaluate(
    dataset: Annotated[str, typer.Option(help="Name of the dataset.")],
    adapter: Annotated[
        list[str],
        typer.Option(help="An adapter, a blend such as a:0.7+b:0.3, a checkpoint such as job:a@120, or base; give it again for each."),
    ],
    metrics: Annotated[str, typer.Option(help="loss, rouge, chrf, exact and f1, with commas; all where left out.")] = "",
    rows: Annotated[int, typer.Option(help="At most so many rows, drawn by the seed; 0 for all.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="Only the rows that the adapter's training held out.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Which rows are drawn, and which words.")] = 0,
    as_json: Json = False,
) -> None:
    """Hold adapters to the rows of a dataset: losses, and answers compared with the dataset's own."""
    from studio.evaluation.plan import Plan, parse_metrics

    with opened() as studio:
        plan = Plan(parse_metrics(metrics.split(",")), rows, held_out, max_tokens, temperature, seed)
        record = studio.evaluations.add(dataset, adapter, plan)
        _finish(studio, record.id, as_json)


@evaluation_app.command("resume")
def evaluation_resume(evaluation: str, as_json: Json = False) -> None:
    """Go on with an evaluation that was interrupted or stopped."""
    with opened() as studio:
        _finish(studio, evaluation, as_json)


@evaluation_app.command("lm-eval")
def evaluation_lm_eval(
    tasks: Annotated[str, typer.Argument(help="Tasks of lm-eval, with commas, such as hellaswag,gsm8k.")],
    adapter: Annotated[list[str], typer.Option(help="As of evaluate; give it again for each.")],
    rows: Annotated[int, typer.Option(help="At most so many examples of each task; 0 for all.")] = 0,
    tasks_from: Annotated[Path | None, typer.Option(help="Folder with tasks of your own, as YAML.")] = None,
    as_json: Json = False,
) -> None:
    """Run tasks of lm-eval, which you install yourself: pip install lm-eval."""
    with opened() as studio:
        named = [task.strip() for task in tasks.split(",") if task.strip()]
        found = studio.evaluations.run_lm_eval(named, adapter, rows, tasks_from)
        show(as_value(found), as_json, table(found))


@evaluation_app.command("list")
def evaluation_list(as_json: Json = False) -> None:
    """List evaluations, the newest first."""
    with opened() as studio:
        values = [as_value(found) for found in studio.evaluations.all()]
        show_all("evaluations", values, as_json, lambda v: f"{v['evaluation']}  {v['state']}  {v['dataset']}  {v['done']}/{v['of']}")


@evaluation_app.command("show")
def evaluation_show(
    evaluation: str,
    rows: Annotated[int, typer.Option(help="Show so many rows with their answers, too.")] = 0,
    as_json: Json = False,
) -> None:
    """Show the results of an evaluation."""
    with opened() as studio:
        found = studio.evaluations.get(evaluation)
        value = as_value(found)
        read = studio.evaluations.read(found.record.id, 0, rows) if rows else []
        value["answers"] = [{**asdict(case), "said": [asdict(answer) for answer in answers]} for case, answers in read]
        lines = [table(found)]
        for case, answers in read:
            lines += [f"\n> {case.prompt}", f"reference: {case.reference}"]
            lines += [f"{found.voices[one.place].label}: {one.answer or one.error}" for one in answers]
        show(value, as_json, "\n".join(lines))


@evaluation_app.command("rm")
def evaluation_rm(evaluation: str, as_json: Json = False) -> None:
    """Delete an evaluation; one that runs is stopped."""
    with opened() as studio:
        record = studio.evaluations.remove(evaluation)
        show({"evaluation": record.id, "removed": True}, as_json, "The evaluation was deleted.")


def as_value(found: "Result") -> dict[str, Any]:
    """An evaluation as JSON."""
    record = found.record
    head = {
        "evaluation": record.id,
        "state": record.state,
        "reason": record.reason,
        "dataset": record.dataset_name,
        "base": record.base_name,
    }
    results = [
        {"adapter": v.label, "adapter_id": v.adapter_id, "adapter_sha256": v.sha256, "rows": v.rows, "errors": v.errors, "values": v.values}
        for v in found.voices
    ]
    return {**head, "plan": record.plan, "rows": record.rows, "done": found.done, "of": found.of, "results": results}


def table(found: "Result") -> str:
    """The results as lines for people."""
    from studio.evaluation.plan import ordered

    far = f", {found.done} of {found.of} rows" if found.of else ""
    lines = [f"{found.record.dataset_name}: {found.record.state}{far}. {found.record.reason}".rstrip()]
    for voice in found.voices:
        told = [f"{metric.title} {metric.form.format(voice.values[metric.key])}" for metric in ordered(voice.values)]
        errors = [f"{voice.errors} rows with an error"] if voice.errors else []
        lines.append(f"{voice.label}: {', '.join([*told, *errors]) or 'nothing yet'}")
    return "\n".join(lines)


class _Steps:
    """Tells on stderr how far it is, at each twentieth."""

    def __init__(self) -> None:
        self._told = -1

    def __call__(self, done: int, of: int) -> None:
        step = done * 20 // max(of, 1)
        if step > self._told:
            self._told = step
            say(f"{done} of {of} rows")


def _finish(studio: Any, evaluation: str, as_json: bool) -> None:
    found = studio.evaluations.finish(evaluation, _Steps())
    if found.record.state != "done":
        how = f"go on with: python -m studio evaluation resume {found.record.id[:8]}"
        raise StudioError(f"The evaluation is {found.record.state} after {found.done} of {found.of} rows; {how}. {found.record.reason}")
    show(as_value(found), as_json, table(found))
