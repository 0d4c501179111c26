"""The spec of a stream from a store, and the place where a stream stands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Count, Names, Schema, Size

Rescale = Literal["none", "sqrt", "log", "log1p", "linear", "unit", "sqrt_d"]
Split = Literal["train", "held_out"]
Mode = Literal["mixed", "aligned", "pairs"]
# It is in every state: what a later version counts otherwise refuses an older state
# instead of going on at another row.
STATE_VERSION = 1


class NormRange(Schema):
    """Rows whose stored L2 norm lies in a range at every one of some sites."""

    sites: Names | None = Field(
        default=None, description="sites by name or pattern; None: the streamed ones"
    )
    low: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="lowest norm, as a quantile of the site's norms",
    )
    high: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="highest norm, as a quantile of the site's norms",
    )
    medians: float | None = Field(
        default=None,
        gt=0,
        description="highest norm, as a multiple of the site's median norm",
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
    """A choice of rows to stream. A row is kept, or left out, at all sites alike."""

    tokens: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="only rows of these token ids"
    )
    exclude_tokens: tuple[int, ...] = Field(
        default=(), description="no rows of these token ids"
    )
    positions: tuple[int, int] | None = Field(
        default=None,
        description=(
            "only rows of these positions in a sequence: the first, and the one after"
            " the last"
        ),
    )
    norms: tuple[NormRange, ...] = Field(
        default=(), description="only rows whose norms lie in all of these ranges"
    )

    @model_validator(mode="after")
    def _ascending(self) -> RowFilter:
        if (
            self.positions is not None
            and not 0 <= self.positions[0] < self.positions[1]
        ):
            raise ValueError(
                f"positions are {list(self.positions)}; wanted the first, and the one"
                " after the last: [1, 128]"
            )
        return self


class StreamSpec(Schema):
    """A shuffled stream of batches.

    The order of rows is a function of (store, spec, seed, epoch) alone.
    """

    sites: Names | None = Field(
        default=None, description="sites by name or pattern; None: every site"
    )
    mode: Mode = Field(
        default="mixed",
        description=(
            "mixed: a batch has rows of all sites; aligned: each row has all sites of"
            " one token; pairs: each row has a site of `sites` and one of `targets`"
        ),
    )
    targets: Names | None = Field(
        default=None,
        description="output sites for mode pairs, one for each of `sites`",
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        description=(
            "how many rows of a site to stream, relative to others, by name or"
            " pattern; a site that none matches has weight 1"
        ),
    )
    filter: RowFilter | None = Field(
        default=None, description="filter of the rows to stream; None: all rows"
    )
    batch: Count = Field(
        default=4096, gt=0, description="rows per batch, over all ranks"
    )
    seed: int = Field(default=0, ge=0, description="seed of the order of rows")
    split: Split = Field(
        default="train",
        description="train; held_out: the units whose rows no SAE is trained on",
    )
    epochs: int | None = Field(
        default=1, gt=0, description="passes over the rows; None: for ever"
    )
    limit_rows: Count | None = Field(
        default=None,
        gt=0,
        description="rows to deliver, after those that are skipped",
    )
    skip_rows: Count = Field(
        default=0, ge=0, description="rows of the stream to pass over at its start"
    )
    follow: bool = Field(
        default=False,
        description="read units in the order in which they are committed; one epoch",
    )
    rescale: Rescale = Field(
        default="none",
        description="function of a site's mean norm that its rows are divided by",
    )
    center: bool | None = Field(
        default=None,
        description=(
            "subtract each site's stored mean before scaling; None: training does where"
            " means lie far apart"
        ),
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="dtype of the batches"
    )
    memory: Size = Field(
        default=2 << 30,
        gt=0,
        # Two: one is loaded while the other is used.
        description="bytes of memory for the two windows",
    )
    window_chunks: int | None = Field(
        default=None,
        gt=0,
        description="chunks of each site in a window; None: as many as `memory` takes",
    )
    # A part of the order, so that any number of ranks that divides it gives the same
    # batches.
    lanes: int = Field(
        default=8, gt=0, description="parts of a batch that ranks share among them"
    )

    @model_validator(mode="after")
    def _consistent(self) -> StreamSpec:
        # One without the other is a slip: targets would silently not be read.
        if (self.mode == "pairs") != (self.targets is not None):
            raise ValueError(
                "`mode: pairs` and `targets` (the output sites) go together"
            )
        if self.mode == "aligned" and self.weights is not None:
            raise ValueError(
                "`weights` are shares of rows; aligned rows have every site"
            )
        # A filter is worked out when the stream opens, from figures of all units.
        if self.follow and (self.filter is not None or self.epochs not in (1, None)):
            raise ValueError(
                "`follow` streams one epoch and takes no `filter`: norms and columns"
                " are not complete yet"
            )
        return self


class StreamState(Schema):
    """The place where a stream stands: the next batch to deliver.

    It is exact for any thread count, prefetch depth or world size.
    """

    version: int = Field(default=STATE_VERSION, description="version of this state")
    store: str = Field(
        description="digest of the sites and units that are streamed, and their digests"
    )
    spec: str = Field(description="digest of the StreamSpec and the window it led to")
    epoch: int = Field(ge=0, description="epochs already consumed")
    batch: int = Field(ge=0, description="batches already consumed in this epoch")
