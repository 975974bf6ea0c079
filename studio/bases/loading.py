"""Load a base from its folder, quantized or not, on CUDA where there is CUDA.

Only safetensors are read and no code of a repository is run.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from studio.errors import BaseUnavailable
from studio.settings import on_zerogpu

QUANTIZATIONS = ("nf4", "fp4", "int8", "bf16", "fp32")
FOUR_BIT = ("nf4", "fp4")


_FIRST_IMPORT = threading.Lock()


def import_transformers() -> None:
    """Import the package, one thread at a time: a thread that comes meanwhile would not find its names."""
    with _FIRST_IMPORT:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def device_name() -> str:
    """ "cuda" or "cpu". A Space on ZeroGPU only says that it has CUDA; its own process computes on the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() and not on_zerogpu() else "cpu"


def load_model(path: Path, quantization: str, name: str = "", device: Any = None) -> Any:
    """A causal language model in eval mode with frozen weights.

    Args:
        path: a folder with config.json and safetensors. quantization: nf4 or fp4 (double quantization, bf16
            compute), int8 by row, bf16 or fp32. name: what the base is called where it cannot be loaded; the folder's where left out.
            device: where the weights go, a name or a `torch.device`; CUDA where there is CUDA if left out.

    Raises:
        BaseUnavailable: the folder is incomplete or the architecture is unknown.
    """
    import_transformers()
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is an error here, told in one sentence
    # It warns about an optional kernel package that is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = torch.float32 if quantization == "fp32" else torch.bfloat16
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            quantization_config=_quantization_config(quantization),
            device_map=device_name() if device is None else device,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise _refusal(name or path.name, _why(error, path)) from None
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            raise
        raise _refusal(name or path.name, "its weights have other shapes than its config.json says") from None
    if info["missing_keys"]:  # transformers would go on with random numbers in their place
        raise _refusal(name or path.name, f"its files lack the weights {', '.join(sorted(info['missing_keys'])[:3])}")
    return model.eval().requires_grad_(False)


def load_tokenizer(path: Path, name: str = "") -> Any:
    """The tokenizer of a base.

    Raises:
        BaseUnavailable: its files are missing or broken.
    """
    import_transformers()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        why = _why(error, path)
        raise BaseUnavailable(
            f"The tokenizer of the base {name or path.name!r} cannot be loaded: {why}. Mend its files and fetch it again."
        ) from None


def _quantization_config(quantization: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if quantization in FOUR_BIT:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None


def _refusal(name: str, why: str) -> BaseUnavailable:
    return BaseUnavailable(f"The base {name!r} cannot be loaded: {why}. Mend its files and fetch it again.")


def _why(error: Exception, path: Path) -> str:
    """The first line of an error, short, and without the path of the studio's own folder."""
    text = (str(error).splitlines() or [type(error).__name__])[0].replace(str(path), path.name)
    return text[:200] + "…" if len(text) > 200 else text.rstrip(" .:")


def empty_model(path: Path) -> Any:
    """The model that a base's config describes, with shapes but no weights: cheap, and without reading its files.

    Raises:
        BaseUnavailable: the config is broken or the architecture is unknown.
    """
    import torch

    import_transformers()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        # In torch's own default type: building in another one changes that default for every thread meanwhile.
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise _refusal(path.name, _why(error, path)) from None
