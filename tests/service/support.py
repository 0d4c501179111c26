"""Runs, and a clock that a test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.train import TrainSpec
from trainer.queue.clocks import Clock
from trainer.queue.queue_records import NewRun


class SetClock(Clock):
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.day = 1_800_000_000.0
        self.start = "first"

    def monotonic(self) -> float:
        return self.now

    def boot(self) -> str:
        return self.start

    def seconds(self) -> float:
        return self.day

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.day += seconds


def spec(store: str = "store", **more: Any) -> TrainSpec:
    """A small TrainSpec."""
    values = {"store": store, "sae": {"kind": "topk", "k": 2, "expansion": 2}, **more}
    return TrainSpec.model_validate(values)


def new_run(name: str, folder: str | Path = "/runs", **more: Any) -> NewRun:
    """A run that nobody trains."""
    values: dict[str, Any] = {
        "name": name,
        "url": f"{folder}/{name}",
        "spec": spec(),
        "store_url": "store",
        "memory_bytes": 100,
        "rows": 1000,
        "state_bytes": 60,
        **more,
    }
    return NewRun(**values)
