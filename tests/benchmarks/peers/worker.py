"""The peer's end of the link: runs in the peer's own Python, so it imports nothing of
ours and needs only torch.

One JSON object per line each way. On start: `{"ready", "version", "torch", "threads"}`
or `{"error"}`. Then, per request:

- `{"do": "prepare", "case": {...}}` builds the work of a case and warms it up:
`{"ok"}`;
- `{"do": "run", "seconds": s, "calls": n}` repeats it for at least so long and so
often: `{"rows", "seconds", "cpu"}`.

The worker ends when its input does.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Case = dict[str, Any]
Work = Callable[[], int]

ALLOCATOR = Path(__file__).parents[3] / "actstore" / "machine" / "glibc_malloc.py"
WARM_UP_CALLS = 2


def serve(module: str, distribution: str, prepare: Callable[[Case], Work]) -> None:
    """Answer requests. `prepare(case)` gives what is timed: a call that returns the
    rows it consumed.
    """
    link = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the peer prints goes to stderr
    warnings.simplefilter("ignore")
    runpy.run_path(str(ALLOCATOR))["keep_freed_memory"]()
    try:
        answer(link, loaded(module, distribution))
    except Exception as error:  # noqa: BLE001 (whatever a peer's import raises is a reason to leave it out)
        answer(link, {"error": first_line(error)})
        return
    work: Work | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                work = None
                gc.collect()
                work = prepared(prepare, request["case"])
                answer(link, {"ok": True})
            else:
                assert work is not None, "run came before prepare"
                answer(link, timed(work, request["seconds"], request["calls"]))
        except Exception as error:  # noqa: BLE001 (the other end decides what it means)
            traceback.print_tb(error.__traceback__)
            answer(link, {"error": first_line(error)})


def loaded(module: str, distribution: str) -> dict[str, Any]:
    """Import the peer and say what it is."""
    import torch

    importlib.import_module(module)
    version = importlib.metadata.version(distribution)
    return {
        "ready": True,
        "version": version,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def prepared(prepare: Callable[[Case], Work], case: Case) -> Work:
    """The work of a case, warmed up."""
    import torch

    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    work = prepare(case)
    for _ in range(WARM_UP_CALLS):
        work()
    return work


def timed(work: Work, seconds: float, calls: int) -> dict[str, float]:
    """Rows, seconds by the clock, and CPU seconds of all threads."""
    rows, done, cpu, began = 0, 0, time.process_time(), time.perf_counter()
    while done < calls or time.perf_counter() - began < seconds:
        rows += work()
        done += 1
    return {
        "rows": rows,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
    }


def first_line(error: Exception) -> str:
    """Some of torch's messages are a hundred lines long."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def answer(link: TextIO, value: dict[str, Any]) -> None:
    link.write(json.dumps(value) + "\n")
