"""Many adapters at once on the linear layers that read one input: each row of a batch has its own, or several with weights.

Adapters lie in persistent stacks of slots, one stack for each class of ranks; a smaller rank is padded with zeros, which
changes no result. For a row with slots s and weights w_s the layers compute

    y = W x + Σ_s w_s · B_s (A_s x)                                    LoRA, with its scale folded into B
    y = W x + Σ_s w_s · [(g_s − 1) ∘ W x + B_s (A_s x)]                DoRA, g = m / ‖W + s·B A‖, folded into B as well

One product with the A of all slots in use, the rows of others struck out, and one with their B serve a mixed batch: nothing
is gathered, and no Python runs for each adapter. What is struck out is replaced and not multiplied, as 0 · NaN is NaN; B is
finite by contract, so that the zeros stay zeros.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_CLASS = 8


def rank_class(rank: int) -> int:
    """The rank that a slot for this rank has: the next power of two, 8 at least."""
    return max(SMALLEST_CLASS, 1 << (rank - 1).bit_length())


@dataclass(frozen=True)
class Share:
    """One adapter's part in what a row says: its slot in the stack of a class, and its weight."""

    rank: int
    slot: int
    weight: float = 1.0


@dataclass(frozen=True)
class _Route:
    """Who uses one stack in the coming step.

    `single` is the slot of all rows, with `weight`. Else `used` slots from the first on are read, and `shares`, (rows, used),
    has each row's weights; `chosen` says where they are not 0. `plain`: they are all 1 or 0.
    """

    single: int = -1
    weight: float = 1.0
    used: int = 0
    shares: Tensor | None = None
    chosen: Tensor | None = None
    plain: bool = True


class Routing:
    """Which slots each row of the coming forward pass uses. One object is shared by all layers of a model."""

    def __init__(self) -> None:
        self.routes: dict[int, _Route] = {}  # by class; empty where every row is the base's

    def set(self, rows: Sequence[Sequence[Share]], device: torch.device, dtype: torch.dtype) -> None:
        """Route row i of the next batch to the adapters of `rows[i]`; none is the base."""
        ranks = {share.rank for shares in rows for share in shares}
        self.routes = {rank: _route([[s for s in shares if s.rank == rank] for shares in rows], device, dtype) for rank in sorted(ranks)}


def _route(rows: list[list[Share]], device: torch.device, dtype: torch.dtype) -> _Route:
    first = rows[0][0] if rows[0] else None
    if first is not None and all(shares == [first] for shares in rows):
        return _Route(single=first.slot, weight=first.weight)
    used = 1 + max(share.slot for shares in rows for share in shares)
    table = torch.zeros(len(rows), used)
    for index, shares in enumerate(rows):
        for share in shares:
            table[index, share.slot] += share.weight
    plain = bool(((table == 0) | (table == 1)).all())
    table = table.to(device=device, dtype=dtype)
    return _Route(used=used, shares=table, chosen=(table != 0)[:, :, None, None], plain=plain)


class Stack:
    """The slots of one class for the layers of one input.

    Attributes:
        a: (slots, M, r, d_in) for M layers. b: M tensors (d_out, slots, r). gains: M tensors (slots, d_out) of g − 1, or None
            where no DoRA was ever installed.
    """

    def __init__(self, slots: int, rank: int, d_in: int, d_outs: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.rank = slots, rank
        self.a = torch.zeros(slots, len(d_outs), rank, d_in, dtype=dtype, device=device)
        self.b = [torch.zeros(d_out, slots, rank, dtype=dtype, device=device) for d_out in d_outs]
        self.gains: list[Tensor] | None = None
        self._zero = torch.zeros((), dtype=dtype, device=device)

    def add(self, x: Tensor, y: Tensor, route: _Route) -> None:
        """Add what the adapters of this class say: x is (N, d_in), y (N, Σ d_out) and holds W x; N is rows, or tokens of one row."""
        count, layers = x.shape[0], len(self.b)
        if route.single >= 0:
            low = F.linear(x, self.a[route.single].flatten(0, 1))  # (N, M·r)
            low = low if route.weight == 1 else low * route.weight
            parts = low.view(count, layers, self.rank).unbind(1)  # M × (N, r)
            ups = [b[:, route.single] for b in self.b]
        else:
            assert route.chosen is not None and route.shares is not None
            low = F.linear(x, self.a[: route.used].flatten(0, 2)).view(count, route.used, layers * self.rank, 1)
            low = torch.where(route.chosen, low, self._zero)
            low = low if route.plain else low * route.shares[:, :, None, None]
            parts = low.view(count, route.used, layers, self.rank).permute(2, 0, 1, 3).reshape(layers, count, -1).unbind(0)
            ups = [b[:, : route.used].flatten(1) for b in self.b]
        at = 0
        for part, up in zip(parts, ups, strict=True):
            y[:, at : at + up.shape[0]] += F.linear(part, up)
            at += up.shape[0]

    def gain(self, route: _Route) -> Tensor | None:
        """Σ w (g − 1) for each row and output, (rows or 1, Σ d_out); None where nobody has gains."""
        if self.gains is None:
            return None
        if route.single >= 0:
            return torch.cat([gain[route.single] for gain in self.gains]).unsqueeze(0) * route.weight
        assert route.shares is not None
        return torch.cat([route.shares @ gain[: route.used] for gain in self.gains], dim=1)


class AdaptedInput:
    """The adapters of the layers that read one and the same input.

    Args:
        names: of the layers, in the order of their outputs. d_in, d_outs: their shapes. biases: of the layers that have one.
        routing: shared, set before each forward pass. dtype, device: of the slots.
    """

    def __init__(
        self,
        names: Sequence[str],
        d_in: int,
        d_outs: Sequence[int],
        biases: Sequence[Tensor | None],
        routing: Routing,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.names, self.d_in, self.d_outs = tuple(names), d_in, tuple(d_outs)
        self.routing, self.dtype, self.device = routing, dtype, device
        self._bias = _joined(biases, d_outs, dtype, device)
        self._stacks: dict[int, Stack] = {}

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """y, (N, Σ d_out), holds W x + bias for x, (N, d_in), and gets what the routed adapters add; it is changed and returned.

        Rows of the base alone keep what they have to the bit.
        """
        routes = [(stack, route) for rank, route in self.routing.routes.items() if (stack := self._stacks.get(rank)) is not None]
        if not routes:
            return y
        gains = [gain for stack, route in routes if (gain := stack.gain(route)) is not None]
        if gains:
            plain = y.to(self.dtype) if self._bias is None else y.to(self.dtype) - self._bias
            y += sum(gain * plain for gain in gains)
        z = x.to(self.dtype)
        for stack, route in routes:
            stack.add(z, y, route)
        return y

    def resize(self, rank: int, slots: int, moves: Iterable[tuple[int, int]]) -> None:
        """Give a class another number of slots; `moves` are (old slot, new slot) of those that keep their adapter."""
        old = self._stacks.pop(rank, None)
        if old is None or not slots:
            return
        new = self._make(rank, slots)
        pairs = list(moves)
        before, after = [i for i, _ in pairs], [i for _, i in pairs]
        new.a[after] = old.a[before]
        for mine, theirs in zip(new.b, old.b, strict=True):
            mine[:, after] = theirs[:, before]
        if old.gains is not None:
            new.gains = [torch.zeros(slots, d_out, dtype=self.dtype, device=self.device) for d_out in self.d_outs]
            for mine, theirs in zip(new.gains, old.gains, strict=True):
                mine[after] = theirs[before]

    def places(self, rank: int, slots: int, slot: int, used: int, mine: set[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Views of a slot for the layers in `mine`, A (used, d_in) and B (d_out, used) in turns, and those that must become zero.

        Args:
            rank, slots: of the class, whose stack is made where nothing was ever installed. used: the adapter's own rank.
        """
        there = self._stacks.get(rank)
        if there is None and not mine.intersection(self.names):
            return [], []
        stack = there or self._make(rank, slots)
        filled, empty = [], []
        for index, name in enumerate(self.names):
            a, b = stack.a[slot, index], stack.b[index][:, slot]
            if name in mine:
                filled += [a[:used], b[:, :used]]
                empty += [a[used:], b[:, used:]] if used < rank else []
            else:
                empty += [a, b]
        if stack.gains is not None:
            empty += [gain[slot] for gain in stack.gains]
        return filled, empty

    def set_gain(self, rank: int, slot: int, name: str, gain: Tensor) -> None:
        """Store g − 1, (d_out,), of an installed DoRA."""
        stack = self._stacks[rank]
        if stack.gains is None:
            stack.gains = [torch.zeros(stack.slots, d_out, dtype=self.dtype, device=self.device) for d_out in self.d_outs]
        stack.gains[self.names.index(name)][slot] = gain.to(device=self.device, dtype=self.dtype)

    def slot_bytes(self, rank: int) -> int:
        """What one slot of a class takes here."""
        return rank * sum(self.d_in + d_out for d_out in self.d_outs) * self.dtype.itemsize

    def _make(self, rank: int, slots: int) -> Stack:
        self._stacks[rank] = Stack(slots, rank, self.d_in, self.d_outs, self.dtype, self.device)
        return self._stacks[rank]


class BankLinear(nn.Module):
    """A linear layer of a model that runs as transformers wrote it, with the adapters of its input.

    Args:
        base: the frozen layer. adapters: of this layer alone.
    """

    def __init__(self, base: nn.Module, adapters: AdaptedInput) -> None:
        super().__init__()
        self.base, self.adapters = base, adapters

    def forward(self, x: Tensor) -> Tensor:
        """x is (rows, T, d_in); returns (rows, T, d_out)."""
        y: Tensor = self.base(x)
        if not self.adapters.routing.routes:
            return y
        return self.adapters.add(x.flatten(0, -2), y.flatten(0, -2)).view(y.shape)


def _joined(biases: Sequence[Tensor | None], d_outs: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The biases of all layers as one, (Σ d_out,); None where no layer has one."""
    if all(bias is None for bias in biases):
        return None
    parts = [torch.zeros(d_out) if bias is None else bias.detach().float().cpu() for bias, d_out in zip(biases, d_outs, strict=True)]
    return torch.cat(parts).to(device=device, dtype=dtype)
