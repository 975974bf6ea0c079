"""What identifies a base: SHA-256 over what its weights are and how they are wired, however the files are cut."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from studio.errors import BaseUnavailable

# Keys of config.json that say where a model came from or what wrote it, not what it computes.
VOLATILE = frozenset({"_name_or_path", "_model_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"})


def fingerprint(folder: Path, name: str) -> str:
    """Hash of the configuration and of every tensor's name, dtype, shape and bytes, in the order of names.

    Args:
        folder: where config.json and the safetensors are. name: what the base is called where it cannot be read.

    Raises:
        BaseUnavailable: config.json or the weights are missing or broken.
    """
    digest = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json is no object")
        kept = {key: value for key, value in config.items() if key not in VOLATILE}
        digest.update(json.dumps(kept, sort_keys=True).encode())
        places = {key: shard for shard in sorted(folder.glob("*.safetensors")) for key in _keys(shard)}
        if not places:
            raise BaseUnavailable(f"The base {name!r} has no safetensors weights; other formats are not read.")
        handles = {shard: safe_open(str(shard), framework="pt") for shard in set(places.values())}
        for key in sorted(places):
            _add_tensor(digest, key, handles[places[key]].get_tensor(key))  # type: ignore[no-untyped-call]
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseUnavailable(f"The base {name!r} cannot be read: {str(error).rstrip('.')}. Mend its files and fetch it again.") from None
    return digest.hexdigest()


def _keys(shard: Path) -> list[str]:
    with safe_open(str(shard), framework="pt") as file:
        return list(file.keys())


def _add_tensor(digest: "hashlib._Hash", key: str, tensor: object) -> None:
    import torch

    assert isinstance(tensor, torch.Tensor)
    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
