"""What runs and benchmarks write down."""

from __future__ import annotations

from schemas.base import Schema
from schemas.sae import SaeSpec
from schemas.stream import Rescale


class StepRecord(Schema):
    """One line of `journal.jsonl`. Means over the steps since the last line; layers as named in the run."""

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
    parts: dict[str, float] = {}


class LayerMetrics(Schema):
    """Metrics of one layer (or pooled), in original activation units. Definitions: `trainer/evaluate/metrics.py`."""

    site: str
    rows: int
    fvu: float
    mse: float
    mse_per_element: float
    l0: float
    l1: float
    l1_decoder: float
    suppression: float


class ModelMetrics(Schema):
    """Effect on the language model of replacing a site by its reconstruction; nats."""

    site: str
    tokens: int
    ce_clean: float
    ce_sae: float
    ce_zero: float
    ce_mean: float
    recovered_zero: float
    recovered_mean: float
    kl: float


class EvalRecord(Schema):
    """`eval.json` of a run."""

    run: str
    store: str
    content_id: str
    split: str
    rows: int
    pooled: LayerMetrics
    fvu_layer_mean: float
    layers: tuple[LayerMetrics, ...]
    dead: int
    dead_rows: int
    alive_share: float
    model: tuple[ModelMetrics, ...] = ()


class BenchRecord(Schema):
    """One measurement: `floor` is the physical reference of the same run, `ratio` = value / floor."""

    bench: str
    case: str
    value: float
    unit: str
    floor: float
    ratio: float


class RunRecord(Schema):
    """`sae.json` of a run: what its weights are, and what they were trained on."""

    format_version: int = 1
    sae: SaeSpec
    d: int
    n_latents: int
    sites: tuple[str, ...]
    rescale: Rescale
    center: bool
    store: str
    content_id: str
    model: str
    steps: int
    rows: int
    seed: int
