"""What runs and benchmarks write down."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from schemas.base import Schema
from schemas.harvest import Layout
from schemas.sae import SaeSpec
from schemas.source import Site
from schemas.stream import Rescale, RowFilter


def _from_null(value: object) -> object:
    return math.nan if value is None else value


def _to_null(value: float) -> float | None:
    return None if math.isnan(value) else value


Ratio = Annotated[
    float, BeforeValidator(_from_null), PlainSerializer(_to_null, when_used="json")
]
"""NaN where the denominator is 0, and null in JSON: nothing to divide by is no perfect
score.
"""


class StepRecord(Schema):
    """One line of `journal.jsonl`. rows: trained on so far; means over the steps since
    the last line. layers: FVU of each site where there are several, null where no row
    was of it.
    """

    step: int
    rows: int
    loss: float
    mse: float
    l0: float
    fvu: float
    dead: int
    lr: float
    rows_per_s: float
    stall: float
    layers: dict[str, float | None] = {}
    parts: dict[str, float] = {}


class LayerMetrics(Schema):
    """Metrics of one layer (or pooled), in original activation units. Definitions:
    `trainer/evaluate/metrics.py`.
    """

    site: str
    rows: int
    fvu: Ratio
    mse: Ratio
    mse_per_element: Ratio
    l0: Ratio
    l1: Ratio
    l1_decoder: Ratio
    suppression: Ratio


class ModelMetrics(Schema):
    """Effect on the language model of replacing a site by its reconstruction; nats."""

    site: str
    tokens: int
    ce_clean: Ratio
    ce_sae: Ratio
    ce_zero: Ratio
    ce_mean: Ratio
    recovered_zero: Ratio
    recovered_mean: Ratio
    kl: Ratio


class EvalRecord(Schema):
    """`eval.json` of a run. run: its folder; name: what it is called, if it has a name
    of its own.
    """

    run: str
    name: str | None = None
    store: str = Field(description="URL of the store it was evaluated on, absolute")
    content_id: str
    split: str
    filter: RowFilter | None = Field(
        default=None, description="of the rows, as in training; None: all rows"
    )
    rows: int
    pooled: LayerMetrics
    fvu_layer_mean: Ratio = Field(description="over the layers that have an FVU")
    layers: tuple[LayerMetrics, ...]
    dead: int
    dead_rows: int
    alive_share: float
    model: tuple[ModelMetrics, ...] = ()
    model_pooled: ModelMetrics | None = Field(
        default=None, description="over all sites' tokens"
    )


class BenchRecord(Schema):
    """One measurement: `floor` is the physical reference of the same run, `ratio` =
    value / floor.
    """

    bench: str
    case: str
    value: float
    unit: str
    floor: float
    ratio: float


class StoreOrigin(Schema):
    """`store.json` of a run: which store it is of, and where that lay. Training writes
    it when it begins.
    """

    store: str = Field(description="its URL, absolute")
    store_path: str | None = Field(
        default=None, description="from the run's folder, where both are local"
    )
    content_id: str


class RunRecord(Schema):
    """`sae.json` of a run: what its weights are, and what they were trained on.

    A transcoder reconstructs `targets[i]`, of width d_out, from `sites[i]`; other kinds
    have neither.
    """

    format_version: int = 1
    sae: SaeSpec
    d: int
    n_latents: int
    sites: tuple[str, ...]
    targets: tuple[str, ...] = ()
    d_out: int | None = None
    rescale: Rescale
    center: bool
    filter: RowFilter | None = Field(
        default=None, description="of the rows it was trained on; None: all rows"
    )
    store: str = Field(description="its URL, absolute; empty: imported without one")
    store_path: str | None = Field(
        default=None,
        description="of the store from the run's folder, where both are local",
    )
    content_id: str
    model: str
    name: str | None = Field(
        default=None,
        description="what tables and reports call it; None: the name of its folder",
    )
    steps: int
    rows: int
    seed: int
    ema: float | None = None
    lr: float | None = Field(
        default=None, description="the peak learning rate; None: imported"
    )
    dead_rows: int | None = None
    penalty: float | None = Field(
        default=None, description="weight of the sparsity penalty at the end"
    )
    calibrated_l0: float | None = Field(
        default=None, description="what `trainer calibrate` set the thresholds for"
    )


class CodecEstimate(Schema):
    """What a codec makes of a few calibration batches."""

    ratio: float = Field(description="stored bytes over the bytes of the values")
    bytes: int = Field(description="of all units' objects")
    encode_gb_s: float = Field(
        description="values encoded per second by all threads, GB"
    )
    decode_gb_s: float


class MemoryEstimate(Schema):
    """Peak memory of a harvest by part, bytes."""

    process: int = Field(
        description="libraries and the loaded model, before the first unit"
    )
    units: int = Field(description="units in flight times unit bytes")
    encoding: int = Field(description="encoded shards on their way to the storage")
    forward: int = Field(description="a forward's own tensors, as measured")
    device: int = Field(default=0, description="staging on the GPU")

    @property
    def total(self) -> int:
        """On the host."""
        return self.process + self.units + self.encoding + self.forward


class CorpusEstimate(Schema):
    """How many tokens a corpus holds, known without reading more of it than calibration
    does.
    """

    asked: int = Field(description="tokens that the harvest is to run")
    tokens: int | None = Field(
        description="positions of whole contexts in the corpus; None: not known"
    )
    how: Literal["counted", "estimated", "unknown"] = Field(
        description=(
            "counted: calibration read all of it; estimated: from tokens per byte or"
            " per row of what it read"
        )
    )
    documents: int = Field(description="that were read")
    short: bool = Field(
        description="fewer than asked, and the estimate is for that many"
    )


class HarvestEstimate(Schema):
    """`actstore plan`: what a harvest will take, from a few calibration batches and
    arithmetic.
    """

    corpus: CorpusEstimate
    layout: Layout = Field(description="of a corpus that is short: its units only")
    sites: tuple[Site, ...]
    codec: str
    rows: int = Field(description="per site")
    kept: float = Field(description="share of tokens whose rows are kept, measured")
    non_finite: dict[str, int] = Field(
        default={}, description="rows with a NaN or an infinity of those tried, by site"
    )
    tried: int = Field(default=0, description="rows of the calibration batches")
    objects: int
    codecs: dict[str, CodecEstimate]
    memory: MemoryEstimate
    forward_tokens_s: float = Field(description="the model alone, up to the last site")
    harvest_tokens_s: float
    forward_s: float = Field(description="one pass of the model over all tokens")
    harvest_s: float
    read_s: float = Field(
        description=(
            "one pass over the store: decoding, or the bandwidth if that is less"
        )
    )
    storage_per_month: float
    put_cost: float
    get_cost: float = Field(description="of one pass over the store")
    break_even_runs: int | None = Field(
        description="SAE runs from which storing takes less time; None: never"
    )
    break_even_runs_cost: int | None = Field(
        description="the same in money, at the given prices"
    )
