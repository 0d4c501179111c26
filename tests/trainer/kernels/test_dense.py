"""The dense encoders without needless products, against plain autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.kernels import dense_encoder
from trainer.kernels.dense_encoder import affine, relu_codes


def problem(n: int, d: int, m: int, seed: int, sites: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (n, d),
        "shift": (sites, d) if sites else (d,),
        "weight": (d, m),
        "bias": (m,),
        "decoder": (m, d),
    }
    return {
        k: torch.randn(s, generator=g, dtype=torch.float64).requires_grad_()
        for k, s in shapes.items()
    }


def layers(n: int, sites: int, seed: int) -> Tensor | None:
    return (
        torch.randint(0, sites, (n,), generator=torch.Generator().manual_seed(seed))
        if sites
        else None
    )


def plain(p: dict[str, Tensor], layer: Tensor | None) -> Tensor:
    shift = p["shift"] if layer is None else p["shift"][layer]
    return (p["x"] - shift) @ p["weight"] + p["bias"]


def gradients(
    loss: Tensor, p: dict[str, Tensor], names: tuple[str, ...]
) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p[name] for name in names]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(1, 30), st.integers(0, 99), st.sampled_from([0, 1, 3]),
    st.sampled_from([0.0, 0.7]), st.sampled_from([1, 64, 1 << 20]),
)  # fmt: skip
def test_values_and_gradients_are_those_of_plain_autograd(
    n: int, d: int, m: int, seed: int, sites: int, l1: float, block: int
) -> None:
    p, layer = problem(n, d, m, seed, sites), layers(n, sites, seed)
    names = ("x", "shift", "weight", "bias", "decoder")
    wanted_latents = plain(p, layer).relu()
    wanted = (
        wanted_latents @ p["decoder"] - p["x"]
    ).square().sum() + l1 * wanted_latents.sum(dim=-1).mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_encoder, "BLOCK_BYTES", block)
        latents, mean, fired = relu_codes(
            p["x"], p["shift"], layer, p["weight"], p["bias"]
        )
        got = (latents @ p["decoder"] - p["x"]).square().sum() + l1 * mean
        found = gradients(got, p, names)
    assert torch.allclose(got, wanted, rtol=1e-12)
    assert torch.equal(fired, (wanted_latents > 0).sum(dim=0))
    for ours, theirs in zip(found, gradients(wanted, p, names), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    pre = affine(p["x"], p["shift"], layer, p["weight"], p["bias"])
    for ours, theirs in zip(
        gradients(pre.tanh().sum(), p, names[:4]),
        gradients(plain(p, layer).tanh().sum(), p, names[:4]),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_without_a_shift_and_without_gradients_of_the_input() -> None:
    p = problem(9, 4, 12, 0, 0)
    x = p["x"].detach()
    ours = affine(x, None, None, p["weight"], p["bias"])
    theirs = x @ p["weight"] + p["bias"]
    assert torch.allclose(ours, theirs)
    for a, b in zip(
        gradients(ours.square().sum(), p, ("weight", "bias")),
        gradients(theirs.square().sum(), p, ("weight", "bias")),
        strict=True,
    ):
        assert torch.allclose(a, b)


def test_a_rank_without_rows_gives_zeros() -> None:
    p = problem(0, 4, 12, 0, 0)
    latents, mean, fired = relu_codes(
        p["x"].detach(), p["shift"], None, p["weight"], p["bias"]
    )
    found = gradients(
        (latents @ p["decoder"]).square().sum() + mean,
        p,
        ("shift", "weight", "bias", "decoder"),
    )
    assert mean == 0
    assert not fired.any()
    assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("sites", [0, 3])
def test_under_autocast_products_are_bfloat16_and_gradients_float32(sites: int) -> None:
    p = {
        name: t.detach().float().requires_grad_()
        for name, t in problem(64, 16, 48, 1, sites).items()
    }
    layer = layers(64, sites, 1)
    names = ("shift", "weight", "bias", "decoder")

    def loss(fused: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if fused:
                latents, mean, _ = relu_codes(
                    p["x"].detach(), p["shift"], layer, p["weight"], p["bias"]
                )
            else:
                latents = plain({**p, "x": p["x"].detach()}, layer).relu()
                mean = latents.float().sum(dim=-1).mean()
            assert latents.dtype == torch.bfloat16 or not fused
            return (latents @ p["decoder"] - p["x"].detach()).square().sum(
                dim=-1
            ).mean() + 0.1 * mean

    for ours, theirs in zip(
        gradients(loss(True), p, names), gradients(loss(False), p, names), strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_the_decoder_bias_costs_no_product() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    p = {
        name: t.detach().float().requires_grad_()
        for name, t in problem(32, 16, 64, 1, 0).items()
    }
    x = p["x"].detach()
    with FlopCounterMode(display=False) as counter:
        latents, mean, _ = relu_codes(x, p["shift"], None, p["weight"], p["bias"])
        ((latents @ p["decoder"] - x).square().sum() + mean).backward()
    one = 2 * 32 * 16 * 64
    assert 5 * one <= counter.get_total_flops() < 5.2 * one
