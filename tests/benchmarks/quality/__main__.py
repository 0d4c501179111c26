"""`python -m tests.benchmarks.quality --work FOLDER`: trains what is not in its results
yet; `--table` prints them.

Ours and others' SAEs on the same rows, evaluated by one evaluator (README.md of the
folder above). A killed run goes on where it stopped. Lines go to FOLDER/results.jsonl,
or to --results.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from tests.benchmarks.peers.link import PYTHONS, note
from tests.benchmarks.quality.bench import Bench, run
from tests.benchmarks.quality.libraries import KINDS, NAMES
from tests.benchmarks.quality.records import Results
from tests.benchmarks.quality.rows import SETTINGS, open_store
from tests.benchmarks.quality.table import tables

EVERY = ("default", "at_l0", "grid", "best")


def main() -> None:
    """Run, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="stores, rows, results"
    )
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        help="files of results; new ones go to the first",
    )
    parser.add_argument("--store", choices=SETTINGS, default="builtin")
    parser.add_argument("--store-at", help="a store of that kind that is there already")
    parser.add_argument("--libraries", default=",".join(["ours", *NAMES]))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--settings", default=",".join(EVERY))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, help="rows to train on (default: the store's setting)"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print Markdown tables of the results, and end",
    )
    options = parser.parse_args()
    results = Results(*(options.results or [options.work / "results.jsonl"]))
    if options.table:
        sys.stdout.write(tables(results.all))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    setting = SETTINGS[options.store]
    if options.rows:
        setting = setting._replace(rows=options.rows)
    options.work.mkdir(parents=True, exist_ok=True)
    store, known = open_store(options.store, options.work, options.store_at)
    bench = Bench(
        options.store,
        store,
        known,
        setting,
        results,
        options.work,
        torch.get_num_threads(),
    )
    libraries = [name for name in options.libraries.split(",") if _there(name)]
    run(
        bench,
        libraries,
        options.kinds.split(","),
        options.settings.split(","),
        options.seeds,
    )


def _there(library: str) -> bool:
    if library == "ours" or os.environ.get(PYTHONS[library]):
        return True
    note(
        f"{library} is left out: set {PYTHONS[library]} to the python of its environment (tests/benchmarks/README.md)"
    )
    return False


if __name__ == "__main__":
    main()
