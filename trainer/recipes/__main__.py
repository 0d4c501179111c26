"""A recipe from its harvest to its report: `python -m trainer.recipes sweep_a_tiny
FOLDER [--device cuda]`.

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
    wrong = [name for name in recipes if name not in known]
    if wrong or not recipes:
        raise RunError(
            f"which recipe? got {', '.join(wrong or names)}; there are"
            f" {', '.join(known)}; a folder comes last"
        )
    for name in recipes:
        _recipe(name, folder, device, memory)


def _recipe(name: str, folder: str, device: str, memory: str | None) -> None:
    from trainer.report.report_command import report_command
    from trainer.training.sweep import expand
    from trainer.training.train_command import sweep_command
    from trainer.training.train_spec import load_sweep

    console, began = Console(stderr=True), time.monotonic()
    console.rule(name)
    scale, sweep = name.rsplit("_", maxsplit=1)[-1], str(HERE / f"{name}.yaml")
    store, runs = f"{folder}/store_{scale}", f"{folder}/{name}/runs"
    _harvest(scale, store, device)
    sweep_command(
        sweep, out=runs, store=store, memory=memory, device=device, resume=True
    )
    made = [f"{runs}/{run}" for run in expand(load_sweep(sweep, store))]
    report_command(made, out=f"{folder}/{name}/report.html", title=_title(name))
    console.print(
        f"{name}: {len(made)} SAEs, {time.monotonic() - began:.0f} s", highlight=False
    )


def _harvest(scale: str, store: str, device: str) -> None:
    """The recipe's store, unless it is there. Raises RunError where another one is."""
    from actstore.format.keys import plan_key
    from actstore.harvesting.harvest import harvest
    from actstore.harvesting.harvest_spec import resolve_spec
    from schemas.base import differences
    from schemas.harvest import Plan
    from trainer.errors import RunError

    spec, storage = (
        resolve_spec(yaml.safe_load((HERE / f"harvest_{scale}.yaml").read_text())),
        Storage(store),
    )
    if not storage.exists("manifest.json"):
        harvest(spec, store, device=device)
        return
    there = Plan.model_validate_json(storage.read(plan_key())).spec
    if there != spec:
        differing = "; ".join(differences(spec, there))
        raise RunError(
            f"{store}: a store of another spec is there ({differing}); choose another"
            " FOLDER, or remove it"
        )


def _title(name: str) -> str:
    return (HERE / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ").rstrip(".")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    cli_errors.run(app)
