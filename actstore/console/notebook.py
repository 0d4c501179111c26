"""Small tables of HTML, by which notebooks show the Python API's objects.

Every text is escaped, and there is no script.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


def table(title: str, lines: Iterable[tuple[str, str]]) -> str:
    """Return an HTML table with a title and (name, value) lines.

    Texts may come from strangers' stores, where a name can hold anything, such as a
    script: all of them are escaped.
    """
    left = ' style="text-align:left"'
    rows = ""
    for name, value in lines:
        heading = f"<th{left}>{html.escape(name)}</th>"
        rows += f"<tr>{heading}<td{left}>{html.escape(value)}</td></tr>"
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}<tbody>{rows}</tbody></table>"
