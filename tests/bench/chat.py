"""Chat: what switching adapters costs, many adapters in one batch, first uses from disk, and a conversation's next turn; ours and PEFT's.

Usage: python -m tests.bench.chat [--users 8] [--many 32] [--tokens 64] [--rotation 100]. Prints one JSON object. The peer, PEFT on
transformers, runs in a process of its own in the same run; `--many 0` and `--rotation 0` leave those parts out.
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
from typing import Any

import psutil

from studio.chat.backend import load_engine
from studio.chat.bank import BASE, Part, Voice
from studio.chat.engine import AdapterSource, Capacity, Engine
from studio.chat.prefill import PIECE
from studio.chat.sampling import Sampling
from studio.chat.ticket import Finished
from studio.datasets.rendering import prompt_ids
from studio.lora.files import AdapterWeights, encode_adapter, read_adapter
from studio.services import Studio
from studio.settings import load_settings

MB = 2**20
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


def make_voice(folder: Path, name: str = "") -> Voice:
    """An adapter's voice; another name makes it another adapter of the same bytes."""
    return Voice((Part(AdapterSource(name or folder.name, lambda: read_adapter(folder))),))


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 4)


def switching(engine: Engine, ids: list[int], voices: list[Voice]) -> dict[str, Any]:
    """Milliseconds of requests for one token: first uses from disk, then the same adapter again and again, then another each time."""

    def ask(voice: Voice) -> Finished:
        ticket = engine.submit(ids, Sampling(max_tokens=1, temperature=0.0), voice)
        ticket.text()
        assert ticket.finished is not None
        return ticket.finished

    cold = [ask(voice) for voice in voices]
    same = [ask(voices[0]) for _ in range(200)][10:]
    other = [ask(voices[n % len(voices)]) for n in range(200)][10:]
    return {
        "cold_ms_over_warm": round(statistics.median(f.ttft_ms for f in cold) - statistics.median(f.ttft_ms for f in other), 1),
        "cold_load_ms": round(statistics.median(f.swap_ms for f in cold), 1),
        "same_ms_p99": percentile([f.swap_ms for f in same], 0.99),
        "switch_ms": round(statistics.median(f.swap_ms for f in other), 4),
        "switch_ms_p99": percentile([f.swap_ms for f in other], 0.99),
        "ttft_ms_same": round(statistics.median(f.ttft_ms for f in same), 2),
        "ttft_ms_switched": round(statistics.median(f.ttft_ms for f in other), 2),
    }


def rotation(engine: Engine, ids: list[int], folders: list[Path], count: int) -> dict[str, Any]:
    """So many adapters by turns, more than memory is given to: the cost of the first and the last ones, and what memory does."""
    costs, memory = [], []
    for n in range(count):
        ticket = engine.submit(ids, Sampling(max_tokens=1, temperature=0.0), make_voice(folders[n % len(folders)], f"turn-{n}"))
        ticket.text()
        assert ticket.finished is not None
        costs.append(ticket.finished.swap_ms)
        memory.append(psutil.Process().memory_info().rss // MB)
    part = max(1, count // 4)
    return {
        "adapters": count,
        "first_quarter_ms": round(statistics.median(costs[:part]), 1),
        "last_quarter_ms": round(statistics.median(costs[-part:]), 1),
        "rss_mb_after_first_quarter": memory[part - 1],
        "rss_mb_at_end": memory[-1],
    }


def next_turns(engine: Engine, voice: Voice, lengths: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds to the first token of a turn of 24 new tokens behind a conversation of so many."""
    found = {}
    for length in lengths:
        talk = [1000 + (7 * n + length) % 20_000 for n in range(length)]
        engine.submit(talk, Sampling(max_tokens=1, temperature=0.0), voice).text()
        ticket = engine.submit([*talk, *range(2000, 2024)], Sampling(max_tokens=1, temperature=0.0), voice)
        ticket.text()
        assert ticket.finished is not None and ticket.finished.reused_tokens == length // PIECE * PIECE
        found[str(length)] = round(ticket.finished.ttft_ms, 1)
    return found


def ours(base: Path, folders: list[Path], users: int, many: int, tokens: int, turns: int) -> dict[str, Any]:
    rows = max(users, many)
    engine = load_engine(base, "nf4", Capacity(slots=rows, slots_mb=4096, max_batch=rows, host_mb=256))
    ids = prompt_ids(engine.tokenizer, PROMPT)
    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    voices = [make_voice(folder) for folder in folders]

    def batch(chosen: list[Voice]) -> None:
        for ticket in [engine.submit(ids, sampling, voice) for voice in chosen]:
            ticket.text()

    def tok_s(chosen: list[Voice]) -> float:
        return rate(lambda: batch(chosen), len(chosen) * tokens)

    result: dict[str, Any] = switching(engine, ids, voices[:users])
    result |= {
        "base_tok_s": tok_s([BASE] * users),
        "one_adapter_tok_s": tok_s([voices[0]] * users),
        "mixed_tok_s": tok_s(voices[:users]),
        "single_stream_tok_s": tok_s([voices[0]]),
        "single_base_tok_s": tok_s([BASE]),
    }
    result["mixed_over_base"] = round(result["mixed_tok_s"] / result["base_tok_s"], 3)
    if many:
        result["many_mixed_tok_s"] = tok_s(voices[:many])
        result["many_over_few"] = round(result["many_mixed_tok_s"] / result["mixed_tok_s"], 3)
    result["next_turn_ms"] = next_turns(engine, voices[0], (100, 400, 1600, 6400))
    if turns:
        result["rotation"] = rotation(engine, ids, folders, turns)
    engine.close()
    return result


def peft(base: Path, folders: list[Path], tokens: int) -> dict[str, float]:
    """The same adapters, the same prompt, with PEFT."""
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
            "cold_load_ms": round(statistics.median(loads), 1),
            "switch_ms": round(statistics.median(switches), 4),
            "one_adapter_tok_s": rate(lambda: model.generate(input_ids=many, **options), count),
            "mixed_tok_s": rate(lambda: model.generate(input_ids=many, adapter_names=names, **options), count),
            "single_stream_tok_s": rate(lambda: model.generate(input_ids=ids, **options), tokens),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--many", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rotation", type=int, default=100)
    parser.add_argument("--only", choices=["ours", "peft"])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--adapters", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        folders = sorted(arguments.adapters.iterdir(), key=lambda folder: int(folder.name[1:]))
        if arguments.only == "peft":
            print(json.dumps(peft(arguments.base, folders[: arguments.users], arguments.tokens)))
        else:
            print(json.dumps(ours(arguments.base, folders, arguments.users, arguments.many, arguments.tokens, arguments.rotation)))
        return
    studio = Studio(load_settings())
    base = studio.bases.path(studio.ensure_base(lambda text: None))
    studio.close()
    numbers = {"users": arguments.users, "many": arguments.many, "tokens": arguments.tokens, "rotation": arguments.rotation}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        make_adapters(base, max(arguments.users, arguments.many), Path(folder))
        command = [sys.executable, "-m", "tests.bench.chat", "--base", str(base), "--adapters", folder, *options]
        result = {
            which: json.loads(subprocess.run([*command, "--only", which], stdout=subprocess.PIPE, check=True, text=True).stdout)
            for which in ("ours", "peft")
        }
    shared = [key for key in result["peft"] if key in result["ours"]]
    ratios = {f"{key}_ratio": round(result["ours"][key] / result["peft"][key], 4) for key in shared}
    print(json.dumps({"bench": "chat", **numbers, **result, **ratios}))


if __name__ == "__main__":
    main()
