"""The bank: which adapters lie in which slots of the resident model.

An adapter is known by its content hash. It is on disk, in the machine's memory (`host`), or in a slot where the model computes with
it. A slot belongs to a class of ranks and carries a generation that every installation raises, so that a request can only ever meet
the weights that it named. The least recently used adapter that nobody uses makes room; slots in use and pinned ones never do.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from studio.chat.host import AdapterSource, HostTier, Loaded
from studio.chat.runner import Runner
from studio.errors import IncompatibleAdapter
from studio.lora.files import PrefixWeights
from studio.lora.serving import AdaptedInput, Routing, Share, rank_class

PINNED = "Every slot for adapters is pinned; unpin one, or raise STUDIO_SLOTS, or STUDIO_SLOTS_MB where they take too much memory."


class BankFull(Exception):
    """Every slot is in use by a running request; the caller waits until one ends."""


@dataclass(frozen=True)
class Part:
    """One adapter in a voice, and its weight, from 0 to 2."""

    source: AdapterSource
    weight: float = 1.0


@dataclass(frozen=True)
class Voice:
    """Who speaks: a weighted sum of adapters; none is the base."""

    parts: tuple[Part, ...] = ()

    @property
    def key(self) -> str:
        """What tells this voice's keys and values from all others'; empty for the base."""
        return "+".join(f"{part.source.sha256}:{part.weight!r}" for part in self.parts)


BASE = Voice()


@dataclass
class _Slot:
    """A place in a stack, and who has it."""

    rank: int
    index: int
    generation: int
    sha256: str
    users: int = 0


@dataclass(frozen=True, eq=False)
class Lease:
    """The slots that a voice has until `release`, as they were when it got them, and its prefix if it has one."""

    slots: tuple[tuple[_Slot, int, float], ...] = ()  # slot, generation, weight
    prefix: PrefixWeights | None = None
    install_ms: float = 0.0


@dataclass
class _Class:
    """The slots of one class of ranks."""

    size: int = 0  # slots that the stacks have
    free: list[int] = field(default_factory=list)


class Bank:
    """Slots for adapters in a model. Owned by the thread that runs the model.

    Args:
        runner: the model. routing: as the runner has it. slots: adapters that may lie in slots at once. budget_bytes: what the
            stacks may take together. host: where adapters come from.
    """

    def __init__(self, runner: Runner, routing: Routing, slots: int, budget_bytes: int, host: HostTier) -> None:
        self.runner, self.routing, self.slots, self.budget_bytes, self.host = runner, routing, slots, budget_bytes, host
        self._inputs: dict[str, AdaptedInput] = {name: one for one in runner.inputs for name in one.names}
        self._resident: OrderedDict[str, _Slot] = OrderedDict()  # least recently used first
        self._classes: dict[int, _Class] = {}
        self._generation = 0
        self._pinned: set[str] = set()
        self._squares: dict[str, Tensor] = {}
        # Growing copies what is there. On the CPU a slot takes memory only once it is written, so that stacks may begin large.
        self._first = 8 if runner.device.type == "cpu" else 1
        self._routed: tuple[int | Lease, ...] = ()  # what the routing says now; nothing once a slot has moved

    def missing(self, voice: Voice) -> list[AdapterSource]:
        """What of a voice lies in no slot; any thread may ask."""
        return [part.source for part in voice.parts if part.source.sha256 not in self._resident]

    def acquire(self, voice: Voice) -> Lease:
        """Slots for a voice, all of which is in slots or in memory; they stay its own until `release`.

        Raises:
            BankFull: try again when a request has ended. IncompatibleAdapter: it does not fit the base's layers.
        """
        if not voice.parts:
            return Lease()
        started = time.perf_counter()
        taken: list[tuple[_Slot, int, float]] = []
        prefix = None
        try:
            for part in voice.parts:
                slot = self._resident.get(part.source.sha256)
                if slot is None:
                    loaded = self.host.want(part.source).result()
                    if loaded.prefix is not None:
                        prefix = _only_prefix(prefix, loaded.prefix, part.weight)
                        continue
                    slot = self._install(part.source.sha256, loaded)
                slot.users += 1
                self._resident.move_to_end(slot.sha256)
                taken.append((slot, slot.generation, part.weight))
        except BaseException:
            self.release(Lease(tuple(taken)))
            raise
        return Lease(tuple(taken), prefix, (time.perf_counter() - started) * 1e3)

    def release(self, lease: Lease) -> None:
        """One user less; the adapters stay in their slots until those are needed."""
        for slot, _, _ in lease.slots:
            slot.users -= 1

    def route(self, leases: Sequence[Lease], tokens: int = 1) -> None:
        """Route row i of the next forward pass to what `leases[i]` holds.

        Args:
            tokens: of each row, where there are several rows; a row alone may have any number.
        """
        if self._routed == (tokens, *leases):
            return
        rows = []
        for lease in leases:
            for slot, generation, _ in lease.slots:
                if slot.generation != generation or self._resident.get(slot.sha256) is not slot:
                    raise RuntimeError("a slot changed hands while it was leased")
            rows += [[Share(slot.rank, slot.index, weight) for slot, _, weight in lease.slots if weight]] * tokens
        one = self.runner.inputs[0]
        self.routing.set(rows, one.device, one.dtype)
        self._routed = (tokens, *leases)

    def pin(self, sha256s: set[str]) -> None:
        """These keep their slots, and their places in memory, once they have them."""
        self._pinned = set(sha256s)
        self.host.pin(self._pinned)

    @property
    def resident(self) -> list[str]:
        """Content hashes of the adapters that are in slots."""
        return list(self._resident)

    def slot_bytes(self) -> int:
        """What the stacks take."""
        return sum(self._bytes_of(rank) * held.size for rank, held in self._classes.items())

    def _bytes_of(self, rank: int) -> int:
        return sum(one.slot_bytes(rank) for one in self.runner.inputs)

    def _install(self, sha256: str, loaded: Loaded) -> _Slot:
        self._check(loaded)
        rank = rank_class(loaded.rank)
        index = self._take(rank)
        try:
            self._fill(rank, index, loaded)
        except BaseException:
            self._classes[rank].free.append(index)
            raise
        self._generation += 1
        slot = self._resident[sha256] = _Slot(rank, index, self._generation, sha256)
        return slot

    def _check(self, loaded: Loaded) -> None:
        for name, (a, b) in loaded.pairs.items():
            if name not in self._inputs:
                raise IncompatibleAdapter(f"The adapter has weights for {name!r}, which is no linear layer of the resident base.")
            one = self._inputs[name]
            got, wanted = (b.shape[1], a.shape[0]), (one.d_outs[one.names.index(name)], one.d_in)
            if got != wanted:
                raise IncompatibleAdapter(f"The adapter's weights for {name!r} are for a layer of {got}; the resident base's is {wanted}.")

    def _take(self, rank: int) -> int:
        """A free slot of a class. Stacks grow while they may; afterwards the least recently used makes room."""
        held = self._classes.setdefault(rank, _Class())
        while not held.free or len(self._resident) >= self.slots:
            size = self._larger(rank, held.size) if len(self._resident) < self.slots else 0
            if size:
                self._resize(rank, size)
            else:
                self._evict(rank)
        held.free.sort(reverse=True)  # the lowest first: a mixed step reads all slots between those in use
        return held.free.pop()

    def _larger(self, rank: int, size: int) -> int:
        """How many slots the class may grow to within the budget; 0 where it may not. One adapter is served in any case."""
        for larger in (min(self.slots, max(self._first, 2 * size)), size + 1):
            fits = self.slot_bytes() + (larger - size) * self._bytes_of(rank) <= self.budget_bytes
            if larger > size and (fits or not self._resident):
                return larger
        return 0

    def _evict(self, rank: int) -> None:
        """Take the slot of the least recently used that nobody uses, of the same class where one is."""
        idle = [slot for slot in self._resident.values() if not slot.users and slot.sha256 not in self._pinned]
        if not idle:
            raise BankFull
        slot = next((slot for slot in idle if slot.rank == rank), idle[0])
        del self._resident[slot.sha256]
        self._classes[slot.rank].free.append(slot.index)
        if slot.rank != rank:
            self._resize(slot.rank, self._classes[slot.rank].size - len(self._classes[slot.rank].free))

    def _resize(self, rank: int, size: int) -> None:
        """Give a class another number of slots, its adapters at the beginning."""
        mine = [slot for slot in self._resident.values() if slot.rank == rank]
        moves = [(slot.index, new) for new, slot in enumerate(mine)]
        for one in self.runner.inputs:
            one.resize(rank, size, moves)
        for slot, (_, new) in zip(mine, moves, strict=True):
            slot.index = new
        self._routed = ()
        held = self._classes[rank]
        held.size, held.free = size, list(range(len(mine), size))

    def _fill(self, rank: int, index: int, loaded: Loaded) -> None:
        """Copy an adapter into a slot, all layers in a few calls."""
        gains = self._gains(loaded)
        pairs = loaded.pairs | {name: (loaded.pairs[name][0], loaded.pairs[name][1] * gain) for name, gain in gains.items()}
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        empty: list[Tensor] = []
        for one in self.runner.inputs:
            for mine, more in zip(
                (targets, sources, empty), one.places(rank, self._classes[rank].size, index, loaded.rank, pairs), strict=True
            ):
                mine += more
        if empty:
            torch._foreach_zero_(empty)
        torch._foreach_copy_(targets, sources)
        for name, gain in gains.items():
            self._inputs[name].set_gain(rank, index, name, gain - 1)

    def _gains(self, loaded: Loaded) -> dict[str, Tensor]:
        """g = m / ‖W + s·B A‖ by row of each layer of a DoRA, (d_out,), float32, from products with W alone (see `DoraLinear`)."""
        gains = {}
        for name, magnitude in loaded.magnitudes.items():
            down, up = (tensor.to(self.runner.device).float() for tensor in loaded.pairs[name])
            cross = (self.runner.product(name, down.T.to(self.runner.dtype)).float() * up).sum(dim=0)  # ⟨wAᵀ, b⟩
            own = ((down.T @ down @ up) * up).sum(dim=0)
            norms = (self._row_squares(name) + 2 * cross + own).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
            gains[name] = (magnitude.float().to(norms.device) / norms).cpu()
        return gains

    def _row_squares(self, name: str) -> Tensor:
        """‖W‖² by row, (d_out,), of a layer, whatever form its weights have: W is what it makes of the unit vectors."""
        if name not in self._squares:
            units = torch.eye(self._inputs[name].d_in, dtype=self.runner.dtype, device=self.runner.device)
            self._squares[name] = self.runner.product(name, units).float().square().sum(dim=0)
        return self._squares[name]


def _only_prefix(there: PrefixWeights | None, prefix: PrefixWeights, weight: float) -> PrefixWeights:
    if there is not None:
        raise IncompatibleAdapter("A blend may hold one prefix adapter, and this one holds two; leave one of them out.")
    if weight != 1:
        raise IncompatibleAdapter(f"A prefix adapter speaks with weight 1 or not at all, and this one has {weight:g}; set it to 1.")
    return prefix
