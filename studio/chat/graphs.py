"""Decoding on a GPU without the cost of starting its kernels one by one: a step that comes again and again is recorded as a CUDA graph.

A recorded step reads and writes where it did when it was recorded. What changes from step to step (the newest tokens, how long the
rows are) therefore lies in tensors of its own; what it takes for granted (whose rows they are, in which slots and buffers) is its key,
and another key is another recording. A recording is held to the step as it is computed otherwise before it is used.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from studio.chat.kv import KvBatch
from studio.chat.runner import LeanRunner, Runner
from studio.lora.serving import AdaptedInput

log = logging.getLogger(__name__)
STEADY = 16  # steps with one key before it is recorded, which takes about as long as some steps do
MAX_ERROR = 0.02  # of a recorded step's logits, relative; attention over more columns sums in another order

# Records what a function does on the device: gives what does it again, and the tensor in which the result then lies.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def cuda_capture(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record with CUDA."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads go on with what they do
        result = step()
    return graph.replay, result


class _Recording:
    """One step for given rows, buffers and routes."""

    def __init__(self, runner: LeanRunner, kv: KvBatch, capture: Capture) -> None:
        device = runner.device
        self.token_ids = torch.zeros(kv.rows, 1, dtype=torch.long, device=device)
        self.lengths = torch.zeros(kv.rows, dtype=torch.long, device=device)
        self.end = torch.zeros(1, dtype=torch.long, device=device)
        buffers = kv.buffers()
        columns = torch.arange(buffers[0][0].shape[2], device=device)

        def write(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            mine = buffers[layer]
            for there, new in zip(mine, (keys, values), strict=True):
                there.index_copy_(2, self.end, new)
            return mine

        def step() -> Tensor:
            seen = (columns <= self.end) & (columns >= (self.end - self.lengths).unsqueeze(1))  # (rows, columns)
            mask = torch.zeros(seen.shape, dtype=runner.dtype, device=device).masked_fill_(~seen, float("-inf"))
            return runner.compute(self.token_ids, self.lengths.unsqueeze(1), mask[:, None, None, :], write)

        self.replay, self.result = capture(step)

    def __call__(self, token_ids: Tensor, kv: KvBatch) -> Tensor:
        self.token_ids.copy_(token_ids)
        self.lengths.copy_(torch.tensor(kv.lengths))
        self.end.fill_(kv.end)
        self.replay()
        return self.result.clone()


class GraphRunner:
    """A `Runner` that records the steps of another.

    Args:
        inner: what computes. capture: see `Capture`.
    """

    def __init__(self, inner: LeanRunner, capture: Capture = cuda_capture) -> None:
        self.inner, self.device, self.dtype = inner, inner.device, inner.dtype
        self.inputs: list[AdaptedInput] = inner.inputs
        self._capture: Capture | None = capture
        self._key: tuple[int, ...] = ()
        self._seen = 0
        self._recording: _Recording | None = None

    def forward(self, token_ids: Tensor, kv: KvBatch, wanted: Tensor | None = None) -> Tensor:
        """As of `Runner`."""
        if token_ids.shape[1] > 1 or self._capture is None or wanted is not None:
            return self.inner.forward(token_ids, kv, wanted)
        kv.reserve(1)
        key = (self.inner.routing.version, kv.buffers_id, kv.rows)
        if key != self._key:
            self._key, self._seen, self._recording = key, 0, None
        self._seen += 1
        if self._recording is not None:
            return self._recording(token_ids, kv)
        logits = self.inner.forward(token_ids, kv)
        if self._seen == STEADY:
            self._record(token_ids, kv, logits)
        return logits

    def product(self, name: str, x: Tensor) -> Tensor:
        """As of `Runner`."""
        return self.inner.product(name, x)

    def tensors(self) -> dict[str, Tensor]:
        """As of `Runner`."""
        return self.inner.tensors()

    def _record(self, token_ids: Tensor, kv: KvBatch, wanted: Tensor) -> None:
        """Record this step, and try it: it writes what was just written."""
        assert self._capture is not None
        try:
            recording = _Recording(self.inner, kv, self._capture)
            error = float((recording(token_ids, kv).float() - wanted.float()).norm() / wanted.float().norm())
        except RuntimeError as trouble:  # a kernel that cannot be recorded, or no memory for a second set of activations
            log.warning("Steps cannot be recorded on this base (%s); they are started kernel by kernel.", trouble)
            self._capture = None
            return
        if error <= MAX_ERROR:
            self._recording = recording
        elif bool(torch.isfinite(wanted).all()):  # else it is one row's numbers, and says nothing of the recording
            log.warning("A recorded step errs by %.3f on this base; steps are started kernel by kernel.", error)
            self._capture = None


def with_graphs(runner: Runner) -> Runner:
    """The runner, with its steps recorded where that can be done and saves anything."""
    return GraphRunner(runner) if isinstance(runner, LeanRunner) and runner.device.type == "cuda" else runner
