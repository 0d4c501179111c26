"""Commands whose Ray loses its head, or its process on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PARTS = ("gcs_server", "raylet/raylet")  # words of their command lines
# The command line, but sure sooner that a part is lost.
PROGRAM = """
import sys
from importlib import import_module
from actstore.engines import cluster_watch
cluster_watch.LOOK_S, cluster_watch.LOST_S = 0.2, 2.0
del sys.argv[0]
import_module(f"{sys.argv[0]}.cli").main()
"""


def start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a command: `actstore` or `trainer`, and its words."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def kill(part: str, processes: list[Path]) -> bool:
    """SIGKILL a part of Ray's; return whether it was among the processes.

    processes: their folders in /proc.
    """
    for folder in processes:
        try:
            if part not in (folder / "cmdline").read_text():
                continue
            os.kill(int(folder.name), signal.SIGKILL)
        except OSError:  # it has just ended
            continue
        return True
    return False
