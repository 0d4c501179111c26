"""The first document's story in miniature: `python -m trainer.demo [FOLDER]`.

Harvest every MLP output of the language model that ships with the package over the
standard library's text, show how the norm goes with depth, train one SAE on the mixture
of all layers with each of four rescalings (one pass over the data), evaluate them on
held-out rows, and write the report.
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
from trainer.evaluate.eval_command import eval_command
from trainer.report.report_command import report_command
from trainer.training.train_command import sweep_command

RECIPE = Path(__file__).parent / "recipes" / "rescalings_tiny.yaml"


def main() -> None:
    """Run the demo into a folder, afresh."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    if folder.name.startswith("-"):
        sys.exit("usage: python -m trainer.demo [FOLDER]")
    console = Console()
    began = time.monotonic()
    for name in ("store", "runs", "report.html"):
        _remove(folder / name)
    store, runs, report = (
        str(folder / "store"),
        str(folder / "runs"),
        str(folder / "report.html"),
    )

    console.rule("1. harvest the MLP outputs of all layers")
    harvest_command(
        model="builtin:tiny",
        corpus="builtin:stdlib",
        sites=["blocks.*.hook_mlp_out"],
        tokens="1M",
        out=store,
    )
    info_command(store)
    console.rule("2. norms go with depth")
    norms_command(store)
    console.rule("3. one SAE on the mixture of layers, with each of four rescalings")
    sweep_command(str(RECIPE), out=runs, store=store)
    console.rule("4. evaluate on held-out rows")
    found = sorted(str(path.parent) for path in Path(runs).glob("*/sae.json"))
    eval_command(found)
    console.rule("5. report")
    report_command(found, out=report)
    console.print(
        f"\nThe report: [bold]{Path(report).resolve()}[/]  "
        f" ({time.monotonic() - began:.0f} s)",
        highlight=False,
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    cli_errors.run(main)
