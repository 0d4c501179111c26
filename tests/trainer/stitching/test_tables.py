"""The tables and figures of two SAEs of which all is known: the large one has five
latents of the small one, two that its sixth is split into, and two that are new.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import trainer
from actstore.figures.figure import Figure, HeatMap
from actstore.store.store import Store
from tests.trainer.stitching.made import D, directions, known_store, make_run
from trainer.analysis.evidence import PLOTS, figures_of
from trainer.errors import RunError
from trainer.stitching.add import compute_stitch_add
from trainer.stitching.classes import compute_stitch_classes
from trainer.stitching.compare import compute_stitch_compare
from trainer.stitching.cooccurrence import compute_stitch_cooccurrence
from trainer.stitching.cumulative import compute_stitch_cumulative
from trainer.stitching.interpolate import compute_stitch_interpolate
from trainer.stitching.optimise import compute_inference_time
from trainer.stitching.pairs_of_runs import compute_stitch_pairs
from trainer.stitching.swap import compute_stitch_swap


class Known(NamedTuple):
    store: Store
    small: str
    large: str


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("known")
    store = known_store(str(folder / "store"))
    small, large = directions()
    # Other units, and encoders that do not confuse the large SAE's latents.
    return Known(
        store,
        make_run(str(folder / "small"), small, store, scale=0.5),
        make_run(str(folder / "large"), large, store, encoder=torch.linalg.pinv(large)),
    )


def drawn(table: object) -> list[Figure]:
    figures = figures_of(table)  # type: ignore[arg-type]
    assert figures
    assert all(isinstance(figure, Figure) for figure in figures)
    return list(figures)  # type: ignore[arg-type]


def test_every_table_of_stitching_is_drawn() -> None:
    assert {
        name for name, at in PLOTS.items() if at.startswith("trainer.stitching.")
    } == {
        "stitch_compare",
        "stitch_pairs",
        "stitch_add",
        "stitch_classes",
        "stitch_cumulative",
        "stitch_swap",
        "stitch_interpolate",
        "stitch_frankenstein",
        "inference_time",
        "stitch_cooccurrence",
    }


def test_compare(known: Known) -> None:
    table = compute_stitch_compare(known.small, known.large)
    assert table["of"] == ["large"] * 9 + ["small"] * 6
    assert table["match"].tolist()[:7] == [0, 1, 2, 3, 4, 5, 5]
    wanted = [1, 1, 1, 1, 1, 0.8, 0.8, 0, 0]
    np.testing.assert_allclose(table["max_cosine"][:9], wanted, atol=1e-6)
    assert table["class"][:9] == ["reconstruction"] * 7 + ["novel"] * 2
    np.testing.assert_allclose(table["max_cosine"][9:], [1, 1, 1, 1, 1, 0.8], atol=1e-6)
    assert table.facts["large in small: novel"] == 2
    assert table.facts["small in large: novel"] == 0
    assert table.facts["large in small: share novel"] == pytest.approx(2 / 9)
    assert 0.2 < float(table.facts["large in small: random floor"]) < 0.6
    assert np.isnan(table["density"]).all()
    higher = compute_stitch_compare(known.small, known.large, threshold=0.9)
    assert higher.facts["large in small: novel"] == 4
    (figure,) = drawn(table)
    assert sum(figure.series[0].y) == 9
    assert sum(figure.series[1].y) == 6


def test_compare_with_densities_and_no_direction(known: Known, tmp_path: Path) -> None:
    small, large = directions()
    small[0] = 0
    one = make_run(str(tmp_path / "one"), small, known.store)
    two = make_run(str(tmp_path / "one2" / "one"), large, known.store)
    for run in (one, two):
        trainer.evaluate(run, tell=lambda _: None)
    table = compute_stitch_compare(one, two)
    assert set(table["of"]) == {"one", "one #2"}
    assert table.facts["one in one #2: no direction"] == 1
    assert table["class"][9] == "no direction"
    assert table["match"][9] == -1
    assert np.isnan(table["match_density"][9])
    assert 0.2 < table["density"][5] < 0.6
    assert table["match_density"][5] == table["density"][9 + 5]
    assert [figure.name for figure in drawn(table)] == [
        "stitch_compare-histogram",
        "stitch_compare-density",
    ]


def test_the_same_size_with_another_seed(known: Known) -> None:
    table = compute_stitch_compare(known.small, known.small)
    np.testing.assert_allclose(table["max_cosine"], 1, atol=1e-6)
    assert table["match"].tolist() == [*range(6), *range(6)]


def test_sizes_and_seeds_two_by_two(known: Known, tmp_path: Path) -> None:
    other = directions()[0].flip(0)
    other[:3] = -other[:3]
    again = make_run(str(tmp_path / "again"), other, known.store)
    table = compute_stitch_pairs([known.small, again, known.large])
    shares = dict(
        zip(
            zip(table["of"], table["against"], strict=True),
            table["share_novel"],
            strict=True,
        )
    )
    assert shares["small", "again"] == shares["again", "small"] == 0.5
    assert shares["large", "small"] == pytest.approx(2 / 9)
    assert shares["small", "large"] == 0
    assert table.facts["same size: mean share novel"] == 0.5
    heat, figure = figures_of(table)
    assert isinstance(heat, HeatMap)
    assert heat.values[0, 1] == 0.5
    assert np.isnan(heat.values.diagonal()).all()
    assert isinstance(figure, Figure)
    assert len(figure.series[0].x) == 6
    with pytest.raises(RunError, match="at least two"):
        compute_stitch_pairs([known.small])


def test_add(known: Known) -> None:
    table = compute_stitch_add(known.small, known.large)
    delta = table["delta_mse"]
    # What is new helps; what is there already is said twice.
    assert (delta[7:] < -0.2).all()
    assert (delta[:5] > 0).all()
    assert (table["fires"] > 20).all()
    # Where a new latent fires the small SAE lacks it, and the large one does not.
    missing = table["active_a"] - table["inactive_a"]
    assert (missing[7:] > 1).all()
    assert (np.abs(table["active_b"] - table["inactive_b"])[7:] < 0.2).all()
    assert table.facts["MSE active less inactive, novel, small SAE"] > 1
    classes = compute_stitch_classes(table)
    assert classes["class"] == ["novel", "reconstruction"]
    assert classes["better"][0] == 2
    assert classes["worse"].tolist()[0] == 0
    (bars,) = drawn(classes)
    assert [series.y[0] for series in bars.series] == [2, 0, 0]
    total = sum(classes[name].sum() for name in ("better", "worse", "silent"))
    assert total == 9
    (figure,) = drawn(table)
    assert [len(series.x) for series in figure.series] == [2, 7]


def test_added_together(known: Known) -> None:
    table = compute_stitch_cumulative(known.small, known.large, points=3)
    assert table["class"] == ["novel"] * 3 + ["reconstruction"] * 4
    assert table["added"].tolist() == [0, 1, 2, 0, 3, 5, 7]
    novel, again = table["mse"][:3], table["mse"][3:]
    assert (np.diff(novel) < 0).all()
    assert again[-1] > again[0] == novel[0]
    assert (np.diff(table["l0"][:3]) > 0).all()
    single = compute_stitch_add(known.small, known.large)["delta_mse"]
    # The new directions are orthogonal, so their effects add up.
    assert novel[-1] - novel[0] == pytest.approx(single[7:].sum(), rel=1e-4)
    drawn(table)


def test_swap(known: Known) -> None:
    table = compute_stitch_swap(known.small, known.large)
    assert table["parents"].tolist() == [1] * 6
    assert table["children"].tolist() == [1] * 5 + [2]
    assert table["small_latents"] == ["0", "1", "2", "3", "4", "5"]
    assert table["large_latents"][-1] == "5 6"
    # The children tell which of the two it is.
    assert table["delta_mse"][-1] < -0.1
    (figure,) = drawn(table)
    assert [len(series.x) for series in figure.series] == [5, 1]


@pytest.mark.parametrize("order", ["max", "mean"])
def test_interpolate_ends_at_the_large_sae(known: Known, order: str) -> None:
    table = compute_stitch_interpolate(known.small, known.large, order=order, points=6)
    assert table["latents"].tolist()[0] == 6
    assert table["latents"].tolist()[-2:] == [9, 9]
    assert table["phase"][:4] == ["start", "novel added", "novel added", "swapped"]
    assert table["phase"][-1] == "large"
    # All latents were taken, and both have the same bias.
    for name in ("mse", "l0"):
        assert table[name][-2] == pytest.approx(table[name][-1], rel=1e-4)
    cosines = table["cosine"][1:-1]
    assert (np.diff(cosines) >= -1e-6).all()
    assert table.facts["latents of small that stay to the end"] == 0
    assert len(drawn(table)) == 3


def test_inference_time(known: Known) -> None:
    table = compute_inference_time([known.small, known.large], rows=100)
    assert table["run"] == ["small", "large"]
    assert table.facts["rows"] == 100
    # The large dictionary holds the rows exactly, but for what is told apart wrongly.
    assert table["mse_optimised"][1] < 0.05 * table["mse_encoder"][1]
    assert table["encoder_share"][1] > 0.9
    # The small one lacks two directions, which no encoder can make up for.
    assert table["encoder_share"][0] < 0.9
    drawn(table)


def test_cooccurrence_of_what_is_split(known: Known) -> None:
    table = compute_stitch_cooccurrence(known.small, known.large, split="train")
    assert table["parent"].tolist() == [5]
    assert table["latents"] == ["5 6"]
    # At most one of the two fires.
    assert table["ratio"][0] < 0.1
    assert table["random_ratio"][0] == pytest.approx(1, abs=0.5)
    assert table["reading"] == ["alternatives"]
    assert table.facts["alternatives"] == 1
    assert table.facts["together"] == 0
    drawn(table)
    none = compute_stitch_cooccurrence(known.small, known.small)
    assert len(none) == 0
    drawn(none)


def test_children_that_fire_together(known: Known, tmp_path: Path) -> None:
    """Both children are read off one direction."""
    small, large = directions()
    encoder = torch.linalg.pinv(large)
    encoder[:, 6] = encoder[:, 5]
    run = make_run(str(tmp_path / "run"), large, known.store, encoder=encoder)
    table = compute_stitch_cooccurrence(known.small, run, split="train")
    assert table["reading"] == ["together"]
    # They fire on a quarter of rows, and then both do.
    assert table["ratio"][0] == pytest.approx(4, rel=0.2)


def test_what_cannot_be_compared_is_refused(known: Known, tmp_path: Path) -> None:
    small, large = directions()
    elsewhere = make_run(str(tmp_path / "e"), small, known.store, sites=("other",))
    narrow = make_run(str(tmp_path / "n"), small[:, : D - 1], known.store)
    topk = make_run(
        str(tmp_path / "t"), small, known.store, spec={"kind": "topk", "k": 2}
    )
    stray = make_run(str(tmp_path / "s"), small, content_id="c0ffee")
    filtered = make_run(
        str(tmp_path / "f"), small, known.store, filter={"positions": [1, 9]}
    )
    for run, message in (
        (elsewhere, "sites"),
        (narrow, "of width 11"),
        (str(tmp_path / "gone"), "wanted a trained SAE"),
    ):
        with pytest.raises(RunError, match=message):
            compute_stitch_compare(known.small, run)
        with pytest.raises(RunError, match=message):
            compute_stitch_add(known.small, run)
    compute_stitch_compare(known.small, topk)
    for run, message in (
        (topk, "a topk SAE cannot be moved"),
        (stray, "give store to measure"),
        (filtered, "filters differ"),
    ):
        with pytest.raises(RunError, match=message):
            compute_stitch_swap(known.small, run)
    compute_stitch_swap(known.small, stray, store=known.store.url, tell=lambda _: None)
