"""Draws what surrounds a drawing: its outer tag, its title and its axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib.resources import files

from actstore.figures.figure import Axis, Drawing
from actstore.figures.scales import Scale, tick_text

WIDTH = 480
PLOT_HEIGHT = 250
LETTER = 6.3  # width of a letter, on average, in pixels
LINE = 16  # height of a line of text


class Frame:
    """The places of the parts of a drawing, in pixels."""

    def __init__(self, x: Axis, legend_lines: int, title: str, left: float) -> None:
        self.left = left
        self.right = WIDTH - 12.0
        self.top = 10.0 + LINE * legend_lines + (LINE + 4 if title else 0)
        self.bottom = self.top + PLOT_HEIGHT
        self.slanted = _is_crowded(x, self.right - self.left)
        longest = max((len(name) for name in x.categories), default=0)
        # Slanted names take some six tenths of their length below the axis.
        below = min(0.6 * LETTER * longest, 120) if self.slanted else LINE
        self.below = below
        self.height = self.bottom + below + LINE + 14


@cache
def style() -> str:
    """Return the style sheet of drawings."""
    return files("actstore.figures").joinpath("figure.css").read_text("utf-8")


def head(
    drawing: Drawing,
    frame: Frame,
    standalone: bool,
    x_scale: Scale | None = None,
    y_scale: Scale | None = None,
) -> str:
    """Return the opening tag, with what the page's script needs to draw again."""
    about = drawing.title or f"{drawing.y.label} against {drawing.x.label}"
    height = f"{frame.height:.0f}"
    fields = {
        "viewBox": f"0 0 {WIDTH} {height}",
        "role": "img",
        "aria-label": about,
        "data-name": drawing.name,
    }
    if x_scale is not None and y_scale is not None:
        width = frame.right - frame.left
        fields["data-x-scale"] = _scale_text(x_scale)
        fields["data-y-scale"] = _scale_text(y_scale)
        fields["data-x-names"] = str(len(drawing.x.categories))
        fields["data-plot"] = (
            f"{frame.left:.1f} {frame.top:.1f} {width:.1f} {PLOT_HEIGHT}"
        )
    paper = ""
    if standalone:
        fields["width"] = str(WIDTH)
        fields["height"] = height
        sheet = f"<style>{style()}</style>"
        paper = f'{sheet}<rect class="paper" width="{WIDTH}" height="{height}"/>'
    attributes = " ".join(f'{key}="{escape(text)}"' for key, text in fields.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" {attributes}>{paper}'
    )


def _scale_text(scale: Scale) -> str:
    return f"{'log' if scale.log else 'linear'} {scale.low:.9g} {scale.high:.9g}"


def title_text(title: str) -> str:
    return f'<text class="title" x="8" y="18">{escape(title)}</text>' if title else ""


def axes(x: Axis, y: Axis, frame: Frame, x_scale: Scale, y_scale: Scale) -> str:
    """Return the lines, ticks and labels of both axes."""
    width = frame.right - frame.left
    parts = ['<g class="axes">']
    for tick in y_ticks(y, y_scale):
        place = frame.top + float(y_scale.places([tick])[0])
        parts.append(
            f'<path class="grid" d="M{frame.left:.1f} {place:.1f}h{width:.1f}"/>'
            f'<text class="y tick" x="{frame.left - 6:.1f}" y="{place + 4:.1f}">'
            f"{escape(_y_text(y, tick))}</text>"
        )
    parts += x_ticks(x, frame, x_scale)
    parts.append("</g>")
    parts.append(axis_labels(x, y, frame))
    return "".join(parts)


def axis_labels(x: Axis, y: Axis, frame: Frame) -> str:
    middle = (frame.left + frame.right) / 2
    height = (frame.top + frame.bottom) / 2
    log_x = " (log)" if x.log else ""
    log_y = " (log)" if y.log else ""
    return (
        f'<text class="x label" x="{middle:.1f}" y="{frame.height - 6:.1f}">'
        f"{escape(x.label)}{log_x}</text>"
        f'<text class="y label" transform="translate(14 {height:.1f}) rotate(-90)">'
        f"{escape(y.label)}{log_y}</text>"
    )


def y_ticks(axis: Axis, scale: Scale) -> list[float]:
    if axis.categories:
        return [float(number) for number in range(len(axis.categories))]
    return scale.ticks(6)


def _y_text(axis: Axis, tick: float) -> str:
    return axis.categories[int(tick)] if axis.categories else tick_text(tick)


def x_ticks(axis: Axis, frame: Frame, scale: Scale) -> Iterator[str]:
    y = frame.bottom + 15
    if not axis.categories:
        for tick in scale.ticks(6):
            x = frame.left + float(scale.places([tick])[0])
            yield (
                f'<path class="grid" d="M{x:.1f} {frame.top:.1f}v{PLOT_HEIGHT}"/>'
                f'<text class="x tick" x="{x:.1f}" y="{y:.1f}">'
                f"{escape(tick_text(tick))}</text>"
            )
        return
    # Of very many names some are shown only.
    room = (frame.right - frame.left) / len(axis.categories)
    every = max(1, math.ceil(13 / room)) if frame.slanted else 1
    for number, name in enumerate(axis.categories):
        if number % every:
            continue
        x = frame.left + float(scale.places([number])[0])
        text = escape(name if len(name) <= 30 else f"{name[:14]}…{name[-14:]}")
        if frame.slanted:
            yield (
                f'<text class="slanted tick" transform="translate({x + 4:.1f}'
                f' {frame.bottom + 12:.1f}) rotate(-40)">{text}</text>'
            )
        else:
            yield (f'<text class="x tick" x="{x:.1f}" y="{y:.1f}">{text}</text>')


def _is_crowded(axis: Axis, width: float) -> bool:
    """Return whether the names of an axis need more room than there is."""
    longest = max((len(name) for name in axis.categories), default=0)
    return len(axis.categories) * (LETTER * longest + 8) > width
