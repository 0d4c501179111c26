"""Runs recipes from their harvest to their report.

    python -m trainer.recipes sweep_a_tiny FOLDER [--device cuda]

FOLDER/store_tiny (or _gpt2) is harvested if it is not there, FOLDER/NAME/runs gets the
SAEs, FOLDER/NAME/report.html the page. The same command goes on with what was begun.
Several recipes may be named.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from actstore.console import cli_errors
from actstore.format.storage import Storage

HERE = Path(__file__).parent


def main(
    names: Annotated[
        list[str],
        typer.Argument(
            help="sweep_a_tiny, sweep_b_tiny, ..._gpt2; at the end the folder."
        ),
    ],
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    memory: Annotated[
        str | None, typer.Option(help="What the SAEs of one pass may take: 20GB.")
    ] = None,
) -> None:
    """Harvest, train, evaluate, report."""
    from trainer.errors import RunError

    *recipes, folder = names
    known = sorted(path.stem for path in HERE.glob("sweep_*.yaml"))
    unknown = [name for name in recipes if name not in known]
    if unknown or not recipes:
        raise RunError(
            f"which recipe? got {', '.join(unknown or names)}; there are"
            f" {', '.join(known)}; a folder comes last"
        )
    for name in recipes:
        _run_recipe(name, folder, device, memory)


def _run_recipe(name: str, folder: str, device: str, memory: str | None) -> None:
    from trainer.reports.report_command import report_command
    from trainer.training.sweep import expand
    from trainer.training.train_command import sweep_command
    from trainer.training.train_spec import load_sweep

    console = Console(stderr=True)
    began = time.monotonic()
    console.rule(name)
    model_name = name.rsplit("_", maxsplit=1)[-1]  # tiny, gpt2
    sweep_file = str(HERE / f"{name}.yaml")
    store = f"{folder}/store_{model_name}"
    runs = f"{folder}/{name}/runs"
    _harvest(model_name, store, device)
    sweep_command(
        sweep_file, out=runs, store=store, memory=memory, device=device, resume=True
    )
    names = expand(load_sweep(sweep_file, store))
    urls = [f"{runs}/{run_name}" for run_name in names]
    report_command(urls, out=f"{folder}/{name}/report.html", title=_title(name))
    seconds = time.monotonic() - began
    console.print(f"{name}: {len(urls)} SAEs, {seconds:.0f} s", highlight=False)


def _harvest(model_name: str, store: str, device: str) -> None:
    """Harvest the recipe's store, unless it is there.

    Raises RunError where another store is there.
    """
    from actstore.format.object_keys import plan_key
    from actstore.harvesting.harvest import harvest
    from actstore.harvesting.harvest_spec import resolve_spec
    from schemas.base import differences
    from schemas.harvest import Plan
    from trainer.errors import RunError

    text = (HERE / f"harvest_{model_name}.yaml").read_text()
    spec = resolve_spec(yaml.safe_load(text))
    storage = Storage(store)
    if not storage.exists("manifest.json"):
        harvest(spec, store, device=device)
        return
    spec_there = Plan.model_validate_json(storage.read(plan_key())).spec
    if spec_there != spec:
        differing = "; ".join(differences(spec, spec_there))
        raise RunError(
            f"{store}: a store of another spec is there ({differing}); choose another"
            " FOLDER, or remove it"
        )


def _title(name: str) -> str:
    """Return the first line of a recipe's file, which says what it is."""
    first_line = (HERE / f"{name}.yaml").read_text().splitlines()[0]
    return first_line.lstrip("# ").rstrip(".")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    cli_errors.run(app)
