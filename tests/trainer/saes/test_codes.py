"""Selection over a whole batch is that of a plain sort, whatever the guessed bound was;
sparse codes are the dense.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.kernels import topk_select
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.sparse_products import decoded
from trainer.saes.sparse_codes import fired, prefix_decoded, running_mean, smallest


def selected(pre: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Values and flat positions; the product with the identity is exact."""
    m = pre.shape[1]
    values, rows, latents = topk_select.batch_top_k_of_product(
        pre, torch.eye(m, dtype=pre.dtype), pre.new_zeros(m), n
    )
    return values, rows * m + latents


def sorted_choice(flat: Tensor, n: int) -> Tensor:
    """Indices of the n largest positive entries, the first of equal ones."""
    order = sorted(range(len(flat)), key=lambda i: (-float(flat[i]), i))[:n]
    return torch.tensor(sorted(i for i in order if flat[i] > 0), dtype=torch.int64)


@settings(deadline=None, max_examples=100)
@given(
    n_rows=st.integers(1, 30),
    m=st.integers(1, 40),
    n=st.integers(1, 400),
    levels=st.sampled_from([2, 5, 1000]),
    shift=st.sampled_from([-1.0, 0.0, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    sample=st.sampled_from([1, 4, 100]),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_plain_sort(
    n_rows: int,
    m: int,
    n: int,
    levels: int,
    shift: float,
    dtype: torch.dtype,
    sample: int,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    pre = (
        ((torch.randn(n_rows, m, generator=g) + shift) * levels)
        .round()
        .div(levels)
        .to(dtype)
    )
    before, topk_select._SAMPLE_ROWS = topk_select._SAMPLE_ROWS, sample
    try:
        values, at = selected(pre, n)
    finally:
        topk_select._SAMPLE_ROWS = before
    wanted = sorted_choice(pre.flatten(), n)
    assert torch.equal(at, wanted)
    assert torch.equal(values, pre.flatten()[wanted])


@pytest.mark.parametrize(
    "kind",
    ["normal", "one row has all", "sorted", "constant", "few positive", "bfloat16"],
)
def test_large_batches_too(kind: str) -> None:
    flat = torch.randn(1 << 18, generator=torch.Generator().manual_seed(1))
    if kind == "one row has all":
        flat[: 1 << 9] += 20
    if kind == "sorted":
        flat = flat.sort().values
    if kind == "constant":
        flat.fill_(0.5)
    if kind == "few positive":
        flat = torch.where(
            torch.arange(len(flat)) % 999 == 0, flat.abs() + 0.1, -flat.abs()
        )
    if kind == "bfloat16":
        flat = flat.bfloat16()
    n = 5000
    index = selected(flat.view(512, 512), n)[1]
    order = flat.float().sort(descending=True, stable=True).indices[:n]
    wanted = order[flat[order] > 0].sort().values
    assert torch.equal(index, wanted)


def test_what_is_not_a_number_is_not_hidden() -> None:
    g = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(200, 8, generator=g),
        torch.randn(8, 64, generator=g),
        torch.zeros(64),
    )
    x[70, 3] = torch.nan
    values, rows, _ = topk_select.batch_top_k_of_product(x, weight, bias, 100)
    assert values[rows == 70].isnan().all()
    assert 70 in rows


def test_prefixes_counts_and_smallest_values_are_the_dense_ones() -> None:
    g = torch.Generator().manual_seed(2)
    dense = torch.randn(20, 30, generator=g, dtype=torch.float64).relu()
    dense[3] = 0  # a row without entries
    dense[:, 7] = 0
    dense.requires_grad_()
    rows, latents = dense.detach().nonzero().T
    pattern, layer = Pattern.ragged(rows, latents, 20, 30), torch.arange(20) % 3
    decoder = torch.randn(30, 7, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 7, generator=g, dtype=torch.float64, requires_grad=True)
    values = dense[rows, latents]
    ends = [3, 11, 30]
    ours = prefix_decoded(values, decoder, pattern, ends, bias[layer])
    ours.append(decoded(values, decoder, pattern, bias[layer]))
    wanted = [dense[:, :end] @ decoder[:end] + bias[layer] for end in (*ends, 30)]
    for a, b in zip(ours, wanted, strict=True):
        assert torch.allclose(a, b)
    weights = torch.randn(4, 20, 7, generator=g, dtype=torch.float64)
    kept = (dense > 0).detach()
    gradients = [
        torch.autograd.grad(
            (torch.stack(some) * weights).sum(),
            (dense, decoder, bias),
            retain_graph=True,
        )
        for some in (ours, wanted)
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(
            a * kept if a.shape == kept.shape else a,
            b * kept if b.shape == kept.shape else b,
        )
    assert torch.equal(fired(values, pattern), (dense > 0).sum(0))
    chosen = Chosen(values, pattern)
    found = smallest(chosen, layer, 4)
    for i in range(3):
        assert found[i] == dense[layer == i][dense[layer == i] > 0].min().float()
    assert found[3] == torch.inf
    assert smallest(chosen, None, 1)[0] == dense[dense > 0].min().float()


@given(
    values=st.lists(
        st.lists(st.floats(-100, 100) | st.just(math.inf), min_size=3, max_size=3),
        min_size=1,
        max_size=60,
    ),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.98, 0.999]),
)
def test_running_mean_has_weights_that_fall_with_age_and_sum_to_one(
    values: list[list[float]], decay: float
) -> None:
    """Each number's own finite values count: the closed form in float64."""
    mean, count = torch.zeros(3), torch.zeros(3)
    for new in values:
        running_mean(mean, count, torch.tensor(new), decay)
    for i, each in enumerate(zip(*values, strict=True)):
        own = np.array([value for value in each if math.isfinite(value)])
        weights = decay ** np.arange(len(own), dtype=np.float64)[::-1]
        wanted = weights @ own / weights.sum() if len(own) else 0.0
        assert float(mean[i]) == pytest.approx(wanted, abs=1e-3)
        assert int(count[i]) == len(own)


def test_running_mean_is_the_plain_mean_first_and_forgets_later() -> None:
    mean, count = torch.zeros(2), torch.zeros(2)
    for value in (1.0, 2.0, 6.0):
        running_mean(mean, count, torch.tensor([value, torch.inf]), 1 - 1e-6)
    assert mean.tolist() == pytest.approx([3.0, 0.0], abs=1e-4)
    count.fill_(1000)
    running_mean(mean, count, torch.tensor([13.0, 10.0]), 0.9)
    assert mean.tolist() == pytest.approx([4.0, 1.0], abs=1e-4)
