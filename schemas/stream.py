"""What to stream from a store, and where a stream stands."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Schema

Rescale = Literal["none", "sqrt", "log", "log1p", "linear", "unit", "sqrt_d"]
Split = Literal["train", "held_out"]
Mode = Literal["mixed", "aligned", "pairs"]


class StreamSpec(Schema):
    """A shuffled stream of batches. The order is a function of (store, spec, seed, epoch) alone."""

    sites: tuple[str, ...] | None = Field(default=None, description="names or patterns; None: every site")
    weights: dict[str, float] | None = Field(default=None, description="share of each site in a batch; None: equal")
    mode: Mode = "mixed"
    targets: tuple[str, ...] | None = Field(default=None, description="pairs: the output site of each input site")
    batch: int = Field(default=4096, gt=0, description="rows per batch, over all ranks")
    seed: int = Field(default=0, ge=0)
    split: Split = "train"
    epochs: int | None = Field(default=1, gt=0, description="None: for ever")
    limit_rows: int | None = Field(default=None, gt=0)
    rescale: Rescale = "none"
    center: bool = Field(default=False, description="subtract each site's stored mean before scaling")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the batches")
    memory: int = Field(default=2 << 30, gt=0, description="bytes for the two windows")
    window_chunks: int | None = Field(default=None, gt=0, description="chunks per site and window; None: from memory")
    lanes: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _pairs(self) -> StreamSpec:
        if (self.mode == "pairs") != (self.targets is not None):
            raise ValueError("`targets` goes with mode 'pairs', and only with it")
        if self.weights is not None and not all(w > 0 for w in self.weights.values()):
            raise ValueError("every weight must be above 0; leave a site out of `sites` instead")
        return self


class StreamState(Schema):
    """Where a stream stands: the next batch to deliver. Exact for any thread count, prefetch depth or world size."""

    version: Literal[1] = 1
    store: str = Field(description="digest of what the stream pins: sites, units and their digests")
    spec: str = Field(description="digest of the StreamSpec")
    epoch: int = Field(ge=0)
    batch: int = Field(ge=0, description="batches already consumed in this epoch")
