"""Load a base from its folder, quantized or not, on CUDA where there is CUDA.

Only safetensors are read and no code of a repository is run.
"""

import logging
from pathlib import Path
from typing import Any

from studio.errors import BaseUnavailable

QUANTIZATIONS = ("nf4", "int8", "bf16", "fp32")


def device_name() -> str:
    """ "cuda" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(path: Path, quantization: str) -> Any:
    """A causal language model in eval mode with frozen weights.

    Args:
        path: a folder with config.json and safetensors. quantization: nf4 (double quantization, bf16 compute),
            int8 by row, bf16 or fp32.

    Raises:
        BaseUnavailable: the folder is incomplete or the architecture is unknown.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    # It warns about an optional kernel package that is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = torch.float32 if quantization == "fp32" else torch.bfloat16
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            quantization_config=_quantization_config(quantization),
            device_map=device_name(),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseUnavailable(f"The base in {path.name!r} cannot be loaded: {_first_line(error)}. Fetch it again.") from None
    return model.eval().requires_grad_(False)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a base.

    Raises:
        BaseUnavailable: its files are missing or broken.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseUnavailable(f"The tokenizer of the base in {path.name!r} cannot be loaded: {_first_line(error)}.") from None


def _quantization_config(quantization: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
