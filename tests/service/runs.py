"""Tiny runs, and whether two of them are the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
from actstore.format.local_writes import is_temporary
from schemas.train import TrainSpec
from tests.service.support import new_run, spec
from trainer.queue.queue import Queue
from trainer.training.train_group import train_group

STEPS, BATCH = 60, 64


def tiny_spec(store: str, **more: Any) -> TrainSpec:
    """A run of `STEPS` steps, which is saved and logged often."""
    values = {
        "stream": {"batch": BATCH},
        "rows": STEPS * BATCH,
        "checkpoint_every": 7,
        "log_every": 5,
    }
    return spec(store, **{**values, **more})


def train_alone(run: Path, one: TrainSpec) -> None:
    """Train a run undisturbed."""
    train_group(actstore.open(one.store), {str(run): one})


def submit(queue: Queue, folder: Path, **specs: TrainSpec) -> list[str]:
    """Submit runs by name, to be written into a folder; return their ids."""
    runs = [
        new_run(name, folder, spec=one, store_url=one.store, rows=one.rows)
        for name, one in specs.items()
    ]
    return queue.submit(runs, "ana")


def wait_until(condition: Callable[[], bool], queue: Queue) -> None:
    """Wait for something of a queue, for two minutes at most."""
    give_up = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up, queue.events()
        time.sleep(0.05)


def check_same(run: Path, undisturbed: Path) -> None:
    """Check that two runs are the same: by the byte, but for what a clock says and the
    way from their folders to the store.
    """
    # A file that a killed process had not written to its end is none.
    found = {path.name for path in run.iterdir() if not is_temporary(path.name)}
    assert found == {path.name for path in undisturbed.iterdir()}
    for name in ("sae.safetensors", "spec.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert _record(run) == _record(undisturbed)
    assert _journal(run) == _journal(undisturbed)
    last = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert last == sorted(path.name for path in (undisturbed / "checkpoints").iterdir())


def _journal(run: Path) -> list[dict[str, Any]]:
    lines = (run / "journal.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        del record["rows_per_s"], record["stall"]
    return found


def _record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "sae.json").read_text())
    del found["store_path"]
    return found
