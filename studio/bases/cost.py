"""What a form of the weights costs a base: its loss on a text that ships with the studio, in each form."""

import gc
import hashlib
from pathlib import Path
from typing import Any

import orjson

from studio.bases.loading import load_model, load_tokenizer
from studio.bases.sources import COST_FILE
from studio.errors import BaseUnavailable

HELD_OUT = Path(__file__).with_name("held_out.txt")
FORMS = ("bf16", "int8", "nf4")
WINDOW = 512
MAX_WINDOWS = 4


def held_out_loss(folder: Path, quantization: str, name: str) -> float:
    """Mean loss in nats a token over the held-out text, in windows of 512 tokens."""
    import torch

    from studio.lora.frozen import freeze_quantized

    model = load_model(folder, quantization, name)
    tokenizer = load_tokenizer(folder, name)
    token_ids = tokenizer(HELD_OUT.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    freeze_quantized(model)
    total, count = 0.0, 0
    with torch.inference_mode():
        for window in token_ids.split(WINDOW)[:MAX_WINDOWS]:
            if len(window) < 2:
                continue
            ids = window.unsqueeze(0).to(model.device)
            total += float(model(input_ids=ids, labels=ids, use_cache=False).loss) * (len(window) - 1)
            count += len(window) - 1
    return total / count


def measure_cost(folder: Path, name: str, fingerprint: str) -> dict[str, float]:
    """Held-out loss by form, as it was measured once for these weights, this tokenizer and this text.

    A form that this machine cannot hold is left out; bf16 may be too large for it.
    """
    key = _key(folder, fingerprint)
    losses = _kept(folder, key) or _measure(folder, name)
    (folder / COST_FILE).write_bytes(orjson.dumps({"of": key, "losses": losses}))
    return losses


def _kept(folder: Path, key: str) -> dict[str, float]:
    try:
        found: Any = orjson.loads((folder / COST_FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    losses = found.get("losses") if isinstance(found, dict) and found.get("of") == key else None
    return losses if isinstance(losses, dict) and all(isinstance(loss, float) for loss in losses.values()) else {}


def _key(folder: Path, fingerprint: str) -> str:
    tokenizer = folder / "tokenizer.json"
    parts = [fingerprint.encode(), HELD_OUT.read_bytes(), tokenizer.read_bytes() if tokenizer.exists() else b""]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _measure(folder: Path, name: str) -> dict[str, float]:
    losses = {}
    for form in FORMS:
        try:
            losses[form] = held_out_loss(folder, form, name)
        except (BaseUnavailable, MemoryError, RuntimeError):
            if form == "nf4":
                raise
        gc.collect()
    return losses


def cost_sentence(losses: dict[str, float], quantization: str) -> str:
    """What a person should know of a form: "nf4 costs this base 0.28 nats a token (2.47 against 2.20 in bf16)"."""
    if quantization in ("bf16", "fp32") or "bf16" not in losses or quantization not in losses:
        return ""
    cost = losses[quantization] - losses["bf16"]
    return f"{quantization} costs this base {cost:.2f} nats a token ({losses[quantization]:.2f} against {losses['bf16']:.2f} in bf16)"
