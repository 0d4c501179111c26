"""Sets of runs: groups, fronts, layers, curves, densities, spreads and matched L0s."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.figures.figure import Figure
from actstore.figures.layer_order import family, in_layer_order, layer_number
from tests.trainer.analysis.made_runs import SITES, made_run, made_step
from trainer.analysis.by_layer import compute_by_layer, plot_by_layer
from trainer.analysis.curves import MOST_POINTS, compute_curves, plot_curves, thinned
from trainer.analysis.densities import compute_densities, plot_densities
from trainer.analysis.fronts import compute_fronts, plot_fronts
from trainer.analysis.matched import EVERY_LAYER, at_l0, compute_matched, plot_matched
from trainer.analysis.run_columns import Look, looks, where
from trainer.analysis.seed_groups import group_runs, groups_over_layers, read_runs
from trainer.analysis.spread_of_latents import compute_spread, plot_spread
from trainer.errors import RunError
from trainer.runs.run_data import RunData


def steered(
    kind: str, l0: float, fvu: float, seed: int = 0, site: str = SITES[0]
) -> RunData:
    """A run of one layer that was steered to an L0 and reached it."""
    return made_run(
        f"{kind}-{l0:g}-{seed}-{site}",
        {site: {"l0": l0, "fvu": fvu}},
        sae={"kind": kind, "target_l0": l0},
        seed=seed,
    )


def topk(k: int, fvu: float, seed: int = 0, **more: object) -> RunData:
    layers = {
        site: {"fvu": fvu * (1 + place), "l0": k} for place, site in enumerate(SITES)
    }
    name = f"k{k}-{seed}-{more.get('rescale', '')}{more.get('lr', '')}"
    return made_run(name, layers, sae={"kind": "topk", "k": k}, seed=seed, **more)  # type: ignore[arg-type]


def named(figures: tuple[Figure, ...]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_layers_are_ordered_by_their_number() -> None:
    sites = ["blocks.10.hook_mlp_out", "embed", "blocks.2.hook_mlp_out"]
    assert in_layer_order(sites) == [sites[2], sites[0], "embed"]
    assert layer_number("transformer.h.11.mlp") == 11
    assert layer_number("block2.mlp") is None
    assert family("transformer.h.11.mlp") == family("transformer.h.3.mlp")
    assert family("embed") == "embed"


def test_runs_that_differ_in_the_seed_alone_are_one_group() -> None:
    runs = [topk(2, 0.4), topk(4, 0.2), topk(2, 0.5, seed=1)]
    groups = group_runs(runs)
    assert [group.name for group in groups] == ["k 2", "k 4"]
    assert [len(group.runs) for group in groups] == [2, 1]
    (whole,) = group_runs(runs, sparsity=False)
    assert len(whole.runs) == 3
    assert whole.name == "topk"


@pytest.mark.parametrize(
    "other",
    [
        {"rescale": "log"},
        {"lr": 2e-3},
        {"rows": 999},
        {"sae": {"kind": "topk", "k": 8}},
    ],
)
def test_any_setting_that_matters_makes_another_group(other: dict[str, object]) -> None:
    layers = {SITES[0]: {"l0": 4.0}}
    runs = [made_run("a", layers), made_run("b", layers, seed=1, **other)]  # type: ignore[arg-type]
    assert len(group_runs(runs)) == 2


def test_kinds_are_named_and_what_differs_within_a_kind() -> None:
    runs = [
        steered("nsae", 2, 0.5),
        steered("nsae", 4, 0.4),
        steered("relu_l1", 2, 0.5),
    ]
    assert [group.name for group in group_runs(runs)] == [
        "nsae, target_l0 2",
        "nsae, target_l0 4",
        "relu_l1",
    ]


def test_a_dictionary_for_each_layer_is_one_group_over_layers() -> None:
    runs = [steered("nsae", 2, 0.5, site=site) for site in SITES]
    assert len(group_runs(runs)) == 2
    assert len(groups_over_layers(runs)) == 1
    table = compute_by_layer(runs)
    rows = where(table, metric="fvu")
    assert [table["site"][row] for row in rows] == list(SITES)
    assert len(named(plot_by_layer(table))["by_layer-fvu"].series) == 1


def test_no_run_and_one_run_twice_are_refused() -> None:
    for compute in (compute_fronts, compute_by_layer, compute_curves, compute_matched):
        with pytest.raises(RunError, match="run"):
            compute([])
    with pytest.raises(RunError, match="which runs"):
        read_runs([])
    with pytest.raises(RunError, match="given twice"):
        read_runs(["memory://a/run", "memory://a/run/"])


def test_fronts_have_a_row_for_each_layer_and_one_for_all() -> None:
    table = compute_fronts([topk(2, 0.4), topk(2, 0.6, seed=1), topk(4, 0.2)])
    assert len(table) == 9
    assert table["layer"][:3] == ["0 mlp_out", "1 mlp_out", "pooled"]
    assert table["fvu_mean"][0] == pytest.approx(0.5)
    # t of 1 degree times 0.1414 / sqrt(2)
    assert table["fvu_high"][0] == pytest.approx(0.5 + 12.7062 * 0.1, abs=1e-4)
    assert math.isnan(table["fvu_high"][-1])
    assert np.isnan(table["kl"]).all()


def test_points_of_a_front_are_joined_in_the_order_of_l0() -> None:
    runs = [topk(8, 0.1), topk(2, 0.4), topk(4, 0.2), topk(4, 0.3, seed=1)]
    drawn = named(plot_fronts(compute_fronts(runs)))
    (whole,) = drawn["fronts-runs"].series
    assert list(whole.x) == [2, 4, 8]
    assert list(whole.y) == pytest.approx([0.6, 0.375, 0.15])
    assert [one.name for one in drawn["fronts-layer"].series] == [
        "0 mlp_out",
        "1 mlp_out",
    ]
    # layers have an order, so they are shaded
    assert [one.shade for one in drawn["fronts-layer"].series] == [0, 1]


def test_sweep_b_has_fronts_by_rescaling_and_by_learning_rate() -> None:
    runs = [
        topk(k, fvu, rescale=rescale, lr=lr)
        for k, fvu in ((2, 0.4), (4, 0.2))
        for rescale in ("none", "log")
        for lr in (1e-3, 2e-3)
    ]
    drawn = named(plot_fronts(compute_fronts(runs)))
    by_rescaling = drawn["fronts-rescaling"].series
    assert {one.name for one in by_rescaling} == {"none", "log"}
    assert len(by_rescaling) == 4
    assert {one.colour for one in by_rescaling} == {0, 1}
    assert {one.shade for one in drawn["fronts-learning_rate"].series} == {0, 1}
    bars = named(plot_by_layer(compute_by_layer(runs)))["by_layer-fvu"]
    assert {one.name for one in bars.series} == {"none", "log"}
    assert bars.x.categories == ("0 mlp_out", "1 mlp_out")


def test_drawing_changes_nothing() -> None:
    table = compute_fronts([topk(2, 0.4), topk(4, 0.2)])
    before = table.to_json()
    first = plot_fronts(table)
    again = plot_fronts(table)
    assert table.to_json() == before
    assert [list(one.y) for one in first[0].series] == [
        list(one.y) for one in again[0].series
    ]


def test_numbers_are_shades_and_names_colours() -> None:
    assert looks(["k 8", "k 2"]) == {"k 2": Look(None, 0), "k 8": Look(None, 1)}
    assert looks(["b", "a"]) == {"b": Look(0, None), "a": Look(1, None)}
    assert looks([0.3, 0.1])[0.1] == Look(None, 0)
    assert looks([]) == {}


def test_between_two_points_fvu_is_linear_in_the_logarithm_of_l0() -> None:
    l0s = np.array([16.0, 4.0])
    values = np.array([0.2, 0.4])
    assert at_l0(8.0, l0s, values) == pytest.approx(0.3)
    assert math.isnan(at_l0(3.5, l0s, values))
    assert at_l0(3.9, l0s, values) == pytest.approx(0.4)
    assert math.isnan(at_l0(8.0, np.array([np.nan]), np.array([0.1])))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.5, 500), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0.5, 500),
)
def test_a_front_is_never_read_beyond_its_values(
    points: list[tuple[float, float]], l0: float
) -> None:
    l0s, values = np.array(points).T
    found = at_l0(l0, l0s, values)
    is_near = l0s.min() / 1.0501 <= l0 <= l0s.max() * 1.0501
    assert is_near or math.isnan(found)
    if not math.isnan(found):
        assert values.min() - 1e-12 <= found <= values.max() + 1e-12


def test_fronts_are_compared_at_the_same_l0_paired_by_seed() -> None:
    runs = []
    for seed, more in enumerate((0.0, 0.1, 0.3)):
        runs += [steered("relu_l1", l0, 0.8 / l0 + more, seed) for l0 in (2, 4, 8)]
        runs += [steered("nsae", l0, 0.8 / l0 + more - 0.05, seed) for l0 in (2, 4, 8)]
    table = compute_matched(runs, [4.0])
    (row,) = where(table, metric="fvu", front="nsae")
    assert table["mean"][row] == pytest.approx(0.15 + 0.4 / 3)
    # seeds differ by far more than kinds: only the pairs show the difference
    assert table["difference"][row] == pytest.approx(-0.05)
    assert table["difference_high"][row] == pytest.approx(-0.05)
    assert table["high"][row] - table["low"][row] > 0.3
    assert table["pairs"][row] == 3
    assert table.facts["compared with"] == "relu_l1"
    figures = named(plot_matched(table))
    assert {"matched-fvu", "matched-suppression"} == set(figures)


def test_l0s_that_all_fronts_reach_are_chosen() -> None:
    runs = [steered("relu_l1", l0, 1 / l0) for l0 in (1, 4, 16)]
    runs += [steered("nsae", l0, 1 / l0) for l0 in (2, 8, 32)]
    l0s = np.unique(compute_matched(runs)["l0"])
    assert (l0s[0], l0s[-1], len(l0s)) == (2, 16, 5)
    # steered to the same, and met but for 3 %
    alone = [steered("relu_l1", 10, 0.5), steered("nsae", 10.3, 0.4)]
    table = compute_matched(alone)
    (row,) = where(table, metric="fvu", front="nsae")
    assert table["difference"][row] == pytest.approx(-0.1)


def test_fronts_without_a_common_l0_are_refused() -> None:
    with pytest.raises(RunError, match="no L0 in common"):
        compute_matched([steered("relu_l1", 2, 0.5), steered("nsae", 20, 0.5)])
    with pytest.raises(RunError, match="at least two kinds"):
        compute_matched([steered("nsae", 2, 0.5), steered("nsae", 4, 0.5)])
    pair = [steered("nsae", 2, 0.5), steered("relu_l1", 2, 0.5)]
    with pytest.raises(RunError, match="above 0"):
        compute_matched(pair, [-1.0])


def test_dictionaries_of_one_layer_have_a_mean_over_layers() -> None:
    runs = [
        steered(kind, 4, fvu + place / 10, site=site)
        for kind, fvu in (("relu_l1", 0.5), ("nsae", 0.3))
        for place, site in enumerate(SITES)
    ]
    table = compute_matched(runs, [4.0])
    (row,) = where(table, metric="fvu", front="nsae", site=EVERY_LAYER)
    assert table["mean"][row] == pytest.approx(0.35)
    assert table["difference"][row] == pytest.approx(-0.2)


def test_curves_are_the_lines_of_the_journals() -> None:
    runs = [
        made_run(
            f"s{seed}",
            {SITES[0]: {}},
            seed=seed,
            steps=[
                made_step(step, fvu=fvu + seed / 10)
                for step, fvu in ((1, 0.5), (2, 0.3))
            ],
        )
        for seed in (0, 1)
    ]
    table = compute_curves(runs)
    assert table["rows"].tolist() == [100, 200, 100, 200]
    assert set(table["resample"]) == {"unknown"}
    band, line = named(plot_curves(table))["curves-fvu"].series
    assert (band.mark, line.mark, band.name) == ("band", "line", line.name)
    assert list(line.y) == pytest.approx([0.55, 0.35])
    assert band.colour == line.colour
    assert plot_curves(compute_curves([made_run("x", {SITES[0]: {}})])) == ()


def test_long_journals_are_thinned_to_their_end() -> None:
    steps = [made_step(step) for step in range(1, 1001)]
    chosen = thinned(steps)
    assert len(chosen) == MOST_POINTS
    assert (chosen[0].step, chosen[-1].step) == (1, 1000)


def test_densities_count_every_latent_once() -> None:
    firings = torch.tensor([[0, 10, 100, 100], [0, 10, 100, 100]])
    table = compute_densities(
        [made_run("x", {site: {} for site in SITES}, firings=firings)]
    )
    assert table["latents"].sum() == 4
    at = dict(
        zip(table["log_density"].tolist(), table["latents"].tolist(), strict=True)
    )
    found = {round(place, 2): n for place, n in at.items() if n}
    assert found == {-10: 1, -1: 1, 0: 2}
    assert table["share"].sum() == pytest.approx(1)
    (figure,) = plot_densities(table)
    assert figure.series[0].mark == "bars"


def test_spread_of_latents_in_the_order_of_layers() -> None:
    sites: dict[str, dict[str, float]] = {
        "blocks.10.hook_mlp_out": {},
        "blocks.2.hook_mlp_out": {},
    }
    firings = torch.tensor([[10, 20, 0, 30], [10, 0, 0, 10]])
    table = compute_spread([made_run("x", sites, firings=firings)])
    assert table["layers"].tolist() == pytest.approx(
        [2, 1, 0, math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))]
    )
    # layer 2 comes before layer 10
    assert table["share_0"].tolist() == pytest.approx([0.5, 0, 0, 0.25])
    assert table.column("share_0").label == "share at 2 mlp_out"
    points, histogram = plot_spread(table)
    assert len(points.series[0].x) == 3
    assert np.sum(histogram.series[0].y) == pytest.approx(1)


def test_latents_of_other_sites_have_no_spread_in_common() -> None:
    runs = [made_run("a", {SITES[0]: {}}), made_run("b", {SITES[1]: {}})]
    with pytest.raises(RunError, match="the same sites"):
        compute_spread(runs)


def test_a_group_without_what_others_have_has_a_name() -> None:
    from trainer.analysis.seed_groups import Setting, _names

    plain: dict[str, Setting] = {"kind": "topk", "rows": 5}
    named = _names([plain, {**plain, "resample.every": 9}])
    assert named == ["no resample", "every 9"]
    assert _names([plain]) == ["topk"]
    assert _names([plain, {"kind": "nsae", "rows": 7}]) == ["topk", "nsae"]
