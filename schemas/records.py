"""The records that runs, evaluations, estimates and benchmarks write."""

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


# JSON has no NaN: as a bare word it would make `eval.json` unreadable to others.
def _to_null(value: float) -> float | None:
    return None if math.isnan(value) else value


Ratio = Annotated[
    float, BeforeValidator(_from_null), PlainSerializer(_to_null, when_used="json")
]
"""A number that is NaN where its denominator is 0; in JSON it is null then.

Where there is nothing to divide by there is no score, and none that looks perfect.
"""


class Density(Schema):
    """How often the latents fired in a sliding window over training.

    `docs/metrics.md` defines density and its bins.
    """

    rows: int = Field(description="rows of the window")
    counts: tuple[int, ...] = Field(
        description="latents by log10 of density, in bins of a quarter from -10.25 up"
    )


class StepRecord(Schema):
    """One line of `journal.jsonl`: means over the steps since the line before.

    `docs/metrics.md` defines loss, MSE, L0 and FVU.
    """

    step: int = Field(description="steps so far")
    rows: int = Field(description="rows trained on so far")
    loss: float = Field(description="the whole loss")
    mse: float = Field(description="squared error of the reconstruction")
    l0: float = Field(description="latents that fired in a row")
    fvu: float = Field(description="fraction of variance unexplained")
    dead: int = Field(description="dead latents at this step")
    lr: float = Field(description="learning rate at this step")
    rows_per_s: float = Field(description="rows trained on per second")
    stall: float = Field(description="share of the time spent waiting for rows")
    layers: dict[str, float | None] = Field(
        default={},
        description=(
            "FVU of each site, where there are several; null where no row was of it"
        ),
    )
    parts: dict[str, float] = Field(default={}, description="terms of the loss")
    density: Density | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="how often latents fire, about eight times in a window's rows",
    )


class LayerMetrics(Schema):
    """Metrics of one layer, or pooled over layers, in the activations' own units.

    `docs/metrics.md` defines each.
    """

    site: str = Field(description="name of the site, or of what is pooled")
    rows: int = Field(description="rows that were evaluated")
    fvu: Ratio = Field(description="fraction of variance unexplained")
    mse: Ratio = Field(description="squared error of a row")
    mse_per_element: Ratio = Field(description="squared error of an element of a row")
    l0: Ratio = Field(description="latents that fire in a row")
    l1: Ratio = Field(description="sum of a row's latents")
    l1_decoder: Ratio = Field(
        description="sum of a row's latents, each times its decoder norm"
    )
    suppression: Ratio = Field(
        description="norm of the reconstruction, relative to that of the row"
    )
    # Earlier versions did not measure it.
    reconstruction_bias: Ratio = Field(
        default_factory=lambda: math.nan,
        exclude_if=math.isnan,
        description="factor by which the reconstruction is too long",
    )


class ModelMetrics(Schema):
    """The language model's loss when a site is replaced by its reconstruction.

    CE (cross-entropy) and KL are in nats per token. `docs/metrics.md` defines each.
    """

    site: str = Field(description="name of the site")
    tokens: int = Field(description="tokens that were predicted")
    ce_clean: Ratio = Field(description="CE of the model as it is")
    ce_sae: Ratio = Field(description="CE with the reconstruction")
    ce_zero: Ratio = Field(description="CE with zeros in its place")
    ce_mean: Ratio = Field(description="CE with the mean activation in its place")
    recovered_zero: Ratio = Field(
        description="share of the loss against zeros that is recovered"
    )
    recovered_mean: Ratio = Field(
        description="share of the loss against the mean that is recovered"
    )
    kl: Ratio = Field(description="KL of the predictions from those of the clean model")


class EvalRecord(Schema):
    """`eval.json` of a run: how good its SAE is."""

    run: str = Field(description="the run's folder")
    name: str | None = Field(
        default=None, description="its own name; null: it has none"
    )
    store: str = Field(description="absolute URL of the store it was evaluated on")
    content_id: str = Field(description="content id of that store")
    split: str = Field(description="train or held_out: the rows it was evaluated on")
    filter: RowFilter | None = Field(
        default=None, description="filter of the rows, as in training; null: all rows"
    )
    rows: int = Field(description="rows that were evaluated")
    pooled: LayerMetrics = Field(description="metrics over the rows of all layers")
    fvu_layer_mean: Ratio = Field(description="mean FVU of the layers that have one")
    layers: tuple[LayerMetrics, ...] = Field(description="metrics of each layer")
    dead: int = Field(description="latents that never fired")
    dead_rows: int = Field(description="rows on which they never did")
    alive_share: float = Field(description="share of latents that fired")
    model: tuple[ModelMetrics, ...] = Field(
        default=(), description="effect on the language model, by site"
    )
    model_pooled: ModelMetrics | None = Field(
        default=None, description="effect over the tokens of all sites"
    )


class CheckpointEval(Schema):
    """A line of `evals.jsonl` of a run: how good its SAE was in training."""

    step: int = Field(description="steps of training until then")
    rows: int = Field(description="rows trained on until then")
    evaluation: EvalRecord = Field(description="the metrics of that SAE")


class BenchRecord(Schema):
    """One measurement of a benchmark, beside what the hardware could do at best."""

    # Beside the floor of the same run: a slow or busy machine slows both.
    bench: str = Field(description="name of the benchmark")
    case: str = Field(description="the case that was measured")
    value: float = Field(description="the measured value")
    unit: str = Field(description="unit of value and floor")
    floor: float = Field(description="the best possible, measured in the same run")
    ratio: float = Field(description="value / floor")


class StoreOrigin(Schema):
    """`store.json` of a run: the store that it is trained from, and where that lay.

    Training writes it when it begins.
    """

    store: str = Field(description="absolute URL of the store")
    store_path: str | None = Field(
        default=None,
        description="path from the run's folder to the store, where both are local",
    )
    content_id: str = Field(description="content id of the store")


class MachineRecord(Schema):
    """`machine.json` of a run: when and where its training began."""

    began: str = Field(description="date and time in UTC, ISO 8601")
    actstore: str = Field(description="version of actstore")
    torch: str = Field(description="version of torch")
    python: str = Field(description="version of Python")
    system: str = Field(description="operating system and processor type")
    cores: int = Field(description="processor cores")
    device: str = Field(description="device, and its name where it has one")

    def sentence(self) -> str:
        """Return it as a line of text."""
        return (
            f"Training began {self.began}: {self.device}, {self.system},"
            f" {self.cores} cores; actstore {self.actstore}, torch {self.torch},"
            f" Python {self.python}."
        )


class RunRecord(Schema):
    """`sae.json` of a run: what its weights are, and what they were trained on.

    A transcoder reconstructs `targets[i]`, of width d_out, from `sites[i]`; other kinds
    have neither targets nor d_out.
    """

    format_version: int = Field(default=1, description="version of this record")
    sae: SaeSpec = Field(description="the architecture")
    d: int = Field(description="width of an activation")
    n_latents: int = Field(description="dictionary size")
    sites: tuple[str, ...] = Field(description="sites whose activations it sees")
    targets: tuple[str, ...] = Field(
        default=(), description="sites that a transcoder reconstructs"
    )
    d_out: int | None = Field(
        default=None, description="width of what a transcoder reconstructs"
    )
    rescale: Rescale = Field(
        description="function of a site's mean norm that its rows are divided by"
    )
    center: bool = Field(description="true: each site's mean is subtracted before")
    filter: RowFilter | None = Field(
        default=None, description="filter of the rows it was trained on; null: all rows"
    )
    store: str = Field(
        description="absolute URL of the store; empty: imported without one"
    )
    # For when both are moved together, and the absolute URL no longer leads there.
    store_path: str | None = Field(
        default=None,
        description="path from the run's folder to the store, where both are local",
    )
    content_id: str = Field(description="content id of the store")
    model: str = Field(description="name of the language model")
    name: str | None = Field(
        default=None,
        description="its name in tables and reports; null: the name of its folder",
    )
    steps: int = Field(description="steps of training")
    rows: int = Field(description="rows trained on")
    seed: int = Field(description="seed of all that training draws by chance")
    ema: float | None = Field(
        default=None,
        description=(
            "decay of the running mean of weights that these are; null: they are the"
            " last ones"
        ),
    )
    lr: float | None = Field(
        default=None, description="peak learning rate; null: imported"
    )
    dead_rows: int | None = Field(
        default=None, description="rows without firing that made a latent dead"
    )
    penalty: float | None = Field(
        default=None, description="sparsity penalty at the end of training"
    )
    calibrated_l0: float | None = Field(
        default=None, description="L0 to which `trainer calibrate` set the thresholds"
    )


class StitchedFrom(Schema):
    """One of the runs that a stitched run has latents of."""

    run: str = Field(description="absolute URL of the run")
    name: str = Field(description="its name in tables")
    n_latents: int = Field(description="size of its dictionary")
    taken: int = Field(description="how many of its latents were taken")
    without_direction: int = Field(
        description="latents whose decoder direction is zero, which are not taken"
    )


class StitchRecord(Schema):
    """`stitch.json` of a run whose latents were taken from several runs.

    `stitch.safetensors` beside it says of each latent where it is from: the number of
    its run in `runs`, and of the latent in that run.
    """

    format_version: int = Field(default=1, description="version of this record")
    site: str = Field(description="the site")
    threshold: float = Field(
        description="cosine with all latents so far below which a latent was taken"
    )
    runs: tuple[StitchedFrom, ...] = Field(
        min_length=1, description="the runs, in the order in which latents were taken"
    )
    retrained_rows: int = Field(description="rows on which the decoder was retrained")
    batch: int = Field(description="rows per batch of that")
    lr: float = Field(description="learning rate at its start")
    seed: int = Field(description="seed of the order of rows")
    rows: int = Field(description="rows on which the MSE was measured")
    mse_before: Ratio = Field(description="MSE before the decoder was retrained")
    mse_after: Ratio = Field(description="MSE afterwards")


class CodecEstimate(Schema):
    """The size and speed of a codec, measured on a few calibration batches."""

    ratio: float = Field(description="stored bytes divided by the values' bytes")
    bytes: int = Field(description="bytes that all units' objects will take")
    encode_gb_s: float = Field(
        description="GB of values that all threads encode in a second"
    )
    decode_gb_s: float = Field(
        description="GB of values that all threads decode in a second"
    )


class MemoryEstimate(Schema):
    """Peak memory of a harvest, in bytes, by what takes it."""

    process: int = Field(
        description="libraries and the loaded model, before the first unit"
    )
    units: int = Field(description="units on their way to the store")
    encoding: int = Field(description="encoded shards on their way to the storage")
    forward: int = Field(description="tensors of one forward pass, as measured")
    device: int = Field(default=0, description="buffers on the GPU")

    @property
    def total(self) -> int:
        """The sum of what the host has to hold, in bytes."""
        # `device` is the GPU's own memory.
        return self.process + self.units + self.encoding + self.forward


class CorpusEstimate(Schema):
    """An estimate of a corpus' tokens, from the first documents of a calibration."""

    asked: int = Field(description="tokens that the harvest is to run")
    tokens: int | None = Field(
        description="tokens of whole sequences in the corpus; null: not known"
    )
    how: Literal["counted", "estimated", "unknown"] = Field(
        description=(
            "counted: calibration read all of it; estimated: from tokens per byte or"
            " per row of what it read"
        )
    )
    documents: int = Field(description="documents that calibration read")
    short: bool = Field(
        description="true: it holds fewer than asked, and the estimate is for those"
    )


class HarvestEstimate(Schema):
    """The time, memory and storage that a harvest will take (`actstore plan`).

    The figures come from a few calibration batches and arithmetic.
    """

    corpus: CorpusEstimate = Field(description="tokens of the corpus")
    layout: Layout = Field(
        description="sizes of units and chunks; for a short corpus, only its units"
    )
    sites: tuple[Site, ...] = Field(description="the sites, and their widths")
    codec: str = Field(description="the codec that the harvest will use")
    rows: int = Field(description="rows of each site")
    kept: float = Field(description="share of tokens whose rows are kept, as measured")
    non_finite: dict[str, int] = Field(
        default={},
        description="rows with a NaN or an infinity among those tried, by site",
    )
    tried: int = Field(default=0, description="rows of the calibration batches")
    objects: int = Field(description="objects that the store will have")
    codecs: dict[str, CodecEstimate] = Field(description="size and speed of each codec")
    memory: MemoryEstimate = Field(description="peak memory")
    forward_tokens_s: float = Field(
        description="tokens per second of the model alone, up to the last site"
    )
    harvest_tokens_s: float = Field(description="tokens per second of the harvest")
    forward_s: float = Field(
        description="seconds of one pass of the model over all tokens"
    )
    harvest_s: float = Field(description="seconds of the harvest")
    read_s: float = Field(
        description=(
            "seconds of one pass over the store: what decoding takes, or the bandwidth"
        )
    )
    storage_per_month: float = Field(description="money that storage takes a month")
    put_cost: float = Field(description="money that writing the objects takes")
    get_cost: float = Field(
        description="money that the requests of one pass over the store take"
    )
    egress_cost: float = Field(
        description="money that one pass takes from outside of the storage's region"
    )
    gets_per_gb: float = Field(
        description="GET requests per GB that is read from an object store, at most"
    )
    puts_per_unit: int = Field(description="PUT requests per unit that is written")
    break_even_runs: int | None = Field(
        description="SAE runs from which storing takes less time; null: never"
    )
    break_even_runs_cost: int | None = Field(
        description="SAE runs from which storing costs less money; null: never"
    )
