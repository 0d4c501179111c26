"""One evaluator for all SAEs, ours and others': the metrics of
`trainer/evaluation/metric_definitions.py` on held-out rows.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

import trainer
from actstore.importing.known_features import KnownFeatures
from actstore.store.store import Store
from tests.benchmarks.quality.known_features import firings_of_unit
from tests.benchmarks.quality.recovery import Counts, Recovery, recovery
from trainer.evaluation.metric_definitions import LayerSums, layer_sums
from trainer.exports.neutral_form import PlainSae
from trainer.imports.import_sae import read_folder, to_sae
from trainer.runs.trained_sae import TrainedSae

# the most that a block of rows may have of the wanted firings, over its share of rows
SHARE = 8


class Figures(NamedTuple):
    """Over all held-out rows of all sites; dead: latents that fired on none of them."""

    fvu: float
    l0: float
    dead: int
    recovery: Recovery | None = None


class Model:
    """An SAE as it is evaluated: one of ours with its rescaling, or another package's
    on plain rows.
    """

    def __init__(self, sae: TrainedSae | PlainSae) -> None:
        if isinstance(sae, PlainSae):
            self._sae, self._ours = (
                to_sae(sae, "a peer's SAE").eval().requires_grad_(False),
                None,
            )
        else:
            self._sae, self._ours = sae.sae, sae

    @property
    def decoder(self) -> Tensor:
        return self._sae.W_dec

    def encode(self, x: Tensor, layer: int | Tensor) -> Tensor:
        """Latents [B, m] of rows [B, d]."""
        return (
            self._sae.encode(x) if self._ours is None else self._ours.encode(x, layer)
        )

    def decode(self, latents: Tensor, layer: int | Tensor) -> Tensor:
        return (
            self._sae.decode(latents)
            if self._ours is None
            else self._ours.decode(latents, layer)
        )

    def with_threshold(self, value: float) -> Model:
        """The same with one threshold for all latents and layers."""
        other = copy.deepcopy(self)
        with torch.no_grad():
            if hasattr(other._sae, "log_threshold"):
                other._sae.log_threshold.fill_(
                    math.log(value) if value > 0 else -math.inf
                )
            else:
                other._sae.threshold.fill_(value)
        return other


def load(folder: str, ours: bool) -> Model:
    """A run's SAE, or that of a folder that SAELens or dictionary_learning has written."""
    return Model(trainer.load(folder) if ours else read_folder(folder).plain)


@torch.no_grad()
def calibrated(model: Model, store: Store, l0: float) -> Model:
    """The model with the one threshold that gives this L0 on the held-out rows."""
    open_, largest, n = model.with_threshold(0.0), [], 0
    for layer, site in enumerate(store.sites):
        for unit in store.units("held_out"):
            latents = open_.encode(torch.from_numpy(store.read_unit(site, unit)), layer)
            active = latents[latents > 0]
            enough = round(SHARE * l0 * len(latents))
            largest.append(
                torch.topk(active, min(enough, len(active)), sorted=False).values
            )
            n += len(latents)
    values = torch.cat(largest)
    lowest = float(
        torch.topk(values, min(round(l0 * n), len(values)), sorted=False).values.min()
    )
    # which is above its threshold, not at it
    return model.with_threshold(lowest * (1 - 1e-6))


@torch.no_grad()
def figures(
    model: Model,
    store: Store,
    known: KnownFeatures | None = None,
    max_units: int | None = None,
) -> Figures:
    """Of held-out rows, those of the first `max_units` units; recovery where the
    features are known.
    """
    units, m = store.units("held_out")[:max_units], len(model.decoder)
    counts = None if known is None else Counts(len(known.directions), m)
    total, ones = LayerSums(torch.zeros(m, dtype=torch.int64)), torch.ones(m)
    for layer, site in enumerate(store.sites):
        mean = torch.from_numpy(store.mean(site))
        for unit in units:
            x = torch.from_numpy(store.read_unit(site, unit))
            latents = model.encode(x, layer)
            total += layer_sums(
                x, model.decode(latents, layer), latents, mean, 1.0, ones
            )
            if known is not None and counts is not None:
                fired = firings_of_unit(known, store, unit)
                counts.add(
                    torch.from_numpy(fired.row),
                    torch.from_numpy(fired.feature),
                    latents,
                )
    pooled = total.metrics("pooled", model.decoder.shape[1])
    found = None
    if known is not None and counts is not None:
        found = recovery(torch.from_numpy(known.directions), model.decoder, counts)
    return Figures(pooled.fvu, pooled.l0, int((total.firings == 0).sum()), found)
