"""Kernels on a GPU against the same formulas in float64 on the host.

Inputs are fresh at every run; the seed is in a failure's message.
"""

from __future__ import annotations

import secrets

import pytest
import torch
from torch import Tensor

from tests.gpu import on_gpu
from tests.trainer.kernels.test_kernels import problem
from trainer.kernels import eager, topk_select
from trainer.kernels.backend import products, using
from trainer.kernels.nonzeros import Pattern
from trainer.kernels.sparse_products import decoded, encode_batch_top_k, encode_top_k

pytestmark = on_gpu
NAMES = ["eager", "triton"]
# The error of a whole result; sums are float32 in both.
WORST = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture
def seed() -> int:
    return secrets.randbelow(1 << 31)


def error(ours: Tensor, wanted: Tensor) -> float:
    """|ours - wanted| / |wanted|; NaN where ours has one."""
    return float((ours.double().cpu() - wanted).norm() / wanted.norm())


def ragged(n_rows: int, m: int, n: int, g: torch.Generator) -> Pattern:
    """n nonzeros; some latents are on most rows, most on few or none."""
    wanted = torch.rand(n_rows, m, generator=g) * torch.rand(m, generator=g) ** 6
    flat = wanted.flatten().topk(n).indices.sort().values
    return Pattern.ragged(flat // m, flat % m, n_rows, m)


def poison(*shape: int, dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the next tensor of this size is given."""
    torch.full(shape, torch.nan, dtype=dtype, device="cuda")


# torch's own dots have no bfloat16 on a GPU; nothing asks for them
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("eager", torch.float32),
        ("triton", torch.float32),
        ("triton", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("size", [(512, 768, 4096), (300, 100, 999), (64, 2304, 1024)])
def test_products_are_those_of_float64(
    name: str, dtype: torch.dtype, size: tuple[int, int, int], seed: int
) -> None:
    n_rows, d, m = size
    g = torch.Generator().manual_seed(seed)
    n = 16 * n_rows
    pattern = ragged(n_rows, m, n, g)
    left, right = (torch.randn(n, d, generator=g).to(dtype) for n in (n_rows, m))
    weight = torch.randn(n, generator=g).to(dtype)
    codes = torch.zeros(n_rows, m, dtype=torch.float64)
    codes[pattern.rows, pattern.latents] = weight.double()
    there = Pattern.ragged(pattern.rows.cuda(), pattern.latents.cuda(), n_rows, m)
    made = products(name)  # type: ignore[arg-type]
    on = {"left": left.cuda(), "right": right.cuda(), "weight": weight.cuda()}
    poison(n_rows, d, dtype=dtype)
    by_row = made.gather_sum(on["right"], there.latents, there.row_start, on["weight"])
    poison(m, d, dtype=dtype)
    by_latent = made.gather_sum(
        on["left"],
        there.rows_by_latent,
        there.latent_start,
        on["weight"][there.order],
        uneven=True,
    )
    poison(n, dtype=dtype)
    dots = made.row_dots(
        on["left"], there.rows, on["right"], there.latents, there.row_start
    )
    wide_left, wide_right = left.double(), right.double()
    each_dot = (wide_left[pattern.rows] * wide_right[pattern.latents]).sum(dim=1)
    assert error(by_row, codes @ wide_right) < WORST[dtype], seed
    assert error(by_latent, codes.T @ wide_left) < WORST[dtype], seed
    assert error(dots, each_dot) < WORST[dtype], seed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("over", ["row", "batch"])
def test_gradients_are_those_of_float64(name: str, over: str, seed: int) -> None:
    n_rows, d, m, k = 200, 96, 1024, 8
    exact = problem(n_rows, d, m, seed)
    found = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        p = {key: t.detach().to(device, dtype) for key, t in exact.items()}
        for tensor in p.values():
            tensor.requires_grad_()
        with using(products(name) if device == "cuda" else eager):  # type: ignore[arg-type]
            encode = encode_top_k if over == "row" else encode_batch_top_k
            n = k if over == "row" else k * n_rows
            values, pattern = encode(p["x"], p["shift"], p["weight"], p["bias"], n)
            out = decoded(values.relu().flatten(), p["decoder"], pattern, p["b"])
            grads = torch.autograd.grad(out.square().sum(), list(p.values()))
        found.append([out, *grads])
    # where two pre-activations are nearly the same, another latent may be kept
    for ours, wanted in zip(found[1], found[0], strict=True):
        assert error(ours.detach(), wanted.detach()) < 1e-3, seed


@pytest.mark.parametrize("ties", [False, True])
def test_selections_are_those_of_the_host(ties: bool, seed: int) -> None:
    """On the same numbers: a product with the identity."""
    m, k, n = 768, 12, 3000
    x = torch.randn(300, m, generator=torch.Generator().manual_seed(seed))
    x = (x * 4).round() if ties else x
    eye, zeros = torch.eye(m), torch.zeros(m)
    values, latents = topk_select.top_k_of_product(
        x.cuda(), eye.cuda(), zeros.cuda(), k
    )
    wanted = x.topk(k)
    assert torch.equal(values.sort(1, descending=True).values.cpu(), wanted.values), (
        seed
    )
    assert torch.equal(x.gather(1, latents.cpu()), values.cpu()), seed
    there = topk_select.batch_top_k_on_device(x.cuda(), eye.cuda(), zeros.cuda(), n)
    here = topk_select.batch_top_k_of_product(x, eye, zeros, n)
    for ours, same in zip(there, here, strict=True):
        assert torch.equal(ours.cpu(), same), seed
