"""The geometry of dictionaries, by brute force; and what needs weights or a store."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.store.norms_of_sites import compute_norms, plot_norms
from tests.support import make_store
from tests.trainer.analysis.conftest import Trained
from trainer.analysis.cosines import known_directions
from trainer.analysis.decoder_cosines import (
    PILLARS,
    compute_decoder_cosines,
    cosines_among,
    pillars_of,
    plot_decoder_cosines,
    sampled_cosines,
)
from trainer.analysis.decoder_directions import Directions, directions_of
from trainer.analysis.decoder_norms import compute_decoder_norms, plot_decoder_norms
from trainer.analysis.direction_pairs import direction_pairs
from trainer.analysis.geometry import compute_geometry, plot_geometry
from trainer.analysis.l1_and_l0 import compute_l1_and_l0, plot_l1_and_l0
from trainer.analysis.norm_and_l0 import compute_norm_and_l0, plot_norm_and_l0
from trainer.analysis.resampling import compute_resampling, plot_resampling
from trainer.analysis.run_columns import where
from trainer.analysis.spread_of_latents import compute_spread, variance_over_layers
from trainer.analysis.statistics_of_seeds import fit_line
from trainer.errors import RunError
from trainer.runs.trained_sae import load


def dictionary(rows: torch.Tensor) -> Directions:
    return Directions("0", rows, torch.arange(len(rows)), {"s": 1.0})


def test_direction_vectors_are_those_of_brute_force() -> None:
    made = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 3, generator=made)
    rows[7] = 0
    wanted = 0
    members = set()
    for i, j in itertools.combinations(range(len(rows)), 2):
        a, b = rows[i].double(), rows[j].double()
        norms = sorted((float(a.norm()), float(b.norm())))
        if norms[0] and a @ b / a.norm() / b.norm() > 0.9 and norms[1] > 1.1 * norms[0]:
            wanted += 1
            members |= {i, j}
    assert wanted > 5
    # blocks of two or three rows, so that pairs lie within and across them
    for block in (2, 3, 4096):
        found = direction_pairs(rows, block)
        assert found.n == wanted
        assert set(torch.nonzero(found.latents)[:, 0].tolist()) == members


def test_the_same_direction_with_the_same_norm_is_no_direction_vector() -> None:
    row = torch.tensor([1.0, 2.0])
    assert direction_pairs(torch.stack([row, row * 1.05])).n == 0
    assert direction_pairs(torch.stack([row, row * 1.2])).n == 1
    assert direction_pairs(torch.stack([row, -row * 2])).n == 0
    assert direction_pairs(torch.zeros(3, 2)).n == 0
    assert direction_pairs(torch.ones(1, 2)).n == 0


def test_sampled_cosines_are_of_pairs_of_two_latents() -> None:
    unit = torch.eye(3)[:2]
    found = sampled_cosines(unit, 500, (0,))
    # a pair of a latent with itself would have 1
    assert found.tolist() == [0.0] * 500
    same = unit[[0, 0, 1]]
    share = float((sampled_cosines(same, 30_000, (1,)) > 0.5).mean())
    assert share == pytest.approx(1 / 3, abs=0.01)
    assert not len(sampled_cosines(unit[:1], 10, (0,)))


def test_a_sample_depends_on_its_seed_alone() -> None:
    unit = known_directions(torch.randn(50, 4))
    first = sampled_cosines(unit, 100, (3, 0))
    assert np.array_equal(first, sampled_cosines(unit, 100, (3, 0)))
    assert not np.array_equal(first, sampled_cosines(unit, 100, (4, 0)))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 150))
def test_pillars_have_the_largest_norms(seed: int, m: int) -> None:
    rows = torch.randn(m, 4, generator=torch.Generator().manual_seed(seed))
    rows[0] = 0
    one = dictionary(rows)
    chosen = pillars_of(one)
    assert len(chosen) == min(PILLARS, m - 1)
    assert 0 not in chosen
    others = [i for i in range(1, m) if i not in set(chosen.tolist())]
    norms = rows.norm(dim=1)
    assert not others or norms[chosen].min() >= norms[others].max()
    assert len(cosines_among(one, chosen)) == len(chosen) * (len(chosen) - 1) // 2


def test_norms_in_activation_units_are_those_of_the_folded_sae(
    trained: Trained,
) -> None:
    for name in ("nsae", "centred"):
        run = trained.runs[name]
        (one,) = directions_of(run)
        sae = load(run.url)
        for site, factor in one.factors.items():
            folded = sae.fold(site).W_dec.norm(dim=1)
            assert torch.allclose(one.rows.norm(dim=1) * factor, folded, rtol=1e-5)


def test_a_crosscoder_has_a_dictionary_for_each_site(trained: Trained) -> None:
    run = trained.runs["crosscoder"]
    names = [one.name for one in directions_of(run)]
    assert names == ["0 mlp_out", "1 mlp_out", "2 mlp_out"]
    table = compute_geometry([run, trained.runs["transcoder"]], n_pairs=1000)
    assert len(table) == 5
    assert np.isfinite(table["cosine_mean"]).all()


def test_each_figure_of_geometry_is_in_its_own_column(trained: Trained) -> None:
    table = compute_geometry([trained.runs["nsae"]], n_pairs=1000)
    (one,) = directions_of(trained.runs["nsae"])
    pairs = direction_pairs(one.rows)
    norms = one.rows.double().norm(dim=1).numpy()
    assert table["direction_pairs"][0] == pairs.n
    assert table["directions"][0] == pairs.latents.double().mean()
    assert table["overlap"][0] == pairs.latents[pillars_of(one)].double().mean()
    assert table["corrections"][0] == pytest.approx((norms < 0.5).mean())
    factor = next(iter(one.factors.values()))
    apart = (norms * factor < 0.5).mean()
    assert table["corrections_original"][0] == pytest.approx(apart)
    assert table["norm_max"][0] == pytest.approx(norms.max())
    assert table["latents"][0] == len(norms)
    assert table["without_direction"][0] == 0


def test_plain_saes_have_norm_one_and_no_directions(trained: Trained) -> None:
    runs = [trained.runs[name] for name in ("plain", "plain-1", "nsae", "nsae-1")]
    table = compute_geometry(runs, n_pairs=1000)
    plain = where(table, kind="relu_l1")
    assert table["norm_50"][plain] == pytest.approx(np.ones(6))
    assert not table["direction_pairs"][plain].any()
    assert table["alive"].max() <= 1
    assert np.ptp(table["norm_max"][where(table, kind="nsae")]) > 0
    for figure in plot_geometry(table):
        assert len(figure.series) == 2
        assert len(figure.x.categories) == 3
    histogram = compute_decoder_norms(runs)
    of_run = where(histogram, run="nsae")
    assert histogram["latents"][of_run].sum() == 32
    assert plot_decoder_norms(histogram)[0].rules[0].at == 0.5


def test_cosines_are_counted(trained: Trained) -> None:
    table = compute_decoder_cosines([trained.runs["nsae"]], n_pairs=2000)
    sampled = where(table, of="sampled")
    assert table["pairs"][sampled].sum() == 2000
    # fewer than a hundred latents are all pillars
    assert table["pairs"][where(table, of="pillars")].sum() == 32 * 31 // 2
    assert [figure.y.log for figure in plot_decoder_cosines(table)] == [True, False]


def test_latents_that_never_fire_may_be_left_out(trained: Trained) -> None:
    run = trained.runs["nsae"]
    firings = run.firings.clone()
    firings[:, 3:] = 0
    few = run._replace(firings=firings)
    (one,) = directions_of(few, alive_only=True)
    assert one.latents.tolist() == [0, 1, 2]
    table = compute_geometry([few], n_pairs=100, alive_only=True)
    assert set(table["latents"].tolist()) == {3}
    none = run._replace(firings=torch.zeros_like(firings))
    empty = compute_geometry([none], n_pairs=100, alive_only=True)
    assert np.isnan(empty["norm_mean"]).all()
    assert compute_decoder_norms([none], alive_only=True)["latents"].sum() == 0


def test_a_decoder_that_is_not_finite_is_refused(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.runs["nsae"]
    sae = load(run.url)
    sae.sae.W_dec.data[0, 0] = math.nan
    monkeypatch.setattr(
        "trainer.analysis.decoder_directions.load", lambda *_, **__: sae
    )
    with pytest.raises(RunError, match="not finite"):
        compute_geometry([run])


def test_the_line_of_l0_on_the_norm(trained: Trained) -> None:
    runs = [trained.runs[name] for name in ("plain", "plain-1", "nsae")]
    table = compute_norm_and_l0(runs)
    norms = [trained.store.norms[site].all.mean_norm for site in trained.store.sites]
    rows = where(table, run="plain")
    assert table["norm"][rows] == pytest.approx(norms)
    line = fit_line(norms, table["l0"][rows])
    assert table["slope"][rows[0]] == pytest.approx(line.slope)
    assert table["p"][rows[0]] == pytest.approx(line.p)
    # one scale for all layers: the same line, in other units
    scale = float(load(runs[0].url).scale[0])
    assert table["slope_seen"][rows[0]] == pytest.approx(line.slope / scale, rel=1e-5)
    assert table["p_seen"][rows[0]] == pytest.approx(line.p, rel=1e-4)
    slopes = [
        table["slope"][where(table, run=name)[0]] for name in ("plain", "plain-1")
    ]
    assert table["slope_mean"][rows[0]] == pytest.approx(np.mean(slopes))
    (figure,) = plot_norm_and_l0(table)
    assert [one.mark for one in figure.series] == ["points", "line"] * 2
    with pytest.raises(RunError, match="crosscoder"):
        compute_norm_and_l0([trained.runs["crosscoder"]])


def test_centred_rows_are_seen_about_their_mean(trained: Trained) -> None:
    run = trained.runs["centred"]
    table = compute_norm_and_l0([run], trained.store)
    sae = load(run.url)
    site = trained.store.sites[0]
    x = torch.from_numpy(trained.store.read(site, trained.store.rows("train")))
    seen = sae.scaled(x, 0).double().square().sum(dim=1).mean().sqrt()
    assert table["norm_seen"][0] == pytest.approx(float(seen), rel=1e-3)


def test_l1_in_own_units_is_the_sum_of_the_latents(trained: Trained) -> None:
    run = trained.runs["nsae"]
    table = compute_l1_and_l0([run, trained.runs["nsae-1"]])
    site = trained.store.sites[1]
    x = torch.from_numpy(trained.store.read(site, trained.store.rows("held_out")))
    latents = load(run.url).encode(x, site)
    (row,) = where(table, run="nsae", site=site)
    assert table["l1_own"][row] == pytest.approx(float(latents.sum(1).mean()), rel=1e-4)
    assert table["l0"][row] == pytest.approx(
        float((latents > 0).sum(1).double().mean())
    )
    # a tanh is below 1
    assert (table["ratio"] < 1).all()
    assert [len(figure.series) for figure in plot_l1_and_l0(table)] == [2, 1]


@pytest.mark.parametrize("name", ["plain", "crosscoder", "transcoder", "centred"])
def test_variance_over_layers_by_brute_force(
    trained: Trained, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.analysis.spread_of_latents.BLOCK_LATENTS", 5000)
    run = trained.runs[name]
    sae = load(run.url)
    ids = trained.store.rows("held_out")
    rows = [torch.from_numpy(trained.store.read(site, ids)) for site in sae.sites]
    if sae.of_all_sites:
        latents = sae.encode(torch.stack(rows, dim=1))
        norms = sae.decoder.norm(dim=2) / sae.scale
        values = torch.stack([latents * norms[:, i] for i in range(len(rows))])
    else:
        values = torch.stack(
            [sae.encode(x, i) / sae.scale_out[i] for i, x in enumerate(rows)]
        )
    wanted = values.double().var(dim=0, correction=0).mean(dim=0).numpy()
    found = variance_over_layers(sae, trained.store, ids)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    table = compute_spread([run], trained.store)
    assert table["variance"] == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_resampling_is_compared_with_none(trained: Trained) -> None:
    runs = [trained.runs[name] for name in ("plain", "plain-1", "on")]
    table = compute_resampling(runs)
    assert {*table["resample"]} == {"on", "off"}
    dead = {name: trained.runs[name].evaluation.dead for name in ("plain", "on")}
    apart = str(table.facts["dead latents, on minus off"])
    assert apart == f"{dead['on'] - dead['plain']:.4g} (1 seed)"
    assert [figure.name for figure in plot_resampling(table)] == [
        "resampling-fvu",
        "resampling-l0",
        "resampling-dead",
    ]
    with pytest.raises(RunError, match="resample"):
        compute_resampling([trained.runs["plain"], trained.runs["nsae"]])


def test_norms_of_a_store_by_layer(trained: Trained, memory_url: str) -> None:
    table = compute_norms(trained.store)
    assert table["mean"] == pytest.approx(
        [trained.store.norms[site].all.mean_norm for site in trained.store.sites]
    )
    assert (table["low"] <= table["median"]).all()
    assert table.column("mean").heading == "mean (activation units)"
    (figure,) = plot_norms(table)
    assert [one.mark for one in figure.series] == ["band", "line and points"]
    sites = {"blocks.10.mlp": 4, "blocks.2.mlp": 4, "blocks.2.attn": 4}
    other = compute_norms(make_store(f"{memory_url}/s", sites=sites, n_units=2))
    assert other["site"] == ["blocks.2.mlp", "blocks.2.attn", "blocks.10.mlp"]
    # sites at one place of the layers are joined, and no others
    assert len({one.name for one in plot_norms(other)[0].series}) == 2
