"""Figures are drawn where their values are, and text stays text."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.figures.draw_svg import draw
from actstore.figures.figure import Axis, Figure, HeatMap, Rule, Series
from actstore.figures.scales import Scale, scale_of, tick_text

ENDS = st.tuples(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.floats(1e-3, 1e6, allow_subnormal=False),
)


@settings(deadline=None)
@given(ENDS, st.integers(2, 12))
def test_linear_ticks_lie_inside_and_rise(ends: tuple[float, float], n: int) -> None:
    low, length = ends
    scale = Scale(low, low + length, 0, 400)
    ticks = scale.ticks(n)
    assert ticks == sorted(set(ticks))
    room = 1e-6 * (abs(low) + length)
    assert all(low - room <= tick <= low + length + room for tick in ticks)
    assert len(ticks) <= 3 * n


@settings(deadline=None)
@given(st.floats(1e-9, 1e9), st.floats(1.01, 1e12), st.integers(2, 12))
def test_log_ticks_lie_inside_and_rise(low: float, factor: float, n: int) -> None:
    ticks = Scale(low, low * factor, 0, 400, log=True).ticks(n)
    assert ticks == sorted(set(ticks))
    assert ticks or factor < 20
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9))
def test_all_values_lie_on_the_axis(values: list[float]) -> None:
    scale = scale_of(Axis("x"), [values], 0.0, 400.0)
    places = scale.places(values)
    assert (places >= -1e-6).all()
    assert (places <= 400 + 1e-6).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(places[order]) >= -1e-9).all()


def test_places_by_hand() -> None:
    assert Scale(0, 10, 0, 100).places([0, 2.5, 10]).tolist() == [0, 25, 100]
    assert Scale(1, 100, 0, 100, log=True).places([1, 10, 100]).tolist() == [0, 50, 100]
    # What has no logarithm has no place.
    assert np.isnan(Scale(1, 100, 0, 100, log=True).places([0, -1])).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.2, "0.2"),
        (1500, "1,500"),
        (20_000, "20k"),
        (-0.5, "−0.5"),
        (3e6, "3M"),
        (1e-7, "1e-07"),
        (2e15, "2e+15"),
    ],
)
def test_text_of_ticks(value: float, text: str) -> None:
    assert tick_text(value) == text


def figure(**fields: Any) -> Figure:
    series = Series("run", [1.0, 2.0, 4.0], [0.1, math.nan, 0.4], **fields)
    return Figure("fvu", Axis("L0"), Axis("FVU"), (series,))


def test_a_line_breaks_where_there_is_no_value() -> None:
    svg = draw(figure())
    line = re.search(r'class="line" d="([^"]*)"', svg)
    assert line
    assert line.group(1).count("M") == 2
    assert 'data-y="0.1  0.4"' in svg


def test_points_are_where_their_values_are() -> None:
    series = Series("a", [0, 1, 2], [0, 5, 10], "points")
    axes = (Axis("x", limits=(0, 2)), Axis("y", limits=(0, 10)))
    svg = draw(Figure("f", *axes, (series,)))
    plot = re.search(r'data-plot="\S+ \S+ (\S+) ', svg)
    assert plot
    width = float(plot.group(1))
    dots = re.search(r'class="dots" d="([^"]*)"', svg)
    assert dots
    places = re.findall(r"M([\d.]+) ([\d.]+)h0", dots.group(1))
    assert [(float(x), float(y)) for x, y in places] == [
        (0, 250),
        (pytest.approx(width / 2, abs=0.06), 125),
        (pytest.approx(width, abs=0.06), 0),
    ]


def test_bars_side_by_side_stand_on_zero() -> None:
    bars = [Series(name, [0, 1], [1, 2], "bars") for name in ("a", "b")]
    axis = Axis("layer", categories=("0", "1"))
    svg = draw(Figure("f", axis, Axis("y", zero=True, limits=(0, 2)), tuple(bars)))
    found = re.findall(r'class="bar" d="M([\d.]+) 250\.0V125\.0h([\d.]+)V250\.0Z', svg)
    (x0, width), (x1, _) = [tuple(map(float, pair)) for pair in found]
    assert x1 - x0 == pytest.approx(width, abs=0.15)


def test_series_of_one_name_have_one_colour_and_one_entry() -> None:
    series = [Series(name, [0, 1], [1, 2]) for name in ("a", "b", "a")]
    svg = draw(Figure("f", Axis("x"), Axis("y"), tuple(series)))
    assert re.findall(r'class="series (c\d)"', svg) == ["c0", "c1", "c0"]
    assert re.findall(r'data-entry="(\w)"', svg) == ["a", "b"]


def test_shades_and_given_colours() -> None:
    series = (
        Series("a", [0], [1], shade=0.0),
        Series("b", [0], [1], shade=1.0),
        Series("c", [0], [1], colour=0),
        Series("d", [0], [1]),
    )
    svg = draw(Figure("f", Axis("x"), Axis("y"), series))
    assert re.findall(r'class="series (\w+)"', svg) == ["r0", "r10", "c0", "c1"]


def test_the_names_of_runs_are_left_to_the_page() -> None:
    series = (Series("mine", [0], [1], run=0), Series("other", [0], [1]))
    both = Figure("f", Axis("x"), Axis("y"), series)
    assert 'data-entry="mine"' in draw(both)
    assert 'data-entry="mine"' not in draw(both, standalone=False)
    assert 'data-entry="other"' in draw(both, standalone=False)


def test_a_long_legend_says_how_many_are_left() -> None:
    series = tuple(Series(f"a rather long name {i}", [0], [i]) for i in range(60))
    svg = draw(Figure("f", Axis("x"), Axis("y"), series))
    left = re.search(r">and (\d+) more<", svg)
    assert left
    assert svg.count('class="entry c') + int(left.group(1)) == 60


HOSTILE = "</svg><script>alert('x')</script>&amp;\"'"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=80))
def test_any_text_stays_text(text: str) -> None:
    series = Series(text, [0, 1], [1, 2], labels=[text, text], low=[0, 1], high=[2, 3])
    rules = (Rule(1.0, text), Rule(0.5, text, across=False))
    drawing = Figure(text, Axis(text), Axis(text), (series, series), text, rules)
    root = ET.fromstring(draw(drawing))
    assert {node.tag.rpartition("}")[2] for node in root.iter()} <= {
        "svg", "style", "rect", "text", "g", "path", "circle",
    }  # fmt: skip


def test_hostile_text_in_heat_maps() -> None:
    axis = Axis(HOSTILE, categories=(HOSTILE, "{x}"))
    svg = draw(HeatMap(HOSTILE, axis, axis, np.eye(2), HOSTILE, HOSTILE))
    root = ET.fromstring(svg)
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    assert len(re.findall('<rect class="cell"', svg)) == 4


def test_a_cell_without_a_value_is_empty() -> None:
    axis = Axis("x", categories=("a", "b"))
    values = np.array([[0.0, math.nan], [0.5, 1.0]])
    svg = draw(HeatMap("h", axis, axis, values, "MMCS"))
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.04", "0.37", "0.70"]
    with pytest.raises(ValueError, match="names"):
        draw(HeatMap("h", axis, axis, np.zeros((3, 2)), "MMCS"))


@pytest.mark.parametrize("ends", [(-1e308, 1e308), (-5e-324, 5e-324), (0.0, 5e-324)])
@pytest.mark.parametrize("zero", [True, False])
def test_the_ends_of_numbers_are_drawn(ends: tuple[float, float], zero: bool) -> None:
    series = Series("a", ends, ends)
    axes = (Axis("x", zero=zero), Axis("y", log=True))
    ET.fromstring(draw(Figure("f", *axes, (series,))))


def test_what_is_0_everywhere_lies_on_the_ground() -> None:
    scale = scale_of(Axis("dead", zero=True), [[0.0, 0.0]], 0.0, 100.0)
    assert (scale.low, scale.places([0])[0]) == (0.0, 0.0)


def test_nothing_to_draw_is_still_a_figure() -> None:
    empty = Figure("f", Axis("x", log=True), Axis("y"), (Series("a", [], []),))
    ET.fromstring(draw(empty))
    nan = Series("a", [math.nan, 0.0], [math.inf, math.nan], "bars")
    ET.fromstring(draw(Figure("f", Axis("x", log=True), Axis("y"), (nan,))))
    with pytest.raises(ValueError, match="2 x and 1 y"):
        draw(Figure("f", Axis("x"), Axis("y"), (Series("a", [1, 2], [1]),)))
