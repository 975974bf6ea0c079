"""How long a training takes, told before it starts."""

import time
from pathlib import Path

import torch

from studio.bases.loading import empty_model
from studio.lora.injection import linear_layers
from studio.lora.linear import shape

# What the trainer reaches of the machine's own rate of matrix products: measured on two CPU cores, 0.42 to 0.52.
REACHED = 0.45
PRODUCTS = 4  # operations a token and weight: multiply and add, in the forward pass and for the gradient of the input
SIDE, TRIED_S = 1024, 0.3


def machine_tokens_per_s(base: Path) -> float:
    """Tokens that this machine may train in a second on a base, from its matrix products at this moment.

    Not run on a GPU.

    Raises:
        BaseUnavailable: the base's config cannot be read.
    """
    model = empty_model(base)
    weights = sum(d_out * d_in for d_out, d_in in map(shape, linear_layers(model).values()))
    text = model.config.get_text_config()
    head = int(text.vocab_size) * int(text.hidden_size)
    return REACHED * _products_per_s() / (PRODUCTS * (weights + head))


def _products_per_s() -> float:
    """Multiplications and additions a second of bfloat16 matrices."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    (a @ b).sum().item()  # kernels are chosen at the first call
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < TRIED_S:
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best
