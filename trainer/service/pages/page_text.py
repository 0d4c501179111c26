"""Writes numbers, times and sizes as the pages show them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import yaml

from schemas.base import Schema
from schemas.service import RunProgress, ServiceRun
from trainer.service.pages.run_fields import changed_fields

NOTHING = "–"
_LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def count_text(value: int | None) -> str:
    """Return a count with commas: `1,234,567`; a dash for None."""
    return NOTHING if value is None else f"{value:,}"


def short_count(value: float | None) -> str:
    """Return a count in three digits: `1.23M`; a dash for None."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for size, letter in _LETTERS:
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def size_text(n_bytes: int | None) -> str:
    """Return a number of bytes: `1.23 GB`; a dash for None."""
    if n_bytes is None:
        return NOTHING
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= 0.9995 * size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


def figure_text(value: float | None) -> str:
    """Return a metric in four digits; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2e}"


def share_text(value: float | None) -> str:
    """Return a share as per cent: `12 %`; a dash for None."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.0f} %"


def duration_text(seconds: float | None) -> str:
    """Return a duration in its two largest units: `3 min 20 s`; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    left = max(0, round(seconds))
    for place, (size, unit) in enumerate(_UNITS):
        if left >= size:
            smaller, name = (*_UNITS, (1, "s"))[place + 1]
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{left} s"


def time_text(time: str | None) -> str:
    """Return a time in UTC for people: `2026-01-31 12:00:59`; a dash for None."""
    return NOTHING if time is None else time[:19].replace("T", " ")


def ago_text(time: str | None, now: datetime | None = None) -> str:
    """Return how long ago a time was: `5 min ago`; a dash for None."""
    if time is None:
        return NOTHING
    passed = (now or datetime.now(UTC)) - datetime.fromisoformat(time)
    seconds = passed.total_seconds()
    if seconds < 5:
        return "just now"
    return f"{duration_text(seconds).partition(' ')[0]} {_first_unit(seconds)} ago"


def _first_unit(seconds: float) -> str:
    return duration_text(seconds).split(" ")[1]


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Return the seconds from one time to another, by default now; None without one."""
    if begin is None:
        return None
    last = datetime.now(UTC) if end is None else datetime.fromisoformat(end)
    return (last - datetime.fromisoformat(begin)).total_seconds()


def share_done(progress: RunProgress | None) -> float | None:
    """Return the share of a run's steps that are done; None while it is not known."""
    if progress is None or not progress.steps:
        return None
    return min(1.0, progress.step / progress.steps)


def seconds_left(run: ServiceRun) -> float | None:
    """Return how long a run still takes at its speed; None where that is not known."""
    progress = run.progress
    share = share_done(progress)
    if progress is None or not share or not progress.rows_per_s > 0:
        return None
    return (progress.rows / share - progress.rows) / progress.rows_per_s


def yaml_text(spec: Schema, *, whole: bool = False) -> str:
    """Return a spec as YAML: the fields that are not at their defaults, or all."""
    values = spec.model_dump(mode="json") if whole else changed_fields(spec)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
