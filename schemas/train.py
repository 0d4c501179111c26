"""One training run, and a sweep of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.base import Count, Schema
from schemas.sae import SaeSpec
from schemas.stream import StreamSpec

Beta = Annotated[float, Field(ge=0, lt=1)]
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"


class Optimiser(Schema):
    """Adam(W) and its schedule; warm-ups and decay as shares of the run."""

    lr: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default="auto",
        description=(
            "peak learning rate; auto: by kind, dictionary size, batch and updates"
            " (training/rates.py)"
        ),
    )
    lr_factor: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="times `lr`: for sweeps around auto",
    )
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.95),
        description=(
            "of Adam; the second is short for runs of some 100 updates"
            " (training/rates.py)"
        ),
    )
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(
        default=0.02, ge=0, le=1, description="linear warm-up of the learning rate"
    )
    decay: float = Field(
        default=0.2, ge=0, le=1, description="linear decay to zero at the end"
    )
    sparsity_warmup: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="linear warm-up of a penalty that is given",
    )
    sparsity_decay: float = Field(
        default=0.0, ge=0, le=1, description="linear decay of that penalty at the end"
    )
    clip: float | None = Field(default=1.0, gt=0, description="gradient norm")


class Resampling(Schema):
    """New directions for dead latents, as in "Towards Monosemanticity" (Bricken et al.
    2023), counted in rows.
    """

    every: Count = Field(
        default=50_000_000, gt=0, description="rows between resamplings"
    )
    times: int = Field(default=4, gt=0, description="resamplings of a run")
    silent_rows: Count | None = Field(
        default=None,
        gt=0,
        description="silent for so many: dead; None: half of `every`",
    )
    candidates: Count | None = Field(
        default=None,
        gt=0,
        description=(
            "rows that new directions are drawn from; None: 819,200 as in the paper, at"
            " most a 50th of `every`"
        ),
    )
    encoder_scale: float = Field(
        default=0.2,
        gt=0,
        description="norm of the new encoder, over that of the living",
    )


class TrainSpec(Schema):
    """One SAE trained from one store. `stream.rescale` and `stream.sites` say what it
    sees.
    """

    store: str
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=120,
        pattern=ONE_LINE,
        description="what tables and reports call it; None: the name of its folder",
    )
    sae: SaeSpec
    stream: StreamSpec = StreamSpec()
    rows: Count | None = Field(
        default=None, gt=0, description="rows to train on; None: one epoch"
    )
    optimiser: Optimiser = Optimiser()
    init: Literal["random", "data"] = Field(
        default="data", description="directions: random, or whitened data rows"
    )
    center_init: Literal["mean", "geometric_median"] = Field(
        default="mean", description="where b_dec starts"
    )
    resample: Resampling | None = Field(
        default=None, description="of dead latents; None: never"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of averaged weights, which are the result",
    )
    accumulate: int = Field(
        default=1,
        gt=0,
        description=(
            "micro-batches that a batch is computed in, to save memory; its step is the"
            " same"
        ),
    )
    compile: bool = Field(
        default=False, description="torch.compile of the forward of dense kinds"
    )
    dead_rows: Literal["auto"] | Annotated[Count, Field(gt=0)] = Field(
        default="auto",
        description=(
            "a latent silent for so many rows is dead; auto: by dictionary size and"
            " rows"
        ),
    )
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: autocast"
    )
    kernels: Literal["eager", "triton"] = Field(
        default="eager", description="of sparse kinds; triton needs CUDA"
    )
    log_every: Count = Field(default=50, gt=0, description="steps")
    revive: bool = Field(
        default=True, description="lift the biases of dead latents until they fire"
    )
    checkpoint_every: Count = Field(default=1000, gt=0, description="steps")
    checkpoint_minutes: float = Field(
        default=5.0, gt=0, description="also after so long, whatever the steps"
    )
    keep: int = Field(default=2, gt=0, description="checkpoints")


class SweepSpec(Schema):
    """Many SAEs from one pass over the data: `base` with every combination of `grid`,
    or with each of `runs`.

    Keys of `grid` and `runs` are dotted paths into a TrainSpec: `sae.k`,
    `optimiser.lr`, `stream.rescale`.
    """

    base: dict[str, Any]
    grid: dict[str, list[Any]] = {}
    runs: list[dict[str, Any]] = []

    @model_validator(mode="after")
    def _one(self) -> SweepSpec:
        if bool(self.grid) == bool(self.runs):
            raise ValueError("a sweep needs either `grid` or `runs`")
        if empty := [path for path, values in self.grid.items() if not values]:
            raise ValueError(
                f"grid: {empty[0]} has no values, so there would be no runs; give some,"
                " or leave it out"
            )
        return self
