"""Writes the simulation's table and figure into `docs/scale.md`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from actstore.figures.draw_svg import draw
from actstore.figures.figure import Axis, Figure, Rule, Series
from tests.benchmarks.cluster.assumptions import PRICES, SOURCES, Cluster
from tests.benchmarks.cluster.scenarios import CASES, GPUS, Row, unit_of

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "scale.md"
FIGURE = DOCS / "images" / "scale.svg"
PART = r"(<!-- {0} -->\n).*?(<!-- end of {0} -->)"


def write_page(cluster: Cluster, rows: Sequence[Row]) -> None:
    """Write the generated parts of the page, and the figure."""
    text = PAGE.read_text()
    parts = {"table": table(rows), "assumptions": assumptions(cluster)}
    for name, part in parts.items():
        pattern = re.compile(PART.format(name), re.DOTALL)
        text = pattern.sub(lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)  # type: ignore[misc]
    PAGE.write_text(text)
    FIGURE.write_text(draw(figure(rows)))


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, case by case."""
    lines = []
    for case, title in CASES.items():
        lines += [
            f"\n**{title[0].upper()}{title[1:]}**\n",
            (
                "| GPUs | hours | efficiency | PUT/s | of them in the busiest folder |"
                " answered 503 | nodes failed | units lost | requests given up |"
                " questions/s of who waits | dollars: GPUs | requests |"
            ),
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.gpus:,} | {r.hours:.2f} | {r.efficiency:.0%} | {r.puts_per_s:,.0f}"
            f" | {r.busiest:,.0f} | {r.refused:.1%} | {r.failures} | {r.lost:,}"
            f" | {r.given_up:,} | {r.asked_per_s:,.0f} | {r.gpu_cost:,.0f} | {r.request_cost:,.0f} |"
            for r in rows
            if r.case == case
        ]
    return "\n".join(lines) + "\n"


def assumptions(cluster: Cluster) -> str:
    """Every figure with its source, as Markdown."""
    lines = ["", "| figure | value | | source |", "|---|---|---|---|"]
    for name, value in cluster._asdict().items():
        kind, source = SOURCES[name]
        lines.append(f"| `{name}` | {value:,.6g} | {kind} | {source} |")
    unit = unit_of(cluster)
    stored = unit.layout.n_units * cluster.layers * unit.shard_bytes
    lines.append(
        f"\nFrom these: {unit.layout.n_units:,} units of {unit.tokens:,} tokens;"
        f" a GPU's worker makes one in {unit.make_s:.2f} s and writes it in"
        f" {unit.upload_s:.2f} s with {sum(unit.requests.puts.values())} PUTs; one"
        f" worker reads and commits {1 / unit.text_s:.0f} token blocks in a second from"
        f" text, {1 / unit.ids_s:.0f} from token ids. The store has"
        f" {stored / 1e12:,.0f} TB, {stored / 1e9 * PRICES.storage:,.0f} dollars a month"
        f" at {PRICES.storage} for a GB (the price of the first 50 TB).\n"
    )
    return "\n".join(lines)


def figure(rows: Sequence[Row]) -> Figure:
    """Hours over GPUs, in each case."""
    series = [
        Series(
            name=title,
            x=[row.gpus for row in rows if row.case == case],
            y=[row.hours for row in rows if row.case == case],
        )
        for case, title in CASES.items()
    ]
    ideal = [row.hours * row.efficiency for row in rows if row.case == "ready"]
    floor = Series("all GPUs always busy", GPUS, ideal, mark="line", dashed=True)
    return Figure(
        name="scale",
        x=Axis("GPUs", log=True),
        y=Axis("hours of the harvest", log=True),
        series=(*series, floor),
        title="8 billion tokens, 26 layers, simulated",
        rules=(Rule(1.0, "1 hour"),),
    )
