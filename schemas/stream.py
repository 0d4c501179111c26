"""What to stream from a store, and where a stream stands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Count, Names, Schema, Size

Rescale = Literal["none", "sqrt", "log", "log1p", "linear", "unit", "sqrt_d"]
Split = Literal["train", "held_out"]
Mode = Literal["mixed", "aligned", "pairs"]
STATE_VERSION = 1


class NormRange(Schema):
    """Rows whose stored L2 norm lies in a range at every one of some sites."""

    sites: Names | None = Field(
        default=None, description="names or patterns; None: the streamed ones"
    )
    low: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="quantile of the site's norm, from its histogram",
    )
    high: float = Field(default=1.0, ge=0, le=1, description="likewise")
    medians: float | None = Field(
        default=None, gt=0, description="at most so many times the site's median norm"
    )

    @model_validator(mode="after")
    def _ascending(self) -> NormRange:
        if self.low >= self.high:
            raise ValueError(
                f"norms: `low` is {self.low:g} and `high` {self.high:g}; wanted low"
                " below high"
            )
        return self


class RowFilter(Schema):
    """Which rows to stream. A row is kept or left out at all sites alike."""

    tokens: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="only rows of these token ids"
    )
    exclude_tokens: tuple[int, ...] = ()
    positions: tuple[int, int] | None = Field(
        default=None, description="first position, and the one behind the last"
    )
    norms: tuple[NormRange, ...] = ()

    @model_validator(mode="after")
    def _ascending(self) -> RowFilter:
        if (
            self.positions is not None
            and not 0 <= self.positions[0] < self.positions[1]
        ):
            raise ValueError(
                f"positions are {list(self.positions)}; wanted the first, and one"
                " behind the last: [1, 128]"
            )
        return self


class StreamSpec(Schema):
    """A shuffled stream of batches. The order is a function of (store, spec, seed,
    epoch) alone.
    """

    sites: Names | None = Field(
        default=None, description="names or patterns; None: every site"
    )
    mode: Mode = Field(
        default="mixed",
        description="mixed: rows of all sites; aligned: all sites of the same token",
    )
    targets: Names | None = Field(
        default=None, description="pairs: the output sites, one for each of `sites`"
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        description=(
            "shares by site name or pattern; a site that none matches has weight 1"
        ),
    )
    filter: RowFilter | None = None
    batch: Count = Field(
        default=4096, gt=0, description="rows per batch, over all ranks"
    )
    seed: int = Field(default=0, ge=0)
    split: Split = "train"
    epochs: int | None = Field(default=1, gt=0, description="None: for ever")
    limit_rows: Count | None = Field(
        default=None, gt=0, description="rows to deliver, behind those skipped"
    )
    skip_rows: Count = Field(
        default=0, ge=0, description="rows of the stream to pass over at its start"
    )
    follow: bool = Field(
        default=False,
        description="groups in unit order, as a harvest commits them; one epoch",
    )
    rescale: Rescale = "none"
    center: bool | None = Field(
        default=None,
        description=(
            "subtract each site's stored mean before scaling; None: training does where"
            " means lie far apart"
        ),
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the batches"
    )
    memory: Size = Field(default=2 << 30, gt=0, description="bytes for the two windows")
    window_chunks: int | None = Field(
        default=None, gt=0, description="chunks per site and window; None: from memory"
    )
    lanes: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> StreamSpec:
        if (self.mode == "pairs") != (self.targets is not None):
            raise ValueError(
                "`mode: pairs` and `targets` (the output sites) go together"
            )
        if self.mode == "aligned" and self.weights is not None:
            raise ValueError(
                "`weights` are shares of rows; aligned rows have every site"
            )
        if self.follow and (self.filter is not None or self.epochs not in (1, None)):
            raise ValueError(
                "`follow` streams one epoch and takes no `filter`: norms and columns"
                " are not complete yet"
            )
        return self


class StreamState(Schema):
    """Where a stream stands: the next batch to deliver. Exact for any thread count,
    prefetch depth or world size.
    """

    version: int = STATE_VERSION
    store: str = Field(
        description="digest of what the stream pins: sites, units and their digests"
    )
    spec: str = Field(description="digest of the StreamSpec and the window it led to")
    epoch: int = Field(ge=0)
    batch: int = Field(ge=0, description="batches already consumed in this epoch")
