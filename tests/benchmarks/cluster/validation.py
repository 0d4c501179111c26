"""The model against this machine: one worker's unit times, two workers' wall time.

Both harvest the same tokens with the small model that ships, each process with one
computing thread. The model is given the unit times of one worker alone, and those of
workers that run beside another (of all rounds but the one that is predicted).
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from schemas.records import BenchRecord
from tests.benchmarks.cluster.harvest_model import Failures, Harvest, Limits, Load
from tests.benchmarks.cluster.key_load import UnitRequests

TOKENS = 1_200_000
UNIT_SEQUENCES = 160  # of 128 tokens
SEEDS = 40
NOTHING = UnitRequests(Counter(), Counter())


class Measured(NamedTuple):
    """A harvest on this machine, in seconds.

    Attributes:
        wall: From the start to the end of the last process.
        start: From there to the first unit's beginning, about.
        units: Times of the units.
        finish: From the last commit to the end.
    """

    wall: float
    start: float
    units: list[float]
    finish: float


def harvested(folder: Path, n_workers: int) -> Measured:
    """Harvest with some workers, each a process."""
    words = [sys.executable, "-m", "actstore", "harvest", "--out", str(folder)]
    words += ["--model", "builtin:mini", "--corpus", "builtin:stdlib"]
    words += ["--sites", "blocks.*.hook_mlp_out", "--tokens", str(TOKENS)]
    words += ["--unit-sequences", str(UNIT_SEQUENCES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.time()
    workers = [
        subprocess.Popen(
            [*words, "--worker", f"{i + 1}/{n_workers}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(n_workers)
    ]
    for worker in workers:
        worker.wait()
    ended = time.time()
    assert (folder / "manifest.json").exists(), "the harvest failed"
    times: list[float] = []
    starts: list[float] = []
    for i in range(n_workers):
        commits = sorted(
            record.stat().st_mtime
            for record in (folder / "units").glob("*.json")
            if int(record.stem) % n_workers == i
        )
        gaps = [b - a for a, b in itertools.pairwise(commits)]
        times += gaps
        starts.append(commits[0] - began - statistics.median(gaps))
    last = max(r.stat().st_mtime for r in (folder / "units").glob("*.json"))
    return Measured(ended - began, statistics.mean(starts), times, ended - last)


def predicted(
    n_units: int, units: list[float], start: float, finish: float
) -> list[float]:
    """Wall times of two workers, one for each seed."""
    load = Load(
        n_units, lambda rng: drawn(units, rng), 0.0, NOTHING, start_s=max(start, 0.0)
    )
    return [
        Harvest(load, 2, 1, Failures(), Limits(), seed).run().makespan + finish
        for seed in range(SEEDS)
    ]


def drawn(units: list[float], rng: random.Random) -> float:
    """One of the times that were measured."""
    return rng.choice(units)


def validate(rounds: int) -> None:
    """Print measured and predicted wall times of two workers."""
    alone: list[Measured] = []
    together: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for n_workers, measured in ((1, alone), (2, together)):
                out = Path(folder) / f"{number}-{n_workers}"
                measured.append(harvested(out, n_workers))
                print(
                    f"{n_workers} workers: {measured[-1].wall:.1f} s", file=sys.stderr
                )
    n_units = len(alone[0].units) + 1
    by_alone: list[float] = []
    by_shared: list[float] = []
    for number, one in enumerate(together):
        others = [m for i, m in enumerate(together) if i != number] or together
        for times, source in ((by_alone, alone), (by_shared, others)):
            walls = predicted(
                n_units,
                [seconds for m in source for seconds in m.units],
                statistics.mean(m.start for m in source),
                statistics.mean(m.finish for m in source),
            )
            low, high = (
                statistics.quantiles(walls, n=20)[0],
                statistics.quantiles(walls, n=20)[-1],
            )
            print(
                f"round {number}: measured {one.wall:.2f} s, predicted"
                f" {statistics.mean(walls):.2f} s ({low:.2f} to {high:.2f})",
                file=sys.stderr,
            )
            times.append(statistics.mean(walls))
    measured_wall = statistics.mean(m.wall for m in together)
    spread = statistics.pstdev(m.wall for m in together)
    _print("one_worker_wall", statistics.mean(m.wall for m in alone), measured_wall)
    _print("two_workers_wall_spread", spread, measured_wall)
    _print("predicted_from_units_alone", statistics.mean(by_alone), measured_wall)
    _print(
        "predicted_from_units_beside_another", statistics.mean(by_shared), measured_wall
    )
    for name, source in (("alone", alone), ("beside_another", together)):
        units = [seconds for m in source for seconds in m.units]
        _print(f"unit_{name}", statistics.mean(units), statistics.median(units))
        _print(f"unit_{name}_spread", statistics.pstdev(units), statistics.mean(units))


def _print(case: str, value: float, base: float) -> None:
    record = BenchRecord(
        bench="cluster_validation",
        case=case,
        value=value,
        unit="s",
        floor=base,
        ratio=value / base,
    )
    print(record.model_dump_json(), flush=True)
