"""Draws figures as SVG (to come)."""

from __future__ import annotations

from actstore.figures.figure import Drawing


def draw(drawing: Drawing, *, standalone: bool = True) -> str:
    """Return a drawing as SVG; a standalone one carries its colours with it."""
    raise NotImplementedError
