"""A harvest of 8 billion tokens and 26 layers on 64 to 1,024 GPUs, simulated.

`python -m tests.benchmarks.cluster_simulation` simulates (half an hour), keeps
the figures in `results/cluster_simulation_202611.jsonl`, and writes them into
`docs/scale.md` and `docs/images/scale.svg`; `--draw` does the last part alone.
`--validate` harvests on this machine with one and with two workers, and compares the
model's prediction. `--set latency=0.05` simulates with another figure and prints only.

The model is in `cluster/`: `assumptions.py` has every figure with its source,
`harvest_model.py` the events, `bucket.py` what S3 refuses, `key_load.py` the requests.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product, repeat
from pathlib import Path

from tests.benchmarks.cluster.assumptions import Cluster
from tests.benchmarks.cluster.scale_page import write_page
from tests.benchmarks.cluster.scenarios import CASES, GPUS, Row, simulate
from tests.benchmarks.cluster.validation import validate

RESULTS = Path(__file__).parent / "results" / "cluster_simulation_202611.jsonl"


def simulated(
    cluster: Cluster, cases: Sequence[str], processes: int, seed: int
) -> list[Row]:
    """Some cases on every cluster."""
    pairs = list(product(cases, GPUS))
    rows = []
    with ProcessPoolExecutor(processes) as pool:
        done = pool.map(
            simulate,
            repeat(cluster),
            [case for case, _ in pairs],
            [gpus for _, gpus in pairs],
            repeat(seed),
        )
        for row in done:
            print(json.dumps(row._asdict()), flush=True)
            rows.append(row)
    return rows


def kept() -> list[Row]:
    """The rows of the results' file."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    rows = [Row(**line) for line in lines if "case" in line]
    return [row for row in rows if row.case in CASES]


def changed(cluster: Cluster, settings: list[str]) -> Cluster:
    """The figures with some of them set: `latency=0.05`."""
    fields = cluster._asdict()
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in fields:
            sys.exit(f"--set {setting}: wanted one of {', '.join(fields)}")
        fields[name] = type(fields[name])(float(value))
    return Cluster(**fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--case", choices=CASES, action="append", help="this one; keep the others"
    )
    parser.add_argument("--draw", action="store_true", help="from what is kept")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--rounds", type=int, default=4, help="of the validation")
    arguments = parser.parse_args()
    if arguments.validate:
        validate(arguments.rounds)
        return
    cluster = changed(Cluster(), arguments.set)
    if not arguments.draw:
        cases = arguments.case or list(CASES)
        others = [row for row in kept() if row.case not in cases]
        rows = others + simulated(cluster, cases, arguments.processes, arguments.seed)
        if arguments.set:
            return
        head = {"date": f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}"}
        head["seed"] = str(arguments.seed)
        lines = [json.dumps(line) for line in (head, *(r._asdict() for r in rows))]
        RESULTS.write_text("\n".join(lines) + "\n")
    write_page(cluster, kept())


if __name__ == "__main__":
    main()
