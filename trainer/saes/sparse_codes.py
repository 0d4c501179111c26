"""What the TopK kinds share: sparse codes whose only dense product is the encoder's,
and AuxK.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from trainer.kernels import devices
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.select_across_processes import peers
from trainer.kernels.sparse_products import (
    choose_batch_top_k,
    decoded,
    encode_top_k,
    encoded,
)
from trainer.kernels.topk_select import largest
from trainer.saes.ops import ScaledRows, Shape, encoder_input, squared_error


class Encoder:
    """The linear part of an encoder on one batch: (x - b_dec) W_enc + b_enc, with b_dec
    left out in a transcoder.
    """

    def __init__(
        self,
        rows: ScaledRows,
        weight: Tensor,
        bias: Tensor,
        b_dec: Tensor,
        shape: Shape,
    ) -> None:
        self.weight, self.bias, self.n_rows = weight, bias, len(rows.x)
        self.x: Tensor = rows.x
        self.shift: Tensor | None = b_dec if shape.d_out is None else None
        # a bias per layer differs by row; autograd subtracts it
        if self.shift is not None and b_dec.ndim == 2:
            self.x, self.shift = encoder_input(rows.x, b_dec, rows.layer, shape), None

    def top_k(self, k: int, among: Tensor | None = None) -> tuple[Tensor, Pattern]:
        """ReLU of the k largest of each row [B, k], and where they are; `among`: the
        latents to choose from.
        """
        values, pattern = encode_top_k(
            self.x, self.shift, self.weight, self.bias, k, among
        )
        return values.relu(), pattern

    @cached_property
    def centred(self) -> Tensor:
        """x - b_dec [B, d], a constant."""
        return (
            self.x.detach()
            if self.shift is None
            else self.x.detach() - self.shift.detach()
        )

    def batch_top_k(self, n: int) -> Chosen:
        """The n largest of the batch, or as many as are above 0, and where they are; on
        a device filled up with 0.
        """
        return choose_batch_top_k(self.centred, self.weight, self.bias, n)

    def at(self, chosen: Chosen) -> Tensor:
        """ReLU of a selection among these pre-activations, with the gradient: none
        where a value only fills up.
        """
        return encoded(
            self.x, self.shift, self.weight, self.bias, *chosen, self.centred
        ).relu()

    def aux_k(
        self, error: Tensor, dead: Tensor, k: int | None, decoder: Tensor
    ) -> Tensor | None:
        """AuxK (Gao et al. 2024): |e - e'|^2 with e' from the k strongest of the dead
        latents; None if none is dead.

        error: [B, d], taken as a constant; dead: as `listed` has it; k: None for d / 2.
        """
        among = listed(dead)
        if not len(among):
            return None
        values, pattern = self.top_k(
            min(k or max(1, error.shape[-1] // 2), len(among)), among
        )
        left = squared_error(error.detach(), decoded(values, decoder, pattern))
        return torch.where((among >= 0).any(), left, 0.0)


def listed(dead: Tensor) -> Tensor:
    """The dead latents, int64 [n], from those or from bool [m], for which a device has
    to be waited for.

    One that was dead when they were listed, and no more, stands as ~latent: it keeps
    its place, not its part.
    """
    return dead.nonzero()[:, 0] if dead.dtype == torch.bool else dead


def prefix_decoded(
    values: Tensor,
    decoder: Tensor,
    pattern: Pattern,
    ends: Sequence[int],
    bias: Tensor | None = None,
) -> list[Tensor]:
    """bias + sum of codes over latents before `end`, for each of the ascending ends:
    [B, d] each.

    Every nonzero is decoded once. values: [n]; decoder: [m, d], m the last end; bias:
    [d] or [B, d], None for 0; in a row the pattern's latents ascend.
    """
    if not devices.on_host(values):
        return _prefixes_at_once(values, decoder, pattern, ends, bias)
    widths = [end - first for first, end in itertools.pairwise((0, *ends))]
    out: list[Tensor] = []
    for first, part in zip((0, *ends), decoder.split(widths), strict=False):
        kept = (
            (pattern.latents >= first) & (pattern.latents < first + len(part))
        ).nonzero()[:, 0]
        own = Pattern.ragged(
            pattern.rows[kept], pattern.latents[kept] - first, pattern.n_rows, len(part)
        )
        codes = values[kept]
        out.append(
            out[-1] + decoded(codes, part, own)
            if out
            else decoded(codes, part, own, bias)
        )
    return out


def _prefixes_at_once(
    values: Tensor,
    decoder: Tensor,
    pattern: Pattern,
    ends: Sequence[int],
    bias: Tensor | None,
) -> list[Tensor]:
    """With sizes that the host knows: the nonzeros between two ends are one row of a
    product with B * P rows. (On a CPU its result, and the gradient of it, cost more
    than finding the nonzeros does.)
    """
    part = torch.zeros_like(pattern.latents)
    for end in ends[:-1]:
        part += pattern.latents >= end
    n = len(ends)
    split = Pattern.ragged(
        pattern.rows * n + part, pattern.latents, pattern.n_rows * n, pattern.n_latents
    )
    parts = decoded(values, decoder, split).unflatten(0, (-1, n)).unbind(1)
    out = [parts[0] if bias is None else parts[0] + bias]
    for one in parts[1:]:
        out.append(out[-1] + one)
    return out


def top_k(pre: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each row, 0 elsewhere: dense [B, m]."""
    indices = largest(pre.detach(), k)[1]
    return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices).relu())


@torch.no_grad()
def fired(values: Tensor, pattern: Pattern) -> Tensor:
    """ScaledRows on which each latent is above 0: int64 [m]."""
    counts = torch.zeros(pattern.n_latents, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(
        0, pattern.latents, (values.flatten() > 0).to(torch.int64)
    )


@torch.no_grad()
def lowest(
    values: Tensor, pattern: Pattern, layer: Tensor | None, n_layers: int
) -> Tensor:
    """The smallest value, not 0, of each layer's rows, float32 [n_layers]; of all rows
    if layer is None; inf for none.

    Inside `peers.rows_among` those of all processes.
    """
    where = (
        torch.zeros_like(pattern.rows)
        if layer is None
        else layer.index_select(0, pattern.rows)
    )
    none = torch.full((n_layers,), torch.inf, device=values.device)
    kept = values.detach().float().masked_fill(values == 0, torch.inf)
    least, others = none.scatter_reduce(0, where, kept, "amin"), peers()
    return least if others is None else others.min_(least)


@torch.no_grad()
def running_mean(mean: Tensor, count: Tensor, new: Tensor, decay: float) -> None:
    """Take finite new values [n] into an exponential mean [n], in place, corrected for
    its start as Adam's moments are: the weights of the `count` values so far sum to 1.
    """
    seen = new.isfinite()
    count.add_(seen)
    share = (1 - decay) / (1 - decay ** count.clamp_min(1).double()).float()
    mean.add_(torch.where(seen, share * (torch.where(seen, new, mean) - mean), 0.0))
