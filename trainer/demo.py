"""Shows the whole journey in miniature: `python -m trainer.demo [FOLDER]`.

It harvests every MLP output of the language model that ships with the package over the
standard library's text, shows how the norm goes with depth, trains one SAE on the
mixture of all layers with each of four rescalings (in one pass over the data),
evaluates them on held-out rows, and writes the report (docs/methods.md, "1. Multi-layer
SAE").
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from actstore.console import cli_errors
from actstore.harvesting.harvest_command import harvest_command
from actstore.inspect.inspect_commands import info_command, norms_command
from trainer.evaluation.eval_command import eval_command
from trainer.reports.report_command import report_command
from trainer.training.train_command import sweep_command

SWEEP = Path(__file__).parent / "demo_sweep.yaml"


def main() -> None:
    """Run the demo into a folder, afresh."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    if folder.name.startswith("-"):
        sys.exit("usage: python -m trainer.demo [FOLDER]")
    console = Console()
    began = time.monotonic()
    store = folder / "store"
    runs = folder / "runs"
    report = folder / "report.html"
    for path in (store, runs, report):
        _remove(path)

    console.rule("1. harvest the MLP outputs of all layers")
    harvest_command(
        model="builtin:tiny",
        corpus="builtin:stdlib",
        sites=["blocks.*.hook_mlp_out"],
        tokens="1M",
        out=str(store),
    )
    info_command(str(store))
    console.rule("2. norms go with depth")
    norms_command(str(store))
    console.rule("3. one SAE on the mixture of layers, with each of four rescalings")
    sweep_command(str(SWEEP), out=str(runs), store=str(store))
    console.rule("4. evaluate on held-out rows")
    run_folders = sorted(str(path.parent) for path in runs.glob("*/sae.json"))
    eval_command(run_folders)
    console.rule("5. report")
    report_command(run_folders, out=str(report))
    seconds = time.monotonic() - began
    console.print(
        f"\nThe report: [bold]{report.resolve()}[/]   ({seconds:.0f} s)",
        highlight=False,
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    cli_errors.run(main)
