"""First weights of an SAE: directions from the data, and an encoder that fits it.

So training starts below an FVU of 1. Decoder rows are data rows at norm 1, or random
directions, and the encoder is their transpose; then, on rows that gave no direction,
the encoder's length is fitted by least squares: with x' - b_dec = c u, u from the
encoder as it is, c = <x - b_dec, u> / <u, u>. Kinds whose sparsity is a penalty also
get thresholds, those at which all latents fire on the same share of rows and rows have
the wanted number of active latents. So no latent starts dead, and the penalty has
nothing to clear away first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.sae import DEFAULT_L0, Penalised
from trainer.saes.centres import Centre
from trainer.saes.scaled_rows import ScaledRows, of_layer
from trainer.saes.unit_rows import unit_rows

FIT_ROWS = 4096
_BLOCK = 256  # rows whose [n, m] pre-activations are in memory at once
_LEAST_SCALE = 1e-3
_WIDEST = 4096  # widths up to which eigenvectors of a covariance are worth their time
# Means of layers that lie closer than this share of the rows' length about their own
# layer's mean are lost among the rows.
_APART = 0.1
# Directions of less variance than this share of the largest are not blown up further.
_FLATTEST = 1e-4
PreActivations = Callable[[ScaledRows], Tensor]
"""From rows to their pre-activations [n, m]."""
Codes = Callable[[Tensor], Tensor]
"""From pre-activations [n, m] to latents [n, m]."""


def first_l0(spec: Penalised) -> float:
    """Return the active latents per row that a kind with a penalty begins with.

    They are those it is steered to, if it is.
    """
    return spec.steered_l0 or DEFAULT_L0


class Limits(NamedTuple):
    """The spread and the threshold of latents on some rows."""

    std: Tensor
    """[m]: each latent's standard deviation."""
    threshold: Tensor
    """[m]: what each latent exceeds on the same share of rows."""


@torch.no_grad()
def begin_at(
    rows: ScaledRows,
    decoder: Tensor,
    encoder: Tensor | None,
    b_dec: Tensor,
    centre: Centre,
    from_data: bool,
) -> tuple[Tensor, ScaledRows]:
    """Set a decoder's bias and the directions of decoder and encoder, in place.

    A transcoder's decoder comes from the targets and its encoder from the inputs.

    Args:
        rows: The first rows of training, n of them.
        decoder: [m, d_out]: with `from_data` centred rows at norm 1, as far as they
            go.
        encoder: [d, m]: the same transposed; None where it is tied or not linear.
        b_dec: [d_out], or [n_sites, d_out]: the centre of the rows, or of each layer's.
        centre: What the centre of rows is.
        from_data: Directions are rows; else they stay.

    Returns:
        The inputs' centre [d], and rows to fit the encoder's length on.
    """
    rows = finite(rows)
    wanted = rows.wanted
    if b_dec.ndim == 2 and rows.layer is not None:
        for i in rows.layer.unique().tolist():
            of_layer_i = rows.layer == i
            b_dec[i] = centre(wanted[of_layer_i])
    else:
        b_dec.copy_(centre(wanted))
    middle = centre(rows.x)
    first_rows = slice(0, FIT_ROWS)
    if not from_data:
        return middle, some(rows, first_rows)
    centred, apart = within_layers(wanted, rows.layer)
    inputs = centred
    if rows.target is not None:
        inputs, _ = within_layers(rows.x, rows.layer)
    # a row at the centre has no direction
    has_output = centred.norm(dim=1) > 0
    has_input = inputs.norm(dim=1) > 0
    usable = (has_output & has_input).nonzero()[: len(decoder), 0]
    n = len(usable)
    whiten = whitened(centred)
    directions = whiten(centred[usable])
    # what one decoder bias leaves of the layers' means
    if b_dec.ndim == 1 and rows.target is None:
        directions[: len(apart)] = unit_rows(apart)[: len(directions)]
    # where there are fewer rows than latents, the rest stay random
    decoder[:n] = directions
    if encoder is not None and rows.target is None:
        encoder.copy_(decoder.T)
        encoder[:, :n] = directions.T
    elif encoder is not None:
        # a latent's two vectors are of the same token, at the two sites
        whiten_inputs = whitened(inputs)
        encoder[:, :n] = whiten_inputs(inputs[usable]).T
    # Rows that are directions themselves fit too well: they would make the encoder too
    # short for all others.
    unused = len(rows.x) - n
    if unused >= _BLOCK:
        last_rows = slice(-min(FIT_ROWS, unused), None)
        return middle, some(rows, last_rows)
    return middle, some(rows, first_rows)


def within_layers(rows: Tensor, layer: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rows about their own layer's mean, and what sets the layers apart.

    Layers may lie far apart, and rows about one centre would then all point off it.

    Args:
        rows: [n, d].
        layer: int64 [n]; None: all are of one.

    Returns:
        Rows about their layer's mean [n, d]; and by how much each layer's mean is off
        the mean of all, [layers, d], of those layers where that is much.
    """
    middle = rows.mean(dim=0)
    if layer is None:
        return rows - middle, rows[:0]
    layers, which = layer.unique(return_inverse=True)
    means = [rows[layer == i].mean(dim=0) for i in layers.tolist()]
    apart = torch.stack([mean - middle for mean in means])
    within = (rows - middle) - apart[which]
    mean_square = within.square().sum(dim=1).mean()
    length = mean_square.sqrt()
    # means that lie closer than a tenth of that are lost among the rows
    far = apart.norm(dim=1) > _APART * length
    return within, apart[far]


def whitened(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a map from rows about their centre to whitened directions of norm 1.

    It is C^(-1/2) x / |C^(-1/2) x|, C the covariance of `rows` [n, d]. Without it most
    directions would lie along the few with the largest variance, and many would agree.
    The map is from [n, d] to [n, d].
    """
    n, d = rows.shape
    # from fewer rows the small eigenvalues, which count most here, would be noise
    if n < 2 * d or d > _WIDEST:
        return unit_rows
    centred = (rows - rows.mean(dim=0)).double()
    covariance = centred.T @ centred / n
    values, vectors = torch.linalg.eigh(covariance)
    # eigh gives them ascending; where no row varies all are 0, and are divided by
    least = torch.finfo(torch.float64).tiny
    largest = values[-1].clamp_min(least)
    values = values.clamp_min(_FLATTEST * largest)
    # C^(-1/2) = V L^(-1/2) V^T, where C = V L V^T
    inverse_root = vectors * values.rsqrt() @ vectors.T
    inverse_root = inverse_root.to(rows.dtype)
    return lambda x: unit_rows(x @ inverse_root)


def finite(rows: ScaledRows) -> ScaledRows:
    """Return the rows without a NaN or an infinity, which training will stop at.

    Where none is without, all of them.
    """
    is_finite = rows.x.flatten(1).isfinite()
    is_finite_target = rows.wanted.flatten(1).isfinite()
    good = is_finite.all(dim=1) & is_finite_target.all(dim=1)
    if bool(good.all()) or not bool(good.any()):
        return rows
    return some(rows, good)


def some(rows: ScaledRows, which: slice | Tensor) -> ScaledRows:
    """Return a part of rows: `which` is a slice, or bool [n]."""
    layer = None if rows.layer is None else rows.layer[which]
    target = None if rows.target is None else rows.target[which]
    return ScaledRows(rows.x[which], layer, rows.norm, target)


@torch.no_grad()
def limits(pre: PreActivations, rows: ScaledRows, l0: float) -> Limits:
    """Return each latent's spread, and the threshold it exceeds on l0 / m of the rows.

    The threshold lies halfway to the next value: of 1000 rows, with l0 8 and 4000
    latents, a latent is above it on 2, so it is between its second and third largest.
    """
    sums = squares = torch.zeros((), dtype=torch.float64)
    largest: Tensor | None = None
    n = len(rows.x)
    for part in blocks(rows):
        values = pre(part)
        sums = sums + values.sum(dim=0, dtype=torch.float64)
        squares = squares + values.double().square().sum(dim=0)
        # on so many rows each latent shall fire: on at least one, and not on all
        share = l0 / values.shape[1]
        n_above = max(1, round(share * n))
        n_above = min(n_above, n - 1)
        # of each latent, the n_above + 1 largest values of all blocks so far
        both = values if largest is None else torch.cat([largest, values])
        n_kept = min(n_above + 1, len(both))
        largest = both.topk(n_kept, dim=0).values
    assert largest is not None
    # the difference of two close numbers may come out below 0
    variance = squares / n - (sums / n).square()
    std = variance.clamp_min(0).sqrt()
    # a latent that never changes is divided by this
    tiny = torch.finfo(torch.float32).tiny
    std = std.clamp_min(1e-6 * float(std.max()) + tiny)
    threshold = largest[-2:].mean(dim=0)
    return Limits(std.float(), threshold)


def nth_largest(parts: Iterable[Tensor], n: int) -> float:
    """Return the n-th largest of all values, or the smallest of fewer.

    parts: The values, [.] each.

    Few rows may have nearly all of the largest, so it is exact: no sample is taken.
    """
    kept = torch.zeros(0)
    for part in parts:
        candidates = part
        if len(kept) >= n:
            # what n values exceed already cannot be among the n largest
            candidates = part[part > kept.min()]
        kept = torch.cat([kept.to(part), candidates])
        n_kept = min(n, len(kept))
        kept = kept.topk(n_kept, sorted=False).values
    return float(kept.min())


@torch.no_grad()
def level(pre: PreActivations, rows: ScaledRows, l0: float) -> float:
    """Return what rows have a mean of l0 pre-activations above.

    That is where a selection over a batch ends; at least 0. For 1,000 rows and an L0 of
    32 it is the 32,000th largest.
    """
    values = (pre(part).flatten() for part in blocks(rows))
    n = max(1, round(l0 * len(rows.x)))
    return max(0.0, nth_largest(values, n))


@torch.no_grad()
def fitted(
    pre: PreActivations,
    codes: Codes,
    decoder: Tensor,
    rows: ScaledRows,
    b_dec: Tensor,
) -> float:
    """Return the factor by which codes fit rows best, in the least squared error.

    It is <x - b_dec, u> / <u, u>, with u = codes(pre) W_dec; 1 where u is 0. If codes
    reconstruct (1, 1) of a row (3, 1) about its centre, it is (3 + 1) / 2 = 2.

    Args:
        pre: Gives the pre-activations of rows.
        codes: Gives the latents of these.
        decoder: [m, d_out].
        rows: The rows to fit.
        b_dec: [d_out], or [n_sites, d_out].
    """
    dots = squares = 0.0
    for part in blocks(rows):
        reconstruction = codes(pre(part)) @ decoder
        wanted = part.wanted - of_layer(b_dec, part.layer)
        dots += float((reconstruction * wanted).sum(dtype=torch.float64))
        squares += float(reconstruction.square().sum(dtype=torch.float64))
    if not squares > 0:
        return 1.0
    # at a factor below 0 the encoder would point away from its rows
    return max(dots / squares, _LEAST_SCALE)


def blocks(rows: ScaledRows) -> list[ScaledRows]:
    """Return rows in parts of a size whose pre-activations fit into memory."""
    starts = range(0, len(rows.x), _BLOCK)
    return [some(rows, slice(first, first + _BLOCK)) for first in starts]
