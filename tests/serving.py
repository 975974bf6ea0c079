"""The HTTP API on a tiny base with some adapters, served by uvicorn in this process as `launch` would serve it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import uvicorn
from openai import OpenAI
from starlette.applications import Starlette
from transformers import AutoModelForCausalLM

from storage.records import AdapterRecord
from studio.api.access import Access
from studio.api.keys import Keys
from studio.api.routes import routes
from studio.chat.engine import Engine
from studio.lora.files import AdapterWeights, adapter_sha256, encode_adapter
from studio.lora.injection import linear_layers
from studio.services import Studio
from tests.browser.running import free_port

VOICES = {"wizard": 4, "pirate": 8, "Bird of 2 words": 16}  # ranks


def add_adapters(studio: Studio) -> None:
    """Adapters that change every answer, as if they had been trained."""
    base = studio.default_base()
    layers = linear_layers(AutoModelForCausalLM.from_pretrained(str(studio.bases.path(base))))
    for seed, (name, rank) in enumerate(VOICES.items(), 1):
        generator = torch.Generator().manual_seed(seed)
        pairs = {
            layer: (
                torch.randn(rank, m.in_features, generator=generator) * 0.1,
                torch.randn(m.out_features, rank, generator=generator) * 0.5,
            )
            for layer, m in layers.items()
        }
        folder = studio.adapters.folder / f"id{seed}"
        folder.mkdir()
        for file, content in encode_adapter(AdapterWeights(rank, float(rank), False, pairs), base.name, 0.0).items():
            (folder / file).write_bytes(content)
        sha = adapter_sha256(folder)
        lineage = ("d", "h" * 64, "j", rank, 10, {"rank": rank}, {}, "0", 0, float(seed))
        studio.adapters.records.add(AdapterRecord(f"id{seed}", name, sha, base.id, base.fingerprint, *lineage))


class Served:
    """A server, its studio and its keys."""

    def __init__(self, studio: Studio, url: str, access: Access) -> None:
        self.studio, self.url, self.keys = studio, url, access.keys

    def client(self, key: str = "none") -> OpenAI:
        """The official client; nothing is tried again."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    @property
    def engine(self) -> Engine:
        backend = self.studio.chat.make_resident(self.studio.default_base())
        assert isinstance(backend, Engine)
        return backend


@contextlib.contextmanager
def serving(studio: Studio, host: str = "127.0.0.1", is_shared: bool = False) -> Iterator[Served]:
    """Serve the routes; `host` is what the door believes to listen on."""
    access = Access(Keys(studio.api_keys, secret=studio.settings.api_key.get_secret_value()), host, is_shared)
    port = free_port()
    config = uvicorn.Config(Starlette(routes=routes(studio, access)), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Served(studio, f"http://127.0.0.1:{port}", access)
    server.should_exit = True
    thread.join()


def tiny_files(studio: Studio) -> Path:
    """The folder of the resident base."""
    return studio.bases.path(studio.default_base())
