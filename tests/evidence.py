"""Collects what `make evidence` found into the documents.

    python -m tests.evidence FOLDER

For each recipe of FOLDER, the single figures of its tables and the tables that are
small go to `docs/evidence_tables.md`, with date and versions, and its figures that the
documents show to `docs/images/evidence/`.
"""

from __future__ import annotations

import math
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from actstore.figures.table import Table, Value
from trainer.analysis.evidence import read_evidence
from trainer.analysis.statistics_of_seeds import mean_interval, shown_interval
from trainer.recipes.recipe import read_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/evidence_tables.md"
IMAGES = ROOT / "docs/images/evidence"
RECIPES = ("multi_layer", "normalized", "stitching", "ground_truth", "across_layers")
# Figures that docs/evidence.md shows, by recipe: folder of the evidence and file.
SHOWN = {
    "multi_layer": (
        "sweep_a/fronts-layer",
        "sweep_b/fronts-rescaling",
        "sweep_b/by_layer-mse",
        "long/spread-density",
        "long/density_over_training-last",
    ),
    "normalized": (
        "matched/matched-fvu",
        "matched/matched-suppression",
        "fixed/norm_and_l0-lines",
        "fixed/over_training-suppression",
        "fixed/decoder_norms-histogram",
    ),
    "stitching": (
        "first_second_0/stitch_compare-histogram",
        "first_second_0/stitch_add-scatter",
        "first_second_0/stitch_interpolate-mse",
        "sizes/sae_table-front",
    ),
    "ground_truth": ("size_and_sparsity-mmcs", "recovery_over_steps"),
    "across_layers": (
        "seed_0/layer_chains",
        "capacity",
        "decided_by_layer",
        "seed_0/trajectories",
    ),
}
MOST_ROWS = 24  # of a table that is shown whole
MOST_COLUMNS = 12


def main() -> None:
    """Write the tables and copy the figures."""
    folder = Path(sys.argv[1])
    lines = list(_head())
    shutil.rmtree(IMAGES, ignore_errors=True)
    IMAGES.mkdir(parents=True)
    for name in RECIPES:
        evidence = folder / f"{name}_tiny" / "evidence"
        lines += _section(name, evidence)
        for wanted in SHOWN[name]:
            _copy(name, evidence, wanted)
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


def _head() -> Iterator[str]:
    today = datetime.now(UTC).date().isoformat()
    yield "# The evidence in figures"
    yield ""
    yield (
        f"Written by `make evidence` on {today}: actstore {version('actstore')}, torch"
        f" {version('torch')}, Python {platform.python_version()},"
        f" {platform.system()} {platform.machine()}, CPU. Three seeds of every run;"
        " intervals are 95 %. [The evidence](evidence.md) says what it means."
    )
    yield ""


def _section(name: str, evidence: Path) -> Iterator[str]:
    yield f"## {read_recipe(name).title}"
    yield ""
    folders = sorted({path.parent for path in evidence.rglob("*.json")})
    # Folders `NAME_0`, `NAME_1`, ... are of one seed each.
    parts: dict[str, list[Path]] = {}
    for folder in folders:
        part = str(folder.relative_to(evidence))
        parts.setdefault(re.sub(r"_?\d+$", "", part), []).append(folder)
    for part, of_seeds in parts.items():
        every = [read_evidence(str(folder)) for folder in of_seeds]
        for table in every[0]:
            title = table.title if part == "." else f"{table.title} ({part})"
            same = [one for tables in every for one in tables if one.name == table.name]
            yield from _table(title, _over_seeds(same))


def _over_seeds(tables: Sequence[Table]) -> Table:
    """Return the first table, with the means and intervals of the facts of all.

    Names of runs have their seed in them, so facts are told apart by their order.
    """
    first = tables[0]
    if len(tables) == 1 or len({len(table.facts) for table in tables}) > 1:
        return first
    facts: dict[str, Value] = {}
    for place, (name, value) in enumerate(first.facts.items()):
        values = [list(table.facts.values())[place] for table in tables]
        label = name.replace(",seed=0", "")
        numbers = [one for one in values if isinstance(one, (int, float))]
        if len(numbers) < len(values) or len(set(numbers)) == 1:
            facts[label] = value
        else:
            facts[label] = shown_interval(mean_interval(numbers))
    title = first.title.replace(",seed=0", "")
    return Table(first.name, title, first.text, first.columns, facts)


def _table(title: str, table: Table) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    yield table.text
    yield ""
    for name, value in table.facts.items():
        yield f"- {_cell(name)}: {_cell(_shown(value))}"
    if table.facts:
        yield ""
    if len(table) <= MOST_ROWS and len(table.columns) <= MOST_COLUMNS:
        yield " | ".join(
            ["", *(_cell(one.heading) for one in table.columns), ""]
        ).strip()
        yield "|" + "---|" * len(table.columns)
        for row in table.rows():
            cells = [_cell(_shown(value)) for value in row]
            yield " | ".join(["", *cells, ""]).strip()
        yield ""
    else:
        yield f"{len(table):,} rows of {len(table.columns)} columns: `{table.name}.csv`."
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _copy(name: str, evidence: Path, wanted: str) -> None:
    """Copy a figure; its name may be the beginning of one."""
    path = evidence / f"{wanted}.svg"
    if not path.exists():
        found = sorted(evidence.glob(f"{wanted}*.svg"))
        if not found:
            sys.exit(f"{path}: there is no such figure")
        path = found[0]
    shutil.copy(path, IMAGES / f"{name}-{Path(wanted).name}.svg")


if __name__ == "__main__":
    main()
