"""PEFT as the oracle of adapters: our files on its side, its parameters beside ours."""

import warnings
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from studio.lora.adapter import Attached
from studio.lora.files import AdapterWeights, encode_adapter

TOKENS = torch.randint(0, 600, (2, 17), generator=torch.Generator().manual_seed(1))
INNER = "base_model.model."


def perturb(attached: Attached, seed: int = 3) -> None:
    """Move what is trained away from its start: an adapter whose B is zero changes nothing and proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in attached.parameters.items():
        size = 0.1 if name.endswith((".lora_B", "prefix")) else 0.02
        parameter.data += size * torch.randn(parameter.shape, generator=generator)


def write(folder: Path, weights: AdapterWeights, dropout: float = 0.0) -> Path:
    """Write an adapter as the trainer does."""
    folder.mkdir(parents=True)
    for name, data in encode_adapter(weights, "tiny", dropout).items():
        (folder / name).write_bytes(data)
    return folder


def load_in_peft(model: nn.Module, folder: Path) -> PeftModel:
    """Our files in PEFT, which must find all that it looks for, and nothing more."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # so it says that it misses a weight, or changes an option
        return PeftModel.from_pretrained(model, str(folder)).eval()


def adapted_by(theirs: PeftModel) -> set[str]:
    """The layers that PEFT has wrapped, by the base's names."""
    return {n.removeprefix(INNER) for n, module in theirs.named_modules() if hasattr(module, "lora_A") and n}


def copy_into(theirs: PeftModel, attached: Attached) -> None:
    """Give PEFT's parameters our numbers."""
    for name, parameter in trained_by(theirs).items():
        assert parameter.shape == attached.parameters[name].shape
        parameter.data.copy_(attached.parameters[name].data)


def trained_by(theirs: PeftModel) -> dict[str, nn.Parameter]:
    """PEFT's parameters by our names."""
    found = {}
    for name, parameter in theirs.named_parameters():
        layer, _, rest = name.removeprefix(INNER).rpartition(".lora_")
        if layer:
            found[f"{layer}.{'magnitude' if rest.startswith('magnitude') else 'lora_' + rest[0]}"] = parameter
    return found


def assert_same_gradients(attached: Attached, theirs: PeftModel, ours: nn.Module, tolerance: float = 1e-5) -> None:
    """The loss and every gradient equal PEFT's, and no gradient is zero everywhere."""
    mine, other = ours(TOKENS, labels=TOKENS).loss, theirs(TOKENS, labels=TOKENS).loss
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    mine.backward()
    other.backward()
    trained = trained_by(theirs)
    assert set(trained) == set(attached.parameters) and trained
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, trained[name].grad, rtol=tolerance, atol=tolerance)
