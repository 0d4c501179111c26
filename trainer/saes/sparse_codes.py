"""Sparse codes of the TopK kinds, whose cost goes with their nonzeros.

Only the encoder's product is dense. All that follows it, decoder, gradients and counts,
goes over the nonzeros alone: with k 32 of 4,096 latents, over less than one in 100.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from trainer.kernels import devices
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.sparse_products import (
    choose_batch_top_k,
    decoded,
    encode_top_k,
    encoded,
)
from trainer.kernels.topk_select import largest
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.shape import Shape, encoder_input


class Encoder:
    """The linear part of an encoder on one batch: (x - b_dec) W_enc + b_enc.

    In a transcoder b_dec is left out.
    """

    def __init__(
        self,
        rows: ScaledRows,
        weight: Tensor,
        bias: Tensor,
        b_dec: Tensor,
        shape: Shape,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.n_rows = len(rows.x)
        self.x: Tensor = rows.x
        self.shift: Tensor | None = b_dec if shape.d_out is None else None
        # a bias per layer differs by row; autograd subtracts it
        if self.shift is not None and b_dec.ndim == 2:
            self.x = encoder_input(rows.x, b_dec, rows.layer, shape)
            self.shift = None

    def top_k(self, k: int, among: Tensor | None = None) -> tuple[Tensor, Pattern]:
        """Return the k largest of each row.

        Args:
            k: How many.
            among: int64, the only latents to choose from, as `listed` has them; None:
                all.

        Returns:
            ReLU of the values [B, k], with the gradient, and where they are.
        """
        values, pattern = encode_top_k(
            self.x, self.shift, self.weight, self.bias, k, among
        )
        return values.relu(), pattern

    @cached_property
    def centred(self) -> Tensor:
        """x - b_dec [B, d], a constant."""
        x = self.x.detach()
        return x if self.shift is None else x - self.shift.detach()

    def batch_top_k(self, n: int) -> Chosen:
        """Return the n largest of the batch, or as many as are above 0.

        On a device they are filled up with 0, so that their number is n.
        """
        return choose_batch_top_k(self.centred, self.weight, self.bias, n)

    def at(self, chosen: Chosen) -> Tensor:
        """Return ReLU of a selection among these pre-activations, with the gradient.

        There is no gradient where a value only fills up.

        Returns:
            [n], in the order of the selection's pattern.
        """
        values = encoded(
            self.x,
            self.shift,
            self.weight,
            self.bias,
            *chosen,
            self.centred,
        )
        return values.relu()


def listed(dead: Tensor) -> Tensor:
    """Return the dead latents, int64 [n], from those or from bool [m].

    For bool a device has to be waited for. A latent that was dead when they were
    listed, and has fired since, stands as ~latent, that is -1 - latent: it keeps its
    place, so that sizes stay, but is not chosen. Of latents 3, 5 and 8, where 5 has
    fired again, the list is 3, -6, 8.
    """
    if dead.dtype == torch.bool:
        return dead.nonzero()[:, 0]
    return dead


def prefix_decoded(
    values: Tensor,
    decoder: Tensor,
    pattern: Pattern,
    ends: Sequence[int],
    bias: Tensor | None = None,
) -> list[Tensor]:
    """Return bias + sum of codes over latents before `end`, for each of the ends.

    Every nonzero is decoded once: what lies between two ends is added to what came
    before. With ends (2, 5), latents 0 and 1 make the first result, and these plus
    latents 2 to 4 the second.

    Args:
        values: [n], of the pattern.
        decoder: [m, d].
        pattern: In a row its latents ascend.
        ends: Ascending; the last is m.
        bias: [d] or [B, d]; None for 0.

    Returns:
        [B, d] for each end.
    """
    if not devices.on_host(values):
        return _prefixes_at_once(values, decoder, pattern, ends, bias)
    firsts = (0, *ends)
    widths = [end - first for first, end in itertools.pairwise(firsts)]
    nested: list[Tensor] = []
    # the last of `firsts` is m, after which there are no latents
    for first, directions in zip(firsts, decoder.split(widths), strict=False):
        end = first + len(directions)
        between = (pattern.latents >= first) & (pattern.latents < end)
        kept = between.nonzero()[:, 0]
        here = Pattern.ragged(
            pattern.rows[kept],
            pattern.latents[kept] - first,
            pattern.n_rows,
            len(directions),
        )
        codes = values[kept]
        # the bias is in the first prefix, and so in all that are added to it
        if nested:
            nested.append(nested[-1] + decoded(codes, directions, here))
        else:
            nested.append(decoded(codes, directions, here, bias))
    return nested


def _prefixes_at_once(
    values: Tensor,
    decoder: Tensor,
    pattern: Pattern,
    ends: Sequence[int],
    bias: Tensor | None,
) -> list[Tensor]:
    """Return the same with sizes that the host knows.

    The nonzeros between two ends are one row of a product with B * P rows. (On a CPU
    its result, and the gradient of it, cost more than finding the nonzeros does.) With
    ends (2, 5), the nonzero of row 3 at latent 4 comes after the first end, and is in
    row 3 * 2 + 1 = 7 of the product.
    """
    which_end = torch.zeros_like(pattern.latents)
    for end in ends[:-1]:
        which_end += pattern.latents >= end
    n = len(ends)
    split = Pattern.ragged(
        pattern.rows * n + which_end,
        pattern.latents,
        pattern.n_rows * n,
        pattern.n_latents,
    )
    by_row_and_end = decoded(values, decoder, split)
    between = by_row_and_end.unflatten(0, (-1, n)).unbind(1)
    nested = [between[0] if bias is None else between[0] + bias]
    for more in between[1:]:
        nested.append(nested[-1] + more)
    return nested


def top_k(pre: Tensor, k: int) -> Tensor:
    """Return ReLU of the k largest of each row, 0 elsewhere.

    pre: [B, m]; the result is dense [B, m].
    """
    _, indices = largest(pre.detach(), k)
    values = pre.gather(-1, indices).relu()
    return torch.zeros_like(pre).scatter(-1, indices, values)


@torch.no_grad()
def fired(values: Tensor, pattern: Pattern) -> Tensor:
    """Return on how many rows each latent is above 0: int64 [m]."""
    counts = torch.zeros(pattern.n_latents, dtype=torch.int64, device=values.device)
    positive = (values.flatten() > 0).to(torch.int64)
    return counts.scatter_add_(0, pattern.latents, positive)


@torch.no_grad()
def smallest(chosen: Chosen, layer: Tensor | None, n_layers: int) -> Tensor:
    """Return the smallest value, not 0, of each layer's rows.

    Args:
        chosen: What a selection keeps.
        layer: int64 [B]; None: all rows are as of one layer.
        n_layers: How many layers there are.

    Returns:
        float32 [n_layers]; inf for a layer that has no value.
    """
    values, pattern = chosen
    if layer is None:
        layer_of_value = torch.zeros_like(pattern.rows)
    else:
        layer_of_value = layer.index_select(0, pattern.rows)
    none = torch.full((n_layers,), torch.inf, device=values.device)
    # zeros only fill up what a device selects, and are no values that it kept
    kept = values.detach().float()
    kept = kept.masked_fill(values == 0, torch.inf)
    return none.scatter_reduce(0, layer_of_value, kept, "amin")


@torch.no_grad()
def running_mean(mean: Tensor, count: Tensor, new: Tensor, decay: float) -> None:
    """Take finite new values [n] into an exponential mean [n], in place.

    count: [n], how many values each mean has been given; it goes on in place, too.

    It is corrected for its start as Adam's moments are: the weights of the `count`
    values so far sum to 1. With decay 0.9 the first value has weight 0.1 / (1 - 0.9) =
    1, and the second 0.1 / (1 - 0.81) = 0.53.
    """
    seen = new.isfinite()
    count.add_(seen)
    # in float64: the powers of a decay near 1 differ from 1 in late digits only
    left = decay ** count.clamp_min(1).double()
    share = (1 - decay) / (1 - left).float()
    # 0 where no value came, so that the mean stays
    difference = torch.where(seen, new, mean) - mean
    mean.add_(torch.where(seen, share * difference, 0.0))
