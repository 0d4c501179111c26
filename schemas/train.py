"""One training run, and a sweep of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.base import Schema
from schemas.sae import SaeSpec
from schemas.stream import StreamSpec


class Optimiser(Schema):
    """Adam(W) and its schedule; warm-ups and decay as shares of the run."""

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.02, ge=0, le=1, description="linear warm-up of the learning rate")
    decay: float = Field(default=0.2, ge=0, le=1, description="linear decay to zero at the end")
    sparsity_warmup: float = Field(default=0.05, ge=0, le=1, description="linear warm-up of the sparsity penalty")
    clip: float | None = Field(default=1.0, gt=0, description="gradient norm")


class TrainSpec(Schema):
    """One SAE trained from one store. `stream.rescale` and `stream.sites` say what it sees."""

    store: str
    sae: SaeSpec
    stream: StreamSpec = StreamSpec(epochs=None)
    rows: int | None = Field(default=None, gt=0, description="rows to train on; None: one epoch")
    optimiser: Optimiser = Optimiser()
    init: Literal["random", "data"] = Field(default="data", description="decoder directions: random, or data rows")
    dead_rows: int = Field(default=10_000_000, gt=0, description="a latent silent for so many rows is dead")
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16: autocast")
    log_every: int = Field(default=50, gt=0, description="steps")
    checkpoint_every: int = Field(default=1000, gt=0, description="steps")
    keep: int = Field(default=2, gt=0, description="checkpoints")


class SweepSpec(Schema):
    """Many SAEs from one pass over the data: `base` with every combination of `grid`, or with each of `runs`.

    Keys of `grid` and `runs` are dotted paths into a TrainSpec: `sae.k`, `optimiser.lr`, `stream.rescale`.
    """

    base: dict[str, Any]
    grid: dict[str, list[Any]] = {}
    runs: list[dict[str, Any]] = []

    @model_validator(mode="after")
    def _one(self) -> SweepSpec:
        if bool(self.grid) == bool(self.runs):
            raise ValueError("a sweep needs either `grid` or `runs`")
        return self
