"""What to stream from a store, and where a stream stands."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Schema

Rescale = Literal["none", "sqrt", "log", "log1p", "linear", "unit", "sqrt_d"]
Split = Literal["train", "held_out"]


class StreamSpec(Schema):
    """A shuffled stream of batches. The order is a function of (store, spec, seed, epoch) alone."""

    sites: tuple[str, ...] | None = Field(default=None, description="names or patterns; None: every site")
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


class StreamState(Schema):
    """Where a stream stands: the next batch to deliver. Exact for any thread count, prefetch depth or world size."""

    version: Literal[1] = 1
    store: str = Field(description="digest of what the stream pins: sites, units and their digests")
    spec: str = Field(description="digest of the StreamSpec and the window it led to")
    epoch: int = Field(ge=0)
    batch: int = Field(ge=0, description="batches already consumed in this epoch")
