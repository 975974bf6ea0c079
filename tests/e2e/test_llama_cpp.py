"""llama.cpp on what is exported as GGUF: the same greedy tokens as transformers and PEFT, and others than the base's."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.adapters.exporting import Wish
from studio.lora.adapter import AdapterSpec, attach
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.oracle import load_in_peft, perturb, write
from tests.tiny import FAMILIES, make_tokenizer

pytestmark = pytest.mark.soak  # its tool comes from npm
PACKAGES = ("node-llama-cpp@3", "@node-llama-cpp/linux-x64@3")
COUNT = 12
TEXTS = ["What should I cook tonight?", "In 1984 it cost 12.50 €,\n\nthey'll say…  twice."]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Asks llama.cpp for greedy tokens of prompts, and for the tokens of texts."""
    folder = tmp_path_factory.mktemp("llama-cpp")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *PACKAGES]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, f"llama.cpp cannot be had from npm: {result.stderr}"
    shutil.copy(Path(__file__).with_name("llama_cpp.mjs"), folder)

    def ask(model: Path, adapter: Path | None = None, prompts: list[list[int]] = [], texts: list[str] = []) -> dict[str, Any]:  # noqa: B006
        asked = {"model": str(model), "adapter": str(adapter or ""), "prompts": prompts, "texts": texts, "count": COUNT}
        done = subprocess.run(
            ["node", "llama_cpp.mjs"], cwd=folder, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=300
        )
        assert "RESULT" in done.stdout, done.stdout + done.stderr
        return json.loads(done.stdout.rpartition("RESULT")[2])

    return ask


def greedy(model: nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return said[0, len(prompt) :].tolist()


def agreed(one: list[list[int]], other: list[list[int]]) -> float:
    """The share of tokens up to each first difference, which numbers of 16 bits may bring about at a tie."""
    same = [
        next((at for at, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), COUNT) for a, b in zip(one, other, strict=True)
    ]
    return sum(same) / COUNT / len(same)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("form", ["gguf", "gguf-merged"])
def test_a_tiny_model_of_each_family_says_the_same(
    tmp_path: Path, llama_cpp: Callable[..., dict[str, Any]], family: str, form: str
) -> None:
    folder = tmp_path / "tiny"
    FAMILIES[family]().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    check(tmp_path, folder, form, llama_cpp, [list(range(20, 50)), [7, 8], list(range(300, 311))], 0.1)


@pytest.mark.parametrize("form", ["gguf", "gguf-merged"])
def test_the_starter_base_says_the_same(tmp_path: Path, starter_base: Path, llama_cpp: Callable[..., dict[str, Any]], form: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(starter_base))
    asked = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "Tell me a joke.", "Who are you?")]
    prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True)["input_ids"] for one in asked]
    model = check(tmp_path, starter_base, form, llama_cpp, prompts, 0.02)
    found = llama_cpp(model, texts=TEXTS)["ids"]
    assert found == [tokenizer(text)["input_ids"] for text in TEXTS]


def check(tmp_path: Path, folder: Path, form: str, ask: Callable[..., dict[str, Any]], prompts: list[list[int]], size: float) -> Path:
    """Export a random adapter of a base in this form, and hold llama.cpp's tokens to PEFT's; returns the GGUF of the model."""
    studio = Studio(tiny_settings(tmp_path / "home"))
    base = studio.bases.fetch(str(folder))
    attached = attach(AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32), AdapterSpec(rank=8, alpha=24.0, rslora=True))
    perturb(attached, 1)
    for layer in attached.layers.values():
        layer.lora_B.data *= size / 0.1
    made = write(tmp_path / "made", attached.weights())
    studio.import_adapter(str(made), "bird", base.name)
    out = studio.export_adapter("bird", Wish(form, with_base=True), tmp_path / "out")
    studio.close()
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    plain = [greedy(model, prompt) for prompt in prompts]
    theirs = load_in_peft(model, made)
    wanted = [greedy(theirs, prompt) for prompt in prompts]
    whole, adapter = (out / "base.gguf", out / "adapter.gguf") if form == "gguf" else (out / "model.gguf", None)
    said = ask(whole, adapter, prompts)["said"]
    print(f"{form}: {agreed(said, wanted):.0%} of PEFT's tokens, {agreed(said, plain):.0%} of the base's")
    assert agreed(said, wanted) >= 0.75 > 0.5 > agreed(said, plain)
    if form == "gguf":
        assert agreed(ask(whole, None, prompts)["said"], plain) >= 0.75
    return whole
