"""The columns of the explorer's files, and how contexts are put into groups.

`latents.parquet` has a row for each latent, `contexts.parquet` one for each context
that is shown, by latent. Both have a row group for the same `ROW_GROUP` latents, so
that a reader of one latent reads little. `tokens.parquet` has the text of each token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.explorer import ExplorerRecord
from trainer.explorer.activation_bins import BINS
from trainer.explorer.gather_contexts import GROUPS, PER_GROUP, TOGETHER
from trainer.explorer.kept_firings import numbers_within
from trainer.explorer.nearest import NEAREST
from trainer.explorer.token_effects import BINS as LOGIT_BINS

ROW_GROUP = 256  # latents of a row group
BESIDE = 3  # nearest latents of each other run
TOP = 0  # the group of the strongest contexts; 1 to GROUPS are quantiles, high first
OF_LAYER = GROUPS + 1  # the strongest context of a layer that TOP does not show
FOLDER = "explorer"
META = "meta.json"
LATENTS = "latents.parquet"
CONTEXTS = "contexts.parquet"
TOKENS = "tokens.parquet"

Ints = NDArray[np.int64]


def latents_schema(record: ExplorerRecord) -> pa.Schema:
    """Return the columns of `latents.parquet`."""
    n_layers = len(record.layers)
    numbers = {
        "latent": pa.int32(),
        "firings": pa.int64(),
        "density": pa.float64(),
        "spread": pa.float64(),
        "norm": pa.float32(),
        "most": pa.float32(),
        "mean": pa.float32(),
        "strength": pa.float32(),
        "same_token": pa.float32(),
        "alone": pa.float32(),
        "max_cosine": pa.float32(),
        "token": pa.int32(),
        "trajectory_tokens": pa.int64(),
        "logit_low": pa.float32(),
        "logit_high": pa.float32(),
    }
    lists = {
        "layer_firings": (pa.int64(), n_layers),
        "layer_means": (pa.float32(), n_layers),
        "layer_most": (pa.float32(), n_layers),
        "trajectory": (pa.float32(), n_layers),
        "output_norms": (pa.float32(), len(record.outputs)),
        "histogram": (pa.int64(), BINS),
        "quantiles": (pa.float32(), GROUPS + 1),
        "near": (pa.int32(), NEAREST),
        "near_cosine": (pa.float32(), NEAREST),
        "together": (pa.int32(), TOGETHER),
        "together_cosine": (pa.float32(), TOGETHER),
        "together_share": (pa.float32(), TOGETHER),
    }
    fields = [pa.field(name, kind) for name, kind in numbers.items()]
    fields += [pa.field(name, pa.list_(*kind)) for name, kind in lists.items()]
    # Without other runs, or without an unembedding, these are empty.
    of_any_length = {
        "beside": pa.list_(pa.int32()),
        "beside_cosine": pa.list_(pa.float32()),
        "boosted": pa.list_(pa.int32()),
        "boosted_logits": pa.list_(pa.float32()),
        "suppressed": pa.list_(pa.int32()),
        "suppressed_logits": pa.list_(pa.float32()),
        "logit_histogram": pa.list_(pa.int32(), LOGIT_BINS),
    }
    fields += [pa.field(name, kind) for name, kind in of_any_length.items()]
    return pa.schema(fields)


def contexts_schema(record: ExplorerRecord) -> pa.Schema:
    """Return the columns of `contexts.parquet`."""
    window = record.before + 1 + record.after
    return pa.schema(
        [
            ("latent", pa.int32()),
            ("group", pa.int8()),
            ("layer", pa.int16()),
            ("value", pa.float32()),
            ("row", pa.int64()),
            ("sequence", pa.int64()),
            ("position", pa.int32()),
            ("tokens", pa.list_(pa.int32(), window)),
            ("values", pa.list_(pa.float32(), window)),
        ]
    )


TOKENS_SCHEMA = pa.schema([("token", pa.int32()), ("text", pa.string())])


class Contexts(NamedTuple):
    """Contexts of some latents that are shown, by latent and group.

    Attributes:
        latent: Counted from the range's first one, int64 [n].
        group: TOP, a quantile or OF_LAYER, [n].
        layer: Index of the layer it fires at, [n].
        value: float32 [n].
        row: The row's id, [n].
        sequence: [n].
        position: [n].
        values: Activations around it, float32 [n, WINDOW].
    """

    latent: Ints
    group: Ints
    layer: Ints
    value: NDArray[np.float32]
    row: Ints
    sequence: Ints
    position: Ints
    values: NDArray[np.float32]


def shown_contexts(arrays: dict[str, NDArray[Any]]) -> Contexts:
    """Return what is shown of what was kept of some latents; no sequence comes twice.

    arrays: those of the keepers, [n, ...].
    """
    parts = [_kept(arrays, name) for name in ("top", "layer", "sample")]
    groups = [
        np.full(len(parts[0].latent), TOP),
        np.full(len(parts[1].latent), OF_LAYER),
        _quantile_groups(parts[2]),
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    contexts = Contexts(*columns)._replace(group=np.concatenate(groups))
    # The strongest first, then those of layers, then quantiles from high to low.
    turn = np.where(contexts.group == OF_LAYER, 0.5, contexts.group)
    # Of the strongest by value, in a quantile as they were kept, which is by chance.
    by_value = np.where(contexts.group == TOP, -contexts.value, 0)
    contexts = _taken(contexts, np.lexsort((by_value, turn, contexts.latent)))
    place = np.arange(len(contexts.latent))
    order = np.lexsort((place, contexts.sequence, contexts.latent))
    again = np.zeros(len(order), bool)
    again[1:] = (np.diff(contexts.latent[order]) == 0) & (
        np.diff(contexts.sequence[order]) == 0
    )
    contexts = _taken(contexts, np.sort(order[~again]))
    key = contexts.latent * (OF_LAYER + 1) + contexts.group
    is_quantile = (contexts.group > TOP) & (contexts.group < OF_LAYER)
    fits = ~is_quantile | (numbers_within(key) < PER_GROUP)
    return _taken(contexts, np.flatnonzero(fits))


def quantiles(arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the ends of the quantile groups, float32 [n, GROUPS + 1], high first.

    They are those of the sample; NaN for a latent that never fires.
    """
    is_kept = arrays["sample.score"] > 0
    values = np.where(is_kept, arrays["sample.value"], np.nan)
    ends = np.full((len(values), GROUPS + 1), np.nan, np.float32)
    fires = is_kept.any(axis=1)
    if fires.any():
        shares = np.linspace(1, 0, GROUPS + 1)
        ends[fires] = np.nanquantile(values[fires], shares, axis=1).T
    return ends


def _kept(arrays: dict[str, NDArray[Any]], name: str) -> Contexts:
    """Return what a keeper has kept, by latent and rank."""
    latent, place = np.nonzero(arrays[f"{name}.score"] > 0)

    def column(what: str) -> NDArray[Any]:
        return np.asarray(arrays[f"{name}.{what}"][latent, place])

    n_places = arrays[f"{name}.score"].shape[1]
    windows = arrays[f"{name}.window"]
    # A slot counts from the first place of its key; a layer's key has one place only.
    slot = place if name == "layer" else column("slot").astype(np.int64)
    assert windows.shape[1] == n_places
    return Contexts(
        latent,
        np.zeros_like(latent),
        column("site").astype(np.int64),
        column("value"),
        column("row"),
        column("sequence"),
        column("position").astype(np.int64),
        np.asarray(windows[latent, slot]),
    )


def _quantile_groups(sample: Contexts) -> Ints:
    """Return the quantile that each firing of a sample is in, 1 for the highest."""
    order = np.lexsort((-sample.value, sample.latent))
    rank = numbers_within(sample.latent[order])
    counts = np.bincount(sample.latent, minlength=1)[sample.latent[order]]
    groups = np.empty(len(order), np.int64)
    # Of 40 firings, those of rank 0 to 3 are in the first of ten groups.
    groups[order] = 1 + rank * GROUPS // np.maximum(counts, 1)
    return groups


def _taken(contexts: Contexts, order: Ints) -> Contexts:
    columns: list[Any] = [column[order] for column in contexts]
    return Contexts(*columns)
