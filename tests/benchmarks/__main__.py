"""`make bench`: every benchmark in a process of its own; their JSON lines go to the terminal and to a dated file.

`python -m tests.benchmarks --peers` runs those against other packages instead (README.md says how to set them up).
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = ("harvest.py", "writing.py", "opening.py", "stream.py", "training.py", "sweep.py")
PEERS = ("stream_peers.py", "training_peers.py")


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
    lines = [f'{{"date": "{today:%Y-%m-%d}", "python": "{platform.python_version()}"}}']
    for bench in PEERS if peers else BENCHES:
        done = subprocess.run([sys.executable, str(HERE / bench)], stdout=subprocess.PIPE, text=True, check=True)
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        sys.stdout.write("\n".join(found) + "\n")
        sys.stdout.flush()
        lines += found
    with result.open("a") as file:
        file.write("\n".join(lines) + "\n")
    sys.stdout.write(f"written to {result}\n")


if __name__ == "__main__":
    main()
