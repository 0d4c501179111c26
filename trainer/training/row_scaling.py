"""Settles how rows are scaled, and whether they are centred, before an SAE sees them.

Both follow from the store's statistics. Only where a filter picks rows, which the
statistics are not of, their scale is taken from rows themselves.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstore.store.followed import finished_store
from actstore.store.streamed_store import StreamedStore
from actstore.stream.rescale import Rescaling, rescaling
from actstore.stream.row_filter import first_kept
from actstore.stream.stream import Stream
from schemas.stream import Rescale, StreamSpec
from trainer.errors import SaeError

# Where layers' means lie farther apart than this, rows are centred by themselves:
# variance of the means over that of rows about them. At 0.14 (the builtin model) SAEs
# use the means to tell layers apart, and FVU is 4 % lower with them left in; at 0.3
# (synthetic layers) it is 3 % higher, at 0.8 7 %, at 7.5 a third to twice as high.
_FAR_APART = 0.25
_SAMPLE = 4096  # rows of each site that tell the scale of those that a filter keeps


def scaling(
    stream: Stream, spec: StreamSpec, b_dec: Tensor
) -> tuple[Rescaling, Rescaling | None]:
    """Return the factors and means of a run's rows.

    Args:
        stream: The stream that the run shares.
        spec: The run's own stream, which says how rows are rescaled.
        b_dec: The SAE's decoder bias, [d], or one for each layer, [n_sites, d]. Not a
            parameter where the kind has none.

    Returns:
        Those of the inputs, and those of the targets of a transcoder (None for others).

    Raises:
        SaeError: The rows do not vary, or are not finite.
    """
    is_centred = spec.center
    if is_centred is None:
        is_centred = means_are_far(stream, spec.rescale, b_dec)
    center: bool = is_centred

    def scaled(sites: tuple[str, ...]) -> Rescaling:
        factors = rescaling(stream.store, sites, spec.rescale, center)
        return unit_mixture(stream, sites, factors)

    inputs = scaled(stream.sites)
    targets = None if stream.targets is None else scaled(stream.targets)
    return inputs, targets


def means_are_far(stream: Stream, kind: Rescale, b_dec: Tensor) -> bool:
    """Return whether rows are better centred.

    They are where much of the layers' means is left that the decoder bias cannot hold.
    The bias of a transcoder is that of its targets, and nothing holds the means of its
    inputs.

    Args:
        stream: The stream.
        kind: How rows are rescaled.
        b_dec: [d] or [n_sites, d], as in `scaling`.
    """
    sites = stream.sites
    targets = stream.targets
    every_site = sites if targets is None else (*sites, *targets)
    if not (squares(stream, every_site) > 0).all():
        return False  # centring a site that does not vary would leave nothing of it
    has_bias = isinstance(b_dec, nn.Parameter)
    # Biases that differ by layer hold the means of all layers.
    has_layer_biases = b_dec.ndim > 1
    outputs = sites
    if targets is not None:
        if spread_of_means(stream, sites, kind, biased=False) > _FAR_APART:
            return True
        outputs = targets
    if has_layer_biases:
        return False
    return spread_of_means(stream, outputs, kind, has_bias) > _FAR_APART


def spread_of_means(
    stream: Stream,
    sites: tuple[str, ...],
    kind: Rescale,
    biased: bool,
) -> float:
    """Return how far the means of rescaled layers lie apart, relative to their rows.

    That is the mean squared distance of the layers' means from their common mean, which
    one decoder bias holds, or from 0 without a bias; over the rows' mean square about
    their layers' means. For two equally large layers with means 1 and 3, whose rows
    have a mean square of 4 about them, it is ((1 - 2)^2 + (3 - 2)^2) / 2 / 4 = 0.25.

    Means are those of all rows. First positions and special tokens may be so large that
    they move the mean of their layer far from the others, so each distance is lessened
    by as much as they can have moved it.

    Args:
        stream: The stream.
        sites: The layers' sites.
        kind: How rows are rescaled.
        biased: Whether a decoder bias holds the common mean.
    """
    store = stream.store
    shares = shares_of_layers(stream)
    scale = rescaling(store, sites, kind).scale
    site_means = np.stack([store.mean(site) for site in sites])
    means = scale[:, None] * site_means
    moved = scale * moves(store, sites)
    if biased:
        means = means - shares @ means
        # the common mean may itself have been moved, by the mean of what moved them
        moved = moved + shares @ moved
    with np.errstate(all="ignore"):  # huge or zero rows are reported elsewhere
        norms = np.linalg.norm(means, axis=1)
        distances = np.maximum(norms - moved, 0)
        between_layers = shares @ np.square(distances)
        within_layers = shares @ (scale**2 * squares(stream, sites))
        return float(between_layers / within_layers)


def moves(store: StreamedStore, sites: tuple[str, ...]) -> NDArray[np.float64]:
    """Return by how much special rows can have moved each site's mean, [n_sites].

    That is their share of the rows times their root mean square: if 1 row of 100 has a
    norm of 500, it moves the mean by 5 at most. 0 where a site has no other rows.
    """
    moved = []
    for site in sites:
        norms = store.norms[site]
        if not norms.rest.count or not norms.special.count:
            moved.append(0.0)
            continue
        share = norms.special.count / norms.all.count
        root_mean_square = math.sqrt(norms.special.mean_sq_norm)
        moved.append(share * root_mean_square)
    return np.array(moved)


def unit_mixture(
    stream: Stream, sites: tuple[str, ...], factors: Rescaling
) -> Rescaling:
    """Return factors with which the rows of the mixture have a mean square of 1.

    They are the given factors times one number, the same for all layers. So penalties,
    thresholds, noise and learning rates mean the same for every model. The row of a
    crosscoder is that of all its sites together.

    Raises:
        SaeError: The rows do not vary, or are not finite.
    """
    # Two layers in equal parts with mean squares of 3 and 5 make a total of 4, and both
    # factors are divided by 2.
    each = factors.scale**2 * squares(stream, sites)
    if stream.spec.mode == "aligned":
        total = each.sum()
    else:
        total = shares_of_layers(stream) @ each
    if not math.isfinite(total):
        raise SaeError(
            f"{stream.store.url}: the rows of {', '.join(sites)} are too large, or not"
            " finite; `actstore norms` shows which"
        )
    if not total > 0:
        raise SaeError(
            f"{stream.store.url}: the rows of {', '.join(sites)} do not vary, so there"
            " is nothing to learn"
        )
    return Rescaling(factors.scale / math.sqrt(total), factors.mean)


def squares(stream: Stream, sites: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the mean square of each site's rows, [n_sites].

    It is taken about the site's mean, where the decoder bias begins, or about 0 over
    ordinary tokens if that is less: first positions and special tokens may be hundreds
    of times larger than others. Where a filter picks rows, it is taken about the mean
    of the first of them.
    """
    rule = stream.spec.filter
    if rule is not None:
        store = finished_store(stream.store)
        ids = first_kept(store, rule, stream.columns.sites, _SAMPLE)
        variances = []
        for site in sites:
            by_channel = store.read(site, ids).var(axis=0, dtype=np.float64)
            variances.append(by_channel.sum())
        return np.array(variances)
    # centring alone would not do: one row in 100 with 500 times the norm of the others
    # has nearly all of the variance about the mean
    least = []
    for site in sites:
        about_mean = float(stream.store.variance(site).sum())
        ordinary = stream.store.norms[site].rest
        about_zero = ordinary.mean_sq_norm if ordinary.count else math.inf
        least.append(min(about_mean, about_zero))
    return np.array(least)


def shares_of_layers(stream: Stream) -> NDArray[np.float64]:
    """Return the share of each site's rows in the mixture, [n_sites]."""
    copies: NDArray[np.float64] = np.array(stream.columns.copies, dtype=np.float64)
    shares: NDArray[np.float64] = copies / copies.sum()
    return shares


def layer_norms(
    store: StreamedStore, sites: tuple[str, ...], factors: Rescaling
) -> Tensor:
    """Return the mean norm of each site's rows as the SAE sees them, float64 [n_sites].

    For centred rows it is their root mean square about the mean.
    """
    if factors.mean is None:
        norms = [store.norms[site].all.mean_norm for site in sites]
    else:
        norms = [math.sqrt(store.variance(site).sum()) for site in sites]
    scale = torch.from_numpy(factors.scale)
    return torch.tensor(norms, dtype=torch.float64) * scale
