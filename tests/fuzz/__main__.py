"""`make fuzz`: mutations by the hundred thousand; what finds a fault is printed as a
line for `corpus.jsonl`.

python -m tests.fuzz [--cases 100000] [--seed 0] [--processes 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz.part import PART, run

SHOWN = 20  # of each sort of fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    start, done, faults = time.monotonic(), 0, Counter[str]()
    parts = [
        (asked.seed, number, min(PART, asked.cases - at))
        for number, at in enumerate(range(0, asked.cases, PART))
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.processes, mp_context=context) as pool:
        for cases, found in pool.map(run, parts):
            done += cases
            for mutation, fault in found:
                if faults[fault] < SHOWN:
                    print(f"{fault}\n    {mutation.line()[:2000]}", flush=True)
                faults[fault] += 1
            print(
                f"{done:,} cases, {faults.total():,} faults, {time.monotonic() - start:,.0f} s",
                file=sys.stderr,
            )
    print(
        f"{done:,} cases, {faults.total():,} faults of {len(faults)} sorts, {time.monotonic() - start:,.0f} s"
    )
    sys.exit(faults.total() > 0)


if __name__ == "__main__":
    main()
