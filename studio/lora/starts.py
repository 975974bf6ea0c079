"""Where A and B begin: at random, at the main directions of W (PiSSA), or at what quantization lost (LoftQ).

None of them touches W, which other adapters share.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RandomInit = Literal["kaiming", "gaussian"]
Init = Literal["kaiming", "gaussian", "pissa", "loftq"]
EXACT_UP_TO = 128  # a matrix whose shorter side is no longer is decomposed exactly
OVERSAMPLING, POWER_ITERATIONS = 8, 4


@dataclass(frozen=True)
class Start:
    """A at the start, (r, d_in), and B, (d_out, r), float32.

    `removed` says that the layer takes `s · B A` of the start away again, so that training begins at the base.
    """

    a: Tensor
    b: Tensor
    removed: bool = False


def random_start(d_out: int, d_in: int, rank: int, init: RandomInit, generator: torch.Generator) -> Start:
    """A random, B zero: training begins at the base to the bit.

    A is Kaiming-uniform with a = √5 (PEFT's default), or N(0, 1/r²).
    """
    a = torch.empty(rank, d_in)
    if init == "gaussian":
        a.normal_(0.0, 1.0 / rank, generator=generator)
    else:
        # kaiming_uniform_(a=√5): bound = √(6 / ((1 + 5) · d_in))
        bound = 1.0 / math.sqrt(d_in)
        a.uniform_(-bound, bound, generator=generator)
    return Start(a, torch.zeros(d_out, rank))


def pissa_start(weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> Start:
    """`s · B A` is the best rank-r approximation of W, (d_out, d_in): its principal singular values and vectors.

    Source: Meng, Wang and Zhang 2024, arXiv 2404.02948. There W is replaced by the rest, W − s·B₀A₀; here W is shared, so
    the layer subtracts the start instead, which is the same function.
    """
    a, b = _best_approximation(weight, rank, scale, generator)
    return Start(a, b, removed=True)


def loftq_start(quantized: Tensor, original: Tensor, rank: int, scale: float, generator: torch.Generator) -> Start:
    """`s · B A` is the best rank-r approximation of what quantization lost, original − dequantize(W), both (d_out, d_in).

    One step of Li et al. 2023, arXiv 2310.08659. The paper then quantizes again what is left; here W is shared and stays.
    """
    lost = original.to(quantized.device, torch.float32) - quantized.float()
    a, b = _best_approximation(lost, rank, scale, generator)
    return Start(a, b)


def _best_approximation(matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(A, B) with s·B A nearest to the matrix among those of rank r (Eckart and Young), singular values split evenly.

    Where the matrix has fewer than r directions, the rest of A is random and the rest of B zero: both can still learn.
    """
    d_out, d_in = matrix.shape
    start = random_start(d_out, d_in, rank, "kaiming", generator)
    u, s, v = _svd(matrix.float(), min(rank, d_out, d_in), generator)
    root = (s / scale).sqrt()
    a, b = start.a.to(matrix.device), start.b.to(matrix.device)
    a[: len(s)] = (v * root).T
    b[:, : len(s)] = u * root
    return a, b


def _svd(matrix: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` singular triplets: U (d_out, count), S (count,), V (d_in, count).

    Large matrices are decomposed with a random subspace (Halko et al. 2011, arXiv 0909.4061). The power iterations matter for
    quantization errors, whose singular values hardly fall.
    """
    width = count + OVERSAMPLING
    if min(matrix.shape) <= max(EXACT_UP_TO, width):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :count], s[:count], vh[:count].T
    seed = int(torch.randint(2**31, (1,), generator=generator))
    # svd_lowrank draws from torch's own generator, which dropout and the order of rows depend on: give it a copy.
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(matrix, q=width, niter=POWER_ITERATIONS)
    return u[:, :count], s[:count], v[:, :count]
