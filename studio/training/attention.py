"""Attention over rows that lie one behind the other in one sequence, each row seeing itself alone.

On the CPU the queries are cut into tiles of at most `TILE` tokens: whole short rows, or a piece of a long one. A
tile meets the keys from the start of its first row to its own end, so no token is padded, and what a causal mask
would hide is hardly computed. Over many keys, the backward pass computes a tile's probabilities again instead of
keeping them. On CUDA the variable-length flash attention of torch does the same.

A model reads the layout through its attention modules (`packing`), so nothing must be passed through its forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "studio_packed"
TILE = 128
KEPT_KEYS = 256  # probabilities over more keys are computed again in the backward pass


@dataclass(frozen=True)
class Tile:
    """Queries [start, end) and the keys [first, end) that they may see.

    `mask`, (end - start, m), is added to the scores of the last m keys; every query sees the keys before those.
    """

    start: int
    end: int
    first: int
    mask: Tensor

    @property
    def keys(self) -> slice:
        """The keys, of T."""
        return slice(self.first, self.end)

    def rows(self, group: int) -> slice:
        """The queries, of T · G folded ones."""
        return slice(self.start * group, self.end * group)


class Layout:
    """Where rows begin in a packed sequence.

    Args:
        lengths: tokens of each row.
    """

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self._tiles: dict[tuple[int | None, torch.dtype, torch.device], list[Tile]] = {}

    @property
    def tokens(self) -> int:
        """T: tokens of all rows."""
        return sum(self.lengths)

    @cached_property
    def position_ids(self) -> Tensor:
        """(T,): each token's place in its row."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    @cached_property
    def row_starts(self) -> Tensor:
        """(T,): where the row of each token begins."""
        return torch.arange(self.tokens) - self.position_ids

    def offsets(self, device: torch.device) -> Tensor:
        """(rows + 1,), int32: cumulative lengths from zero."""
        return torch.tensor([0, *self.lengths], device=device).cumsum(0).to(torch.int32)

    def tiles(self, window: int | None, like: Tensor) -> list[Tile]:
        """The tiles, made once, with masks of the dtype and device of `like`.

        Args:
            window: tokens that a query sees at most, itself included; None is all of its row.
        """
        key = (window, like.dtype, like.device)
        if key not in self._tiles:
            self._tiles[key] = [self._tile(start, end, window, like) for start, end in self._cuts()]
        return self._tiles[key]

    def _cuts(self) -> list[tuple[int, int]]:
        """Short rows together, up to `TILE` tokens; long ones alone, in pieces."""
        cuts: list[tuple[int, int]] = []
        at, joinable = 0, False
        for length in self.lengths:
            if joinable and length <= TILE and at + length - cuts[-1][0] <= TILE:
                cuts[-1] = (cuts[-1][0], at + length)
            else:
                cuts += [(start, min(start + TILE, at + length)) for start in range(at, at + length, TILE)]
            joinable, at = length <= TILE, at + length
        return cuts

    def _tile(self, start: int, end: int, window: int | None, like: Tensor) -> Tile:
        queries = torch.arange(start, end).unsqueeze(1)
        lowest = self.row_starts[start:end].unsqueeze(1)
        if window is not None:
            lowest = torch.maximum(lowest, queries - window + 1)
        first = int(lowest[0])
        keys = torch.arange(start if window is None else first, end).unsqueeze(0)
        mask = torch.zeros(len(queries), keys.shape[1]).masked_fill_((keys > queries) | (keys < lowest), float("-inf"))
        return Tile(start, end, first, mask.to(like.device, like.dtype))


class Packing:
    """The layout of the coming forward pass, which all attention modules of a model read; None for plain batches."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.usual = ""

    def install(self, model: Any, usual: str) -> None:
        """Let a model's attention go through `packed_attention`. usual: what it went through before."""
        self.usual = usual
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.packing = self
        model.set_attn_implementation(NAME)

    @contextmanager
    def put_aside(self, model: Any) -> Iterator[None]:
        """Attention as usual, with masks and caches, inside the block."""
        packed, self.layout = model.config._attn_implementation == NAME, None
        if packed:
            model.set_attn_implementation(self.usual)
        try:
            yield
        finally:
            if packed:
                model.set_attn_implementation(NAME)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row. query is (1, heads, T, D), key and value (1, kv_heads, T, D); returns (1, T, heads, D).

    Raises:
        NotImplementedError: the model asks for something else, such as soft-capped scores or attention sinks.
    """
    packing: Packing = module.packing  # type: ignore[assignment]
    layout = packing.layout
    if layout is None:
        states: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)[0]
        return states, None
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if unknown or attention_mask is not None or query.shape[0] != 1 or query.shape[2] != layout.tokens or dropout:
        raise NotImplementedError(f"packed attention without {', '.join(unknown) or 'a mask'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = options.get("sliding_window")
    q, k, v = (t.squeeze(0) for t in (query, key, value))  # a view whose backward pass is one too
    prefix = getattr(module, "prefix", None)
    if prefix is not None:
        keys_values = prefix.keys_values(module.layer_idx)
        return _with_prefix(q, k, v, keys_values, layout, window, scale).transpose(0, 1).unsqueeze(0), None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _on_cuda(q, k, v, layout, window, scale).unsqueeze(0), None
    out: Tensor = _TiledAttention.apply(q, k, v, layout.tiles(window, q), scale)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)


def _on_cuda(query: Tensor, key: Tensor, value: Tensor, layout: Layout, window: int | None, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = layout.offsets(query.device), max(layout.lengths)
    left = -1 if window is None else window - 1
    q, k, v = (t.transpose(0, 1).contiguous() for t in (query, key, value))  # (T, heads, D)
    out = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=True)
    assert isinstance(out, Tensor)
    return out


class _TiledAttention(torch.autograd.Function):
    """softmax(s · Q Kᵀ + mask) V, tile by tile. query is (heads, T, D), key and value (kv_heads, T, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], scale: float) -> Tensor:
        key, value = key.contiguous(), value.contiguous()
        group = len(query) // len(key)
        q, out = _fold(query, group, scale), query.new_empty(len(key), query.shape[1] * group, query.shape[2])
        kept = []
        for tile in tiles:
            rows, seen = tile.rows(group), tile.keys
            p = _probabilities(q[:, rows], key[:, seen], tile, group)
            torch.bmm(p, value[:, seen], out=out[:, rows])
            kept.append(p if p.shape[2] <= KEPT_KEYS else None)
        ctx.tiles, ctx.scale, ctx.group = tiles, scale, group
        ctx.save_for_backward(query, key, value, *kept)
        return _unfold(out, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = ctx.saved_tensors
        group = ctx.group
        q, g = _fold(query, group, ctx.scale), _fold(grads[0], group, 1.0)
        g_query, g_key, g_value = torch.empty_like(q), torch.zeros_like(key), torch.zeros_like(value)
        for tile, p in zip(ctx.tiles, kept, strict=True):
            rows, seen = tile.rows(group), tile.keys
            p = _probabilities(q[:, rows], key[:, seen], tile, group) if p is None else p
            g_value[:, seen].baddbmm_(p.mT, g[:, rows])
            g_scores = torch._softmax_backward_data(g[:, rows] @ value[:, seen].mT, p, -1, p.dtype)
            torch.bmm(g_scores, key[:, seen], out=g_query[:, rows])
            g_key[:, seen].baddbmm_(g_scores.mT, q[:, rows])
        return _unfold(g_query.mul_(ctx.scale), group), g_key, g_value, None, None


def _fold(heads: Tensor, group: int, scale: float) -> Tensor:
    """(heads, T, D) times `scale` as (kv_heads, T · G, D): query heads that share keys become rows of one product."""
    kv_heads, tokens, width = len(heads) // group, heads.shape[1], heads.shape[2]
    folded = heads.new_empty(kv_heads, tokens, group, width)
    return torch.mul(heads.view(kv_heads, group, tokens, width).transpose(1, 2), scale, out=folded).view(kv_heads, -1, width)


def _unfold(folded: Tensor, group: int) -> Tensor:
    """The other way, lying in memory as (T, heads, D): the model flattens heads next, and that is then no copy."""
    kv_heads, width = len(folded), folded.shape[2]
    heads = folded.view(kv_heads, -1, group, width).permute(1, 0, 2, 3).contiguous()  # (T, kv_heads, G, D)
    return heads.view(-1, kv_heads * group, width).transpose(0, 1)


def _probabilities(q: Tensor, key: Tensor, tile: Tile, group: int) -> Tensor:
    """softmax(q Kᵀ + mask), (kv_heads, t · G, keys); q is scaled already."""
    scores = q @ key.mT
    grid = scores.view(len(key), -1, group, key.shape[1])[..., -tile.mask.shape[1] :]
    grid += tile.mask.unsqueeze(1)
    return torch.softmax(scores, dim=-1)


def _with_prefix(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], layout: Layout, window: int | None, scale: float
) -> Tensor:
    """The same with learned keys and values, (kv_heads, n, D), that every token sees. Differentiable in them as well."""
    before_k, before_v = (t.to(key.dtype) for t in prefix)
    group = len(query) // len(key)
    q = query.view(len(key), group, *query.shape[1:]).transpose(1, 2).flatten(1, 2) * scale
    parts = []
    for tile in layout.tiles(window, query):
        k, v = torch.cat([before_k, key[:, tile.keys]], dim=1), torch.cat([before_v, value[:, tile.keys]], dim=1)
        scores = q[:, tile.rows(group)] @ k.mT
        hidden = nn.functional.pad(tile.mask, (k.shape[1] - tile.mask.shape[1], 0)).repeat_interleave(group, dim=0)
        parts.append(torch.softmax(scores + hidden, dim=-1) @ v)
    return _unfold(torch.cat(parts, dim=1), group)
