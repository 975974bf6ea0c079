"""What the chat needs of whoever computes its answers, and which of them the settings choose.

engine      the studio's own, in this process (`engine.py`)
vllm        a vLLM server, over HTTP (`vllm.py`)
stateless   a process for each answer, as ZeroGPU wants it (`stateless.py`)
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from storage.records import BaseRecord
from studio.chat.bank import BASE, Voice
from studio.chat.engine import Capacity, Engine
from studio.chat.host import AdapterSource
from studio.chat.sampling import Sampling
from studio.chat.scoring import Scoring
from studio.chat.ticket import Ticket
from studio.datasets.rendering import Example
from studio.settings import Settings


class Backend(Protocol):
    """Answers requests on one base."""

    @property
    def tokenizer(self) -> Any:
        """The base's own, from its folder."""

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may have together."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the base knows: 0 to one less."""

    @property
    def is_local(self) -> bool:
        """Whether it takes this machine's memory, which trainings need too."""

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered or waits for it."""

    def submit(
        self, token_ids: list[int], sampling: Sampling, voice: Voice = BASE, user: str = "", wants_distribution: bool = False
    ) -> Ticket:
        """Queue a request for the tokens that follow `token_ids`.

        Args:
            voice: who speaks; the base if left out. user: for fairness. wants_distribution: see `Ticket`.

        Raises:
            ContextTooLong: prompt and reply do not fit the context. InvalidInput: this backend cannot do what is asked.
            BaseUnavailable: it is closed.
        """

    def score(self, rows: Sequence[Example], voice: Voice = BASE) -> Scoring:
        """Queue rows whose losses are asked for.

        Raises:
            ContextTooLong: a row does not fit the context. InvalidInput: this backend cannot. BaseUnavailable: it is closed.
        """

    def pin(self, sha256s: set[str]) -> None:
        """Adapters that keep their places once they have them."""

    def prepare(self, source: AdapterSource) -> bool:
        """Have an adapter at hand, so that the first who asks it does not wait; False where there is no place for it.

        Raises:
            StudioError: it cannot be read, or not be served.
        """

    def close(self) -> None:
        """End; running and waiting requests end with a plain error."""


Load = Callable[[BaseRecord, Path], Backend]


def backend_of(settings: Settings) -> Load:
    """What puts the backend that the settings name on a base, given its record and its folder."""
    makers: dict[str, Callable[[Settings, BaseRecord, Path], Backend]] = {"engine": _engine, "vllm": _vllm, "stateless": _stateless}
    return partial(makers[settings.backend], settings)


def load_engine(path: Path, quantization: str, capacity: Capacity) -> Engine:
    """An engine on a base."""
    from studio.bases.loading import load_model, load_tokenizer

    def load() -> tuple[Any, Any]:
        return load_model(path, quantization), load_tokenizer(path)

    return Engine(load, capacity)


def capacity_of(settings: Settings) -> Capacity:
    """How much the chat may hold."""
    return Capacity(
        slots=settings.slots,
        slots_mb=settings.slots_mb,
        max_batch=settings.max_batch,
        host_mb=settings.adapters_mb,
        kv_mb=settings.kept_mb,
        packed=settings.precision == "fast",
    )


def _engine(settings: Settings, base: BaseRecord, path: Path) -> Backend:
    del base
    return load_engine(path, settings.quantization, capacity_of(settings))


def _vllm(settings: Settings, base: BaseRecord, path: Path) -> Backend:
    from studio.chat.vllm import Folders, VllmBackend
    from studio.chat.vllm_server import VllmServer

    server = VllmServer(settings.vllm_url, settings.vllm_key.get_secret_value())
    return VllmBackend(server, base, path, settings.vllm_model, Folders(settings.home, settings.vllm_home), settings.slots)


def _stateless(settings: Settings, base: BaseRecord, path: Path) -> Backend:
    from studio.chat.stateless import StatelessBackend

    del base
    return StatelessBackend(path, settings.quantization, capacity_of(settings))
