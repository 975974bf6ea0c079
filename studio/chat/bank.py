"""The bank: which adapter lies in which slot of the resident model.

A slot is known by its adapter's content hash, so a request can only ever meet the weights that it named. The least
recently used adapter that nobody uses makes room; the base's slot is never touched.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from studio.errors import IncompatibleAdapter
from studio.lora.files import AdapterWeights
from studio.lora.frozen import replace_module
from studio.lora.injection import linear_layers
from studio.lora.linear import shape
from studio.lora.serving import BASE_SLOT, BankLinear, Routing


class BankFull(Exception):
    """Every slot is in use by a running request; the caller waits until one ends."""


class Bank:
    """Slots for adapters in a model. Owned by the thread that runs the model.

    Args:
        model: its linear layers are wrapped. slots: adapters that fit at once.
    """

    def __init__(self, model: Any, slots: int) -> None:
        self.device = model.device
        # On the CPU a product with so thin a matrix is four times as fast in float32 as in bf16.
        self.dtype = torch.float32 if self.device.type == "cpu" else model.dtype
        self.routing = Routing()
        self.layers = {name: BankLinear(layer, self.routing, slots + 1) for name, layer in linear_layers(model).items()}
        self._shapes = {name: shape(layer.base) for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            replace_module(model, name, layer)
        self._free = list(range(slots, BASE_SLOT, -1))
        self._resident: OrderedDict[str, int] = OrderedDict()  # content hash → slot, least recently used first
        self._users: dict[str, int] = {}

    def acquire(self, sha256: str, load: Callable[[], AdapterWeights]) -> tuple[int, float]:
        """The adapter's slot, which stays its own until `release`, and the milliseconds that installing it took.

        Raises:
            BankFull: try again when a request has ended. IncompatibleAdapter: it does not fit the base's layers; no
                slot has changed. StudioError: whatever `load` raises.
        """
        started = time.perf_counter()
        slot = self._resident.get(sha256)
        if slot is None:
            slot = self._take_slot()
            try:
                self._install(slot, load())
            except BaseException:
                self._clear(slot)
                self._free.append(slot)
                raise
            self._resident[sha256] = slot
        self._resident.move_to_end(sha256)
        self._users[sha256] = self._users.get(sha256, 0) + 1
        return slot, (time.perf_counter() - started) * 1e3

    def release(self, sha256: str) -> None:
        """One user less; the adapter stays resident until its slot is needed."""
        self._users[sha256] -= 1
        if self._users[sha256] == 0:
            del self._users[sha256]

    def route(self, slots: list[int]) -> None:
        """Route row i of the next forward pass to `slots[i]`."""
        self.routing.set(slots, self.device)

    @property
    def resident(self) -> list[str]:
        """Content hashes of the adapters that are in slots."""
        return list(self._resident)

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        idle = next((sha for sha in self._resident if sha not in self._users), None)
        if idle is None:
            raise BankFull
        slot = self._resident.pop(idle)
        self._clear(slot)
        return slot

    def _install(self, slot: int, weights: AdapterWeights) -> None:
        if weights.kind != "lora":
            kind = "DoRA" if weights.kind == "dora" else weights.kind
            raise IncompatibleAdapter(
                f"The adapter is a {kind} adapter; the chat serves LoRA adapters so far. Export it and use it with PEFT."
            )
        for name, (a, b) in weights.pairs.items():
            if name not in self.layers:
                raise IncompatibleAdapter(f"The adapter has weights for {name!r}, which is no linear layer of the resident base.")
            if (b.shape[0], a.shape[1]) != self._shapes[name]:
                got, wanted = (b.shape[0], a.shape[1]), self._shapes[name]
                raise IncompatibleAdapter(f"The adapter's weights for {name!r} are for a layer of {got}; the resident base's is {wanted}.")
        for name, (a, b) in weights.pairs.items():
            self.layers[name].install(slot, a, b * weights.scale, self.dtype, self.device)

    def _clear(self, slot: int) -> None:
        for layer in self.layers.values():
            layer.clear(slot)
