"""The README.md of an exported adapter: what it is, on what it stands, how it was made, and how it is loaded."""

import json
from typing import Any

from storage.records import AdapterRecord, BaseRecord
from studio.bases.sources import STARTER_REPOSITORY

CARD_FILE = "README.md"
TOLD = ("method", "rank", "alpha", "rslora", "targets", "layers", "init", "quantization", "epochs", "learning_rate", "seed")
MEASURED = ("eval_loss", "eval_loss_before", "perplexity", "accuracy", "loss", "rows", "tokens")
USES = {
    "peft": """Unpack it and load it with PEFT on its base:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)
```""",
    "merged": """The adapter is inside the weights:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
```""",
    "gguf": """Beside the base as GGUF, with llama.cpp: `llama-cli -m base.gguf --lora adapter.gguf`. With Ollama: `ollama create NAME`
in this folder, after FROM in the `Modelfile` names the base.""",
    "gguf-merged": "With llama.cpp: `llama-cli -m model.gguf`. With Ollama: `ollama create NAME` in this folder.",
}


def hub_name(base: BaseRecord) -> str:
    """The base's repository on the Hub, empty where it is not from there."""
    if base.source.startswith("hub:"):
        return base.source.removeprefix("hub:").partition("@")[0]
    return STARTER_REPOSITORY if base.source.startswith("wheel:") else ""


def card(record: AdapterRecord, base: BaseRecord, form: str, weights: str = "") -> str:
    """The card in Markdown, with the front matter that the Hub reads.

    Args:
        form: how it is exported. weights: a sentence on which weights of the base are inside; empty where none are.
    """
    front = ["---", f"library_name: {'peft' if form == 'peft' else 'transformers' if form == 'merged' else 'gguf'}"]
    front += ["pipeline_tag: text-generation", "tags:", f"- {record.kind}"]
    if name := hub_name(base):
        front += [f"base_model: {json.dumps(name)}", f"base_model_relation: {'merge' if 'merged' in form else 'adapter'}"]
    about = [
        f"- Kind: {_kind(record)}",
        f"- Base: {_plain(base.name)}, fingerprint `{base.fingerprint[:16]}`",
        f"- Content: SHA-256 `{record.sha256}`",
    ]
    if record.dataset_hash:
        about.append(f"- Dataset: SHA-256 `{record.dataset_hash}`")
    if record.source:
        about.append(f"- From: {_plain(record.source)}")
    if weights:
        about.append(f"- Weights: {weights}")
    parts = ["\n".join([*front, "---"]), f"# {_plain(record.name)}", "\n".join(about), USES[form]]
    parts += _table("Configuration", {key: record.config[key] for key in TOLD if key in record.config})
    parts += _table("Measured", {key: record.metrics[key] for key in MEASURED if key in record.metrics})
    return "\n\n".join([*parts, f"Made with Adapter Studio {record.code_version}."]) + "\n"


def _kind(record: AdapterRecord) -> str:
    return record.kind if record.kind == "prefix" else f"{record.kind}, rank {record.rank}"


def _table(title: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return []
    rows = [f"| {key} | {_plain(f'{value:.4g}' if isinstance(value, float) else str(value))} |" for key, value in values.items()]
    return [f"## {title}", "\n".join(["| | |", "|---|---|", *rows])]


def _plain(text: str) -> str:
    """A person's text in one line of Markdown, where nothing of it is a mark."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#|!&" else char for char in " ".join(text.split()))
