"""`make bench`: every benchmark in a process of its own; their JSON lines go to the
terminal and to a dated file.

`python -m tests.benchmarks --peers` runs those against other packages instead
(README.md says how to set them up).
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = (
    "harvest",
    "writing",
    "opening",
    "many_units",
    "stream",
    "cache",
    "training",
    "sweep",
    "stitching",
    "cross_entropy",
    "explorer",
    "copies",
    "object_store",
)
PEERS = ("stream_peers", "training_peers", "object_store_peers")


def main() -> None:
    """Run them one after the other, so that none disturbs another."""
    today = dt.datetime.now(tz=dt.UTC)
    peers = "--peers" in sys.argv[1:]
    result = (
        HERE
        / "results"
        / f"{'peers' if peers else 'all'}_{platform.machine()}-{os.cpu_count()}cores_{today:%Y%m}.jsonl"
    )
    result.parent.mkdir(exist_ok=True)
    add(
        result,
        f'{{"date": "{today:%Y-%m-%d}", "python": "{platform.python_version()}"}}',
    )
    for bench in PEERS if peers else BENCHES:
        words = [sys.executable, "-m", f"tests.benchmarks.{bench}"]
        with subprocess.Popen(
            words, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if line.startswith("{"):
                    sys.stdout.write(line)
                    sys.stdout.flush()
                    add(result, line.rstrip())
        if running.returncode:
            sys.exit(
                f"{bench}: ended with status {running.returncode}; what was measured before is in {result}"
            )
    sys.stdout.write(f"written to {result}\n")


def add(result: Path, line: str) -> None:
    """One line more, at once: what was measured is kept whatever comes after."""
    with result.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
