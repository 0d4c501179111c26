"""Harvests and sweeps on a Ray of this machine, with 1 and 2 workers, against one
process alone.

Each process computes with one thread. A rate is that of the work alone: from the first
unit committed, or the first step, to the last, without the start of Ray, of processes
and of the model, which is told apart. All cases take turns; a ratio is the median of
those within a round.

`--times FILE` also writes how long a worker takes for a unit and for a step, as JSON:
what the simulation of larger clusters reads (`--rounds 3` gives some hundreds).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import actstore
import trainer
from actstore.format.storage import Storage
from actstore.harvesting.harvest_driver import HarvestDriver
from actstore.harvesting.progress import Progress
from schemas.records import BenchRecord
from trainer.runs import journal
from trainer.training import pass_driver

WORKERS = (0, 1, 2)  # 0: one process alone
UNIT_TOKENS = 64 * 128


class Measured(NamedTuple):
    """What one case took.

    Attributes:
        rate: Units per second, or steps of one SAE per second.
        start_s: Seconds before the first of them.
        each_s: Seconds that a worker took for each.
    """

    rate: float
    start_s: float
    each_s: list[float]


def main() -> None:
    """Print JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=48)
    parser.add_argument("--rows", default="200k")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=Path)
    options = parser.parse_args()
    rounds: dict[str, list[dict[int, Measured]]] = {"harvest": [], "sweep": []}
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as name:
        folder = Path(name)
        for n in range(options.rounds):
            harvests = {}
            sweeps = {}
            for workers in WORKERS:
                out = folder / f"store-{n}-{workers}"
                harvests[workers] = harvest(out, workers, options.units)
                runs = folder / f"runs-{n}-{workers}"
                store = folder / "store-0-0"
                sweeps[workers] = sweep(store, runs, workers, options.rows)
            rounds["harvest"].append(harvests)
            rounds["sweep"].append(sweeps)
    for work, unit in (("harvest", "units/s"), ("sweep", "steps/s")):
        for workers in WORKERS[1:]:
            tell(work, unit, workers, rounds[work])
    if options.times is not None:
        times = {work: times_of(one) for work, one in rounds.items()}
        options.times.write_text(json.dumps(times, indent=1) + "\n")


def tell(work: str, unit: str, workers: int, rounds: list[dict[int, Measured]]) -> None:
    """Print how fast some workers were against one process alone."""
    record = BenchRecord(
        bench="engines",
        case=f"{work}, {workers} workers of Ray against one process",
        value=statistics.median(one[workers].rate for one in rounds),
        unit=unit,
        floor=statistics.median(one[0].rate for one in rounds),
        ratio=statistics.median(one[workers].rate / one[0].rate for one in rounds),
    )
    sys.stdout.write(record.model_dump_json() + "\n")
    sys.stdout.flush()


def times_of(rounds: list[dict[int, Measured]]) -> dict[str, Any]:
    """Return seconds for each unit or step, by how many workers there were."""
    found = {}
    for workers in WORKERS:
        each = sorted(s for one in rounds for s in one[workers].each_s)
        deciles = statistics.quantiles(each, n=10)
        found[str(workers)] = {
            "n": len(each),
            "median_s": statistics.median(each),
            "p10_s": deciles[0],
            "p90_s": deciles[-1],
            "most_s": each[-1],
            "start_s": statistics.median(one[workers].start_s for one in rounds),
            "rate": statistics.median(one[workers].rate for one in rounds),
        }
    return found


def harvest(out: Path, workers: int, n_units: int) -> Measured:
    """Harvest some units of the tiny model; time those after the first."""
    began = time.perf_counter()
    ends: dict[int, list[float]] = {}  # when each worker's units were committed
    spec = {
        "model": "builtin:tiny",
        "corpus": "builtin:stdlib",
        "sites": "blocks.*.hook_mlp_out",
        "tokens": n_units * UNIT_TOKENS,
        "context": 128,
        "unit_sequences": 64,
    }
    if workers == 0:

        def note(now: Progress) -> None:
            seen = ends.setdefault(0, [])
            seen += [time.perf_counter()] * (now.units - len(seen))

        actstore.harvest(spec, out, progress=note)
    else:
        plain = HarvestDriver._note_done

        def note_done(driver: Any, seat: Any, done: Any) -> None:
            ends.setdefault(id(seat), []).append(time.perf_counter())
            plain(driver, seat, done)

        HarvestDriver._note_done = note_done  # type: ignore[method-assign,assignment]
        try:
            actstore.harvest(spec, out, engine="ray", workers=workers)
        finally:
            HarvestDriver._note_done = plain  # type: ignore[method-assign]
    every = sorted(end for of_worker in ends.values() for end in of_worker)
    each = [
        later - earlier
        for of_worker in ends.values()
        for earlier, later in itertools.pairwise(of_worker)
    ]
    rate = (len(every) - 1) / (every[-1] - every[0])
    return Measured(rate, every[0] - began, each)


def sweep(store: Path, runs: Path, workers: int, rows: str) -> Measured:
    """Train four SAEs, in one pass or in as many as there are workers."""
    spec = {
        "base": {
            "store": str(store),
            "sae": {"kind": "topk", "n_latents": 1024},
            "stream": {"batch": 1024},
            "rows": rows,
            "log_every": 10,
        },
        "grid": {"sae.k": [8, 16, 32, 64]},
    }
    began = time.perf_counter()
    spans: list[tuple[float, float]] = []
    if workers == 0:
        trainer.sweep(spec, runs)
    else:
        plain = pass_driver.PassDriver._note_ended

        def note_ended(driver: Any, seat: Any) -> None:
            last = driver._last[seat.number]
            now = time.perf_counter()
            spans.append((now - last.seconds, now))
            plain(driver, seat)

        pass_driver.PassDriver._note_ended = note_ended  # type: ignore[method-assign,assignment]
        try:
            trainer.sweep(spec, runs, engine="ray", workers=workers)
        finally:
            pass_driver.PassDriver._note_ended = plain  # type: ignore[method-assign]
    took = time.perf_counter() - began
    steps = 0
    each = []
    seconds = 0.0
    for run in sorted(runs.iterdir()):
        records = journal.read(Storage(str(run)))
        steps += records[-1].step
        each += [1024 / one.rows_per_s for one in records[1:]]
        seconds = max(seconds, sum(1024 / one.rows_per_s * 10 for one in records))
    if spans:
        seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    return Measured(steps / seconds, took - seconds, each)


if __name__ == "__main__":
    main()
