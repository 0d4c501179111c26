"""Tests of the weights that SAEs begin with.

Below an FVU of 1, at the wanted L0, along directions of norm 1, whatever the rows are.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from schemas.sae import DEFAULT_L0, SaeSpec
from trainer.saes.build import build, initialise_from
from trainer.saes.centres import geometric_median
from trainer.saes.encoder_init import limits, whitened
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.sparse_codes import top_k
from trainer.saes.topk import TopKSae

D, SITES, N = 16, 3, 6000
PENALISED: dict[str, dict[str, Any]] = {
    "relu_l1": {},
    "tied": {"kind": "relu_l1", "tied": True},
    "decoder_norm": {"kind": "relu_l1", "penalty": "decoder_norm"},
    "gated": {},
    "jumprelu": {},
    "nsae": {},
    "mlp_encoder": {},
}
KINDS: dict[str, dict[str, Any]] = {
    **PENALISED,
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4, "prefixes": (0.25, 0.5, 1.0)},
}
ROWS = ["normal", "anisotropic", "large mean", "sparse", "heavy tails", "layers"]
FULL = set(KINDS) - {"nsae"}  # kinds that may have a decoder bias for each layer
# What the formula of a kind does not allow. `nsae` has no decoder bias, so rows'
# centres come from latents, of which some rows have more than others; training centres
# such rows (test_scaling). A `tied` encoder has the decoder's length, which suits rows
# of which few latents are active.
CANNOT = {
    ("nsae", "large mean"),
    ("nsae", "layers"),
    ("tied", "heavy tails"),
    ("tied", "anisotropic"),
}


def rows_of(kind: str, n: int, seed: int = 0) -> ScaledRows:
    """ScaledRows of three layers with a mean square of 1 about their layers' means, as
    training makes them.
    """
    g = torch.Generator().manual_seed(seed)
    x, layer = torch.randn(n, D, generator=g), torch.arange(n) % SITES
    if kind == "anisotropic":
        x *= 2.0 ** -torch.arange(D)
    if kind == "sparse":
        directions = torch.randn(48, D, generator=torch.Generator().manual_seed(99))
        x = (
            (torch.rand(n, 48, generator=g) < 0.06)
            * (1 + torch.rand(n, 48, generator=g))
            @ directions
        )
    if kind == "heavy tails":
        x *= torch.exp(1.5 * torch.randn(n, 1, generator=g))
    if kind == "layers":
        x *= torch.tensor([0.2, 1.0, 4.0])[layer, None]
    x = x / (x - x.mean(0)).square().sum(1).mean().sqrt()
    if kind == "large mean":
        x += 30 * torch.randn(D, generator=torch.Generator().manual_seed(98))
    if kind == "layers":
        x += torch.randn(SITES, D, generator=torch.Generator().manual_seed(97))[layer]
    return ScaledRows(x, layer, torch.ones(SITES))


def made(name: str, m: int, **more: Any) -> Any:
    raw = {"kind": name, **KINDS[name], "n_latents": m, **more}
    return build(TypeAdapter(SaeSpec).validate_python(raw), D, 1, SITES)


def target_of(name: str, m: int) -> dict[str, float]:
    """An eighth of the latents, and fewer than a quarter of the dimensions."""
    return {"target_l0": min(m / 8, D / 4)} if name in PENALISED else {}


@torch.no_grad()
def again(sae: Any, rows: ScaledRows) -> Tensor:
    """The reconstruction in training: BatchTopK, which has no threshold yet, keeps the
    largest of all rows.
    """
    if isinstance(sae, TopKSae):
        latents = top_k(sae.pre_activations(rows.x, rows.layer), sae.spec.k)
    elif hasattr(sae.spec, "k"):
        pre = sae.pre_activations(rows.x, rows.layer)
        least = pre.flatten().topk(sae.spec.k * len(pre)).values[-1]
        latents = torch.where(pre >= least, pre.relu(), 0.0)
    else:
        latents = sae.encode(rows.x, rows.layer)
    out: Tensor = sae.decode(latents, rows.layer)
    return out


@torch.no_grad()
def fvu(sae: Any, rows: ScaledRows, by_layer: bool = False) -> float:
    """Against the rows' variance about their mean, or about the mean of their layer."""
    error = (again(sae, rows) - rows.x).square().sum()
    assert rows.layer is not None
    centre = rows.x.mean(0).expand_as(rows.x)
    if by_layer:
        centre = torch.stack([rows.x[rows.layer == i].mean(0) for i in range(SITES)])[
            rows.layer
        ]
    return float(error / (rows.x - centre).square().sum())


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("m", [8, 40, 300])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_it_begins_below_an_fvu_of_one_at_the_wanted_l0(
    name: str, m: int, kind: str
) -> None:
    """On rows that the start has not seen. m: fewer latents than dimensions, some more,
    many more.
    """
    for init in (True, False):
        sae = made(name, m, **target_of(name, m))
        initialise_from(sae, rows_of(kind, N), from_data=init)
        fresh = rows_of(kind, N, seed=1)
        assert fvu(sae, fresh) < 1 or (name, kind) in CANNOT, init
        if name in PENALISED:
            l0 = float((sae.encode(fresh.x, fresh.layer) > 0).sum(1).float().mean())
            # a few long rows have many of the latents; 4,096 rows to fit on have some
            # more or some fewer of such rows
            assert l0 == pytest.approx(
                min(m / 8, D / 4), rel=0.15 if kind == "heavy tails" else 0.1
            )
        norms = sae.W_dec.norm(dim=1)
        assert (
            torch.allclose(norms, torch.ones(m), atol=1e-5)
            or not sae.unit_decoder
            or name == "nsae"
        )
        assert all(value.isfinite().all() for value in sae.state_dict().values())


@pytest.mark.parametrize("name", sorted(FULL))
def test_a_bias_per_layer_begins_below_an_fvu_of_one_in_every_layer(name: str) -> None:
    sae = made(name, 64, per_layer_bias=True, **target_of(name, 64))
    rows = rows_of("layers", N)
    initialise_from(sae, rows)
    assert rows.layer is not None
    for i in range(SITES):
        assert torch.allclose(sae.b_dec[i], rows.x[rows.layer == i].mean(0), atol=1e-4)
    assert fvu(sae, rows_of("layers", N, seed=1), by_layer=True) < 1


@pytest.mark.parametrize("name", sorted(PENALISED))
def test_without_a_target_the_start_has_the_usual_l0(name: str) -> None:
    """Also where the weight is given: what it will lead to is not known yet."""
    given = {"nsae": {"alpha": 0.1}, "jumprelu": {"l0": 0.1}}.get(name, {"l1": 0.1})
    for more in ({}, given):
        sae = made(name, 128, **more)
        initialise_from(sae, rows_of("sparse", N))
        fresh = rows_of("sparse", N, seed=1)
        l0 = float((sae.encode(fresh.x, fresh.layer) > 0).sum(1).float().mean())
        assert l0 == pytest.approx(DEFAULT_L0, rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"tied", "nsae"}))
def test_the_encoders_length_is_that_of_the_least_squared_error(name: str) -> None:
    """At the minimum over one factor of the latents, the error is orthogonal to what
    the latents add.
    """
    sae, rows = made(name, 40, **target_of(name, 40)), rows_of("sparse", N)
    initialise_from(sae, rows)
    fit = ScaledRows(rows.x[-4096:], rows.layer[-4096:])
    added = again(sae, fit) - sae.b_dec
    error = fit.x - sae.b_dec - added
    assert abs(float((error * added).sum())) < 1e-3 * float(added.square().sum())


@pytest.mark.parametrize("name", sorted(KINDS))
def test_no_latent_begins_dead(name: str) -> None:
    if name in PENALISED:
        sae = made(name, 300, **target_of(name, 300))
        initialise_from(sae, rows_of("sparse", N))
        fresh = rows_of("sparse", N, seed=1)
        assert (sae.encode(fresh.x, fresh.layer) > 0).any(0).all()


def test_whitened_directions_do_not_crowd_along_the_largest_variance() -> None:
    """Against the plain formula C^(-1/2) x at norm 1; the mean cosine between two of
    them is small.
    """
    rows = rows_of("anisotropic", N).x * torch.tensor([1.0] * 10 + [0.0] * 6)
    rows = rows - rows.mean(0)
    found = whitened(rows)(rows)
    assert torch.allclose(found.norm(dim=1), torch.ones(N), atol=1e-5)
    values, vectors = torch.linalg.eigh(rows.double().T @ rows.double() / N)
    root = (
        vectors
        @ torch.diag(values.clamp_min(1e-4 * float(values.max())) ** -0.5)
        @ vectors.T
    )
    wanted = rows.double() @ root
    assert torch.allclose(
        found.double(), wanted / wanted.norm(dim=1, keepdim=True), atol=1e-4
    )
    plain = rows / rows.norm(dim=1, keepdim=True)
    crowded, spread = (
        (one[:500] @ one[:500].T).square().mean() for one in (plain, found)
    )
    assert spread < crowded / 2
    few = rows[: 2 * D - 1]  # a covariance of so few rows says nothing
    assert torch.equal(whitened(few)(few), few / few.norm(dim=1, keepdim=True))


def test_the_first_thresholds_are_those_of_a_plain_sort() -> None:
    rows, weight = (
        rows_of("sparse", 1000),
        torch.randn(D, 50, generator=torch.Generator().manual_seed(3)),
    )
    found = limits(lambda part: part.x @ weight, rows, 4.0)
    pre = (rows.x @ weight).double()
    assert torch.allclose(found.std.double(), pre.std(0, correction=0), rtol=1e-4)
    # 4 of 50 latents: each is on 80 of the 1,000 rows
    ordered = pre.sort(dim=0, descending=True).values
    assert torch.allclose(
        found.threshold.double(), (ordered[79] + ordered[80]) / 2, atol=1e-5
    )
    assert (pre > found.threshold).sum(0).tolist() == [80] * 50


def test_the_centre_and_rows_that_are_alike() -> None:
    """A geometric median is taken where it is asked for; rows without any spread give
    finite weights.
    """
    rows = rows_of("heavy tails", 600)
    for name in KINDS:
        sae = made(name, 24, **target_of(name, 24))
        initialise_from(sae, rows, geometric_median)
        if name != "nsae":
            assert torch.allclose(sae.b_dec, geometric_median(rows.x), atol=1e-5)
        # spreads are made 1 there; training refuses rows that do not vary
        if name == "nsae":
            continue
        sae = made(name, 24, **target_of(name, 24))
        initialise_from(
            sae,
            ScaledRows(
                torch.ones(300, D),
                torch.zeros(300, dtype=torch.int64),
                torch.ones(SITES),
            ),
        )
        assert all(value.isfinite().all() for value in sae.state_dict().values()), name


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"topk"}))
def test_thresholds_that_rise_make_latents_rarer_by_what_margins_say(name: str) -> None:
    sae, rows = made(name, 40, **target_of(name, 40)), rows_of("sparse", N)
    initialise_from(sae, rows)
    if name in {"batch_topk", "matryoshka"}:
        sae.threshold.fill_(0.2)
    margins = sae.margins(rows.x, rows.layer)
    assert (
        torch.equal(sae.encode(rows.x, rows.layer) > 0, margins > 0) or name == "gated"
    )
    by = 0.3 * sae.margin_std
    sae.raise_thresholds(torch.tensor(by))
    kept = sae.margins(rows.x, rows.layer)
    near = (margins - by).abs() < 1e-5
    assert (((margins > by) == (kept > 0)) | near).all()
    assert 0 < int((kept > 0).sum()) < 0.9 * int((margins > 0).sum())


def test_rows_of_one_number_have_weights_of_their_own() -> None:
    """The transpose of [m, 1] is contiguous as it is: two parameters would share its
    memory.
    """
    for name, options in KINDS.items():
        raw = {"kind": name, **options, "n_latents": 8}
        tensors = (
            build(TypeAdapter(SaeSpec).validate_python(raw), 1, 1, SITES)
            .state_dict()
            .values()
        )
        places = [tensor.data_ptr() for tensor in tensors]
        assert len(set(places)) == len(places), name
