"""The README.md of an export: the adapter's card, and how this format is used."""

from storage.records import AdapterRecord, BaseRecord
from studio.adapters.cards import full_card

CARD_FILE = "README.md"
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


LIBRARIES = {"peft": "peft", "merged": "transformers"}


def export_card(record: AdapterRecord, base: BaseRecord, form: str, weights: str = "") -> str:
    """The card in Markdown, behind the metadata that the Hub reads.

    Args:
        form: how it is exported. weights: a sentence on which weights of the base are inside; empty where none are.
    """
    more = {"library_name": LIBRARIES.get(form, "gguf"), "base_model_relation": "merge" if "merged" in form else "adapter"}
    use = f"## Use\n\n{USES[form]}"
    inside = [f"## Weights\n\n{weights}"] if weights else []
    return "\n\n".join([full_card(record, base, None, more).rstrip(), use, *inside]) + "\n"
