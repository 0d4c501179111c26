"""Draws heat maps as SVG: the stronger a cell's colour, the higher its value."""

from __future__ import annotations

import math
from html import escape

import numpy as np
from numpy.typing import NDArray

from actstore.figures.figure import HeatMap
from actstore.figures.scales import Scale, tick_text
from actstore.figures.surroundings import (
    LETTER,
    LINE,
    PLOT_HEIGHT,
    Frame,
    axis_labels,
    head,
    title_text,
    x_ticks,
)

MOST_CELLS_WITH_TEXT = 150


def draw_heat_map(heat_map: HeatMap, standalone: bool) -> str:
    """Return a heat map as SVG, as `draw` does."""
    longest = max((len(name) for name in heat_map.y.categories), default=1)
    frame = Frame(heat_map.x, 1, heat_map.title, 30 + LETTER * min(longest, 24))
    n_x = len(heat_map.x.categories)
    n_y = len(heat_map.y.categories)
    if heat_map.values.shape != (n_y, n_x):
        raise ValueError(
            f"{heat_map.name}: values {heat_map.values.shape} for {(n_y, n_x)} names"
        )
    width = (frame.right - frame.left) / max(n_x, 1)
    height = PLOT_HEIGHT / max(n_y, 1)
    x_scale = Scale(-0.5, n_x - 0.5, 0.0, frame.right - frame.left)
    y_scale = Scale(-0.5, n_y - 0.5, PLOT_HEIGHT, 0.0)
    parts = [head(heat_map, frame, standalone), title_text(heat_map.title)]
    low, high = heat_map.limits or _value_ends(heat_map.values)
    y = 18 + (LINE + 4 if heat_map.title else 0)
    ends = f"{heat_map.label}: {tick_text(_round(low))} to {tick_text(_round(high))}"
    parts.append(f'<text class="entry" x="8" y="{y}">{escape(ends)}</text>')
    parts.append('<g class="axes">')
    for number, name in enumerate(heat_map.y.categories):
        place = frame.top + float(y_scale.places([number])[0])
        short = name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
        parts.append(
            f'<text class="y tick" x="{frame.left - 6:.1f}" y="{place + 4:.1f}">'
            f"{escape(short)}</text>"
        )
    parts += x_ticks(heat_map.x, frame, x_scale)
    parts.append("</g>")
    parts.append(axis_labels(heat_map.x, heat_map.y, frame))
    with_text = n_x * n_y <= MOST_CELLS_WITH_TEXT and width > 5 * LETTER
    for row in range(n_y):
        for column in range(n_x):
            value = float(heat_map.values[row, column])
            if math.isnan(value):
                continue
            x = frame.left + column * width
            top = frame.bottom - (row + 1) * height
            share = (value - low) / (high - low) if high > low else 0.5
            parts.append(_cell(heat_map, row, column, value, share, with_text))
            parts[-1] = parts[-1].format(
                x=f"{x:.1f}",
                y=f"{top:.1f}",
                width=f"{width:.1f}",
                height=f"{height:.1f}",
                middle=f"{x + width / 2:.1f}",
                line=f"{top + height / 2 + 4:.1f}",
            )
    parts.append("</svg>")
    return "".join(parts)


def _cell(
    heat_map: HeatMap,
    row: int,
    column: int,
    value: float,
    share: float,
    with_text: bool,
) -> str:
    """Return a cell as a format string that wants its places."""
    about = (
        f"{heat_map.x.label} {heat_map.x.categories[column]}, {heat_map.y.label}"
        f" {heat_map.y.categories[row]}: {heat_map.label} {value:.4g}"
    )
    about = escape(about).replace("{", "{{").replace("}", "}}")
    opacity = 0.04 + 0.66 * min(max(share, 0.0), 1.0)
    text = ""
    if with_text:
        text = f'<text class="cell" x="{{middle}}" y="{{line}}">{value:.3g}</text>'
    return (
        f'<rect class="cell" x="{{x}}" y="{{y}}" width="{{width}}" height="{{height}}"'
        f' fill-opacity="{opacity:.2f}"><title>{about}</title></rect>{text}'
    )


def _value_ends(values: NDArray[np.floating]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _round(value: float) -> float:
    return float(f"{value:.3g}")
