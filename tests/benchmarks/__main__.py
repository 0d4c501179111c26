"""`make bench`: every benchmark in a process of its own; their JSON lines go to the terminal and to a dated file."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = ("harvest.py", "writing.py", "stream.py", "training.py")


def main() -> None:
    """Run them one after the other, so that none disturbs another."""
    today = dt.datetime.now(tz=dt.UTC)
    result = HERE / "results" / f"all_{platform.machine()}-{os.cpu_count()}cores_{today:%Y%m}.jsonl"
    result.parent.mkdir(exist_ok=True)
    lines = [f'{{"date": "{today:%Y-%m-%d}", "python": "{platform.python_version()}"}}']
    for bench in BENCHES:
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
