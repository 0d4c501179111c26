"""Student's t against tables, lines against numpy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.analysis.statistics_of_seeds import (
    correlation,
    fit_line,
    mean_interval,
    means_at,
    shown_interval,
    t_quantile,
    two_sided_p,
    within,
)
from trainer.errors import TrainerError

# Two-sided quantiles, from the printed tables of Student's t.
TABLE = {
    (0.95, 1): 12.706,
    (0.95, 2): 4.303,
    (0.95, 3): 3.182,
    (0.95, 4): 2.776,
    (0.95, 5): 2.571,
    (0.95, 10): 2.228,
    (0.95, 30): 2.042,
    (0.95, 120): 1.980,
    (0.99, 2): 9.925,
    (0.99, 7): 3.499,
    (0.9, 4): 2.132,
    (0.8, 1): 3.078,
}
figures = st.floats(-1e3, 1e3, allow_nan=False)


@pytest.mark.parametrize(("asked", "wanted"), TABLE.items())
def test_quantiles_are_those_of_the_tables(
    asked: tuple[float, int], wanted: float
) -> None:
    assert t_quantile(*asked) == pytest.approx(wanted, abs=6e-4)


def test_known_probabilities() -> None:
    # Cauchy: t of 1 is at a quarter of the circle. Two degrees: t / sqrt(2 + t^2).
    assert within(1.0, 1) == pytest.approx(0.5)
    assert within(2.0, 2) == pytest.approx(2 / math.sqrt(6))
    assert within(0.0, 5) == 0
    assert within(math.inf, 4) == 1
    assert two_sided_p(-2.0, 2) == two_sided_p(2.0, 2)


@settings(deadline=None)
@given(st.floats(0.01, 0.999), st.integers(1, 200))
def test_the_quantile_is_the_inverse(confidence: float, degrees: int) -> None:
    assert within(t_quantile(confidence, degrees), degrees) == pytest.approx(confidence)


@settings(deadline=None)
@given(st.floats(0, 50), st.integers(1, 60))
def test_more_degrees_have_thinner_tails(t: float, degrees: int) -> None:
    """So do neighbours of odd and even degrees, which have a formula each."""
    assert within(t, degrees) <= within(t, degrees + 1) + 1e-12


@pytest.mark.parametrize("asked", [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_what_is_no_probability_is_refused(asked: tuple[float, int]) -> None:
    with pytest.raises(TrainerError, match="between 0 and 1"):
        t_quantile(*asked)


def test_an_interval_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0, math.nan])
    assert (found.mean, found.n) == (2.0, 3)
    half = 4.302653 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_an_interval_is_shown_in_one_way() -> None:
    assert shown_interval(mean_interval([1, 2, 3])) == (
        "2 (95 %: -0.4841 to 4.484, 3 seeds)"
    )
    assert shown_interval(mean_interval([0.12345])) == "0.1235 (1 seed)"
    assert shown_interval(mean_interval([math.nan])) == "not known"


def test_means_at_places_are_those_of_each_place() -> None:
    found = means_at([2, 1, 2, 2, 3], [1.0, 5.0, 2.0, 3.0, math.nan])
    assert found.at.tolist() == [1, 2, 3]
    assert found.mean[:2].tolist() == [5.0, 2.0]
    assert found.low[1] == mean_interval([1.0, 2.0, 3.0]).low
    assert found.high[1] == mean_interval([1.0, 2.0, 3.0]).high
    assert np.isnan(found.low[[0, 2]]).all()
    assert not len(means_at([], []).at)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    one = mean_interval([5.0])
    assert (one.mean, one.n) == (5.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(mean_interval([]).mean)


def test_an_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.standard_normal(3)) for _ in range(2000)]
    share = np.mean([one.low <= 0 <= one.high for one in found])
    assert share == pytest.approx(0.95, abs=0.02)


def test_a_line_by_hand() -> None:
    """A textbook's example: slope 0.6, standard error sqrt(2.4 / 3 / 10)."""
    line = fit_line([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    assert (line.slope, line.intercept) == pytest.approx((0.6, 2.2))
    assert line.r_squared == pytest.approx(0.6)
    assert line.error == pytest.approx(math.sqrt(0.08))
    assert line.p == pytest.approx(0.1240, abs=1e-4)
    assert correlation([1, 2, 3, 4, 5], [5, 4, 5, 4, 2]) == pytest.approx(
        -math.sqrt(0.6)
    )


@settings(deadline=None)
@given(st.lists(st.tuples(figures, figures), min_size=3, max_size=20))
def test_a_line_is_that_of_numpy(points: list[tuple[float, float]]) -> None:
    x, y = np.array(points).T
    if np.ptp(x) < 1e-3:
        return
    line = fit_line(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    close = {"rel": 1e-6, "abs": 1e-5 * (1 + np.abs(y).max() / np.ptp(x))}
    assert line.slope == pytest.approx(slope, **close)
    assert line.intercept == pytest.approx(intercept, rel=1e-6, abs=close["abs"] * 1e3)
    assert math.isnan(line.p) or 0 <= line.p <= 1


def test_lines_that_points_do_not_determine() -> None:
    assert math.isnan(fit_line([1.0], [2.0]).slope)
    assert math.isnan(fit_line([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]).slope)
    two = fit_line([0.0, 1.0], [1.0, 3.0])
    assert (two.slope, two.intercept, two.n) == (2.0, 1.0, 2)
    assert math.isnan(two.p)
    assert fit_line([0.0, 1.0, 2.0], [0.0, 2.0, 4.0]).p == 0
    flat = fit_line([0.0, 1.0, 2.0], [3.0, 3.0, 3.0])
    assert flat.slope == 0
    assert math.isnan(flat.p)
    assert math.isnan(correlation([0.0, 1.0, 2.0], [3.0, 3.0, 3.0]))
    assert fit_line([0, 1, 2, math.nan], [0, 2, 4, 9]).n == 3


def test_chance_gives_small_p_values_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    x = np.arange(6.0)
    found = [fit_line(x, rng.standard_normal(6)).p for _ in range(1000)]
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.03)
