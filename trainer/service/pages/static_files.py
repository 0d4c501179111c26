"""Gives the pages' styles and scripts: read once, from the package, and by name only.

htmx and uPlot are as npm has them, with their versions in their names and their
licences beside them.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from actstore.figures.surroundings import style

# Files of this package, then of the figures that reports have too.
OWN = (
    "charts.js",
    "htmx-4.0.1.min.js",
    "htmx-LICENSE.txt",
    "mark.svg",
    "page.css",
    "page.js",
    "uplot-1.6.32.min.css",
    "uplot-1.6.32.min.js",
    "uplot-LICENSE.txt",
)
FIGURES_CSS = "figures.css"
FIGURES_JS = "figures.js"
_TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class StaticFile(NamedTuple):
    """A file that every page may ask for.

    Attributes:
        data: Its bytes.
        kind: Its media type.
        digest: A part of its address, so that browsers may keep it for ever.
    """

    data: bytes
    kind: str
    digest: str


@cache
def static_files() -> dict[str, StaticFile]:
    """Return all files by name."""
    folder = files("trainer.service.pages") / "static"
    figures = files("actstore.figures")
    sheet = style() + figures.joinpath("page.css").read_text("utf-8")
    data = {name: folder.joinpath(name).read_bytes() for name in OWN}
    data[FIGURES_CSS] = sheet.encode()
    data[FIGURES_JS] = figures.joinpath("page.js").read_bytes()
    return {name: _static_file(name, content) for name, content in data.items()}


def static_address(name: str) -> str:
    """Return where a file is: another address for other bytes."""
    return f"/static/{name}?v={static_files()[name].digest}"


def _static_file(name: str, data: bytes) -> StaticFile:
    digest = hashlib.sha256(data).hexdigest()[:16]
    return StaticFile(data, _TYPES[name.rpartition(".")[2]], digest)
