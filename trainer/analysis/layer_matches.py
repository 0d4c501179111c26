"""Matches the decoders of SAEs of adjacent layers (docs/methods.md, section 5).

Two latents of adjacent layers match if each is the other's nearest and their cosine is
at least a threshold. Matches form chains over layers, and a chain's length is how many
layers its direction lives. All of it is also done with random dictionaries of the same
sizes: the floor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore import arguments
from actstore.arguments import checked
from actstore.figures.figure import Axis, Figure, Rule, Series
from actstore.figures.layer_order import short_site
from actstore.figures.table import Column, Table
from trainer.analysis.cosines import mutual_max_cosine
from trainer.analysis.decoder_directions import decoder_of
from trainer.analysis.random_directions import random_directions, random_floor
from trainer.errors import RunError
from trainer.runs.run_arguments import run_folders
from trainer.runs.trained_sae import TrainedSae, load

THRESHOLD = 0.7
STAGE = 13  # of the seed
FLOOR = "random dictionaries"


class Pair(NamedTuple):
    """Two adjacent layers.

    Attributes:
        cosine: The largest cosine of each latent with the next layer's, [m]; NaN for
            one of norm 0.
        match: The latent of the next layer that each is matched with, int64 [m]; -1
            for none.
    """

    cosine: Tensor
    match: Tensor


class LayerMatches(NamedTuple):
    """The matches of all layers, in their order.

    Attributes:
        sites: The layers.
        sizes: Latents of each.
        threshold: The lowest cosine of a match.
        pairs: Those of layers 0 and 1, 1 and 2, ...
        random: The same of random dictionaries.
        floors: The largest cosine that a random dictionary of the next layer's size
            has, on average, by pair.
    """

    sites: tuple[str, ...]
    sizes: tuple[int, ...]
    threshold: float
    pairs: tuple[Pair, ...]
    random: tuple[Pair, ...]
    floors: tuple[float, ...]


@checked(runs=run_folders, seed=arguments.count_from_0)
def match_layers(
    runs: Sequence[str | os.PathLike[str]],
    *,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> LayerMatches:
    """Match the decoders of adjacent layers' SAEs.

    Args:
        runs: Folders of runs of one layer each, in any order.
        threshold: The lowest cosine of a match.
        seed: Seed of the random dictionaries.

    Raises:
        RunError: A run is not of one layer, two are of the same, or widths differ.
    """
    if not 0 < threshold <= 1:
        raise RunError(f"--threshold {threshold}: wanted a cosine above 0, up to 1")
    saes = sorted((load(os.fspath(run)) for run in runs), key=_layer_key)
    _check(saes)
    d = saes[0].d
    sizes = tuple(sae.n_latents for sae in saes)
    decoders = [decoder_of(sae) for sae in saes]
    random = [random_directions(m, d, (seed, STAGE, i)) for i, m in enumerate(sizes)]
    return LayerMatches(
        sites=tuple(sae.sites[0] for sae in saes),
        sizes=sizes,
        threshold=threshold,
        pairs=matched_pairs(decoders, threshold),
        random=matched_pairs(random, threshold),
        floors=tuple(random_floor(m, d, seed) for m in sizes[1:]),
    )


def matched_pairs(decoders: Sequence[Tensor], threshold: float) -> tuple[Pair, ...]:
    """Return the matches of each dictionary [m_l, d] with the next one."""
    pairs = []
    for one, other in pairwise(decoders):
        backward, forward = mutual_max_cosine(one, other)
        is_mutual = backward.latent[forward.latent] == torch.arange(len(one))
        # A latent of norm 0 has the cosine NaN, which is at least nothing.
        is_match = is_mutual & (forward.cosine >= threshold)
        match = torch.where(is_match, forward.latent, -1)
        pairs.append(Pair(forward.cosine, match))
    return tuple(pairs)


def lifetimes(pairs: Sequence[Pair], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return how many layers each chain of matches lives, int64 [n_chains].

    Every latent of every layer is in one chain; one without a match is a chain of
    length 1. With matches 0-1 and 1-2 of one latent and none of another in three layers
    of two latents each, the lengths are 3, 1, 1, 1.
    """
    ended: list[NDArray[np.int64]] = []
    ages = np.ones(sizes[0], np.int64)  # of the chains that reach the layer
    for pair, size in zip(pairs, sizes[1:], strict=True):
        match = pair.match.numpy()
        goes_on = match >= 0
        ended.append(ages[~goes_on])
        next_ages = np.ones(size, np.int64)
        next_ages[match[goes_on]] = ages[goes_on] + 1
        ages = next_ages
    return np.concatenate([*ended, ages])


def compute_layer_matches(found: LayerMatches) -> Table:
    """Return how similar each layer's dictionary is to the next one, a row for each."""
    names = [short_site(site) for site in found.sites]
    cosines = [pair.cosine.double().numpy() for pair in found.pairs]
    without = [int(np.isnan(one).sum()) for one in cosines]
    known = [one[~np.isnan(one)] for one in cosines]
    means = [float(one.mean()) if len(one) else np.nan for one in known]
    quantiles = np.array([_quantiles(one) for one in known])
    columns = (
        Column("layer", names[:-1], "layer"),
        Column("next_layer", names[1:], "next layer"),
        Column("latents", np.array(found.sizes[:-1])),
        Column("cosine", np.array(means), "mean max cosine"),
        Column("q10", quantiles[:, 0], "10 % quantile"),
        Column("median", quantiles[:, 1]),
        Column("q90", quantiles[:, 2], "90 % quantile"),
        Column("floor", np.array(found.floors), "random floor"),
        Column("matched", _shares(found.pairs), "share matched"),
        Column("matched_random", _shares(found.random), "share matched, random"),
        Column("without_direction", np.array(without), "latents of norm 0"),
    )
    return Table(
        "layer_matches",
        "Decoders of adjacent layers",
        "For each latent of a layer the largest cosine with a latent of the next layer,"
        f" and the share of latents that match: each other's nearest, at a cosine of"
        f" {found.threshold:g} or more. The floor is that of random dictionaries of the"
        " same sizes.",
        columns,
        {"layers": len(found.sites), "threshold": found.threshold},
    )


def compute_layer_chains(found: LayerMatches) -> Table:
    """Return how many chains of matches live for how many layers."""
    lengths = lifetimes(found.pairs, found.sizes)
    random = lifetimes(found.random, found.sizes)
    layers = np.arange(1, len(found.sites) + 1)
    counts = np.array([(lengths == n).sum() for n in layers])
    random_counts = np.array([(random == n).sum() for n in layers])
    n_latents = sum(found.sizes)
    columns = (
        Column("lifetime", layers, "lifetime", "layers"),
        Column("chains", counts),
        Column("share", counts * layers / n_latents, "share of latents"),
        Column("chains_random", random_counts, "chains, random"),
        Column(
            "share_random",
            random_counts * layers / n_latents,
            "share of latents, random",
        ),
    )
    return Table(
        "layer_chains",
        "How many layers a direction lives",
        "Matches of adjacent layers form chains; a latent without a match is a chain of"
        f" one layer. Matches are mutual, at a cosine of {found.threshold:g} or more.",
        columns,
        {
            "mean lifetime of a chain (layers)": float(lengths.mean()),
            "mean lifetime, random dictionaries (layers)": float(random.mean()),
            "layers": len(found.sites),
            "threshold": found.threshold,
        },
    )


def plot_layer_matches(table: Table) -> tuple[Figure, ...]:
    """Return the figure of `compute_layer_matches`."""
    pairs = zip(table["layer"], table["next_layer"], strict=True)
    names = tuple(f"{one} → {other}" for one, other in pairs)
    places = np.arange(len(names))
    low, high = np.asarray(table["q10"]), np.asarray(table["q90"])
    series = (
        Series(
            "10 % to 90 %", places, np.asarray(table["median"]), "band", low, high,
            colour=0,
        ),
        Series("mean max cosine", places, np.asarray(table["cosine"]), colour=0),
        Series("share matched", places, np.asarray(table["matched"]), colour=1),
        Series(FLOOR, places, np.asarray(table["floor"]), "line", dashed=True),
    )  # fmt: skip
    rule = Rule(float(table.facts["threshold"]), "threshold of a match")
    return (
        Figure(
            "layer_matches",
            Axis("adjacent layers", categories=names),
            Axis("cosine, share", zero=True, limits=(0, 1)),
            series,
            "Decoders of adjacent layers",
            (rule,),
        ),
    )


def plot_layer_chains(table: Table) -> tuple[Figure, ...]:
    """Return the histogram of `compute_layer_chains`."""
    names = tuple(f"{n}" for n in np.asarray(table["lifetime"]).tolist())
    places = np.arange(len(names))
    return (
        Figure(
            "layer_chains",
            Axis("lifetime (layers)", categories=names),
            Axis("share of latents", zero=True),
            (
                Series("SAEs", places, np.asarray(table["share"]), "bars"),
                Series(FLOOR, places, np.asarray(table["share_random"]), "points"),
            ),
            "How many layers a direction lives",
        ),
    )


def _quantiles(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 10 %, 50 % and 90 % quantiles; NaN of none."""
    if not len(cosines):
        return np.full(3, np.nan)
    return np.quantile(cosines, (0.1, 0.5, 0.9))


def _shares(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    return np.array([float((pair.match >= 0).double().mean()) for pair in pairs])


def _layer_key(sae: TrainedSae) -> list[tuple[int, int, str]]:
    """Return what sorts sites by their numbers: block 2 comes before block 10."""
    parts = re.split(r"(\d+)", sae.sites[0])
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _check(saes: Sequence[TrainedSae]) -> None:
    for sae in saes:
        if len(sae.sites) != 1 or sae.record.targets:
            raise RunError(
                f"{sae.url}: wanted runs of one layer each, this one"
                f" ({sae.spec.kind}) is of {', '.join(sae.sites)}"
            )
    sites = [sae.sites[0] for sae in saes]
    if len(sites) < 2 or len(set(sites)) < len(sites):
        raise RunError(
            "wanted runs of at least two layers, one of each; got runs of"
            f" {', '.join(sites)}"
        )
    widths = {sae.d for sae in saes}
    if len(widths) > 1:
        shown = ", ".join(map(str, sorted(widths)))
        raise RunError(f"wanted runs of one width, got widths {shown}")
