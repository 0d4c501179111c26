"""Draws figures as SVG: for a file of its own, or for a page whose script adds to it.

Series carry their values (`data-x`, `data-y`), so that the page's script can show them
at the pointer and draw them again when a part is looked at closely. All text is
escaped. Colours are classes: `figure.css` has them, for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

import numpy as np
from numpy.typing import NDArray

from actstore.figures.draw_heat_map import draw_heat_map
from actstore.figures.figure import Drawing, Figure, HeatMap, Numbers, Rule, Series
from actstore.figures.scales import Scale, scale_of, tick_text
from actstore.figures.surroundings import (
    LETTER,
    LINE,
    PLOT_HEIGHT,
    WIDTH,
    Frame,
    axes,
    head,
    title_text,
    y_ticks,
)

N_COLOURS = 8
N_SHADES = 11
MOST_LEGEND_LINES = 5
MANY_POINTS = 300  # more points of a series than these are small


def draw(drawing: Drawing, *, standalone: bool = True) -> str:
    """Return a drawing as SVG.

    Args:
        drawing: What is drawn.
        standalone: It carries its style sheet with it, and a legend of all names. In a
            page the style sheet is the page's, and so is the legend of runs.
    """
    if isinstance(drawing, HeatMap):
        return draw_heat_map(drawing, standalone)
    return _draw_figure(drawing, standalone)


def _draw_figure(figure: Figure, standalone: bool) -> str:
    names = _names(figure)
    colours = _colours(figure)
    shown = [name for name in names if standalone or not _of_runs_only(figure, name)]
    legend = _legend_places(shown if len(names) > 1 else [])
    # Labels of the vertical axis need room on its left, so its scale comes first.
    y_values = list(_y_values(figure))
    rough = scale_of(figure.y, y_values, 1.0, 0.0)
    y_texts = [tick_text(tick) for tick in y_ticks(figure.y, rough)]
    left = 30 + LETTER * max([len(text) for text in y_texts], default=1)
    lines = 1 + max((place[1] for place in legend.values()), default=-1)
    frame = Frame(figure.x, lines, figure.title, left)
    x_values = [series.x for series in figure.series]
    x_values += [[rule.at] for rule in figure.rules if not rule.across]
    x_scale = scale_of(figure.x, x_values, 0.0, frame.right - frame.left)
    y_scale = scale_of(figure.y, y_values, PLOT_HEIGHT, 0.0)
    plot = (
        f'<svg class="plot" x="{frame.left:.1f}" y="{frame.top:.1f}"'
        f' width="{frame.right - frame.left:.1f}" height="{PLOT_HEIGHT}">'
        # Nothing is seen of it; the pointer is felt on all of it.
        '<rect class="field" width="100%" height="100%"/>'
    )
    parts = [
        head(figure, frame, standalone, x_scale, y_scale),
        title_text(figure.title),
        _legend(legend, colours, bool(figure.title)),
        axes(figure.x, figure.y, frame, x_scale, y_scale),
        plot,
    ]
    parts += [_rule(rule, frame, x_scale, y_scale) for rule in figure.rules]
    bars = [series for series in figure.series if series.mark == "bars"]
    for series in figure.series:
        place = bars.index(series) if series in bars else 0
        parts.append(
            _series(series, colours[id(series)], x_scale, y_scale, place, len(bars))
        )
    parts.append("</svg></svg>")
    return "".join(parts)


# Names and colours


def _names(figure: Figure) -> list[str]:
    """Return the names of a figure's series, each once."""
    return list(dict.fromkeys(s.name for s in figure.series if s.name))


def _of_runs_only(figure: Figure, name: str) -> bool:
    """Return whether a page's legend of runs has a name already."""
    return all(s.run is not None for s in figure.series if s.name == name)


def _colours(figure: Figure) -> dict[int, str]:
    """Return the class of each series, by its identity: `c0` to `c7`, `r0` to `r10`."""
    by_name: dict[str, str] = {}
    taken = {s.colour for s in figure.series if s.colour is not None}
    free = iter(number for number in range(10**6) if number not in taken)
    classes = {}
    for series in figure.series:
        if series.shade is not None:
            step = round((N_SHADES - 1) * min(max(series.shade, 0.0), 1.0))
            kind = f"r{step}"
        elif series.colour is not None:
            kind = f"c{series.colour % N_COLOURS}"
        else:
            # Series without a name are told apart too.
            key = series.name or f"\0{id(series)}"
            if key not in by_name:
                by_name[key] = f"c{next(free) % N_COLOURS}"
            kind = by_name[key]
        classes[id(series)] = kind
        if series.name:
            by_name.setdefault(series.name, kind)
            classes.setdefault(hash(series.name), kind)
    return classes


def _legend_places(names: list[str]) -> dict[str, tuple[float, int]]:
    """Return the place of each name of a legend: pixels from the left, and its line.

    What does not fit is not shown: the pointer shows the names of all.
    """
    places: dict[str, tuple[float, int]] = {}
    x = 8.0
    line = 0
    for number, name in enumerate(names):
        width = 24 + LETTER * len(_shortened(name))
        if x + width > WIDTH - 8 and x > 8:
            x = 8.0
            line += 1
        if line == MOST_LEGEND_LINES - 1 and number < len(names) - 1:
            rest = f"and {len(names) - number} more"
            places[rest] = (x, line)
            break
        places[name] = (x, line)
        x += width
    return places


def _legend(
    places: dict[str, tuple[float, int]], colours: dict[int, str], has_title: bool
) -> str:
    parts = []
    for name, (x, line) in places.items():
        y = 18 + LINE * line + (LINE + 4 if has_title else 0)
        kind = colours.get(hash(name), "")
        dot = f'<circle cx="{x + 6:.1f}" cy="{y - 4}" r="4.5"/>' if kind else ""
        parts.append(
            f'<g class="entry {kind}" data-entry="{escape(name)}">{dot}'
            f'<text x="{x + 15:.1f}" y="{y}">{escape(_shortened(name))}</text></g>'
        )
    return "".join(parts)


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:40]}…{name[-18:]}"


def _rule(rule: Rule, frame: Frame, x_scale: Scale, y_scale: Scale) -> str:
    width = frame.right - frame.left
    if rule.across:
        place = float(y_scale.places([rule.at])[0])
        line = f"M0 {place:.1f}H{width:.1f}"
        # The words stand above the line, or below it at the very top.
        y = place - 4 if place > LINE else place + 13
        text = f'<text x="{width - 4:.1f}" y="{y:.1f}">'
    else:
        place = float(x_scale.places([rule.at])[0])
        line = f"M{place:.1f} 0V{PLOT_HEIGHT}"
        text = (
            f'<text transform="translate({place - 4:.1f} {PLOT_HEIGHT - 4})'
            ' rotate(-90)" class="upright">'
        )
    axis = "y" if rule.across else "x"
    return (
        f'<g class="rule" data-{axis}-at="{rule.at:.9g}"><path d="{line}"/>{text}'
        f"{escape(rule.label)}</text></g>"
    )


# Series


def _y_values(figure: Figure) -> Iterator[Numbers]:
    for series in figure.series:
        yield series.y
        if series.low is not None:
            yield series.low
        if series.high is not None:
            yield series.high
        if series.mark == "bars" and not figure.y.log:
            yield [0.0]  # bars stand on 0
    for rule in figure.rules:
        if rule.across:
            yield [rule.at]


def _series(
    series: Series, kind: str, x_scale: Scale, y_scale: Scale, place: int, n_bars: int
) -> str:
    xs = x_scale.places(series.x)
    ys = y_scale.places(series.y)
    if len(xs) != len(ys):
        raise ValueError(f"{series.name}: {len(xs)} x and {len(ys)} y")
    parts = []
    if series.mark == "band":
        parts.append(f'<path class="area" d="{_band(series, xs, y_scale)}"/>')
    elif series.mark == "bars":
        width = _bar_width(xs, n_bars)
        shift = (place - n_bars / 2) * width
        parts.append(f'<path class="bar" d="{_bars(xs + shift, ys, width, y_scale)}"/>')
        xs = xs + shift + width / 2
    if series.mark in {"line", "line and points"}:
        dashes = " dashed" if series.dashed else ""
        parts.append(f'<path class="line{dashes}" d="{_line(xs, ys)}"/>')
    if series.low is not None and series.high is not None and series.mark != "band":
        low = y_scale.places(series.low)
        high = y_scale.places(series.high)
        parts.append(f'<path class="error" d="{_error_bars(xs, low, high)}"/>')
    if series.mark in {"points", "line and points"}:
        size = " large" if series.large else ""
        if len(xs) > MANY_POINTS:
            size = " small"
        parts.append(f'<path class="dots{size}" d="{_dots(xs, ys)}"/>')
    return f'<g class="series {kind}"{_data(series)}>{"".join(parts)}</g>'


def _data(series: Series) -> str:
    """Return the attributes from which the page's script draws a series again."""
    fields = {
        "name": series.name,
        "mark": series.mark,
        "x": _numbers(series.x),
        "y": _numbers(series.y),
    }
    if series.low is not None and series.high is not None:
        fields["low"] = _numbers(series.low)
        fields["high"] = _numbers(series.high)
    if series.labels:
        fields["labels"] = "\n".join(series.labels)
    if series.run is not None:
        fields["run"] = str(series.run)
    if series.layer:
        fields["layer"] = series.layer
    return "".join(f' data-{key}="{escape(text)}"' for key, text in fields.items())


def _numbers(values: Numbers) -> str:
    """Return values with a space between them; nothing stands for NaN."""
    array = np.asarray(values, dtype=np.float64)
    return " ".join("" if math.isnan(v) else f"{v:.5g}" for v in array.tolist())


def _line(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    """Return a path through points, broken where there is none."""
    parts = []
    letter = "M"
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{letter}{x:.1f} {y:.1f}")
            letter = "L"
        else:
            letter = "M"
    return "".join(parts)


def _dots(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    """Return lines of no length, whose round ends are the dots."""
    return "".join(
        f"M{x:.1f} {y:.1f}h0"
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
        if math.isfinite(x) and math.isfinite(y)
    )


def _error_bars(
    xs: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> str:
    return "".join(
        f"M{x:.1f} {a:.1f}V{b:.1f}"
        for x, a, b in zip(xs.tolist(), low.tolist(), high.tolist(), strict=True)
        if math.isfinite(x) and math.isfinite(a) and math.isfinite(b)
    )


def _band(series: Series, xs: NDArray[np.float64], y_scale: Scale) -> str:
    if series.low is None or series.high is None:
        raise ValueError(f"{series.name}: a band needs `low` and `high`")
    low = y_scale.places(series.low)
    high = y_scale.places(series.high)
    whole = np.isfinite(xs) & np.isfinite(low) & np.isfinite(high)
    there = list(zip(xs[whole].tolist(), high[whole].tolist(), strict=True))
    back = list(zip(xs[whole].tolist(), low[whole].tolist(), strict=True))
    points = there + back[::-1]
    if not points:
        return ""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"


def _bar_width(xs: NDArray[np.float64], n_bars: int) -> float:
    """Return the width of a bar, so that all at one place take 80 % of the room."""
    places = np.unique(xs[np.isfinite(xs)])
    room = float(np.diff(places).min()) if len(places) > 1 else 40.0
    return 0.8 * room / max(n_bars, 1)


def _bars(
    xs: NDArray[np.float64], ys: NDArray[np.float64], width: float, y_scale: Scale
) -> str:
    ground = PLOT_HEIGHT if y_scale.log else float(y_scale.places([0.0])[0])
    return "".join(
        f"M{x:.1f} {ground:.1f}V{y:.1f}h{width:.1f}V{ground:.1f}Z"
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
        if math.isfinite(x) and math.isfinite(y)
    )
