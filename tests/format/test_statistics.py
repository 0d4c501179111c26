"""Norms in bins, quantiles, and statistics that add up, with values worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from actstore.errors import CorruptError
from actstore.format.norm_checks import norm_faults
from actstore.format.norm_histogram import BINS, bin_of, quantile
from actstore.format.statistics import REST, SPECIAL, SiteStats, UnitStats
from schemas.manifest import QUANTILES, NormStats, StratumNorms
from schemas.source import Site

SITES = (Site(name="a", d=2), Site(name="b", d=1))
# Norms 5, 13, 1 and 2; the third row is special, the fourth is not finite.
ROWS = np.array([[3, 4], [5, 12], [0, 1], [np.inf, 0], [0, -2]], np.float32)
NORMS = np.array([5, 13, 1, np.inf, 2], np.float32)
IS_SPECIAL = np.array([False, False, True, False, False])


def histogram(**counts: int) -> np.ndarray:
    """Bins by number: `histogram(_768=3)`."""
    bins = np.zeros(BINS, np.int64)
    for name, count in counts.items():
        bins[int(name[1:])] = count
    return bins


# The histogram


def test_norms_are_in_32_bins_for_each_doubling() -> None:
    edge = 2.0 ** (1 / 32)
    norms = [1, edge * 0.999, edge * 1.001, 2, 0.5, 2.0**-24, 2.0**-30, 0, 2.0**60]
    wanted = [768, 768, 769, 800, 736, 0, 0, 0, 2047]
    bins = bin_of(np.array(norms, np.float64))
    assert bins.tolist() == wanted
    assert bins.dtype == np.int64


def test_a_quantile_is_linear_in_the_logarithm_inside_its_bin() -> None:
    counts = histogram(_768=3, _800=1)
    assert quantile(counts, 0.5) == pytest.approx(2 ** (2 / 3 / 32))
    assert quantile(counts, 0.75) == pytest.approx(2 ** (1 / 32))
    assert quantile(counts, 0.875) == pytest.approx(2 ** (1 + 1 / 2 / 32))
    assert quantile(counts, 1.0) == pytest.approx(2 ** (1 + 1 / 32))
    assert quantile(histogram(_2047=2), 1.0) == pytest.approx(2.0**40)
    # nothing is below: the first bin's beginning
    assert quantile(counts, 0.0) == 2.0**-24
    assert math.isnan(quantile(histogram(), 0.5))


# Sums


def added() -> SiteStats:
    stats = SiteStats(2)
    stats.add_rows(ROWS, NORMS, IS_SPECIAL)
    return stats


def test_rows_are_counted_by_stratum() -> None:
    stats = added()
    assert stats.count.tolist() == [1, 3]
    assert stats.non_finite.tolist() == [0, 1]
    assert stats.sum_norm.tolist() == [1, 20]
    assert stats.sum_sq_norm.tolist() == [1, 25 + 169 + 4]
    assert stats.max_norm.tolist() == [1, 13]
    # of the rows (3, 4), (5, 12) and (0, -2)
    np.testing.assert_allclose(stats.mean, [[0.0, 1.0], [8 / 3, 14 / 3]])
    np.testing.assert_allclose(stats.m2, [[0.0, 0.0], [38 / 3, 296 / 3]])
    assert np.flatnonzero(stats.histogram[SPECIAL]).tolist() == [768]
    assert stats.histogram[REST].sum() == 3
    assert stats.histogram[REST][800] == 1
    assert stats.adds_up()
    stats.add_rows(ROWS, NORMS, IS_SPECIAL)
    assert stats.count.tolist() == [2, 6]
    assert stats.non_finite.tolist() == [0, 2]
    assert stats.sum_norm.tolist() == [2, 40]
    assert stats.sum_sq_norm.tolist() == [2, 396]
    assert stats.max_norm.tolist() == [1, 13]
    np.testing.assert_allclose(stats.mean, [[0.0, 1.0], [8 / 3, 14 / 3]])
    np.testing.assert_allclose(stats.m2, [[0.0, 0.0], [76 / 3, 592 / 3]])
    assert stats.histogram[REST].sum() == 6


def test_norms_alone_tell_which_rows_are_finite() -> None:
    stats = SiteStats(2)
    finite = stats.add_norms(NORMS, IS_SPECIAL)
    assert finite.tolist() == [True, True, True, False, True]
    assert stats.count.tolist() == [0, 0]
    assert stats.histogram.sum(axis=1).tolist() == [1, 3]


def test_channels_are_added_as_if_the_rows_were_one_set() -> None:
    stats = SiteStats(1)
    # 0 and 2; then 4, and no rows at all
    stats.add_channels(REST, 2, np.array([1.0]), np.array([2.0]))
    stats.add_channels(REST, 1, np.array([4.0]), np.array([0.0]))
    stats.add_channels(REST, 0, np.array([9.0]), np.array([9.0]))
    assert stats.count.tolist() == [0, 3]
    np.testing.assert_allclose(stats.mean[REST], [2])
    np.testing.assert_allclose(stats.m2[REST], [8])


def test_units_are_merged() -> None:
    g = np.random.default_rng(0)
    rows = g.normal(size=(50, 2)).astype(np.float32) * 3 + 1
    norms = np.linalg.norm(rows, axis=1)
    special = g.random(50) < 0.3
    norms[[3, 22, 30]] = np.inf
    whole = SiteStats(2)
    whole.add_rows(rows, norms, special)
    joined = SiteStats(2)
    for part in (slice(0, 20), slice(20, 21), slice(21, 50)):
        one = SiteStats(2)
        one.add_rows(rows[part], norms[part], special[part])
        joined.merge(one)
    joined.merge(SiteStats(2))
    for name in SiteStats.FIGURES:
        np.testing.assert_allclose(
            getattr(joined, name), getattr(whole, name), err_msg=name
        )
    assert whole.non_finite.sum() == 3
    finite = np.isfinite(norms)
    rows, special = rows[finite], special[finite]
    for stratum, of_it in ((SPECIAL, special), (REST, ~special)):
        np.testing.assert_allclose(whole.mean[stratum], rows[of_it].mean(0), rtol=1e-6)
        n, mean, variance = whole.moments([stratum])
        assert n == of_it.sum()
        np.testing.assert_allclose(mean, rows[of_it].mean(0), rtol=1e-6)
        np.testing.assert_allclose(variance, rows[of_it].var(0), rtol=1e-5)
    n, mean, variance = whole.moments()
    assert n == 47
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, rows.var(0), rtol=1e-5)


def test_moments_of_no_rows_are_no_numbers() -> None:
    n, mean, variance = SiteStats(3).moments()
    assert n == 0
    assert mean.shape == variance.shape == (3,)
    assert np.isnan(mean).all()
    assert np.isnan(variance).all()


# The most that a count can be: 2^62 over 2,048 bins.
TOO_MANY = 1 << 51


@pytest.mark.parametrize(
    ("counts", "adds_up"),
    [
        ({}, True),
        ({"count": (0, 5), "bins": 5}, True),
        ({"count": (5, 0), "bins": 5}, False),
        ({"count": (0, 5), "bins": 4}, False),
        ({"count": (0, 0), "bins": 1}, False),
        ({"count": (0, -1), "bins": -1}, False),
        ({"non_finite": (0, -1)}, False),
        ({"non_finite": (TOO_MANY - 1, 0)}, True),
        ({"non_finite": (TOO_MANY, 0)}, False),
        ({"count": (0, TOO_MANY - 1), "bins": TOO_MANY - 1}, True),
        ({"count": (0, TOO_MANY), "bins": TOO_MANY}, False),
    ],
)
def test_counts_add_up(counts: dict[str, Any], adds_up: bool) -> None:
    stats = SiteStats(1)
    stats.count[:] = counts.get("count", (0, 0))
    stats.non_finite[:] = counts.get("non_finite", (0, 0))
    stats.histogram[REST, 7] = counts.get("bins", 0)
    assert stats.adds_up() is adds_up


def test_the_figures_of_norms() -> None:
    stats = added()
    both = stats.summary((SPECIAL, REST))
    assert (both.count, both.non_finite, both.outliers) == (4, 1, 0)
    assert both.mean_norm == 21 / 4
    assert both.mean_sq_norm == 199 / 4
    assert both.max_norm == 13
    bins = stats.histogram.sum(axis=0)
    assert both.quantiles == tuple(quantile(bins, q) for q in QUANTILES)
    rest = stats.summary((REST,))
    assert (rest.count, rest.mean_norm, rest.max_norm) == (3, 20 / 3, 13)
    special = stats.summary((SPECIAL,))
    assert (special.count, special.non_finite, special.max_norm) == (1, 0, 1)
    assert (special.mean_norm, special.mean_sq_norm) == (1, 1)


def test_outliers_are_in_bins_above_ten_times_the_median() -> None:
    stats = SiteStats(1)
    # The median is in bin 768, from 1 to 1.022: ten times it is in bin 875.
    stats.count[REST] = 12
    stats.histogram[REST] = histogram(_768=7, _875=2, _876=1, _900=2)
    assert bin_of(np.array([10 * quantile(stats.histogram[REST], 0.5)]))[0] == 875
    assert stats.summary((REST,)).outliers == 3
    # of rows that are all 0 the median is taken for what is above it
    zeros = SiteStats(1)
    zeros.add_norms(np.zeros(3, np.float32), np.zeros(3, bool))
    zeros.count[REST] = 3
    assert zeros.summary((REST,)).outliers == 0
    no_rows = SiteStats(1).summary((SPECIAL,))
    assert (no_rows.count, no_rows.outliers) == (0, 0)
    assert math.isnan(no_rows.mean_norm)


# The binary form


def test_the_binary_form_goes_round() -> None:
    stats = UnitStats(SITES)
    stats.sites["a"].add_rows(ROWS, NORMS, IS_SPECIAL)
    stats.sites["b"].add_rows(ROWS[:2, :1], NORMS[:2], IS_SPECIAL[:2])
    data = stats.to_bytes()
    assert len(data) == sum(16 * (5 + 2 * d + 2048) for d in (2, 1))
    # count, non-finite rows, sum of norms of the first site, both strata each
    assert np.frombuffer(data, "<i8", 4).tolist() == [1, 3, 0, 1]
    assert np.frombuffer(data, "<f8", 2, 32).tolist() == [1, 20]
    # maximum, then mean and squared deviations of two channels, then the histogram
    assert np.frombuffer(data, "<f8", 4, 48).tolist() == [1, 198, 1, 13]
    assert np.frombuffer(data, "<f8", 2, 80).tolist() == [0, 1]
    bins = np.frombuffer(data, "<i8", 2 * 2048, 80 + 2 * 32).reshape(2, 2048)
    assert bins.tolist() == stats.sites["a"].histogram.tolist()
    assert bins.sum(axis=1).tolist() == [1, 3]
    again = UnitStats.from_bytes(SITES, data)
    assert again.to_bytes() == data
    again.merge(stats)
    assert again.sites["a"].count.tolist() == [2, 6]
    assert again.sites["b"].count.tolist() == [0, 4]
    a, b = stats.norms()
    assert (a.site, a.d, b.site, b.d) == ("a", 2, "b", 1)
    assert (a.all.count, a.special.count, a.rest.count) == (4, 1, 3)
    with pytest.raises(
        CorruptError, match=f"^the statistics: {len(data) - 1} bytes, wanted"
    ):
        UnitStats.from_bytes(SITES, data[:-1])
    with pytest.raises(
        CorruptError, match=r"^here: the counts of site a do not add up"
    ):
        UnitStats.from_bytes(SITES, b"\1" + b"\0" * (len(data) - 1), "here")


# What cannot be among norms


def good() -> dict[str, Any]:
    return {
        "count": 10,
        "non_finite": 1,
        "mean_norm": 2.0,
        "mean_sq_norm": 5.0,
        "max_norm": 4.0,
        "quantiles": (1.0,) * 5 + (2.0,) * 4,
        "outliers": 0,
    }


NONE: dict[str, Any] = {**dict.fromkeys(good(), 0), "quantiles": (math.nan,) * 9}


class Manifest:
    """What `norm_faults` looks at: two sites, whose first has these norms of the rest."""

    def __init__(self, n_train_rows: int = 11, **update: Any) -> None:
        rest = StratumNorms.model_construct(**{**good(), **update})
        whole = StratumNorms.model_construct(**good())
        none = StratumNorms.model_construct(**NONE)
        first = NormStats.model_construct(
            site="a", d=2, all=whole, special=none, rest=rest
        )
        second = first.model_copy(update={"site": "b", "d": 1, "rest": whole})
        self.sites = SITES
        self.norms = [first, second]
        self.n_train_rows = n_train_rows


def faults(**update: Any) -> list[str]:
    return list(norm_faults(Manifest(**update)))  # type: ignore[arg-type]


# A figure that is as large as it can be, and one that is larger.
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "count, non_finite or outliers": ({"outliers": 10}, {"outliers": 11}),
    "its quantiles": (
        {"quantiles": (1.0,) * 8 + (4 * 2 ** (1 / 32),)},
        {"quantiles": (1.0,) * 8 + (4 * 2 ** (1 / 32) * 1.00001,)},
    ),
    "mean_norm": (
        {"mean_norm": 3.0, "mean_sq_norm": 9.0},
        {"mean_norm": 3.0, "mean_sq_norm": 8.9999},
    ),
    "mean_sq_norm": ({"mean_sq_norm": 16.0}, {"mean_sq_norm": 16.001}),
}


@pytest.mark.parametrize("figure", sorted(LIMITS))
def test_norms_that_are_as_large_as_they_can_be(figure: str) -> None:
    possible, impossible = LIMITS[figure]
    assert faults() == []
    assert faults(**possible) == []
    assert faults(**impossible) == [f"norms of a, rest: {figure} cannot be"]


@pytest.mark.parametrize(
    ("update", "figure"),
    [
        ({"outliers": -1}, "count, non_finite or outliers"),
        ({"quantiles": (1.0, 0.9) + (2.0,) * 7}, "its quantiles"),
        ({"mean_norm": 4.001, "mean_sq_norm": 99.0}, "mean_norm"),
        ({"mean_norm": -0.5}, "a figure that is negative or no number"),
        ({"mean_sq_norm": math.nan}, "a figure that is negative or no number"),
        ({"max_norm": math.inf}, "a figure that is negative or no number"),
        ({"quantiles": (-1.0,) * 9}, "a figure that is negative or no number"),
    ],
)
def test_a_figure_that_cannot_be(update: dict[str, Any], figure: str) -> None:
    assert faults(**update) == [f"norms of a, rest: {figure} cannot be"]


def test_small_norms_are_counted_in_the_first_bin() -> None:
    nothing = {"mean_norm": 0.0, "mean_sq_norm": 0.0, "max_norm": 0.0}
    assert faults(**nothing, quantiles=(2.0**-23,) * 9) == []
    wrong = faults(**nothing, quantiles=(2.0**-22,) * 9)
    assert wrong == ["norms of a, rest: its quantiles cannot be"]


def test_counts_are_those_of_the_strata_and_of_the_training_rows() -> None:
    assert faults(count=9) == [
        "norms of a: count of all is not that of special and rest"
    ]
    assert faults(non_finite=2) == [
        "norms of a: non_finite of all is not that of special and rest"
    ]
    assert (
        faults(count=-1)[0]
        == "norms of a, rest: count, non_finite or outliers cannot be"
    )
    assert faults(non_finite=-1)[0] == (
        "norms of a, rest: count, non_finite or outliers cannot be"
    )
    assert faults(n_train_rows=12) == [
        "norms of a: they are not of 12 rows",
        "norms of b: they are not of 12 rows",
    ]
    assert faults(quantiles=(1.0,) * 8)[0] == "norms of a: wanted 9 quantiles"


@pytest.mark.parametrize(
    ("update", "possible"),
    [({}, True), ({"mean_norm": math.nan}, True), ({"mean_norm": 1.0}, False)],
)
def test_figures_of_no_rows(update: dict[str, Any], possible: bool) -> None:
    m = Manifest()
    none = StratumNorms.model_construct(**{**NONE, **update})
    m.norms[0] = m.norms[0].model_copy(update={"special": none, "rest": m.norms[0].all})
    wrong = ["norms of a, special: a figure of no rows cannot be"]
    assert list(norm_faults(m)) == ([] if possible else wrong)  # type: ignore[arg-type]


def test_norms_are_one_for_each_site() -> None:
    m = Manifest()
    m.sites = SITES[::-1]
    line = "its norms are not one for each site, in their order"
    assert list(norm_faults(m)) == [line]  # type: ignore[arg-type]
    m.sites = (Site(name="a", d=3), SITES[1])
    assert list(norm_faults(m)) == [line]  # type: ignore[arg-type]
