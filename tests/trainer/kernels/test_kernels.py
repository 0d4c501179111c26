"""Sparse kernels against the dense formulas they stand for, in float64: values, every
gradient, and the same bits twice.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.sae import TopK
from schemas.train import TrainSpec
from trainer.errors import KernelError
from trainer.kernels import eager, topk_select
from trainer.kernels.backend import chosen, products, using
from trainer.kernels.nonzeros import Pattern
from trainer.kernels.sparse_products import (
    decoded,
    encode_batch_top_k,
    encode_top_k,
    encoded,
)
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.topk import TopKSae
from trainer.training.contiguous_parameters import contiguous_parameters

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
# Whoever asks for the interpreter wants these tests run: without triton they then fail.
needs_triton = pytest.mark.skipif(
    not INTERPRETED and not (HAS_TRITON and torch.cuda.is_available()),
    reason="the Triton kernels need a CUDA device (or TRITON_INTERPRET=1)",
)
quick = settings(max_examples=25, deadline=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], int, int]:
    """Inputs of an SAE's forward, its k, and how many entries of a whole batch."""
    n_rows, d, m = (
        draw(st.integers(1, 9)),
        draw(st.integers(1, 7)),
        draw(st.sampled_from([1, 5, 24, 64, 160, 512])),
    )
    k = draw(st.integers(1, min(m, 8)))
    return (
        problem(n_rows, d, m, draw(st.integers(0, 99))),
        k,
        draw(st.integers(1, n_rows * k)),
    )


def problem(
    n_rows: int, d: int, m: int, seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (n_rows, d),
        "shift": (d,),
        "weight": (m, d),
        "bias": (m,),
        "decoder": (m, d),
        "b": (d,),
    }
    made = {
        name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }
    made["weight"] = made["weight"].T
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def dense(p: dict[str, Tensor], chosen_at: Tensor) -> Tensor:
    """Reconstruction with the codes at bool [B, m], by dense products."""
    codes = torch.where(
        chosen_at, (p["x"] - p["shift"]) @ p["weight"] + p["bias"], 0
    ).relu()
    return codes @ p["decoder"] + p["b"]


def same_gradients(p: dict[str, Tensor], ours: Tensor, wanted: Tensor) -> None:
    assert torch.allclose(ours, wanted, rtol=1e-10, atol=1e-10)
    direction = torch.randn(
        ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(7)
    )
    inputs = list(p.values())
    pairs = zip(
        p,
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((wanted * direction).sum(), inputs),
        strict=True,
    )
    for name, a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), name


@quick
@given(problems())
def test_top_k_values_and_gradients_are_those_of_the_dense_formula(
    case: tuple[dict[str, Tensor], int, int],
) -> None:
    p, k, _ = case
    values, pattern = encode_top_k(p["x"], p["shift"], p["weight"], p["bias"], k)
    pre = ((p["x"] - p["shift"]) @ p["weight"] + p["bias"]).detach()
    at = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(k).indices, True)
    assert torch.allclose(
        values.sort(dim=1).values, pre.topk(k).values.sort(dim=1).values
    )
    assert (
        sorted(
            map(list, zip(pattern.rows.tolist(), pattern.latents.tolist(), strict=True))
        )
        == at.nonzero().tolist()
    )
    same_gradients(
        p, decoded(values.relu(), p["decoder"], pattern, p["b"]), dense(p, at)
    )


@quick
@given(problems())
def test_batch_top_k_is_exact_and_ragged(
    case: tuple[dict[str, Tensor], int, int],
) -> None:
    p, _, n = case
    values, pattern = encode_batch_top_k(p["x"], p["shift"], p["weight"], p["bias"], n)
    pre = ((p["x"] - p["shift"]) @ p["weight"] + p["bias"]).detach()
    best = pre.flatten().topk(n)
    at = torch.zeros(pre.numel(), dtype=torch.bool).scatter(
        0, best.indices, True
    ).view_as(pre) & (pre > 0)
    assert (
        torch.stack([pattern.rows, pattern.latents], 1).tolist()
        == at.nonzero().tolist()
    )
    assert torch.allclose(values, pre[at])
    same_gradients(p, decoded(values, p["decoder"], pattern, p["b"]), dense(p, at))


def test_a_guess_that_is_too_high_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = problem(40, 6, 64, 0)
    arguments = (p["x"].detach(), p["weight"].detach(), p["bias"].detach())
    wanted = topk_select.batch_top_k_of_product(*arguments, 100)
    monkeypatch.setattr(topk_select, "first_threshold", lambda *_: 1e9)
    for a, b in zip(
        topk_select.batch_top_k_of_product(*arguments, 100), wanted, strict=True
    ):
        assert torch.equal(a, b)


@quick
@given(
    st.integers(0, 99),
    st.sampled_from([(256, 4), (512, 8), (6144, 32), (100, 3)]),
    st.booleans(),
)
def test_the_largest_of_a_row_are_those_of_torch(
    seed: int, size: tuple[int, int], ties: bool
) -> None:
    m, k = size
    pre = torch.randn(5, m, generator=torch.Generator().manual_seed(seed))
    pre = (pre * 4).round() if ties else pre
    values, latents = topk_select.largest(pre, k)
    assert torch.equal(values.sort(dim=1).values, pre.topk(k).values.sort(dim=1).values)
    assert torch.equal(pre.gather(1, latents), values)
    assert all(len(set(row)) == k for row in latents.tolist())
    if not ties:
        assert torch.equal(
            latents.sort(dim=1).values, pre.topk(k).indices.sort(dim=1).values
        )


def test_the_largest_only_among_some_latents() -> None:
    p = problem(12, 5, 64, 1)
    among = torch.arange(3, 40, 4)
    values, pattern = encode_top_k(p["x"], p["shift"], p["weight"], p["bias"], 3, among)
    pre = ((p["x"] - p["shift"]) @ p["weight"] + p["bias"]).detach()
    allowed = torch.full_like(pre, -torch.inf).index_copy(1, among, pre[:, among])
    at = torch.zeros_like(pre, dtype=torch.bool).scatter(
        1, allowed.topk(3).indices, True
    )
    same_gradients(
        p, decoded(values.relu(), p["decoder"], pattern, p["b"]), dense(p, at)
    )


def test_rows_and_latents_with_no_nonzero() -> None:
    p = problem(5, 3, 4, 2)
    pre = (p["x"] - p["shift"]) @ p["weight"] + p["bias"]
    for positions in ([], [(1, 2)], [(1, 0), (1, 2), (4, 0)]):
        at = torch.zeros(5, 4, dtype=torch.bool)
        for row, latent in positions:
            at[row, latent] = True
        rows, latents = at.nonzero().T
        pattern = Pattern.ragged(rows, latents, 5, 4)
        values = encoded(
            p["x"], p["shift"], p["weight"], p["bias"], pre.detach()[at], pattern
        ).relu()
        same_gradients(p, decoded(values, p["decoder"], pattern, p["b"]), dense(p, at))


def test_rows_are_searched_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(50, 6, 256, 3)
    arguments = (p["x"].detach(), p["weight"].detach(), p["bias"].detach())
    whole = (
        topk_select.top_k_of_product(*arguments, 4),
        topk_select.batch_top_k_of_product(*arguments, 150),
    )
    monkeypatch.setattr(topk_select, "CPU_BLOCK_BYTES", 7 * 256 * 8)
    blocks = (
        topk_select.top_k_of_product(*arguments, 4),
        topk_select.batch_top_k_of_product(*arguments, 150),
    )
    for a, b in zip(
        [t for found in whole for t in found],
        [t for found in blocks for t in found],
        strict=True,
    ):
        assert torch.allclose(a, b)


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_a_step_gives_the_same_bits_twice_and_its_gradients_lie_as_the_weights_do() -> (
    None
):
    sae = TopKSae(TopK(k=8, n_latents=512), Shape(32))
    x, dead = torch.randn(300, 32), torch.arange(512) < 40
    found: list[list[Tensor]] = []
    for _ in range(2):
        sae.zero_grad()
        step = sae.training_step(ScaledRows(x), 1.0, dead)
        step.loss.backward()
        found.append([step.loss, *map(gradient, sae.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(gradient(p).stride() == p.stride() for p in sae.parameters())


def test_under_autocast_selection_is_bfloat16s_and_the_rest_float32() -> None:
    sae, x, dead = (
        TopKSae(TopK(k=8, n_latents=512), Shape(32)),
        torch.randn(200, 32),
        torch.zeros(512, dtype=torch.bool),
    )
    exact = sae.training_step(ScaledRows(x), 1.0, dead)
    with torch.autocast("cpu", torch.bfloat16):
        step = sae.training_step(ScaledRows(x), 1.0, dead)
    step.loss.backward()
    assert step.reconstruction.dtype == torch.float32
    assert abs(float((step.loss / exact.loss).detach()) - 1) < 0.01
    assert not torch.equal(step.loss, exact.loss), "autocast had no effect"


def test_the_optimiser_sees_transposed_parameters_as_contiguous_and_does_the_same() -> (
    None
):
    starts = [torch.randn(6, 4).T, torch.randn(3, 5), torch.randn(7)]
    trained = []
    for turn in (True, False):
        parameters = [torch.nn.Parameter(s.clone()) for s in starts]
        optimiser = torch.optim.AdamW(parameters, 0.1, weight_decay=0.1, fused=turn)
        g = torch.Generator().manual_seed(0)
        for _ in range(4):
            for p in parameters:
                # laid as p is
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=g))
            if turn:
                with contiguous_parameters(optimiser):
                    assert parameters[0].shape == (6, 4)
                    assert parameters[0].is_contiguous()
                    optimiser.step()
            else:
                optimiser.step()
        trained.append(
            [t for p in parameters for t in (p, optimiser.state[p]["exp_avg"])]
        )
    for a, b, start in zip(
        *trained, [s for s in starts for _ in range(2)], strict=True
    ):
        assert a.stride() == start.stride()
        assert torch.allclose(a, b, atol=1e-6)


def test_triton_without_a_device_is_refused_by_name() -> None:
    assert chosen() is eager
    with using(products("eager")):
        assert chosen() is eager
    if not torch.cuda.is_available():
        with pytest.raises(
            KernelError, match="wanted triton, which needs a CUDA device"
        ):
            products("triton")


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (9, 7, 24, 3), (70, 300, 64, 33)])
def test_triton_kernels_are_their_eager_twins(
    dtype: torch.dtype, size: tuple[int, int, int, int]
) -> None:
    from trainer.kernels import triton_sparse

    n_rows, d, m, k = size
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(DEVICE, dtype)

    latents = torch.stack(
        [torch.randperm(m, generator=g)[:k] for _ in range(n_rows)]
    ).to(DEVICE)
    pattern = Pattern.per_row(latents, m)
    left, right, weight = random(n_rows, d), random(m, d), random(n_rows * k)
    tolerance: dict[str, Any] = (
        {"rtol": 2e-2, "atol": 5e-1}
        if dtype == torch.bfloat16
        else {"rtol": 1e-4, "atol": 1e-4}
    )
    for arguments in (
        (right, pattern.latents, pattern.row_start, weight),
        (left, pattern.rows_by_latent, pattern.latent_start, weight[pattern.order]),
    ):
        again = triton_sparse.gather_sum(*arguments)
        assert torch.allclose(again, eager.gather_sum(*arguments), **tolerance)
        assert torch.equal(again, triton_sparse.gather_sum(*arguments))
        uneven = triton_sparse.gather_sum(*arguments, uneven=True)
        assert torch.allclose(uneven, again, **tolerance)
    dots = (left, pattern.rows, right, pattern.latents, pattern.row_start)
    wanted = (left.double()[pattern.rows] * right.double()[pattern.latents]).sum(1)
    assert torch.allclose(triton_sparse.row_dots(*dots).double(), wanted, **tolerance)


@needs_triton
def test_a_step_with_triton_is_the_eager_step() -> None:
    from trainer.kernels import triton_sparse

    sae = TopKSae(TopK(k=8, n_latents=256), Shape(32)).to(DEVICE)
    x, dead = torch.randn(50, 32, device=DEVICE), torch.arange(256, device=DEVICE) < 40
    found = []
    for implementation in (eager, triton_sparse):
        with using(implementation):
            loss = sae.training_step(ScaledRows(x), 1.0, dead).loss
        found.append([loss, *torch.autograd.grad(loss, list(sae.parameters()))])
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True)
    )


def test_the_choice_is_part_of_the_spec() -> None:
    assert (
        TrainSpec.model_validate({"store": "s", "sae": {"kind": "topk"}}).kernels
        == "eager"
    )
