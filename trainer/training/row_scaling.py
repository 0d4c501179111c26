"""How rows are scaled, and whether they are centred, before an SAE sees them: from the
store's statistics.

Only the scale of rows that a filter picks is from rows themselves.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstore.store.store import Store
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
    """The factors of the inputs and, for a transcoder, of the targets, as a run's spec
    wants them.

    b_dec: the SAE's decoder bias, [d] or one of each layer [n_sites, d]; no parameter,
    if the kind has none.
    """
    kind, center = spec.rescale, spec.center
    if center is None:
        center = means_are_far(stream, kind, b_dec)
    both = [stream.sites] if stream.targets is None else [stream.sites, stream.targets]
    inputs, *targets = (
        unit_mixture(stream, sites, rescaling(stream.store, sites, kind, center))
        for sites in both
    )
    return inputs, targets[0] if targets else None


def means_are_far(stream: Stream, kind: Rescale, b_dec: Tensor) -> bool:
    """Whether rows are better centred: what the decoder bias cannot hold of their means
    is much. A transcoder's bias is that of its targets, and nothing holds the means of
    its inputs.
    """
    sites, targets = stream.sites, stream.targets
    if not (squares(stream, (*sites, *(targets or ()))) > 0).all():
        return False  # a site that does not vary would be nothing at all
    biased, own = isinstance(b_dec, nn.Parameter), b_dec.ndim > 1
    if targets is None:
        return not own and spread_of_means(stream, sites, kind, biased) > _FAR_APART
    if spread_of_means(stream, sites, kind, biased=False) > _FAR_APART:
        return True
    return not own and spread_of_means(stream, targets, kind, biased) > _FAR_APART


def spread_of_means(
    stream: Stream, sites: tuple[str, ...], kind: Rescale, biased: bool
) -> float:
    """Mean squared distance of the rescaled layers' means from their own mean, which
    one decoder bias holds, or from 0 without a bias; over the rows' mean square about
    their layers' means.

    Means are of all rows, first positions and special tokens among them, which may be
    so large that they move the means far from all others: by as much as they can have
    moved them distances are less.
    """
    store, shares = stream.store, shares_of_layers(stream)
    scale = rescaling(store, sites, kind).scale
    means, moved = (
        scale[:, None] * np.stack([store.mean(site) for site in sites]),
        scale * moves(store, sites),
    )
    if biased:
        means, moved = means - shares @ means, moved + shares @ moved
    with np.errstate(all="ignore"):
        distances = np.maximum(np.linalg.norm(means, axis=1) - moved, 0)
        return float(
            shares
            @ np.square(distances)
            / (shares @ (scale**2 * squares(stream, sites)))
        )


def moves(store: Store, sites: tuple[str, ...]) -> NDArray[np.float64]:
    """By how much special rows can have moved each site's mean, [n_sites]: their share
    times their root mean square; 0 where there are no others.
    """
    norms = [store.norms[site] for site in sites]
    shares = [
        one.special.count / one.all.count if one.rest.count else 0.0 for one in norms
    ]
    lengths = [
        math.sqrt(one.special.mean_sq_norm) if one.special.count else 0.0
        for one in norms
    ]
    return np.array(
        [share * length for share, length in zip(shares, lengths, strict=True)]
    )


def unit_mixture(
    stream: Stream, sites: tuple[str, ...], factors: Rescaling
) -> Rescaling:
    """The factors times one number, the same for all layers, with which rows of the
    mixture have a mean square of 1.

    So penalties, thresholds, noise and learning rates mean the same for every model. A
    crosscoder's row is that of all its sites together.
    """
    each = factors.scale**2 * squares(stream, sites)
    total = (
        each.sum() if stream.spec.mode == "aligned" else shares_of_layers(stream) @ each
    )
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
    """Mean square of each site's rows, [n_sites]: about the site's mean, where the
    decoder bias begins, or about 0 over ordinary tokens if that is less. First
    positions and special tokens may be hundreds of times larger than others.

    Of rows that a filter keeps, which the statistics are not of, about the mean of the
    first of them.
    """
    store, rule = stream.store, stream.spec.filter
    if rule is not None:
        rows = first_kept(store, rule, stream.columns.sites, _SAMPLE)
        return np.array(
            [
                store.read(site, rows).var(axis=0, dtype=np.float64).sum()
                for site in sites
            ]
        )
    about_mean = [float(store.variance(site).sum()) for site in sites]
    ordinary = [store.norms[site].rest for site in sites]
    about_zero = [one.mean_sq_norm if one.count else math.inf for one in ordinary]
    return np.array([min(pair) for pair in zip(about_mean, about_zero, strict=True)])


def shares_of_layers(stream: Stream) -> NDArray[np.float64]:
    """Of the mixture's rows, those of each site: [n_sites]."""
    copies: NDArray[np.float64] = np.array(stream.columns.copies, dtype=np.float64)
    shares: NDArray[np.float64] = copies / copies.sum()
    return shares


def layer_norms(store: Store, sites: tuple[str, ...], factors: Rescaling) -> Tensor:
    """Mean norm of each site's rows as the SAE sees them, [n_sites]; centred rows: root
    mean square about the mean.
    """
    if factors.mean is None:
        norms = [store.norms[site].all.mean_norm for site in sites]
    else:
        norms = [math.sqrt(store.variance(site).sum()) for site in sites]
    return torch.tensor(norms, dtype=torch.float64) * torch.from_numpy(factors.scale)
