"""Where an SAE begins: at data, with an encoder that fits it, so that training starts
below an FVU of 1.

Decoder rows are data rows at norm 1, or random directions, and the encoder is their
transpose; then, on rows that gave no direction, the encoder's length is fitted by least
squares: with x' - b_dec = c u, u from the encoder as it is, c = <x - b_dec, u> / <u,
u>. Kinds whose sparsity is a penalty also get thresholds, those at which all latents
fire on the same share of rows and rows have the wanted number of active latents. So no
latent starts dead, and the penalty has nothing to clear away first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.sae import DEFAULT_L0, Penalised
from trainer.saes.ops import Centre, ScaledRows, of_layer, unit_rows

FIT_ROWS = 4096
_BLOCK = 256  # rows whose [n, m] pre-activations are in memory at once
_LEAST_SCALE = 1e-3
_WIDEST = 4096  # rows whose covariance is worth its eigenvectors
_APART = 0.1  # of the rows' length about their layer's mean
_FLATTEST = 1e-4  # of the largest variance: flatter directions are not blown up further
PreActivations = Callable[[ScaledRows], Tensor]
Codes = Callable[[Tensor], Tensor]  # pre-activations [n, m] to latents [n, m]


def first_l0(spec: Penalised) -> float:
    """Active latents per row that a kind with a penalty begins with: those it is
    steered to, if it is.
    """
    return spec.steered_l0 or DEFAULT_L0


class Limits(NamedTuple):
    """Pre-activations on some rows. std: [m]; threshold: [m], what each latent exceeds
    on the same share of rows.
    """

    std: Tensor
    threshold: Tensor


@torch.no_grad()
def begin_at(
    rows: ScaledRows,
    decoder: Tensor,
    encoder: Tensor | None,
    b_dec: Tensor,
    centre: Centre,
    from_data: bool,
) -> tuple[Tensor, ScaledRows]:
    """In place: b_dec = the centre (of each layer); with from_data decoder [m, d] =
    centred rows at norm 1 and encoder [d, m] = the same, as far as rows go. Returns the
    inputs' centre [d], and rows to fit the encoder's length on.

    A transcoder's decoder comes from the targets and its encoder from the inputs.
    """
    rows = finite(rows)
    wanted = rows.wanted
    if b_dec.ndim == 2 and rows.layer is not None:
        for i in rows.layer.unique().tolist():
            b_dec[i] = centre(wanted[rows.layer == i])
    else:
        b_dec.copy_(centre(wanted))
    middle = centre(rows.x)
    if not from_data:
        return middle, some(rows, slice(0, FIT_ROWS))
    centred, apart = within_layers(wanted, rows.layer)
    inputs = centred if rows.target is None else within_layers(rows.x, rows.layer)[0]
    usable = ((centred.norm(dim=1) > 0) & (inputs.norm(dim=1) > 0)).nonzero()[
        : len(decoder), 0
    ]
    n = len(usable)
    made = whitened(centred)(centred[usable])
    # what one decoder bias leaves of the layers' means
    if b_dec.ndim == 1 and rows.target is None:
        made[: len(apart)] = unit_rows(apart)[: len(made)]
    decoder[:n] = made
    if encoder is not None:
        encoder.copy_(encoder if rows.target is not None else decoder.T)
        encoder[:, :n] = (
            made.T if rows.target is None else whitened(inputs)(inputs[usable]).T
        )
    unused = len(rows.x) - n  # rows that are directions themselves fit too well
    return middle, some(
        rows,
        slice(-min(FIT_ROWS, unused), None) if unused >= _BLOCK else slice(0, FIT_ROWS),
    )


def within_layers(rows: Tensor, layer: Tensor | None) -> tuple[Tensor, Tensor]:
    """ScaledRows [n, d] about their own layer's mean, and by how much each layer's mean
    is off the mean of all: [layers, d], of those layers where that is much. Layers may
    lie far apart, and rows about one centre all point off it.
    """
    middle = rows.mean(dim=0)
    if layer is None:
        return rows - middle, rows[:0]
    apart = torch.stack(
        [rows[layer == i].mean(dim=0) - middle for i in layer.unique().tolist()]
    )
    place = layer.unique(return_inverse=True)[1]
    within = (rows - middle) - apart[place]
    far = apart.norm(dim=1) > _APART * within.square().sum(dim=1).mean().sqrt()
    return within, apart[far]


def whitened(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """From rows [n, d] about their centre to directions [n, d] of norm 1, C^(-1/2) x /
    |C^(-1/2) x|, C the rows' covariance: without it most directions would lie along the
    few with the largest variance, and many would agree.
    """
    if len(rows) < 2 * rows.shape[1] or rows.shape[1] > _WIDEST:
        return unit_rows
    centred = (rows - rows.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    values = values.clamp_min(
        _FLATTEST * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    )
    root = (vectors * values.rsqrt() @ vectors.T).to(rows.dtype)
    return lambda x: unit_rows(x @ root)


def finite(rows: ScaledRows) -> ScaledRows:
    """ScaledRows without those that hold a NaN or an infinity, which training will stop
    at.
    """
    good = rows.x.flatten(1).isfinite().all(dim=1) & rows.wanted.flatten(
        1
    ).isfinite().all(dim=1)
    return rows if bool(good.all()) or not bool(good.any()) else some(rows, good)


def some(rows: ScaledRows, which: slice | Tensor) -> ScaledRows:
    """A part of rows."""
    layer = None if rows.layer is None else rows.layer[which]
    target = None if rows.target is None else rows.target[which]
    return ScaledRows(rows.x[which], layer, rows.norm, target)


@torch.no_grad()
def limits(pre: PreActivations, rows: ScaledRows, l0: float) -> Limits:
    """Each latent's spread, and the threshold above which it is on l0 / m of the rows:
    halfway to the next value.
    """
    sums = squares = torch.zeros((), dtype=torch.float64)
    largest: Tensor | None = None
    n = len(rows.x)
    for part in blocks(rows):
        values = pre(part)
        sums = sums + values.sum(dim=0, dtype=torch.float64)
        squares = squares + values.double().square().sum(dim=0)
        above = min(max(1, round(l0 / values.shape[1] * n)), n - 1)
        both = values if largest is None else torch.cat([largest, values])
        largest = both.topk(min(above + 1, len(both)), dim=0).values
    assert largest is not None
    std = (squares / n - (sums / n).square()).clamp_min(0).sqrt()
    std = std.clamp_min(1e-6 * float(std.max()) + torch.finfo(torch.float32).tiny)
    return Limits(std.float(), largest[-2:].mean(dim=0))


def nth_largest(parts: Iterable[Tensor], n: int) -> float:
    """The n-th largest of all values, or the smallest of fewer; few rows may have
    nearly all of the largest.
    """
    kept = torch.zeros(0)
    for part in parts:
        candidates = part if len(kept) < n else part[part > kept.min()]
        kept = torch.cat([kept.to(part), candidates])
        kept = kept.topk(min(n, len(kept)), sorted=False).values
    return float(kept.min())


@torch.no_grad()
def level(pre: PreActivations, rows: ScaledRows, l0: float) -> float:
    """What rows have a mean of l0 pre-activations above: where a selection over a batch
    ends.
    """
    values = (pre(part).flatten() for part in blocks(rows))
    return max(0.0, nth_largest(values, max(1, round(l0 * len(rows.x)))))


@torch.no_grad()
def fitted(
    pre: PreActivations, codes: Codes, decoder: Tensor, rows: ScaledRows, b_dec: Tensor
) -> float:
    """The c with the least squared error of x - b_dec against c codes(pre) W_dec."""
    dots = squares = 0.0
    for part in blocks(rows):
        made = codes(pre(part)) @ decoder
        wanted = part.wanted - of_layer(b_dec, part.layer)
        dots += float((made * wanted).sum(dtype=torch.float64))
        squares += float(made.square().sum(dtype=torch.float64))
    return max(dots / squares, _LEAST_SCALE) if squares > 0 else 1.0


def blocks(rows: ScaledRows) -> list[ScaledRows]:
    """ScaledRows in parts of a size whose pre-activations fit into memory."""
    return [
        some(rows, slice(first, first + _BLOCK))
        for first in range(0, len(rows.x), _BLOCK)
    ]
