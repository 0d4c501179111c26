"""`trainer analyze ...` over runs, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from actstore.figures.table import Table
from tests.cli.conftest import cli as cli  # noqa: PLC0414 (a fixture)
from tests.support import make_store
from tests.trainer.analysis.conftest import Trained
from trainer.analysis import evidence
from trainer.analysis.run_commands import COMMANDS

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_prints_its_table_and_writes_its_figures(
    name: str, trained: Trained, cli: Cli, tmp_path: Path
) -> None:
    names = ("plain", "plain-1", "on", "nsae")
    runs = [trained.runs[one].url for one in names]
    arguments = [trained.store.url] if name == "norms" else runs
    code, out, err = cli("trainer", "analyze", name, *arguments, "--json")
    assert (code, err) == (0, "")
    table = Table.from_json(out)
    assert len(table) > 0
    assert table.name in evidence.PLOTS
    assert table.name.replace("_", "-") == name
    code, out, _ = cli("trainer", "analyze", name, *arguments, "--out", str(tmp_path))
    assert code == 0
    assert table.title in out
    (again, *_) = [
        one for one in evidence.read_evidence(str(tmp_path)) if one.name == table.name
    ]
    assert json.loads(again.to_json()) == json.loads(table.to_json())
    for figure in evidence.figures_of(table):
        assert "<svg" in (tmp_path / f"{figure.name}.svg").read_text()


CHANGES = [
    ("matched", ("--l0", "4.1")),
    ("geometry", ("--seed", "1")),
    ("geometry", ("--alive",)),
    ("geometry", ("--device", "nosuch")),
    ("norm-and-l0", ("--store", "OTHER")),
    ("spread", ("--variance",)),
    ("spread", ("--variance", "--store", "OTHER")),
]


@pytest.mark.parametrize(("name", "options"), CHANGES)
def test_each_option_changes_what_comes(
    name: str,
    options: tuple[str, ...],
    trained: Trained,
    cli: Cli,
    tmp_path: Path,
) -> None:
    other = make_store(tmp_path / "other", n_units=24, seed=5)
    runs = [trained.runs[one].url for one in ("nsae", "plain")]
    words = ["trainer", "analyze", name, *runs, "--json"]
    without = cli(*words, *options[:-2])
    chosen = [str(other.url) if word == "OTHER" else word for word in options]
    assert cli(*words, *chosen)[:2] != without[:2]


def test_variance_needs_a_store_and_says_so(trained: Trained, cli: Cli) -> None:
    run = trained.runs["plain"].url
    code, out, _ = cli("trainer", "analyze", "spread", run, "--variance", "--json")
    assert code == 0
    assert "variance" in Table.from_json(out).names
    code, _, err = cli("trainer", "analyze", "spread", run, "--store", "elsewhere")
    assert code != 0
    assert "--variance" in err


def test_a_run_that_is_none_is_told_of(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("trainer", "analyze", "fronts", str(tmp_path))
    assert code != 0
    assert "trainer eval" in err
