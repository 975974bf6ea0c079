"""Checkpoints: all that the next step depends on, written complete or not at all, as safetensors and JSON.

A training that goes on from one ends, on the CPU, with the same bits as one that was never stopped. Beside it lies the adapter as it
stood then, in PEFT's format, so that one can talk to it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from storage import files
from studio.training.progress import STEP, step_folder

TENSORS, STATE = "tensors.safetensors", "state.json"
NOTHING: Mapping[str, bytes] = MappingProxyType({})
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Named tensors, and everything else as JSON values."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one job.

    Args:
        folder: need not exist. identity: what the job trains on and how; a checkpoint of another identity is not taken
            up. keep: how many stay.
    """

    def __init__(self, folder: Path, identity: str, keep: int) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep

    def save(self, snapshot: Snapshot, adapter: Mapping[str, bytes] = NOTHING) -> None:
        """Write a checkpoint, then remove those that are more than `keep`.

        Args:
            adapter: files that lie beside it, by name.

        Raises:
            OSError: for example a full disk; the earlier checkpoints are untouched.
        """
        target = self.folder / step_folder(snapshot.step)
        for unusable in self._folders():
            if unusable.name >= target.name:  # or the training would have gone on from there
                files.remove_folder(unusable)
        with files.publish_folder(target) as partial:
            try:
                save_file({name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}, partial / TENSORS)
            except SafetensorError as error:
                raise OSError(str(error).rpartition("I/O error: ")[2]) from None
            (partial / STATE).write_text(json.dumps({"identity": self.identity, "step": snapshot.step, **snapshot.state}))
            for name, data in adapter.items():
                (partial / name).write_bytes(data)
        for old in self._folders()[self.keep :]:
            files.remove_folder(old)

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that can be read and belongs to this job, or None."""
        for folder in self._folders():
            try:
                state = json.loads((folder / STATE).read_text())
                if state.pop("identity") == self.identity:
                    return Snapshot(state.pop("step"), load_file(folder / TENSORS), state)
                log.warning("The checkpoint %s is of another configuration and is not used.", folder.name)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                log.warning("The checkpoint %s cannot be read (%s); an older one is tried.", folder.name, error)
        return None

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob(f"{STEP}*"), reverse=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's moments as named tensors, and what of its state is no tensor."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            (tensors if isinstance(value, Tensor) else plain)[f"optimizer.{index}.{key}"] = value
    return tensors, plain


def unpack_optimizer(optimizer: torch.optim.Optimizer, values: Mapping[str, Any]) -> None:
    """The other way: give an optimizer the moments among `values`, a mix of tensors and plain values."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if head == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def pack_random() -> dict[str, Tensor]:
    """The states of torch's random generators."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def unpack_random(tensors: Mapping[str, Tensor]) -> None:
    """The other way."""
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
