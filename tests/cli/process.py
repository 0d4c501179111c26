"""A command line in a process of its own, started from a fork server that has the
libraries loaded.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import actstore.cli
import tests.harvesting.killing as loaded
import trainer.cli

LOADED = loaded


def run(words: list[str], out: Path, err: Path) -> None:
    """The process' life: its standard output and error go to files."""
    # a suite in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, fd in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
    sys.argv = words
    {"actstore": actstore.cli.main, "trainer": trainer.cli.main}[words[0]]()
