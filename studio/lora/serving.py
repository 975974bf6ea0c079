"""Many adapters at once on the linear layers that read one input: each row of a batch has its own, or several with weights.

Adapters lie in persistent stacks of slots, one stack for each class of ranks; a smaller rank is padded with zeros, which
changes no result. For a row with slots s and weights w_s the layers compute

    y = W x + Σ_s w_s · B_s (A_s x)                                    LoRA, with its scale folded into B
    y = W x + Σ_s w_s · [(g_s − 1) ∘ W x + B_s (A_s x)]                DoRA, g = m / ‖W + s·B A‖, folded into B as well

Few rows on a CPU are bound by reading A and B. Aᵀ and Bᵀ are tables there, and A x is the sum of the rows of Aᵀ weighted by x: what
`embedding_bag` computes, straight from the slots, for a bag of table rows for each row of the batch. That takes 5 ms a step for 8 rows
with 8 adapters on the starter base where batched products take 14. Where many rows or tokens have the same slots, they are a product
or two with one slot; else the rows are laid out by slot, those of a slot beside each other, and one batched product with A and one
with B serve them all. The stacks are read where they lie, and no Python runs for each adapter. No row's numbers meet another slot's,
so that what is not finite stays where it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

SMALLEST_CLASS = 8
MOST_IN_BAGS = 16  # rows of one slot up to which sums are about as quick as products or quicker, by measurement on two cores


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
class _Table:
    """Rows laid out as slots × `width` places, to be computed slot by slot, from slot `first` to `end`.

    `rows` says whose input stands at each place (any where nobody's does), `places` where each entry of the route stands.
    """

    first: int
    end: int
    width: int
    rows: Tensor  # (slots · width,)
    places: Tensor  # (n,)


@dataclass(frozen=True)
class _Bags:
    """What `embedding_bag` sums: entries `indices` of a table, the bags one after another, bag i from `offsets[i]` on."""

    indices: Tensor
    offsets: Tensor


class _Route:
    """Which slots of one stack the rows of a batch use, each with a weight.

    Entry i, of n, is what row `targets[i]` gets of slot `slots[i]`; a row has none, one or several. What the layers need to know
    of that is made when the first of them asks, and kept.

    Args:
        rows: the shares of each row, all of this stack. dtype, device: of the stack.
    """

    def __init__(self, rows: Sequence[Sequence[Share]], device: torch.device, dtype: torch.dtype) -> None:
        self.rows, self._device = len(rows), device
        self._shares = [[(share.slot, share.weight) for share in shares] for shares in rows]
        self._entries = [(row, slot) for row, shares in enumerate(self._shares) for slot, _ in shares]
        targets, weights = [row for row, _ in self._entries], [weight for shares in self._shares for _, weight in shares]
        self.same = self._shares[0] if all(shares == self._shares[0] for shares in self._shares) else None
        self.targets, self.slots = self._tensor(targets), self._tensor([slot for _, slot in self._entries])
        self.weights = None if all(w == 1 for w in weights) else torch.tensor(weights, dtype=dtype, device=device).unsqueeze(1)  # (n, 1)
        self.covers = targets == list(range(self.rows))  # every row is a target once, in order
        self.repeats = len(set(targets)) < len(targets)
        widest = max(sum(slot == one for _, slot in self._entries) for one in {slot for _, slot in self._entries})
        self.is_in_bags = device.type == "cpu" and widest <= MOST_IN_BAGS
        self._down: dict[int, _Bags] = {}
        self._up: dict[tuple[int, ...], tuple[_Bags, Tensor]] = {}

    def _tensor(self, numbers: list[int], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=self._device)

    @cached_property
    def table(self) -> _Table:
        """The rows by slot."""
        by_slot: dict[int, list[int]] = {}
        standing = []
        for row, slot in self._entries:
            mine = by_slot.setdefault(slot, [])
            standing.append(len(mine))
            mine.append(row)
        first, end, width = min(by_slot), max(by_slot) + 1, max(len(mine) for mine in by_slot.values())
        rows = [row for slot in range(first, end) for row in (by_slot.get(slot, []) + [0] * width)[:width]]
        places = [(slot - first) * width + place for (_, slot), place in zip(self._entries, standing, strict=True)]
        return _Table(first, end, width, self._tensor(rows), self._tensor(places))

    def down(self, d_in: int) -> _Bags:
        """A bag for each entry: all rows of its slot, of a table (slots · d_in, …)."""
        if d_in not in self._down:
            ends = torch.arange(len(self._entries), dtype=torch.int32) * d_in
            first = self.slots.to(torch.int32) * d_in
            self._down[d_in] = _Bags((first.unsqueeze(1) + torch.arange(d_in, dtype=torch.int32)).flatten(), ends)
        return self._down[d_in]

    def up(self, owners: tuple[int, ...], layers: int, rank: int) -> tuple[_Bags, Tensor]:
        """A bag for each piece of each row: what its entries have of it, r rows each, of a table (slots · P · r, …).

        Args:
            owners: the layer of each of the P pieces.

        Returns:
            The bags, and where the weight of each of their rows stands among the numbers of A x, (n, layers · r).
        """
        if owners not in self._up:
            mine: list[list[int]] = [[] for _ in range(self.rows)]
            for entry, (row, _) in enumerate(self._entries):
                mine[row].append(entry)
            pairs = [(entry, piece) for entries in mine for piece in range(len(owners)) for entry in entries]
            table = self._tensor([self._entries[entry][1] * len(owners) + piece for entry, piece in pairs], torch.int32)
            low = self._tensor([entry * layers + owners[piece] for entry, piece in pairs])
            sizes = torch.tensor([0] + [len(entries) * rank for entries in mine for _ in owners], dtype=torch.int32)
            places = torch.arange(rank)
            bags = _Bags((table.unsqueeze(1) * rank + places.to(torch.int32)).flatten(), sizes.cumsum(0, dtype=torch.int32)[:-1])
            self._up[owners] = bags, (low.unsqueeze(1) * rank + places).flatten()
        return self._up[owners]


class Routing:
    """Which slots each row of the coming forward pass uses. One object is shared by all layers of a model."""

    def __init__(self) -> None:
        self.routes: dict[int, _Route] = {}  # by class; empty where every row is the base's
        self.version = 0  # another one after each `set`

    def set(self, rows: Sequence[Sequence[Share]], device: torch.device, dtype: torch.dtype) -> None:
        """Route row i of the next batch to the adapters of `rows[i]`; none is the base."""
        self.version += 1
        ranks = {share.rank for shares in rows for share in shares}
        self.routes = {rank: _Route([[s for s in shares if s.rank == rank] for shares in rows], device, dtype) for rank in sorted(ranks)}


class Stack:
    """The slots of one class for the layers of one input.

    The outputs of all layers are cut into P pieces of one width, so that layers of different sizes, such as q, k and v, are one product.

    Attributes:
        a: Aᵀ, (slots, d_in, M·r) for M layers. b: Bᵀ, (slots, P, r, width). owners: the layer of each piece. gains: M tensors
            (slots, d_out) of g − 1, or None where no DoRA was ever installed.
    """

    def __init__(self, slots: int, rank: int, d_in: int, d_outs: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.rank, self.layers = slots, rank, len(d_outs)
        width = math.gcd(*d_outs)
        self.owners = tuple(layer for layer, d_out in enumerate(d_outs) for _ in range(d_out // width))
        self._owners = torch.tensor(self.owners, device=device)
        self.a = torch.zeros(slots, d_in, self.layers * rank, dtype=dtype, device=device)
        self.b = torch.zeros(slots, len(self.owners), rank, width, dtype=dtype, device=device)
        self.gains: list[Tensor] | None = None

    def add(self, x: Tensor, y: Tensor, route: _Route) -> None:
        """Add what the adapters of this class say: x is (N, d_in), y (N, Σ d_out) and holds W x; N is rows, or tokens of one row."""
        if route.is_in_bags and len(x) == route.rows:
            self._add_bags(x, y, route)
        elif route.same is None:
            self._add_mixed(x, y, route)
        else:
            for slot, weight in route.same:
                self._add_one(x, y, slot, weight)

    def _add_bags(self, x: Tensor, y: Tensor, route: _Route) -> None:
        x = x if route.covers else x.index_select(0, route.targets)  # (n, d_in)
        low = _sums(self.a.flatten(0, 1), route.down(x.shape[1]), x.reshape(-1))  # (n, M·r)
        low = low if route.weights is None else low * route.weights
        bags, picked = route.up(self.owners, self.layers, self.rank)
        shares = low.view(-1) if route.covers and len(self.owners) == 1 else low.view(-1).index_select(0, picked)
        y += _sums(self.b.flatten(0, 2), bags, shares).view(y.shape)

    def _add_one(self, x: Tensor, y: Tensor, slot: int, weight: float) -> None:
        low = x @ self.a[slot]  # (N, M·r)
        low = low if weight == 1 else low * weight
        thin = low.view(len(x), self.layers, self.rank).transpose(0, 1)  # (M, N, r)
        high = torch.bmm(self._by_piece(thin, 0), self.b[slot])  # (P, N, width)
        y.view(len(x), len(self.owners), -1).transpose(0, 1).add_(high)

    def _add_mixed(self, x: Tensor, y: Tensor, route: _Route) -> None:
        table = route.table
        chosen, width, pieces = slice(table.first, table.end), table.width, len(self.owners)
        low = torch.bmm(x.index_select(0, table.rows).view(-1, width, x.shape[1]), self.a[chosen])  # (slots, width, M·r)
        thin = self._by_piece(low.view(-1, width, self.layers, self.rank).transpose(1, 2), 1)  # (slots, P, width, r)
        high = torch.bmm(thin.reshape(-1, width, self.rank), self.b[chosen].flatten(0, 1))  # (slots · P, width, piece)
        high = high.view(-1, pieces, width, high.shape[2]).transpose(1, 2)
        said = high.reshape(-1, y.shape[1]).index_select(0, table.places)  # (n, Σ d_out)
        _give(y, said if route.weights is None else said * route.weights, route)

    def _by_piece(self, thin: Tensor, dim: int) -> Tensor:
        """What stands by layer along `dim`, by piece."""
        return thin if len(self.owners) == self.layers else thin.index_select(dim, self._owners)

    def stretch(self, plain: Tensor, y: Tensor, route: _Route) -> None:
        """Add Σ w (g − 1) ∘ W x, where somebody has gains; `plain` is W x, (N, Σ d_out)."""
        if self.gains is None:
            return
        if route.same is not None:
            for slot, weight in route.same:
                y += torch.cat([gain[slot] for gain in self.gains]) * weight * plain
            return
        gains = torch.cat([gain.index_select(0, route.slots) for gain in self.gains], dim=1)  # (n, Σ d_out)
        gains = gains if route.weights is None else gains * route.weights
        y.index_add_(0, route.targets, (gains * plain.index_select(0, route.targets)).to(y.dtype))


def _sums(table: Tensor, bags: _Bags, weights: Tensor) -> Tensor:
    """Σ weight · row over each bag: (bags, columns of the table)."""
    mode_sum = 0
    found: Tensor = torch.embedding_bag(table, bags.indices, bags.offsets, False, mode_sum, False, weights)[0]
    return found


def _give(y: Tensor, said: Tensor, route: _Route) -> None:
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
        new.a[after], new.b[after] = old.a[before], old.b[before]
        if old.gains is not None:
            new.gains = [torch.zeros(slots, d_out, dtype=self.dtype, device=self.device) for d_out in self.d_outs]
            for mine, theirs in zip(new.gains, old.gains, strict=True):
                mine[after] = theirs[before]

    def places(
        self, rank: int, slots: int, slot: int, used: int, pairs: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Where an adapter goes in a slot, what of it goes there, and what must become zero: views, the first two in turns.

        Args:
            rank, slots: of the class, whose stack is made where nothing was ever installed. used: the adapter's own rank. pairs: its
                Aᵀ, (d_in, used), and Bᵀ, (used, d_out), by layer; those of other inputs are passed over.
        """
        there = self._stacks.get(rank)
        if there is None and not pairs.keys() & set(self.names):
            return [], [], []
        stack = there or self._make(rank, slots)
        targets, sources, empty = [], [], []
        for index, name in enumerate(self.names):
            pieces = [piece for piece, owner in enumerate(stack.owners) if owner == index]
            a, b = stack.a[slot, :, index * rank : (index + 1) * rank], stack.b[slot, pieces[0] : pieces[-1] + 1]
            if name in pairs:
                down, up = pairs[name]
                targets += [a[:, :used], b[:, :used]]
                sources += [down, up.view(used, len(pieces), -1).transpose(0, 1)]
                empty += [a[:, used:], b[:, used:]] if used < rank else []
            else:
                empty += [a, b]
        if stack.gains is not None:
            empty += [gain[slot] for gain in stack.gains]
        return targets, sources, empty

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
