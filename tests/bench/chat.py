"""Chat: the cost of switching adapters and of many adapters in one batch, ours against PEFT in the same run.

Usage: python -m tests.bench.chat [--users 8] [--tokens 32]. Prints one JSON object. PEFT runs in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource, Capacity
from studio.chat.sampling import Sampling
from studio.chat.service import load_engine
from studio.datasets.rendering import prompt_ids
from studio.lora.files import AdapterWeights, encode_adapter, read_adapter
from studio.services import Studio
from studio.settings import load_settings

PROMPT = [{"role": "user", "content": "Describe the city of Paris to a visitor."}]


def make_adapters(base: Path, count: int, folder: Path) -> list[Path]:
    """Random adapters of rank 16 on all linear layers, written as files."""
    import torch

    from studio.bases.loading import load_model
    from studio.lora.injection import linear_layers

    shapes = {n: (m.out_features, m.in_features) for n, m in linear_layers(load_model(base, "bf16")).items()}
    folders = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        pairs = {
            n: (torch.randn(16, i, generator=generator) * 0.02, torch.randn(o, 16, generator=generator) * 0.01)
            for n, (o, i) in shapes.items()
        }
        target = folder / f"a{seed}"
        target.mkdir()
        for name, data in encode_adapter(AdapterWeights(16, 32.0, False, pairs), "base", 0.0).items():
            (target / name).write_bytes(data)
        folders.append(target)
    return folders


def rate(work: Callable[[], None], tokens: int) -> float:
    work()
    started = time.perf_counter()
    work()
    return round(tokens / (time.perf_counter() - started), 1)


def ours(base: Path, folders: list[Path], tokens: int) -> dict[str, float]:
    engine = load_engine(base, "nf4", Capacity(slots=len(folders), max_batch=len(folders)))
    ids = prompt_ids(engine.tokenizer, PROMPT)
    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    sources = [Voice((Part(AdapterSource(f.name, lambda f=f: read_adapter(f))),)) for f in folders]
    cold = []
    for source in sources:
        ticket = engine.submit(ids, Sampling(max_tokens=1, temperature=0.0), source)
        ticket.text()
        cold.append(ticket.finished.swap_ms)
    warm = []
    for n in range(20):
        ticket = engine.submit(ids, Sampling(max_tokens=1, temperature=0.0), sources[n % len(sources)])
        ticket.text()
        warm.append(ticket.finished.swap_ms)

    def batch(chosen: list[Voice]) -> None:
        for ticket in [engine.submit(ids, sampling, source) for source in chosen]:
            ticket.text()

    count = len(folders) * tokens
    result = {
        "load_ms_first": round(cold[0], 1),
        "load_ms_median": round(statistics.median(cold), 1),
        "switch_ms": round(statistics.median(warm), 4),
        "base_tok_s": rate(lambda: batch([BASE] * len(folders)), count),
        "one_adapter_tok_s": rate(lambda: batch([sources[0]] * len(folders)), count),
        "mixed_tok_s": rate(lambda: batch(list(sources)), count),
        "single_stream_tok_s": rate(lambda: batch([sources[0]]), tokens),
        "single_base_tok_s": rate(lambda: batch([BASE]), tokens),
    }
    engine.close()
    return result


def peft(base: Path, folders: list[Path], tokens: int) -> dict[str, float]:
    import torch
    from peft import PeftModel

    from studio.bases.loading import load_model, load_tokenizer

    tokenizer, model = load_tokenizer(base), load_model(base, "nf4")
    ids = torch.tensor([prompt_ids(tokenizer, PROMPT)])
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    loads, switches, names = [], [], [f.name for f in folders]
    with torch.inference_mode():
        for index, folder in enumerate(folders):
            started = time.perf_counter()
            if index == 0:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=folder.name).eval()
            else:
                model.load_adapter(str(folder), adapter_name=folder.name)
            loads.append((time.perf_counter() - started) * 1e3)
        for n in range(20):
            started = time.perf_counter()
            model.set_adapter(names[n % len(names)])
            switches.append((time.perf_counter() - started) * 1e3)
        many = ids.repeat(len(folders), 1)
        count = len(folders) * tokens
        return {
            "load_ms_first": round(loads[0], 1),
            "load_ms_median": round(statistics.median(loads), 1),
            "switch_ms": round(statistics.median(switches), 4),
            "one_adapter_tok_s": rate(lambda: model.generate(input_ids=many, **options), count),
            "mixed_tok_s": rate(lambda: model.generate(input_ids=many, adapter_names=names, **options), count),
            "single_stream_tok_s": rate(lambda: model.generate(input_ids=ids, **options), tokens),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--only", choices=["ours", "peft"])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--adapters", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        folders = sorted(arguments.adapters.iterdir())
        print(json.dumps(globals()[arguments.only](arguments.base, folders, arguments.tokens)))
        return
    studio = Studio(load_settings())
    base = studio.bases.path(studio.ensure_base(lambda text: None))
    studio.close()
    with tempfile.TemporaryDirectory() as folder:
        make_adapters(base, arguments.users, Path(folder))
        command = [sys.executable, "-m", "tests.bench.chat", "--base", str(base), "--adapters", folder, "--tokens", str(arguments.tokens)]
        result = {
            which: json.loads(subprocess.run([*command, "--only", which], stdout=subprocess.PIPE, check=True, text=True).stdout)
            for which in ("ours", "peft")
        }
    ratios = {f"{key}_ratio": round(result["ours"][key] / value, 4) for key, value in result["peft"].items()}
    print(json.dumps({"bench": "chat", "users": arguments.users, "tokens": arguments.tokens, **result, **ratios}))


if __name__ == "__main__":
    main()
