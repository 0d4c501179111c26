"""The recipes that ship: their specs are what the schemas take, their commands are ours,
and what is none is refused before anything is done.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.analysis.evidence import read_evidence
from trainer.errors import RunError
from trainer.recipes.__main__ import main
from trainer.recipes.recipe import (
    Recipe,
    filled,
    known_recipes,
    read_recipe,
    words_of,
)
from trainer.training.sweep import expand, groups
from trainer.training.train_spec import load_sweep

EVERY = [
    (name, scale) for name in known_recipes() for scale in read_recipe(name).scales
]
# Words that the runner gives, beside those of a scale.
GIVEN = {
    "folder": "FOLDER",
    "out": "OUT",
    "specs": "SPECS",
    "device": "cpu",
    "memory": "8GB",
    "seeds": [0, 1, 2],
    "seed": 0,
    "title": "TITLE",
    "text": "TEXT",
}


def values_of(recipe: Recipe, scale: str) -> dict[str, Any]:
    values = {**recipe.scales[scale], **GIVEN}
    for _ in range(2):
        values = filled(values, values)
    return values


def test_there_is_one_for_each_document() -> None:
    assert known_recipes() == [
        "across_layers",
        "ground_truth",
        "multi_layer",
        "normalized",
        "stitching",
    ]
    for name in known_recipes():
        # In miniature first, and at full scale.
        scales = list(read_recipe(name).scales)
        assert scales[0] == "tiny"
        assert len(scales) > 1


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_spec_is_a_sweep(name: str, scale: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    values = values_of(recipe, scale)
    for spec, content in recipe.specs.items():
        path = tmp_path / f"{spec}.yaml"
        path.write_text(yaml.safe_dump(filled(content, values)))
        runs = expand(load_sweep(str(path), None))
        assert runs, spec


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_command_is_known(name: str, scale: str) -> None:
    """Its words are options and arguments that the command takes."""
    import click
    from typer.main import get_command

    import actstore.cli
    import trainer.cli

    recipe = read_recipe(name)
    values = values_of(recipe, scale)
    for step in recipe.every_step():
        # Patterns stay as they are: no run is there.
        program, *words = filled(step.run, values).split()
        command: Any = get_command(
            {"actstore": actstore.cli, "trainer": trainer.cli}[program].app
        )
        context: Any = None
        while hasattr(command, "commands"):
            context = click.Context(command, info_name=program, parent=context)
            word, *words = words
            assert word in command.commands, step.run
            command = command.commands[word]
        command.make_context("step", list(words), parent=context)


@pytest.mark.parametrize(("scale", "n_layers"), [("tiny", 6), ("gpt2", 12)])
def test_the_sweeps_of_the_first_document(
    scale: str, n_layers: int, tmp_path: Path
) -> None:
    """8 coefficients for each layer, in a pass for each layer; 4 rescalings x 3 rates x
    4 coefficients in one pass.
    """
    recipe = read_recipe("multi_layer")
    values = {**values_of(recipe, scale), "seeds": [0]}
    runs = {}
    for name in ("sweep_a", "sweep_b"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(filled(recipe.specs[name], values)))
        runs[name] = expand(load_sweep(str(path), None))
    assert [len(group) for group in groups(runs["sweep_a"])] == [8] * n_layers
    layers = {one.stream.sites for one in runs["sweep_a"].values()}
    assert layers == {(f"blocks.{i}.hook_mlp_out",) for i in range(n_layers)}
    assert [len(group) for group in groups(runs["sweep_b"])] == [4 * 3 * 4]
    rescalings = {one.stream.rescale for one in runs["sweep_b"].values()}
    assert rescalings == {"none", "sqrt", "log", "linear"}


def test_words_are_filled_in() -> None:
    values = {"list": [1, 2], "name": "x", "nested": "{name}/y", "l0": 4}
    assert filled("{list}", values) == [1, 2]
    assert filled("{name} and {l0}", values) == "x and 4"
    assert filled({"a": ["{l0}", 3]}, values) == {"a": [4, 3]}
    assert filled(filled("{nested}", values), values) == "x/y"
    # Sites have braces of their own.
    assert filled("blocks.{0..5}.hook_mlp_out", values) == "blocks.{0..5}.hook_mlp_out"
    with pytest.raises(RunError, match=r"\{nothing\}"):
        filled("{nothing}", values)


def test_patterns_are_the_finished_runs_in_natural_order(tmp_path: Path) -> None:
    for name in ("k=16,seed=0", "k=8,seed=0", "k=2,seed=0", "k=8,seed=1", "unfinished"):
        (tmp_path / name).mkdir()
        if name != "unfinished":
            (tmp_path / name / "sae.json").write_text("{}")
    every = words_of(f"trainer eval {tmp_path}/* --device cpu")
    assert every == [
        "trainer",
        "eval",
        *(
            f"{tmp_path}/k={k}"
            for k in ("2,seed=0", "8,seed=0", "8,seed=1", "16,seed=0")
        ),
        "--device",
        "cpu",
    ]
    first = words_of(f"trainer analyze size-and-sparsity --toy {tmp_path}/*seed=0")
    assert first.count("--toy") == 3
    assert words_of("trainer x 'a b'") == ["trainer", "x", "a b"]
    with pytest.raises(RunError, match="no finished run"):
        words_of(f"trainer eval {tmp_path}/none/*")
    with pytest.raises(RunError, match="wanted a command of actstore or trainer"):
        words_of("rm -rf /")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.recipes", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_recipe_that_is_none_is_refused(tmp_path: Path) -> None:
    done = run("ground_truth", "sweep_c", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "got sweep_c; there are across_layers, ground_truth" in done.stderr
    done = run("ground_truth", str(tmp_path / "out"), "--scale", "huge")
    assert done.returncode == 1
    assert "ground_truth has tiny, full" in done.stderr
    done = run(str(tmp_path / "out"))
    assert done.returncode == 1
    assert "a folder comes last" in done.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text("title: [")
    done = run(str(broken), str(tmp_path / "out"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "no valid YAML" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_ones_own_runs_and_goes_on(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        """
title: Mine
text: In short.
scales:
  small: {rows: 2_000}
specs:
  sweep:
    base: {store: "{out}/toy", sae: {kind: topk}, stream: {batch: 64}, rows: "{rows}"}
    grid: {sae.k: [1, 2], seed: "{seeds}"}
steps:
  - run: actstore toy --features 8 --dims 4 --rows 3k --l0 1 --out {out}/toy
    unless: "{out}/toy/manifest.json"
  - trainer sweep {specs}/sweep.yaml --out {out}/runs --resume
  - trainer eval {out}/runs/*
  - run: trainer analyze fronts {out}/runs/*seed={seed} --out {out}/evidence/{seed}
    each_seed: true
  - trainer analyze mmcs {out}/runs/* --out {out}/evidence
  - trainer report {out}/runs/* --out {out}/report.html --title {title} --text {text} --with {out}/evidence
"""
    )
    folder = tmp_path / "all"
    main([str(mine), str(folder)], seeds=2)
    out = folder / "mine_small"
    assert sorted(path.name for path in (out / "runs").iterdir()) == [
        f"k={k},seed={seed}" for k in (1, 2) for seed in (0, 1)
    ]
    for seed in "01":
        (table,) = read_evidence(str(out / "evidence" / seed))
        assert set(table["seed"].tolist()) == {int(seed)}
    page = (out / "report.html").read_text()
    assert "<p>In short.</p>" in page
    assert "Features found by each dictionary" in page
    main([str(mine), str(folder)], seeds=2)
    # What another command has made is not taken for what the recipe makes.
    mine.write_text(mine.read_text().replace("--rows 3k", "--rows 4k"))
    with pytest.raises(RunError, match=r"toy: wanted what `actstore toy .* --rows 4k"):
        main([str(mine), str(folder)], seeds=2)
    # Other seeds would be other runs in the same folder.
    with pytest.raises(RunError, match="another spec is there"):
        main([str(mine), str(folder)], seeds=3)
