"""What the chat asks of a vLLM server, over HTTP: its models, adapters loaded and unloaded, completions as they come.

The addresses and their answers are those of https://docs.vllm.ai/en/latest/features/lora/ (dynamically serving LoRA adapters) and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server/ (the completions API with its extra parameters). Errors are
`{"error": {"message": …}}`, in older versions the inner object alone, `{"error": "Unauthorized"}` where the key is wrong, and
`{"detail": …}` where there is no such address. The key is never told.
"""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from studio.errors import BaseUnavailable, InvalidInput

CONNECT_S, ASK_S = 5.0, 10.0
LOAD_S = 120.0  # reading an adapter, where the engine is busy meanwhile
SILENCE_S = 120.0  # between two tokens, and before the first one: a busy server lets requests wait
REFUSED = (401, 403)
GONE = (404, 405)
MOST_TOLD = 300  # characters of a server's own words
DATA, DONE = b"data:", b"[DONE]"


class NotLoaded(Exception):
    """The server does not know the model that was asked for, as after a restart."""


class VllmServer:
    """The endpoints of one server. Each call raises BaseUnavailable where it does not answer or does not take us.

    Args:
        url: such as http://10.0.0.5:8000, with or without /v1. key: its --api-key; empty where it has none.
    """

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self.name = f"The vLLM server at {parts.hostname}:{parts.port}" if parts.port else f"The vLLM server at {parts.hostname}"
        self._options: dict[str, Any] = {
            "base_url": url.rstrip("/").removesuffix("/v1"),
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(ASK_S, connect=CONNECT_S),
        }

    def models(self) -> list[dict[str, Any]]:
        """The cards of what it serves: `id`, `root`, `parent` and, of a base, `max_model_len`."""
        with self._client() as client:
            answer = self._checked(self._sent(client, "GET", "/v1/models"))
        try:
            return [card for card in answer.json()["data"] if isinstance(card, dict)]
        except (ValueError, KeyError, TypeError):
            raise BaseUnavailable(f"{self.name} does not answer as vLLM does; set STUDIO_VLLM_URL to one.") from None

    def check_loading(self) -> None:
        """Make sure that adapters may be loaded: asked for none, it says that one is missing, or that there is no such address.

        Raises:
            BaseUnavailable: they may not.
        """
        with self._client() as client:
            answer = self._sent(client, "POST", "/v1/load_lora_adapter", json={"lora_name": "", "lora_path": ""})
        if answer.status_code in GONE:
            raise self._no_loading()
        if answer.status_code in REFUSED or answer.status_code >= 500:
            self._checked(answer)

    def client(self) -> httpx.AsyncClient:
        """For `load`, `unload` and `complete`; of one event loop."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        return httpx.AsyncClient(limits=limits, **self._options)

    async def load(self, client: httpx.AsyncClient, name: str, path: str) -> None:
        """Load an adapter under a name; one that is loaded under it already is left as it is.

        Raises:
            InvalidInput: it cannot be served, for a reason that the server tells.
        """
        answer = await self._asked(client, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, LOAD_S)
        said = _words(answer)
        if answer.status_code == 200 or "already been loaded" in said:
            return
        if "No adapter found" in said:
            raise BaseUnavailable(
                f"{self.name} does not find the adapter's files; let it read the studio's home, and set STUDIO_VLLM_HOME to its path there."
            )
        if answer.status_code in GONE:
            raise self._no_loading()
        if answer.status_code in REFUSED:
            self._checked(answer)
        hint = "start it with a higher --max-lora-rank" if "max_lora_rank" in said else "set STUDIO_BACKEND=engine to use it"
        hint = "start it with --enable-lora" if "not enabled" in said else hint
        raise InvalidInput(f"{self.name} cannot serve the adapter ({said or answer.status_code}); {hint}.")

    async def unload(self, client: httpx.AsyncClient, name: str) -> None:
        """Forget an adapter; one that is not there is forgotten already."""
        await self._asked(client, "/v1/unload_lora_adapter", {"lora_name": name}, ASK_S)

    async def complete(self, client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed completion, the last one with a `finish_reason` or `usage`.

        Raises:
            NotLoaded. InvalidInput: the server refuses the request. BaseUnavailable: also where the stream breaks off.
        """
        begun = False
        try:
            timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
            async with client.stream("POST", "/v1/completions", json=body, timeout=timeout) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self._refuse(answer)
                async for data in _events(answer):
                    if data == DONE:
                        return
                    begun = True
                    yield self._chunk(data)
        except httpx.ReadTimeout:
            raise BaseUnavailable(f"{self.name} said nothing for {SILENCE_S:.0f} seconds; send it again.") from None
        except (httpx.HTTPError, OSError):
            raise self.lost() if begun else self._away() from None
        raise self.lost()

    def lost(self) -> BaseUnavailable:
        """What is said where a reply breaks off."""
        return BaseUnavailable(f"{self.name} broke the connection off; send it again.")

    def _chunk(self, data: bytes) -> dict[str, Any]:
        try:
            chunk: dict[str, Any] = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise self.lost() from None
        if "error" in chunk or chunk.get("object") == "error":
            raise BaseUnavailable(f"{self.name} broke the reply off ({_message(chunk)}); send it again.")
        return chunk

    def _refuse(self, answer: httpx.Response) -> None:
        if answer.status_code == 404:
            raise NotLoaded
        self._checked(answer)
        raise InvalidInput(f"{self.name} refuses the request ({_words(answer) or answer.status_code}).")

    def _client(self) -> httpx.Client:
        return httpx.Client(**self._options)

    def _sent(self, client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return client.request(method, path, **more)
        except (httpx.HTTPError, OSError):
            raise self._away() from None

    async def _asked(self, client: httpx.AsyncClient, path: str, body: dict[str, Any], timeout_s: float) -> httpx.Response:
        try:
            return await client.post(path, json=body, timeout=httpx.Timeout(timeout_s, connect=CONNECT_S))
        except (httpx.HTTPError, OSError):
            raise self._away() from None

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code in REFUSED:
            raise BaseUnavailable(f"{self.name} refuses the key; set STUDIO_VLLM_KEY to its --api-key.")
        if answer.status_code >= 500:
            raise BaseUnavailable(f"{self.name} answers with an error ({answer.status_code}); its log says more.")
        if answer.status_code in GONE:
            raise BaseUnavailable(f"{self.name} does not answer as vLLM does; set STUDIO_VLLM_URL to one.")
        return answer

    def _away(self) -> BaseUnavailable:
        return BaseUnavailable(f"{self.name} does not answer; start it, or mend STUDIO_VLLM_URL.")

    def _no_loading(self) -> BaseUnavailable:
        return BaseUnavailable(
            f"{self.name} does not let adapters be loaded; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        )


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The data of server-sent events. They end at line feeds alone: httpx's own lines end at more, which may stand in a text."""
    rest = b""
    async for block in answer.aiter_bytes():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(DATA):
                yield line[len(DATA) :].strip()


def _words(answer: httpx.Response) -> str:
    """What a server says of an error, short; empty where it says nothing that can be read."""
    try:
        body = answer.json()
    except ValueError:
        return ""
    return _message(body) if isinstance(body, dict) else ""


def _message(body: dict[str, Any]) -> str:
    error = body.get("error", body)
    said = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
    text = " ".join(str(said).split())
    return (text[:MOST_TOLD] + "…" if len(text) > MOST_TOLD else text).rstrip(".")
