"""Many adapters at once on the linear layers that read one input: each row of a batch has its own, or several with weights.

Adapters lie in persistent stacks of slots, one stack for each class of ranks; a smaller rank is padded with zeros, which
changes no result. For a row with slots s and weights w_s the layers compute

    y = W x + Σ_s w_s · B_s (A_s x)                                    LoRA, with its scale folded into B
    y = W x + Σ_s w_s · [(g_s − 1) ∘ W x + B_s (A_s x)]                DoRA, g = m / ‖W + s·B A‖, folded into B as well

Where all rows have the same, that is a product or two with one slot. Else the rows are laid out by slot, those of a slot beside each
other, and one batched product with A and one with each B serve them all: the stacks are read where they lie, nothing of them is
copied, and no Python runs for each adapter. No row's numbers meet another slot's, so that what is not finite stays where it is.
"""

import itertools
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
class _Same:
    """All rows use the same slots of one stack, each with a weight."""

    parts: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class _Mixed:
    """Rows that use different slots of one stack, `first` to `end`.

    They are laid out as a table of slots × `width` places, to be computed slot by slot. `rows` says whose input stands at each place
    (any where nobody's does). Entry i is what row `targets[i]` gets: place `places[i]` of slot `slots[i]`, times `weights[i]` where
    they are not all 1.
    """

    first: int
    end: int
    width: int
    rows: Tensor  # (slots · width,)
    targets: Tensor  # (n,)
    places: Tensor  # (n,)
    slots: Tensor  # (n,)
    weights: Tensor | None  # (n, 1)
    covers: bool  # every row is a target once, in order
    repeats: bool  # some row is a target more than once


_Route = _Same | _Mixed


class Routing:
    """Which slots each row of the coming forward pass uses. One object is shared by all layers of a model."""

    def __init__(self) -> None:
        self.routes: dict[int, _Route] = {}  # by class; empty where every row is the base's
        self.version = 0  # another one after each `set`

    def set(self, rows: Sequence[Sequence[Share]], device: torch.device, dtype: torch.dtype) -> None:
        """Route row i of the next batch to the adapters of `rows[i]`; none is the base."""
        self.version += 1
        ranks = {share.rank for shares in rows for share in shares}
        self.routes = {rank: _route([[s for s in shares if s.rank == rank] for shares in rows], device, dtype) for rank in sorted(ranks)}


def _route(rows: list[list[Share]], device: torch.device, dtype: torch.dtype) -> _Route:
    if all(shares == rows[0] for shares in rows):
        return _Same(tuple((share.slot, share.weight) for share in rows[0]))
    entries = [(share.slot, row, share.weight) for row, shares in enumerate(rows) for share in shares]
    by_slot: dict[int, list[int]] = {}
    places = []
    for slot, row, _ in entries:
        mine = by_slot.setdefault(slot, [])
        places.append(len(mine))
        mine.append(row)
    first, end, width = min(by_slot), max(by_slot) + 1, max(len(mine) for mine in by_slot.values())
    table = [row for slot in range(first, end) for row in (by_slot.get(slot, []) + [0] * width)[:width]]
    weights, targets = [weight for _, _, weight in entries], [row for _, row, _ in entries]

    def index(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return _Mixed(
        first,
        end,
        width,
        rows=index(table),
        targets=index(targets),
        places=index([(slot - first) * width + place for (slot, _, _), place in zip(entries, places, strict=True)]),
        slots=index([slot for slot, _, _ in entries]),
        weights=None if all(w == 1 for w in weights) else torch.tensor(weights, dtype=dtype, device=device).unsqueeze(1),
        covers=targets == list(range(len(rows))),
        repeats=len(set(targets)) < len(targets),
    )


class Stack:
    """The slots of one class for the layers of one input.

    Neighbours with as many outputs, such as k and v, are one product.

    Attributes:
        a: (slots, M·r, d_in) for M layers. b: for each run of m neighbours (slots, m, r, d_out). gains: M tensors (slots, d_out)
            of g − 1, or None where no DoRA was ever installed.
    """

    def __init__(self, slots: int, rank: int, d_in: int, d_outs: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.rank = slots, rank
        self.a = torch.zeros(slots, len(d_outs) * rank, d_in, dtype=dtype, device=device)
        runs = [(d_out, len(list(same))) for d_out, same in itertools.groupby(d_outs)]
        self.b = [torch.zeros(slots, count, rank, d_out, dtype=dtype, device=device) for d_out, count in runs]
        self.gains: list[Tensor] | None = None

    def up(self, layer: int) -> Tensor:
        """Bᵀ of one layer, (slots, r, d_out), a view."""
        for b in self.b:
            if layer < b.shape[1]:
                return b[:, layer]
            layer -= b.shape[1]
        raise IndexError(layer)

    def add(self, x: Tensor, y: Tensor, route: _Route) -> None:
        """Add what the adapters of this class say: x is (N, d_in), y (N, Σ d_out) and holds W x; N is rows, or tokens of one row."""
        if isinstance(route, _Mixed):
            self._add_mixed(x, y, route)
            return
        for slot, weight in route.parts:
            low = F.linear(x, self.a[slot])  # (N, M·r)
            low = low if weight == 1 else low * weight
            at, part = 0, 0
            for b in self.b:
                for up in b[slot]:  # (r, d_out)
                    y[:, at : at + up.shape[1]] += low[:, part : part + self.rank] @ up
                    at, part = at + up.shape[1], part + self.rank

    def _add_mixed(self, x: Tensor, y: Tensor, route: _Mixed) -> None:
        chosen, width = slice(route.first, route.end), route.width
        low = torch.bmm(x.index_select(0, route.rows).view(-1, width, x.shape[1]), self.a[chosen].mT)  # (slots, width, M·r)
        at, part = 0, 0
        for b in self.b:
            count, d_out = b.shape[1], b.shape[3]
            thin = low[:, :, part : part + count * self.rank].view(-1, width, count, self.rank).transpose(1, 2)  # (slots, m, width, r)
            high = torch.bmm(thin.reshape(-1, width, self.rank), b[chosen].flatten(0, 1))  # (slots · m, width, d_out)
            if count > 1:
                high = high.view(-1, count, width, d_out).transpose(1, 2)
            said = high.reshape(-1, count * d_out).index_select(0, route.places)  # (n, m · d_out)
            said = said if route.weights is None else said * route.weights
            _give(y[:, at : at + count * d_out], said, route)
            at, part = at + count * d_out, part + count * self.rank

    def stretch(self, plain: Tensor, y: Tensor, route: _Route) -> None:
        """Add Σ w (g − 1) ∘ W x, where somebody has gains; `plain` is W x, (N, Σ d_out)."""
        if self.gains is None:
            return
        if isinstance(route, _Same):
            for slot, weight in route.parts:
                y += torch.cat([gain[slot] for gain in self.gains]) * weight * plain
            return
        gains = torch.cat([gain.index_select(0, route.slots) for gain in self.gains], dim=1)  # (n, Σ d_out)
        gains = gains if route.weights is None else gains * route.weights
        y.index_add_(0, route.targets, (gains * plain.index_select(0, route.targets)).to(y.dtype))


def _give(y: Tensor, said: Tensor, route: _Mixed) -> None:
    """Add each entry of `said` to its row of y. Adding by index is slow on the CPU, so it is left to rows with several entries."""
    if route.covers:
        y += said
    elif route.repeats:
        y.index_add_(0, route.targets, said.to(y.dtype))
    else:
        y.index_copy_(0, route.targets, (y.index_select(0, route.targets) + said).to(y.dtype))


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
        if any(stack.gains is not None for stack, _ in routes):
            plain = y.to(self.dtype, copy=True) if self._bias is None else y.to(self.dtype) - self._bias
            for stack, route in routes:
                stack.stretch(plain, y, route)
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
            mine[after] = theirs[before]
        if old.gains is not None:
            new.gains = [torch.zeros(slots, d_out, dtype=self.dtype, device=self.device) for d_out in self.d_outs]
            for mine, theirs in zip(new.gains, old.gains, strict=True):
                mine[after] = theirs[before]

    def places(self, rank: int, slots: int, slot: int, used: int, mine: set[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Views of a slot for the layers in `mine`, A (used, d_in) and Bᵀ (used, d_out) in turns, and those that must become zero.

        Args:
            rank, slots: of the class, whose stack is made where nothing was ever installed. used: the adapter's own rank.
        """
        there = self._stacks.get(rank)
        if there is None and not mine.intersection(self.names):
            return [], []
        stack = there or self._make(rank, slots)
        filled, empty = [], []
        for index, name in enumerate(self.names):
            a, b = stack.a[slot, index * rank : (index + 1) * rank], stack.up(index)[slot]
            if name in mine:
                filled += [a[:used], b[:used]]
                empty += [a[used:], b[used:]] if used < rank else []
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
