"""`trainer stitch ...` and `trainer analyze table`, from their command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import trainer
from actstore.figures.table import Table
from tests.trainer.stitching.made import directions, known_store, make_run
from trainer.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known")
    store = known_store(str(folder / "store"))
    small, large = directions()
    make_run(str(folder / "small"), small, store)
    make_run(str(folder / "large"), large, store, encoder=torch.linalg.pinv(large))
    return folder


def run(*words: str) -> str:
    ran = CliRunner().invoke(app, list(words))
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return ran.stdout


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["compare"], ["stitch_compare"]),
        (["pairs"], ["stitch_pairs"]),
        (
            ["add", "--rows", "100"],
            ["stitch_add", "stitch_classes", "stitch_cumulative"],
        ),
        (["swap", "--threshold", "0.9"], ["stitch_swap"]),
        (["interpolate", "--order", "mean", "--points", "4"], ["stitch_interpolate"]),
        (["optimise", "--rows", "64"], ["inference_time"]),
        (["co-occurrence", "--split", "train"], ["stitch_cooccurrence"]),
    ],
)
def test_commands_print_their_tables(
    folder: Path, words: list[str], names: list[str]
) -> None:
    runs = [str(folder / "small"), str(folder / "large")]
    lines = run("stitch", *words, *runs, "--json").splitlines()
    tables = [Table.from_json(line) for line in lines]
    assert [table.name for table in tables] == names
    assert all(len(table) for table in tables)
    shown = run("stitch", *words, *runs)
    assert tables[0].title in shown


def test_the_table_of_runs(folder: Path) -> None:
    runs = [str(folder / "small"), str(folder / "large")]
    for one in runs:
        trainer.evaluate(one, tell=lambda _: None)
    shown = json.loads(run("analyze", "table", *runs, "--json"))
    assert shown["name"] == "sae_table"
    assert shown["columns"][0]["values"] == ["small", "large"]


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "small", "large", "--threshold", "1.5"],
        ["interpolate", "small", "large", "--order", "least"],
        ["add", "small", "large", "--rows", "none"],
        ["swap", "small", "gone"],
    ],
)
def test_mistakes_are_told(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ran = CliRunner().invoke(app, ["stitch", *words])
    assert ran.exit_code != 0
    assert "wanted" in str(ran.exception) + ran.output
