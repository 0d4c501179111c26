"""Describes figures: axes and series, or a heat map. `draw_svg.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.generic]
Mark = Literal["line", "points", "line and points", "bars", "band"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        label: What it shows, with its unit.
        log: Its scale is logarithmic; values that are not above 0 are left out.
        categories: Names of its places 0, 1, 2, ... in order, where it is of names.
        zero: It begins at 0.
        limits: Its ends; None for those of the data.
    """

    label: str
    log: bool = False
    categories: tuple[str, ...] = ()
    zero: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Points that belong together.

    Attributes:
        name: What the legend calls it. Series of one name share colour and entry; a
            series without a name has no entry.
        x: Places [n]; of a categorical axis the numbers of its categories.
        y: Values [n]; NaN is a gap.
        mark: How it is drawn. A band is the area from `low` to `high`.
        low: Lower ends of the error bars, or of the band, [n].
        high: Their upper ends, [n].
        labels: What the pointer shows beside x and y, for each point.
        colour: Number of its colour among those that are told apart; None for the
            next one that is free.
        shade: Place between 0 and 1 on a ramp of one colour, for names that have an
            order (penalties, widths); instead of `colour`.
        run: Number of the run it is of, among the runs of a page; its legend then
            switches it.
        layer: The layer it is of, by which a page can choose; empty for none.
        dashed: Its line is dashed.
        large: Its points are large.
    """

    name: str
    x: Numbers
    y: Numbers
    mark: Mark = "line and points"
    low: Numbers | None = None
    high: Numbers | None = None
    labels: Sequence[str] = ()
    colour: int | None = None
    shade: float | None = None
    run: int | None = None
    layer: str = ""
    dashed: bool = False
    large: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A line across the figure: at a y (`across`), or at an x.

    Attributes:
        at: Where it is.
        label: What it says.
        across: True for a horizontal one.
    """

    at: float
    label: str
    across: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """Series over two axes.

    Attributes:
        name: Its name in files: `stitch_compare-histogram`.
        x: The horizontal axis.
        y: The vertical axis.
        series: What is drawn, the first at the bottom.
        title: A few words above it; empty for none.
        rules: Lines across it.
    """

    name: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    title: str = ""
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """Values over two axes of names.

    Attributes:
        name: Its name in files.
        x: The horizontal axis, with categories.
        y: The vertical axis, with categories, the first at the bottom.
        values: [n_y, n_x]; NaN is an empty cell.
        label: What the values are, with their unit.
        title: A few words above it; empty for none.
        limits: The values at the ends of the ramp of colours; None for those there are.
    """

    name: str
    x: Axis
    y: Axis
    values: NDArray[np.floating]
    label: str
    title: str = ""
    limits: tuple[float, float] | None = None


Drawing = Figure | HeatMap
