"""Reports of runs, each made by a process of its own and kept for a while.

A report evaluates runs that were not evaluated yet, which takes memory and time: few
are made at once, and of those that wait there is a bound.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from actstore.format.storage import Storage
from trainer.errors import BusyError, RunError
from trainer.passes.executor import environment
from trainer.queue.slots import Slot

AT_ONCE = 1
MOST_WAITING = 8
MOST_KEPT = 16
MOST_BYTES = 64 << 20
LONGEST_S = 900.0
_OF_A_REPORT = ("sae.json", "eval.json", "journal.jsonl", "evals.jsonl", "spec.json")


class Reports:
    """The reports that were asked for last, in memory."""

    def __init__(self, environment: Callable[[], Mapping[str, str]]) -> None:
        """Make none yet.

        Args:
            environment: Gives the environment of the process that makes one.
        """
        self._environment = environment
        self._kept: OrderedDict[tuple[str, ...], tuple[object, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(AT_ONCE)
        self._n_waiting = 0

    def page(self, urls: Sequence[str]) -> bytes:
        """Return the report of finished runs, as HTML.

        Raises:
            RunError: It cannot be made; says why.
            BusyError: Too many are being made already.
        """
        key = tuple(urls)
        kept = self._find(key)
        if kept is not None:
            return kept
        with self._lock:
            if self._n_waiting >= MOST_WAITING:
                raise BusyError("too many reports are being made; ask again later")
            self._n_waiting += 1
        try:
            with self._places:
                # Another request may have made it meanwhile.
                kept = self._find(key)
                return self._made(key) if kept is None else kept
        finally:
            with self._lock:
                self._n_waiting -= 1

    def _find(self, key: tuple[str, ...]) -> bytes | None:
        """Return a report that was made of what the runs' folders hold now."""
        state = _state(key)
        with self._lock:
            state_then, data = self._kept.get(key, (None, b""))
            if state_then != state:
                return None
            self._kept.move_to_end(key)
            return data

    def _made(self, key: tuple[str, ...]) -> bytes:
        with tempfile.TemporaryDirectory(prefix="actstore-report-") as folder:
            out = Path(folder) / "report.html"
            command = [sys.executable, "-m", "trainer", "report"]
            _run([*command, "--out", str(out), "--", *key], self._environment())
            data = Storage(folder).read(out.name, MOST_BYTES)
        # Taken afterwards: evaluating adds to the folders.
        state = _state(key)
        with self._lock:
            self._kept[key] = (state, data)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return data


def report_environment() -> dict[str, str]:
    """Return the environment of a process that makes a report: as one that trains."""
    return environment(os.environ, Slot("report", "cpu", 0, {}))


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    """Run a command line of ours.

    Raises:
        RunError: It failed; says what it said.
    """
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"the report was not made within {LONGEST_S:g} s") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = lines[-1].removeprefix("error: ") if lines else "it says nothing"
        raise RunError(f"the report could not be made: {why}")


def _state(urls: Sequence[str]) -> object:
    """Return what tells whether runs' folders have changed."""
    found = []
    for url in urls:
        objects = Storage(url).objects()
        found.append(
            tuple(
                (one.key, one.bytes, one.modified)
                for one in objects
                if one.key in _OF_A_REPORT
            )
        )
    return found
