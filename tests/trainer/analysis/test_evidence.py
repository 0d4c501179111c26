"""Evidence is kept whole, and every analysis' figures are found by its table's name."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from actstore.errors import SpecError
from actstore.figures.table import Column, Table
from trainer.analysis.evidence import (
    PLOTS,
    figures_of,
    read_evidence,
    write_evidence,
)
from trainer.errors import RunError

ROOT = Path(__file__).parents[3]


def plot_functions() -> set[str]:
    """Every function `plot_NAME` of the package, as `module:function`."""
    found = set()
    for package in ("actstore", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("plot_"):
                    found.add(f"{module}:{node.name}")
    return found


def test_every_plot_function_is_found_by_a_table() -> None:
    assert plot_functions() == set(PLOTS.values())


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_the_function_plots_the_table_of_its_name(name: str) -> None:
    module, _, function = PLOTS[name].partition(":")
    assert function == f"plot_{name}"
    assert callable(getattr(import_module(module), function))


def norms(mean: list[float]) -> Table:
    number = np.array(mean)
    names = [f"blocks.{i}.hook_mlp_out" for i in range(len(mean))]
    figures = [Column(name, number) for name in ("mean", "low", "median", "high")]
    columns = (Column("site", names), Column("layer", names), *figures)
    return Table("norms", "Norms", "By layer.", columns)


def test_a_table_is_written_with_its_figures_and_read_again(tmp_path: Path) -> None:
    table = norms([1.0, 2.0])
    folder = str(tmp_path / "evidence")
    write_evidence(table, folder)
    write_evidence(Table("zzz", "Last", "", (Column("a", np.arange(1)),)), folder)
    files = {path.name for path in Path(folder).iterdir()}
    assert files == {
        *(f"norms.{kind}" for kind in ("json", "csv", "parquet")),
        *(f"zzz.{kind}" for kind in ("json", "csv", "parquet")),
        "norms-by_layer.svg",
    }
    first, last = read_evidence(folder)
    assert (first.name, last.name) == ("norms", "zzz")
    assert list(first["mean"]) == [1.0, 2.0]
    (figure,) = figures_of(first)
    assert figure.name == "norms-by_layer"
    assert figures_of(last) == ()


def test_a_folder_without_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=re.escape("trainer analyze ... --out")):
        read_evidence(str(tmp_path))
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(SpecError, match="wanted a table"):
        read_evidence(str(tmp_path))


def test_a_table_of_that_name_without_its_columns_is_refused(tmp_path: Path) -> None:
    table = Table("norms", "Norms", "", (Column("other", np.arange(2)),))
    with pytest.raises(SpecError, match="no column"):
        figures_of(table)
