"""What notebooks show of the Python API's objects: small tables of HTML with every text
escaped, and no script.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


def table(title: str, lines: Iterable[tuple[str, str]]) -> str:
    """A title and (name, value) lines. Texts may come from strangers' stores: a site's
    name can hold anything.
    """
    left = ' style="text-align:left"'
    cells = [(html.escape(name), html.escape(value)) for name, value in lines]
    rows = "".join(
        f"<tr><th{left}>{name}</th><td{left}>{value}</td></tr>" for name, value in cells
    )
    return (
        f"<table><caption>{html.escape(title)}</caption><tbody>{rows}</tbody></table>"
    )
