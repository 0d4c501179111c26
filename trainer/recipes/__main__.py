"""Runs recipes from their harvest to their report.

    python -m trainer.recipes multi_layer stitching FOLDER [--seeds 3] [--scale gpt2]

A recipe is a file of commands that anyone could type. FOLDER/NAME_SCALE gets its runs,
its tables and figures (`evidence`) and its page (`report.html`); stores that recipes
share lie in FOLDER. The same command goes on with what was begun.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from actstore.console import cli_errors


def main(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... FOLDER",
            help="Recipes by name, or files of recipes; at the end the folder.",
        ),
    ],
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many seeds each run has.")
    ] = 1,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="tiny (the default), gpt2, ...: as the recipe's file has them.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    memory: Annotated[
        str, typer.Option(help="What the SAEs of one pass may take: 20GB.")
    ] = "8GB",
) -> None:
    """Harvest, train, evaluate, analyse, report."""
    from trainer.errors import RunError
    from trainer.recipes.recipe import known_recipes

    *recipes, folder = names
    if not recipes:
        raise RunError(
            f"which recipe? got {folder} alone; there are"
            f" {', '.join(known_recipes())}; a folder comes last"
        )
    # All of them are looked at before any is run.
    scales = {name: _scale_of(name, scale) for name in recipes}
    values = {"folder": folder, "device": device, "memory": memory}
    for name in recipes:
        seeds_of_runs = {"seeds": list(range(seeds))}
        _run_recipe(name, scales[name], {**values, **seeds_of_runs})


def _scale_of(name: str, scale: str | None) -> str:
    """Return the name of a recipe's scale; RunError where it has none of that name."""
    from trainer.errors import RunError
    from trainer.recipes.recipe import read_recipe

    scales = list(read_recipe(name).scales)
    if scale is None:
        return scales[0]
    if scale not in scales:
        raise RunError(f"--scale {scale}: {name} has {', '.join(scales)}")
    return scale


def _run_recipe(name: str, scale: str, values: dict[str, Any]) -> None:
    from trainer.recipes.recipe import filled, read_recipe

    console = Console(stderr=True, highlight=False)
    recipe = read_recipe(name)
    out = Path(values["folder"]) / f"{Path(name).stem}_{scale}"
    values = {**recipe.scales[scale], **values}
    values |= {"out": str(out), "specs": str(out / "specs")}
    # The values of a scale may name others; a seed is filled in step by step.
    for _ in range(2):
        values = filled(values, {**values, "seed": "{seed}"})
    began = time.monotonic()
    console.rule(recipe.title)
    for spec, content in recipe.specs.items():
        _write_spec(out / "specs" / f"{spec}.yaml", filled(content, values))
    values |= {"title": _quoted(recipe.title), "text": _quoted(recipe.text)}
    # The same command in any folder and on any device makes the same things.
    anywhere = {**values, "device": "DEVICE", "folder": "FOLDER", "out": "OUT"}
    for step in recipe.every_step():
        seeds = values["seeds"] if step.each_seed else values["seeds"][:1]
        for seed in seeds:
            of_seed = {**values, "seed": seed}
            command = filled(filled(step.run, of_seed), of_seed)
            if step.unless is None:
                _run_step(command, console)
                continue
            made = Path(filled(step.unless, of_seed))
            anywhere_too = {**anywhere, "seed": seed}
            maker = filled(filled(step.run, anywhere_too), anywhere_too)
            if made.exists():
                _check_maker(made, maker)
            else:
                _run_step(command, console)
                _maker_file(made).write_text(maker)
    seconds = time.monotonic() - began
    console.print(f"{name}, {scale}: {seconds:.0f} s")


def _run_step(command: str, console: Console) -> None:
    """Run a command in this process, where torch has been loaded already."""
    from typer.main import get_command

    import actstore.cli
    import trainer.cli
    from trainer.recipes.recipe import words_of

    program, *words = words_of(command)
    shown = command if len(command) <= 300 else f"{command[:300]} ..."
    console.print(f"$ {shown}", style="bold", markup=False)
    began = time.monotonic()
    app = {"actstore": actstore.cli.app, "trainer": trainer.cli.app}[program]
    get_command(app).main(words, prog_name=program, standalone_mode=False)
    console.print(f"{time.monotonic() - began:.1f} s", style="dim")


def _maker_file(made: Path) -> Path:
    """Return where the command stands that made a folder, beside that folder."""
    folder = made.parent
    return folder.with_name(f"{folder.name}.command")


def _check_maker(made: Path, maker: str) -> None:
    """Check that what is there was made by the recipe's own command.

    Raises RunError where it was made by another, or where that is not known.
    """
    from trainer.errors import RunError

    file = _maker_file(made)
    by = file.read_text() if file.exists() else "something else than a recipe"
    if by != maker:
        raise RunError(
            f"{made.parent}: wanted what `{maker}` makes; it was made by {by}; choose"
            " another FOLDER, or remove it"
        )


def _write_spec(path: Path, content: object) -> None:
    """Write a spec, unless it is there.

    Raises RunError where another is: what was trained from it would be taken for this.
    """
    from trainer.errors import RunError

    text = yaml.safe_dump(content, sort_keys=False)
    if path.exists() and path.read_text() != text:
        raise RunError(
            f"{path}: another spec is there, of other seeds or of another version of"
            " the recipe; choose another FOLDER, or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _quoted(text: str) -> str:
    """Return text as one word of a command line."""
    import shlex

    return shlex.quote(text)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    cli_errors.run(app)
