"""One training run, and a sweep of them."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import Count, Schema
from schemas.sae import SaeSpec
from schemas.stream import StreamSpec

Beta = Annotated[float, Field(ge=0, lt=1)]
# No control characters: a name with a line break would tear tables and logs apart.
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"


class Optimiser(Schema):
    """Adam(W) and its schedule; warm-ups and decays are shares of the run's steps."""

    lr: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default="auto",
        description=(
            "peak learning rate; auto: by kind, dictionary size, batch and updates"
            " (trainer/training/learning_rates.py)"
        ),
    )
    lr_factor: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="multiplies `lr`: for sweeps around auto",
    )
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.95),
        description=(
            "decay of Adam's running means; the second is short, for runs of some 100"
            " updates (trainer/training/learning_rates.py)"
        ),
    )
    eps: float = Field(default=1e-8, gt=0, description="added to Adam's denominator")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW")
    warmup: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="share of the run in which the learning rate rises linearly",
    )
    decay: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of the run, at its end, in which it falls linearly to 0",
    )
    sparsity_warmup: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description=(
            "share of the run in which a penalty that is given rises linearly"
        ),
    )
    sparsity_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the run, at its end, in which that penalty falls",
    )
    clip: float | None = Field(
        default=1.0,
        gt=0,
        description="largest norm of the gradient, scaled down to it; None: any norm",
    )


class Resampling(Schema):
    """New directions for dead latents (Bricken et al. 2023), counted in rows.

    The paper is "Towards Monosemanticity".
    """

    every: Count = Field(
        default=50_000_000, gt=0, description="rows between resamplings"
    )
    times: int = Field(default=4, gt=0, description="resamplings in a run")
    silent_rows: Count | None = Field(
        default=None,
        gt=0,
        description=(
            "rows without firing that make a latent dead; None: half of `every`"
        ),
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
        description="norm of a new encoder, relative to those of living latents",
    )


class TrainSpec(Schema):
    """One SAE, trained from one store.

    `stream` says which rows it sees, and how they are rescaled.
    """

    store: str = Field(description="path or URL of the store")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=120,
        pattern=ONE_LINE,
        description="its name in tables and reports; None: the name of its folder",
    )
    sae: SaeSpec = Field(description="the architecture, told by its `kind`")
    stream: StreamSpec = Field(
        default=StreamSpec(), description="the rows, and their order"
    )
    rows: Count | None = Field(
        default=None, gt=0, description="rows to train on; None: one epoch"
    )
    optimiser: Optimiser = Field(
        default=Optimiser(), description="Adam and its schedule"
    )
    init: Literal["random", "data"] = Field(
        default="data",
        description="decoder directions at the start: random, or whitened rows",
    )
    center_init: Literal["mean", "geometric_median"] = Field(
        default="mean", description="start of the decoder bias"
    )
    resample: Resampling | None = Field(
        default=None, description="new directions for dead latents; None: never"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "decay of the running mean of weights, which is then the result; None: the"
            " weights themselves are"
        ),
    )
    accumulate: int = Field(
        default=1,
        gt=0,
        description=(
            "pieces in which a batch is computed, to save memory; the step stays the"
            " same"
        ),
    )
    compile: bool = Field(
        default=False,
        description="compile the forward of kinds that compute every latent",
    )
    dead_rows: Literal["auto"] | Annotated[Count, Field(gt=0)] = Field(
        default="auto",
        description=(
            "rows without firing that make a latent dead; auto: by dictionary size and"
            " rows"
        ),
    )
    seed: int = Field(
        default=0, ge=0, description="seed of all that training draws by chance"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of matrix products; bfloat16: by torch.autocast",
    )
    kernels: Literal["eager", "triton"] = Field(
        default="eager",
        description="implementation of the sparse kinds; triton needs CUDA",
    )
    log_every: Count = Field(
        default=50, gt=0, description="steps from one line of the journal to the next"
    )
    revive: bool = Field(
        default=True, description="raise the biases of dead latents until they fire"
    )
    checkpoint_every: Count = Field(
        default=1000, gt=0, description="steps from one checkpoint to the next"
    )
    checkpoint_minutes: float = Field(
        default=5.0,
        gt=0,
        description="minutes after which one is written in any case",
    )
    density_rows: Literal["auto"] | Annotated[Count, Field(gt=0, lt=1 << 34)] = Field(
        default="auto",
        description=(
            "rows of the sliding window in which firings are counted; auto: a tenth of"
            " the run, at most 10 M"
        ),
    )
    keep: int = Field(default=2, gt=0, description="newest checkpoints to keep")
    snapshots: int = Field(
        default=0,
        ge=0,
        description=(
            "SAEs kept from training, weights only, evenly spread over its steps, for"
            " `trainer eval --checkpoints`"
        ),
    )

    @field_validator("store", mode="before")
    @classmethod
    def _path(cls, store: Any) -> Any:
        return os.fspath(store) if isinstance(store, os.PathLike) else store


class SweepSpec(Schema):
    """Many SAEs from one pass over the data.

    A run is `base` with one combination of `grid`, or with one of `runs`.

    Keys of `grid` and `runs` are dotted paths into a TrainSpec: `sae.k`,
    `optimiser.lr`, `stream.rescale`.
    """

    # Not a TrainSpec yet: it may lack what each run adds, and runs are checked whole.
    base: dict[str, Any] = Field(description="a TrainSpec, what all runs share")
    grid: dict[str, list[Any]] = Field(
        default={}, description="values by path: a run for each combination"
    )
    runs: list[dict[str, Any]] = Field(
        default=[], description="values by path, for each run"
    )

    @model_validator(mode="after")
    def _one(self) -> SweepSpec:
        if bool(self.grid) == bool(self.runs):
            raise ValueError("a sweep needs either `grid` or `runs`")
        # There are no combinations with an empty list: the sweep would do nothing.
        empty = [path for path, values in self.grid.items() if not values]
        if empty:
            raise ValueError(
                f"grid: {empty[0]} has no values, so there would be no runs; give some,"
                " or leave it out"
            )
        return self
