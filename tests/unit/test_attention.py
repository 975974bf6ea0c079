"""Tiles of packed rows: they see what a naive mask lets them see, and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from studio.training import attention
from studio.training.attention import TILE, Layout, _TiledAttention, _with_prefix

lengths_of_rows = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 3 * TILE)), min_size=1, max_size=8)
windows = st.one_of(st.none(), st.integers(1, 2 * TILE))


def naive_mask(lengths: list[int], window: int | None) -> Tensor:
    """(T, T), whether a query may see a key."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    apart = torch.arange(len(row)).unsqueeze(1) - torch.arange(len(row)).unsqueeze(0)
    return (row.unsqueeze(1) == row.unsqueeze(0)) & (apart >= 0) & (apart < (window or len(row)))


def seen(lengths: list[int], window: int | None) -> Tensor:
    """(T, T), how often the tiles let a query see a key."""
    layout = Layout(lengths)
    counts = torch.zeros(layout.tokens, layout.tokens, dtype=torch.int)
    for tile in layout.tiles(window, torch.zeros(1)):
        assert 0 < tile.end - tile.start <= TILE
        open_ = torch.ones(tile.end - tile.start, tile.end - tile.first, dtype=torch.int)
        open_[:, -tile.mask.shape[1] :] = (tile.mask == 0).int()
        counts[tile.start : tile.end, tile.keys] += open_
    return counts


@settings(deadline=None)
@given(lengths_of_rows, windows)
def test_tiles_meet_each_allowed_pair_once_and_no_other(lengths: list[int], window: int | None) -> None:
    assert torch.equal(seen(lengths, window), naive_mask(lengths, window).int())


@settings(deadline=None)
@given(lengths_of_rows)
def test_a_tile_begins_with_the_row_of_its_first_query(lengths: list[int]) -> None:
    """So nothing of another tile's rows is multiplied, only to be masked."""
    layout = Layout(lengths)
    tiles = layout.tiles(None, torch.zeros(1))
    assert [tile.first for tile in tiles] == [int(layout.row_starts[tile.start]) for tile in tiles]
    assert [tile.start for tile in tiles] == [0, *(tile.end for tile in tiles[:-1])] and tiles[-1].end == layout.tokens


def test_short_rows_share_a_tile_and_a_long_one_has_its_own() -> None:
    spans = [(tile.start, tile.end) for tile in Layout([10, 20, 2 * TILE + 5, 30, TILE - 30, 1]).tiles(None, torch.zeros(1))]
    long = 30 + 2 * TILE + 5
    assert spans == [
        (0, 30),
        (30, 30 + TILE),
        (30 + TILE, 30 + 2 * TILE),
        (30 + 2 * TILE, long),
        (long, long + TILE),
        (long + TILE, long + TILE + 1),
    ]


def test_positions_and_offsets_count_within_rows() -> None:
    layout = Layout([3, 1, 2])
    assert layout.position_ids.tolist() == [0, 1, 2, 0, 0, 1] and layout.row_starts.tolist() == [0, 0, 0, 3, 4, 4]
    assert layout.offsets(torch.device("cpu")).tolist() == [0, 3, 4, 6] and layout.offsets(torch.device("cpu")).dtype == torch.int32


LENGTHS = [1, 2, 9, 3, 1]  # with tiles of 4 tokens: two that share a tile, one in three pieces, two that share a tile


def numbers(heads: int, tokens: int) -> Tensor:
    return torch.randn(heads, tokens, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(heads)).requires_grad_()


def naive_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    group = len(query) // len(key)
    scores = query @ key.repeat_interleave(group, 0).mT * scale
    return torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1) @ value.repeat_interleave(group, 0)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("heads", [2, 4])
def test_gradients_of_tiled_attention_are_those_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, heads: int, window: int | None
) -> None:
    monkeypatch.setattr(attention, "TILE", 4)
    monkeypatch.setattr(attention, "KEPT_KEYS", 5)  # so that some probabilities are kept and some are computed again
    layout = Layout(LENGTHS)
    q, k, v = numbers(heads, layout.tokens), numbers(2, layout.tokens), numbers(2, layout.tokens).detach().flip(1).requires_grad_()
    tiles = layout.tiles(window, q)
    assert len(tiles) == 5
    out = _TiledAttention.apply(q, k, v, tiles, 0.6)
    torch.testing.assert_close(out, naive_attention(q, k, v, naive_mask(LENGTHS, window), 0.6))
    assert torch.autograd.gradcheck(lambda *qkv: _TiledAttention.apply(*qkv, tiles, 0.6), (q, k, v))


@pytest.mark.parametrize("window", [None, 3])
def test_learned_keys_are_seen_by_every_token_of_every_row(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    monkeypatch.setattr(attention, "TILE", 4)
    layout = Layout(LENGTHS)
    q, k, v = numbers(4, layout.tokens), numbers(2, layout.tokens), numbers(2, layout.tokens).detach().flip(1).requires_grad_()
    before_k, before_v = numbers(2, 5).detach().neg().requires_grad_(), numbers(2, 5).detach().mul(2).requires_grad_()
    inputs = (q, k, v, before_k, before_v)
    ours = _with_prefix(q, k, v, (before_k, before_v), layout, window, 0.6)
    allowed = torch.cat([torch.ones(layout.tokens, 5, dtype=torch.bool), naive_mask(LENGTHS, window)], dim=1)
    naive = naive_attention(q, torch.cat([before_k, k], 1), torch.cat([before_v, v], 1), allowed, 0.6)
    torch.testing.assert_close(ours, naive)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, naive))
    for x, y in zip(mine, theirs, strict=True):
        assert y.abs().max() > 0.01
        torch.testing.assert_close(x, y)
