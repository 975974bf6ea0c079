"""Greedy answers of the model that is being trained, so that a person reads what a loss cannot tell."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from studio.datasets.rendering import Example, prompt_ids
from studio.lora.prefix import Prefix

HELD_OUT_PROMPTS = 2  # asked where the user named none


def chosen_prompts(tokenizer: Any, named: str, held: Sequence[Example]) -> list[tuple[str, list[int]]]:
    """(text, token ids) of the prompts that the user named, or of the first held-out rows."""
    if named.strip():
        texts = [text.strip() for text in named.split("|") if text.strip()]
        return [(text, prompt_ids(tokenizer, [{"role": "user", "content": text}])) for text in texts]
    return [(row.prompt, row.token_ids[: row.trained.index(True)]) for row in held if row.prompt][:HELD_OUT_PROMPTS]


@torch.no_grad()
def answer(model: Any, prompts: Sequence[list[int]], max_tokens: int, end_ids: set[int], prefix: Prefix | None) -> list[list[int]]:
    """The likeliest continuation of each prompt, all decoded together, up to an end token or `max_tokens`."""
    device = model.device
    ids, mask = _left_padded(prompts, device)
    cache, before = _cache(model, prefix, len(prompts)), 0 if prefix is None else prefix.length
    mask = torch.cat([mask.new_ones(len(prompts), before), mask], dim=1)
    answers: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    positions = (mask.cumsum(1) - 1)[:, before:].clamp_min(0)
    for _ in range(max_tokens):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True).logits
        chosen = logits[:, -1].argmax(-1)  # (rows,)
        for row in sorted(going):
            token = int(chosen[row])
            if token in end_ids:
                going.remove(row)
            else:
                answers[row].append(token)
        if not going:
            break
        ids, positions = chosen.unsqueeze(1), positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return answers


def cut_at_end(token_ids: list[int], end_ids: set[int]) -> list[int]:
    """The tokens before the first end token."""
    return token_ids[: next((i for i, token in enumerate(token_ids) if token in end_ids), None)]


def _left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (rows, T)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _cache(model: Any, prefix: Prefix | None, rows: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    if prefix is not None:
        for layer in range(prefix.layers):
            keys, values = (t.to(model.dtype).unsqueeze(0).expand(rows, -1, -1, -1) for t in prefix.keys_values(layer))
            cache.update(keys, values, layer)
    return cache
