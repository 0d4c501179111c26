"""Computes the figures of latents: the columns of `latents.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.store.store import Store
from schemas.explorer import ExplorerRecord
from trainer.analysis.cosines import Nearest, nearest
from trainer.evaluation.metric_definitions import spread
from trainer.explorer.explorer_tables import (
    BESIDE,
    TOP,
    Contexts,
    quantiles,
)
from trainer.explorer.gather_contexts import Gathered
from trainer.explorer.kept_firings import BEFORE
from trainer.explorer.nearest import NEAREST, decoder_norms
from trainer.explorer.token_effects import Unembedding
from trainer.runs.trained_sae import TrainedSae

Arrays = dict[str, NDArray[Any]]
_MOST_TOKENS = 1 << 24  # ids of tokens, more than any vocabulary has


@dataclass(frozen=True)
class Sources:
    """All that the files are made of.

    Attributes:
        sae: The SAE.
        store: Its store.
        found: What the pass over the rows found.
        record: What is going to be written last.
        own: The SAE's directions of length 1, [m, d].
        others: Those of the other runs.
        through: The unembedding, or None.
        tokenizer: Of the store; None where there is none.
        memory: Bytes for blocks of cosines and of logits.
    """

    sae: TrainedSae
    store: Store
    found: Gathered
    record: ExplorerRecord
    own: Tensor
    others: Sequence[Tensor]
    through: Unembedding | None
    tokenizer: Any
    memory: int


def columns_of(
    sources: Sources,
    arrays: Arrays,
    contexts: Contexts,
    tokens: NDArray[np.int32],
    first: int,
) -> Arrays:
    """Return the columns of some latents, but for those of output tokens."""
    n = len(arrays["firings"])
    here = slice(first, first + n)
    firings = np.asarray(arrays["firings"])
    total = firings.sum(axis=1)
    rows = sources.record.rows
    sums = np.asarray(arrays["sums"])
    norms = decoder_norms(sources.sae)[here].cpu().numpy()
    near = nearest(sources.own[here], sources.own, NEAREST, sources.memory, first)
    beside = _beside(sources, here)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sum(axis=1) / total
        layer_means = sums / firings
        shares = firings / total[:, None]
    if sources.sae.of_all_sites:
        # Its latents fire at all sites alike; they differ in what they write there.
        shares = norms / np.maximum(norms.sum(axis=1, keepdims=True), 1e-30)
    shares = np.nan_to_num(shares).astype(np.float64)
    wide = spread(torch.from_numpy(shares).T).numpy()
    most = np.asarray(arrays["most"])
    token, same = _common_token(contexts, tokens, n)
    return {
        "latent": np.arange(first, first + n),
        "firings": total,
        "density": total / (rows * len(sources.record.layers)),
        "spread": wide,
        "norm": np.sqrt(np.square(norms).sum(axis=1)),
        "most": most.max(axis=1),
        "mean": means,
        "strength": _strength(sources, most, norms),
        "same_token": same,
        "alone": _alone(contexts, n),
        "max_cosine": _largest_cosine(beside.cosine),
        "token": token,
        "trajectory_tokens": np.asarray(arrays["trajectory_tokens"]),
        "layer_firings": firings,
        "layer_means": layer_means,
        "layer_most": most,
        "trajectory": _or_nan(arrays),
        "output_norms": norms,
        "histogram": np.asarray(arrays["histogram"]),
        "quantiles": quantiles(arrays),
        "near": near.latent,
        "near_cosine": near.cosine,
        "beside": beside.latent,
        "beside_cosine": beside.cosine,
        "together": np.asarray(arrays["together"]) - 1,
        "together_cosine": np.asarray(arrays["together_cosine"]),
        "together_share": np.asarray(arrays["together_share"]),
    }


def _beside(sources: Sources, here: slice) -> Nearest:
    """Return the nearest latents of the other runs, run by run."""
    found = [
        nearest(sources.own[here], other, BESIDE, sources.memory)
        for other in sources.others
    ]
    n = len(sources.own[here])
    latents = [np.zeros((n, 0), np.int32), *(one.latent for one in found)]
    cosines = [np.zeros((n, 0), np.float32), *(one.cosine for one in found)]
    return Nearest(np.concatenate(latents, axis=1), np.concatenate(cosines, axis=1))


def _largest_cosine(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest cosine of each latent, NaN where there is none."""
    kept = np.where(np.isnan(cosines), -np.inf, cosines)
    largest = kept.max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(largest), largest, np.nan).astype(np.float32)


def _or_nan(arrays: Arrays) -> NDArray[np.float32]:
    """Return the trajectories, NaN for a latent that no sampled token has."""
    seen = np.asarray(arrays["trajectory_tokens"])[:, None] > 0
    return np.where(seen, arrays["trajectory"], np.nan).astype(np.float32)


def _strength(
    sources: Sources, most: NDArray[np.float32], norms: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return what a latent's largest activation writes, over the norm of its layer.

    It is activation * decoder norm / scale, in original units, over the layer's mean
    norm; of the layers the largest. most: [n, n_layers]; norms: [n, n_outputs].
    """
    sae = sources.sae
    written_to = sae.record.targets or sae.sites
    layer_norms = [sources.store.norms[site].all.mean_norm for site in written_to]
    scale = sae.scale_out.cpu().numpy()
    by_layer = most * norms / (scale * np.maximum(layer_norms, 1e-30))
    largest: NDArray[np.float32] = by_layer.max(axis=1).astype(np.float32)
    return largest


def _common_token(
    contexts: Contexts, tokens: NDArray[np.int32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each latent's commonest token among its strongest contexts, and its share.

    -1 and 0 for a latent without contexts. Of equally common ones it is the smallest.
    """
    top = contexts.group == TOP
    latent = contexts.latent[top]
    token = tokens[top, BEFORE].astype(np.int64)
    pair, counts = np.unique(latent * _MOST_TOKENS + token + 1, return_counts=True)
    order = np.lexsort((-pair, counts))
    best = np.full(n, -1, np.int64)
    share = np.zeros(n, np.float32)
    # Written from the rarest to the commonest, so that the last one stays.
    best[pair[order] // _MOST_TOKENS] = pair[order] % _MOST_TOKENS - 1
    share[pair[order] // _MOST_TOKENS] = counts[order]
    n_contexts = np.maximum(np.bincount(latent, minlength=n), 1)
    return best, (share / n_contexts).astype(np.float32)


def _alone(contexts: Contexts, n: int) -> NDArray[np.float32]:
    """Return the mean share of a firing in the activations of its window.

    1: the strongest contexts' other tokens are silent. 0 without contexts.
    """
    top = contexts.group == TOP
    sums = np.nansum(contexts.values[top], axis=1)
    share = contexts.value[top] / np.maximum(sums, 1e-30)
    latent = contexts.latent[top]
    counts = np.maximum(np.bincount(latent, minlength=n), 1)
    return (np.bincount(latent, share, n) / counts).astype(np.float32)
