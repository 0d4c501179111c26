"""Tests of all that a learner adds to the gradient, against plain formulas.

Schedules, micro-batches, averages, resampling, compiling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from actstore.stream.rescale import Rescaling
from actstore.stream.stream import Batch
from schemas.stream import StreamSpec
from schemas.train import Optimiser, Resampling, TrainSpec
from trainer.errors import SaeError
from trainer.saes.build import build, initialise_from
from trainer.saes.centres import geometric_median
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.step_noise import Draws
from trainer.training.learner import Learner
from trainer.training.resample_dead import candidates, due, replace, resample
from trainer.training.warmup_and_decay import learning_rate, sparsity
from trainer.training.weighted_sample import Draw

D, M, SITES, BATCH = 8, 24, 3, 60
AUX = {"aux_k": 4, "aux_coefficient": 1 / 32}
KINDS: dict[str, dict[str, Any]] = {
    "relu_l1": {"kind": "relu_l1", "l1": 0.1},
    "tied": {"kind": "relu_l1", "l1": 0.1, "tied": True},
    "decoder_norm": {"kind": "relu_l1", "l1": 0.1, "penalty": "decoder_norm"},
    "topk": {"kind": "topk", "k": 3, **AUX},
    "batch_topk": {"kind": "batch_topk", "k": 3, **AUX},
    "matryoshka": {"kind": "matryoshka", "k": 3, **AUX},
    "nsae": {"kind": "nsae", "alpha": 0.05, "noise": 0.3},
    "gated": {"kind": "gated", "l1": 0.1},
    "jumprelu": {
        "kind": "jumprelu",
        "l0": 0.1,
        "threshold": 0.5,
        "bandwidth": 0.6,
        "per_layer_threshold": True,
    },
    "mlp_encoder": {"kind": "mlp_encoder", "l1": 0.1},
}


def spec_of(kind: str, **more: Any) -> TrainSpec:
    raw = {
        "store": "none",
        "sae": {"n_latents": M, **KINDS[kind]},
        "stream": {"batch": BATCH},
        "dead_rows": 100,
    }
    return TrainSpec.model_validate({**raw, **more})


def learner(kind: str, steps: int = 100, **more: Any) -> Learner:
    spec = spec_of(kind, **more)
    rescale = Rescaling(np.array([1.0, 0.5, 2.0]), None)
    sae = build(spec.sae, D, 1, SITES)
    return Learner(
        spec,
        sae,
        rescale,
        torch.ones(SITES),
        steps,
        torch.device("cpu"),
        torch.tensor([1.0, 2.0, 0.5]),
    )


def batch(seed: int, n: int = BATCH) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g) + 0.5, torch.randint(
        0, SITES, (n,), generator=g
    )


def weights(one: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.sae.state_dict().items()}


def test_schedules_rise_stay_and_fall() -> None:
    plan = Optimiser(warmup=0.1, decay=0.2, sparsity_warmup=0.25, sparsity_decay=0.5)
    rates = [learning_rate(plan, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([(100 - i) / 20 for i in range(80, 100)])
    shares = [sparsity(plan, step, 100) for step in range(100)]
    assert shares[:25] == pytest.approx([i / 25 for i in range(25)])
    assert set(shares[25:50]) == {1.0}
    assert shares[50:] == pytest.approx([(100 - i) / 50 for i in range(50, 100)])
    assert {sparsity(Optimiser(sparsity_warmup=0), step, 10) for step in range(10)} == {
        1.0
    }


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead are looked for at every update: runs here are short."""
    monkeypatch.setattr("trainer.training.learner.DEAD_EVERY", 1)


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("n", [3, 7])
def test_micro_batches_are_one_big_batch(kind: str, n: int) -> None:
    whole, cut = learner(kind), learner(kind, accumulate=n)
    for seed in range(3):
        for one in (whole, cut):
            one.update(*batch(seed))
        for (name, a), b in zip(
            whole.sae.named_parameters(), cut.sae.parameters(), strict=True
        ):
            assert torch.allclose(a, b, atol=2e-4), name
    assert torch.equal(whole.silent_rows, cut.silent_rows)
    wanted, made = whole.interval(), cut.interval()
    assert made.parts.keys() == wanted.parts.keys()
    assert (made.loss, made.mse, made.l0, made.fvu) == pytest.approx(
        (wanted.loss, wanted.mse, wanted.l0, wanted.fvu), rel=1e-4
    )


@pytest.mark.parametrize("width", [3, 24])
def test_noise_is_a_function_of_place_and_latent(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any rows and any latents it is that of the whole, which one draw of torch's
    gives, and it is N(0, 1).
    """
    draws = Draws(7, 1)
    whole = draws.normal(torch.empty(2000, width), None)
    plain = torch.randn(2000, width, generator=draws.generator(whole.device))
    assert torch.equal(whole, plain)
    assert abs(float(whole.mean())) < 4 / math.sqrt(whole.numel())
    assert float(whole.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * whole.numel()))
    assert len(whole.unique(dim=0)) == 2000
    monkeypatch.setattr("trainer.saes.step_noise._BLOCK", 160 * width)
    g = torch.Generator().manual_seed(1)
    for n, first, own in (
        (2000, 0, width),
        (1999, 1, 2),
        (700, 0, width),
        (1, 2, 1),
        (0, 0, width),
    ):
        place = torch.randperm(2000, generator=g)[:n].sort().values
        part = draws.normal(torch.empty(n, own), place, (first, width))
        assert torch.equal(part, whole[place, first : first + own])
    for place in (torch.arange(50, 300), torch.arange(1900, 2000)):
        assert torch.equal(
            draws.normal(torch.empty(len(place), width), place), whole[place]
        )
    draws.advance()
    assert not torch.equal(draws.normal(torch.empty(2000, width), None), whole)


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka", "layered"])
@pytest.mark.parametrize("n", [4, 7, 100])
def test_micro_batches_of_batch_topk_select_as_the_whole_batch(
    kind: str, n: int
) -> None:
    """ScaledRows of very different lengths: a micro-batch of its own would choose
    others. Many values are the same.
    """
    more: dict[str, Any] = {
        "dead_rows": BATCH,
        "optimiser": {"eps": 1e-3, "warmup": 0.0},
    }
    if kind == "layered":
        layered = {
            "kind": "batch_topk",
            "k": 3,
            **AUX,
            "per_layer_bias": True,
            "per_layer_threshold": True,
        }
        kind, more["sae"] = "batch_topk", {"n_latents": M, **layered}
    whole, cut = learner(kind, **more), learner(kind, accumulate=n, **more)
    g = torch.Generator().manual_seed(2)
    for seed in range(6):
        x, layer = torch.randint(-2, 3, (BATCH, D), generator=g).float(), batch(seed)[1]
        x[:10] *= 20
        if seed == 0:
            for one in (whole, cut):
                one.sae.W_enc.data.copy_(one.sae.W_enc.data.sign())
                one.sae.b_enc.data[:5] = -1e3
        for one in (whole, cut):
            one.update(x, layer)
        tensors = zip(weights(whole).items(), weights(cut).values(), strict=True)
        assert all(
            torch.allclose(a, b, atol=2e-6, rtol=2e-6) for (_, a), b in tensors
        ), seed
        assert torch.equal(whole.silent_rows, cut.silent_rows)
    a, b = whole.interval(), cut.interval()
    assert a.dead
    assert a.dead == b.dead
    assert (a.loss, a.l0, a.fvu) == pytest.approx((b.loss, b.l0, b.fvu), rel=1e-5)
    assert 0 < a.l0 < 3.001
    rows = whole.rows(x, layer)
    short = whole.sae.select(whole.rows(x[10:], layer[10:])).chosen.pattern.rows
    both = whole.sae.select(rows).chosen.pattern.rows
    assert len(short) > 1.5 * (both >= 10).sum(), "selections in parts are others"


@pytest.mark.parametrize("kind", ["crosscoder", "transcoder"])
@pytest.mark.parametrize("inner", ["batch_topk", "matryoshka"])
def test_micro_batches_of_several_sites_select_as_the_whole_batch(
    kind: str, inner: str
) -> None:
    sae: dict[str, Any] = {
        "kind": kind,
        "inner": {"kind": inner, "k": 3, "n_latents": M},
    }
    sae |= {"skip": True} if kind == "transcoder" else {}
    g, found = torch.Generator().manual_seed(1), []
    data = torch.randn(5, 2, BATCH, SITES, D, generator=g)
    data[:, :, :10] *= 20
    for accumulate in (1, 4):
        spec = TrainSpec.model_validate(
            {"store": "", "sae": sae, "accumulate": accumulate}
        )
        scale, d_out = (
            Rescaling(np.ones(SITES), None),
            D if kind == "transcoder" else None,
        )
        one = Learner(
            spec,
            build(spec.sae, D, 1, SITES, d_out),
            scale,
            torch.ones(SITES),
            100,
            torch.device("cpu"),
        )
        for x, y in data:
            layer = torch.zeros(BATCH, dtype=torch.int64)
            one.update(*((x, layer) if d_out is None else (x[:, 0], layer, y[:, 0])))
        found.append(weights(one))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_micro_batches_of_batch_topk_cost_no_product_more(kind: str) -> None:
    one = learner(kind, accumulate=4)
    x, layer = batch(0, 4096)
    with FlopCounterMode(display=False) as counted:
        one.update(x, layer)
    assert counted.get_total_flops() / (2 * 4096 * D * M) < 1.1


@pytest.mark.parametrize("kind", ["relu_l1", "decoder_norm", "batch_topk"])
def test_the_average_is_that_of_the_formula(kind: str) -> None:
    one = learner(kind, ema=0.8)
    assert one.average is not None
    wanted = {name: value.double() for name, value in weights(one).items()}
    for step in range(1, 30):
        one.update(*batch(step))
        decay = min(0.8, (1 + step) / (10 + step))
        wanted = {
            name: decay * wanted[name] + (1 - decay) * value.double()
            for name, value in weights(one).items()
        }
    if one.sae.unit_decoder:
        wanted["W_dec"] /= wanted["W_dec"].norm(dim=1, keepdim=True)
    before, result = weights(one), one.average.result(one.sae).state_dict()
    assert result.keys() == before.keys()
    for name, value in result.items():
        if name in {"threshold", "updates"}:
            assert torch.equal(value, before[name]), "buffers are the weights' own"
        else:
            assert torch.allclose(value.double(), wanted[name], atol=1e-5), name
            assert not torch.equal(value, before[name])
    plain = learner(kind)
    for step in range(1, 30):
        plain.update(*batch(step))
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(plain).values(), before.values(), strict=True)
    )


def test_resampling_is_due_when_rows_pass_a_multiple() -> None:
    plan = Resampling(every=100, times=3)
    found = [step for step in range(1, 40) if due(plan, step, 30)]
    assert found == [4, 7, 10]
    assert [
        step for step in range(1, 9) if due(Resampling(every=10, times=50), step, 30)
    ] == list(range(1, 9))


@pytest.mark.parametrize("kind", ["relu_l1", "batch_topk"])
def test_an_interval_tells_each_layers_fvu_in_original_units(kind: str) -> None:
    one = learner(kind)
    one.variance.copy_(torch.tensor([1.5, 2.0, 7.0]))
    scale, wrong, rows = (
        torch.tensor([1.0, 0.5, 2.0]).double(),
        torch.zeros(3).double(),
        torch.zeros(3),
    )
    for seed in range(3):
        x, layer = batch(seed)
        layer = layer.clamp_max(1)  # none of the third
        seen = one.rows(x, layer)
        error = (one.reconstruction(seen) - seen.x).double().square().sum(
            dim=1
        ) / scale[layer].square()
        for i in range(3):
            wrong[i] += error[layer == i].sum()
            rows[i] += int((layer == i).sum())
        one.update(x, layer)
    interval, variance = one.interval(), (rows * one.variance).double()
    assert interval.layers[:2] == pytest.approx(
        (wrong / variance)[:2].tolist(), rel=1e-5
    )
    assert interval.layers[2] is None
    assert interval.fvu == pytest.approx(float(wrong.sum() / variance.sum()), rel=1e-5)
    assert interval.mse == pytest.approx(float(wrong.sum() / rows.sum()), rel=1e-5)
    assert interval.rows == 3 * BATCH


class Ahead:
    """A stream whose next rows are given, and which is watched."""

    def __init__(self, batches: list[Batch], epoch: int = 10**9) -> None:
        self.batches, self.at, self.asked = batches, 0, 0
        self.spec, self.sites, self.rows_per_epoch = (
            StreamSpec(batch=BATCH),
            tuple("abc"),
            epoch,
        )

    def state(self) -> int:
        return self.at

    def restore(self, at: int) -> None:
        self.at = at

    def __iter__(self) -> Iterator[Batch]:
        while self.at < len(self.batches):
            self.at += 1
            self.asked += 1
            yield self.batches[self.at - 1]


def ahead(n: int, **more: Any) -> Any:
    """A stream of n batches of rows; row ids are those of their own kind."""
    made = [batch(100 + i) for i in range(n)]
    return Ahead(
        [
            Batch(x, layer, torch.arange(BATCH) + BATCH * i)
            for i, (x, layer) in enumerate(made)
        ],
        **more,
    )


def test_candidates_are_many_rows() -> None:
    assert candidates(Resampling(), 4096) == 819_200
    assert candidates(Resampling(every=1_000_000), 4096) == 20_000
    assert candidates(Resampling(every=1000), 60) == 60
    assert candidates(Resampling(every=1000, candidates=500), 60) == 500


def drawn(n: int, weight: Tensor, seed: int, pieces: int = 1) -> list[int]:
    """Ids, which are indices."""
    draw, ids = Draw(n, 5, seed), torch.arange(len(weight))
    for part in ids.tensor_split(pieces):
        draw.add(ScaledRows(part[:, None].float()), weight[part], part)
    found = draw.result()
    assert found is not None
    assert torch.equal(found.x[:, 0].long(), found.id)
    return [int(i) for i in found.id]


def test_rows_are_drawn_in_proportion_to_their_weights() -> None:
    weight = torch.tensor([0.0, 1.0, 4.0, 9.0])
    first, second = np.zeros(4), np.zeros((4, 4))
    for seed in range(4000):
        a, b = drawn(2, weight, seed)
        first[a] += 1
        second[a, b] += 1
    share = weight.numpy() / 14
    assert np.allclose(first / 4000, share, atol=0.03)
    assert np.allclose(second[3] / first[3], [0, 0.2, 0.8, 0], atol=0.03), (
        "in proportion among those that are left"
    )
    assert sorted(drawn(3, weight, 1)) == [1, 2, 3]
    assert sorted(drawn(9, weight, 1)) == [0, 1, 2, 3], (
        "a row without any loss comes last"
    )
    assert drawn(9, weight, 1)[-1] == 0
    assert len(drawn(2, torch.full((4,), torch.nan), 0)) == 2


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 40), st.data())
def test_a_draw_does_not_depend_on_how_rows_come(
    seed: int, n: int, rows: int, data: st.DataObject
) -> None:
    weight = torch.rand(rows, generator=torch.Generator().manual_seed(seed % 2**31))
    wanted = drawn(n, weight, seed)
    assert len(set(wanted)) == len(wanted) == min(n, rows)
    assert drawn(n, weight, seed, data.draw(st.integers(1, 2 * rows))) == wanted
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    draw, other = Draw(n, 5, seed), Draw(n, 5, seed)
    draw.add(
        ScaledRows(order[: rows // 2, None].float()),
        weight[order[: rows // 2]],
        order[: rows // 2],
    )
    draw.result()
    for _ in range(2):  # rows that come again are drawn once
        other.add(ScaledRows(order[:, None].float()), weight[order], order)
    draw.add(
        ScaledRows(order[rows // 2 :, None].float()),
        weight[order[rows // 2 :]],
        order[rows // 2 :],
    )
    for each in (draw, other):
        found = each.result()
        assert found is not None
        assert found.id.tolist() == wanted


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_dead_latents_get_new_weights_and_adam_forgets_them(kind: str) -> None:
    plan = {
        "every": 4 * BATCH,
        "silent_rows": BATCH,
        "encoder_scale": 0.2,
        "candidates": 3 * BATCH,
    }
    one, never, rows = learner(kind, resample=plan), learner(kind), ahead(9)
    for seed in range(4):
        for each in (one, never):
            _silent(each, [2, 5, 11])
            each.update(*batch(seed))
        resample(rows, [one, never])
    assert (rows.at, rows.asked) == (0, 3)
    renewed = (one.silent_rows == 0) & (never.silent_rows > 0)
    latents, others = renewed.nonzero()[:, 0], (~renewed).nonzero()[:, 0]
    assert {2, 5, 11} <= set(latents.tolist())
    assert len(others) > M / 2
    for (name, new), old in zip(
        one.sae.named_parameters(), never.sae.parameters(), strict=True
    ):
        axis = {"W_dec": 0, "W_enc": 1}.get(name, -1)
        if new.shape[axis] != M:
            assert torch.equal(new, old), name
            continue
        assert torch.equal(
            new.index_select(axis, others), old.index_select(axis, others)
        ), name
        for field in ("exp_avg", "exp_avg_sq"):
            moment = one.optimiser.state[new][field]
            assert (moment.index_select(axis, latents) == 0).all(), name
            assert moment.index_select(axis, others).abs().sum() > 0
        if name.startswith("b_") or name == "r_mag":
            assert (new[latents] == 0).all()
        if name == "log_threshold":
            assert torch.allclose(new[:, latents], old[:, others].exp().mean().log()), (
                "mean of the living"
            )
    for _ in range(2):  # and it goes on
        one.update(*batch(9))
    assert one.finite()


def test_new_directions_come_from_the_rows_with_the_largest_loss() -> None:
    """Against the plain formula: one row of 240 has nearly all of the squared loss of
    the model as it is.
    """
    plan = {"every": 2 * BATCH, "silent_rows": 1, "candidates": 4 * BATCH}
    one, rows = learner("relu_l1", resample=plan, accumulate=2), ahead(6)
    far = torch.zeros(D)
    far[3] = 3e4
    rows.batches[2].x[17], rows.batches[2].layer[17] = far, 1
    rows.batches[5].x[5] = far.roll(1) * 10  # not among the candidates
    for seed in range(2):
        _silent(one, [7])
        one.update(*batch(seed))
    before = weights(one)
    resample(rows, [one])
    wanted = 0.5 * far - before["b_dec"]
    assert torch.allclose(one.sae.W_dec[7], wanted / wanted.norm(), atol=1e-5)
    assert one.silent_rows[7] == 0


def test_more_dead_latents_than_rows_and_no_rows_at_all() -> None:
    plan = {"every": BATCH, "silent_rows": 1}
    one = learner("relu_l1", resample=plan)
    _silent(one, list(range(M)))
    one.update(*batch(0))
    before = weights(one)
    resample(ahead(0), [one])
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(one).values(), before.values(), strict=True)
    )
    few = ahead(1)
    few.batches[0] = Batch(*(field[:5] for field in few.batches[0][:3]))
    resample(few, [one])
    new = {tuple(row) for row in one.sae.W_dec.detach().round(decimals=4).tolist()}
    assert len(new) == 5


def test_the_last_update_is_not_followed_by_resampling() -> None:
    one, rows = (
        learner("relu_l1", steps=1, resample={"every": BATCH, "silent_rows": 1}),
        ahead(2),
    )
    _silent(one, [3])
    one.update(*batch(0))
    before = weights(one)
    resample(rows, [one])
    assert rows.asked == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(one).values(), before.values(), strict=True)
    )


def test_candidates_are_read_once_for_all_and_within_an_epoch() -> None:
    plan = {"every": BATCH, "silent_rows": 1, "candidates": 7 * BATCH}
    learners = [
        learner("relu_l1", resample=plan),
        learner("topk", resample={**plan, "candidates": 2 * BATCH}),
    ]
    for one in learners:
        _silent(one, [3])
        one.update(*batch(0))
    rows = ahead(9, epoch=4 * BATCH - 7)
    resample(rows, learners)
    assert (rows.at, rows.asked) == (0, 4)
    assert all(one.silent_rows[3] == 0 for one in learners)


def _silent(one: Learner, latents: list[int]) -> None:
    """Make latents unable to fire: a bias far below 0."""
    for name in ("b_enc", "b_gate"):
        bias = getattr(one.sae, name, None)
        if bias is not None:
            bias.data[latents] = -1e3


@pytest.mark.parametrize(
    "kind", ["relu_l1", "decoder_norm", "topk", "gated", "nsae", "mlp_encoder", "tied"]
)
def test_new_directions_are_the_rows(kind: str) -> None:
    sae = build(spec_of(kind).sae, D, 1, SITES)
    sae.requires_grad_(False)
    if kind != "nsae":
        sae.b_dec.add_(torch.randn(D))
    if not sae.unit_decoder:
        sae.W_dec.mul_(3)
    x, latents = torch.randn(2, D) * 5, torch.tensor([4, 20])
    living = [i for i in range(M) if i not in {4, 20}]
    replace(sae, latents, ScaledRows(x), 0.2)
    centred = x - sae.b_dec
    unit = centred / centred.norm(dim=1, keepdim=True)
    length = 1.0 if sae.unit_decoder else 3.0
    assert torch.allclose(sae.W_dec[latents], unit * length, atol=1e-5)
    if kind == "tied":
        return
    inputs = (
        (centred @ sae.W_hidden + sae.b_hidden).relu()
        if kind == "mlp_encoder"
        else centred
    )
    norm = 0.2 * sae.W_enc[:, living].norm(dim=0).mean()
    assert torch.allclose(
        sae.W_enc[:, latents].T,
        inputs / inputs.norm(dim=1, keepdim=True) * norm,
        atol=1e-5,
    )


def test_new_directions_of_transcoders_and_crosscoders() -> None:
    raw = {
        "kind": "transcoder",
        "skip": True,
        "inner": {"kind": "topk", "k": 3, "n_latents": M},
    }
    sae = build(TrainSpec.model_validate({"store": "", "sae": raw}).sae, D, 1, SITES, 5)
    sae.requires_grad_(False)
    sae.W_skip.add_(1)
    x, y, latents = torch.randn(2, D), torch.randn(2, 5), torch.tensor([1, 2])
    replace(sae, latents, ScaledRows(x, target=y), 0.2)
    wanted = y - x @ sae.W_skip
    assert torch.allclose(
        sae.W_dec[latents], wanted / wanted.norm(dim=1, keepdim=True), atol=1e-6
    )
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(sae.encoder[:, latents].T, x),
        torch.ones(2),
    )
    raw = {"kind": "crosscoder", "inner": {"kind": "relu_l1", "n_latents": M}}
    sae = build(TrainSpec.model_validate({"store": "", "sae": raw}).sae, D, 1, SITES)
    sae.requires_grad_(False)
    rows = torch.randn(2, SITES, D)
    replace(sae, latents, ScaledRows(rows), 0.2)
    similar = torch.nn.functional.cosine_similarity(
        sae.W_dec[latents].flatten(1), rows.flatten(1)
    )
    assert torch.allclose(similar, torch.ones(2))


def test_the_geometric_median_is_where_outliers_cannot_pull_it() -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 5, generator=g, dtype=torch.float64)
    rows[:40] += 1000
    at = geometric_median(rows)
    assert at.norm() < 1 < rows.mean(0).norm()
    directions = (rows - at) / (rows - at).norm(dim=1, keepdim=True)
    assert directions.sum(0).norm() < 1e-3, (
        "unit vectors to all rows cancel where the sum of distances is least"
    )
    assert torch.allclose(geometric_median(torch.ones(3, 2)), torch.ones(2))


def test_the_start_of_b_dec_is_chosen_per_layer() -> None:
    sae = build(
        spec_of(
            "topk", sae={"kind": "topk", "k": 3, "n_latents": M, "per_layer_bias": True}
        ).sae,
        D,
        1,
        SITES,
    )
    x, layer = batch(0, 200)
    x[0] += 1e4
    initialise_from(sae, ScaledRows(x, layer), geometric_median)
    for i in range(SITES):
        assert torch.allclose(sae.b_dec[i], geometric_median(x[layer == i]))
    assert (
        spec_of("topk", center_init="geometric_median").center_init
        == "geometric_median"
    )


@pytest.mark.filterwarnings("ignore")  # of torch, on its own parts
@pytest.mark.parametrize("kind", ["jumprelu", "nsae"])
def test_compiled_is_eager(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any backend, but without the minute in which a C++ compiler is
    waited for.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    more: dict[str, Any] = (
        {"sae": {"kind": "nsae", "alpha": 0.05, "n_latents": M}}
        if kind == "nsae"
        else {}
    )
    eager, made = learner(kind, **more), learner(kind, compile=True, **more)
    for seed in range(3):
        eager.update(*batch(seed))
        made.update(*batch(seed))
    for (name, a), b in zip(
        weights(eager).items(), weights(made).values(), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5), name
    assert made.interval().loss == pytest.approx(eager.interval().loss, rel=1e-5)


def test_what_runs_on_sparse_kernels_is_not_compiled() -> None:
    with pytest.raises(SaeError, match="compile: a topk SAE runs on sparse kernels"):
        learner("topk", compile=True)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_autocast_keeps_float32_masters_and_about_the_same_loss(kind: str) -> None:
    exact, reduced = learner(kind), learner(kind, precision="bfloat16")
    for one in (exact, reduced):
        one.update(*batch(0))
    assert all(
        p.dtype == torch.float32 and p.grad is not None
        for p in reduced.sae.parameters()
    )
    assert all(
        s["exp_avg"].dtype == torch.float32 for s in reduced.optimiser.state.values()
    )
    a, b = exact.interval().loss, reduced.interval().loss
    assert b == pytest.approx(a, rel=0.03)
    assert a != b
