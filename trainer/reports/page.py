"""Puts figures and tables on one HTML page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly.offline import get_plotlyjs

STYLE = """
:root { color-scheme: light; --line: #ddd; --dim: #555; --mark: #ffe28a; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; }
h1 { font-size: 1.7rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .3rem; } h3 { font-size: 1rem; margin: 0; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } section > p, article > p { color: var(--dim); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; } a { color: #2b5ea8; }
.figure { width: 100%; min-height: 380px; overflow: hidden; }
.box { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; margin: .8rem 0; overflow: hidden; }
ol { margin: .6rem 0 0; padding: 0; list-style: none; } li { margin: .35rem 0; overflow-wrap: anywhere; }
code { font: .85rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: var(--mark); border-radius: .2rem; padding: 0 .1rem; }
.layer { color: var(--dim); font-size: .8rem; display: inline-block; min-width: 8rem; }
.bars { display: flex; gap: 3px; height: 3.4rem; align-items: stretch; }
.bar { width: 1.4rem; display: flex; flex-direction: column; justify-content: flex-end; text-align: center; }
.bar i { background: #3b6fb6; display: block; min-height: 1px; } .bar b { font: .65rem/1.2 system-ui; color: var(--dim); }
.bar { height: 100%; } details { margin: .4rem 0; } summary { cursor: pointer; }
pre { font: .8rem/1.4 ui-monospace, monospace; overflow-x: auto; border: 1px solid var(--line); padding: .6rem; }
section > p > code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: A sentence below it, HTML.
        figure: A plotly figure, or None.
        body: HTML in the place of a figure.
    """

    title: str
    text: str
    figure: Any = None
    body: str = ""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the whole page.

    Args:
        title: Its title, text.
        lead: What comes below the title, HTML.
        sections: Its parts, in order.
    """
    escaped_title = html.escape(title)
    links = "".join(
        f"<a href='#s{i}'>{html.escape(section.title)}</a>"
        for i, section in enumerate(sections)
    )
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escaped_title}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>"
        f"<body><header><h1>{escaped_title}</h1>{lead}"
        f"<nav aria-label=sections>{links}</nav></header>"
        f"<main>{body}</main></body></html>"
    )


def _section(number: int, section: Section) -> str:
    title = html.escape(section.title)
    inner = section.body
    if section.figure is not None:
        plot = section.figure.to_html(
            full_html=False,
            include_plotlyjs=False,  # it stands once, in the page's head
            div_id=f"figure-{number}",
            default_width="100%",
            config={"responsive": True, "displaylogo": False, "displayModeBar": False},
        )
        inner = f"<div class=figure role=img aria-label='{title}'>{plot}</div>"
    return (
        f"<section id=s{number}><h2>{title}</h2><p>{section.text}</p>{inner}</section>"
    )
