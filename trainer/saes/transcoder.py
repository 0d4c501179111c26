"""A transcoder: latents of one site that reconstruct another.

y' = f(x) W_dec + b_dec (+ x W_skip), x a row of the one and y that of the other at the
same token. `inner` is any architecture built for another output than its input; it sees
y - x W_skip as its target, so that its loss is |y - y'|^2 as it should be, with its own
penalty. The skip starts at 0 (Paulo et al. 2025).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from schemas.sae import Transcoder
from trainer.errors import SaeError
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import Kind, kind_of, register
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.step import Penalty, Step
from trainer.saes.wrapper_sae import WrapperSae


class TranscoderSae(WrapperSae):
    """`inner` from one site to another.

    Attributes:
        W_skip: [d, d_out] with `skip`, else None.
    """

    def __init__(self, spec: Transcoder, inner: FlatSae) -> None:
        super().__init__(spec, inner)
        self.W_skip: nn.Parameter | None = None
        if spec.skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d, self.shape.out))

    @classmethod
    def make(cls, spec: Any, shape: Shape, seed: int) -> Self:
        """Return a fresh one.

        Raises:
            SaeError: The inner spec cannot work at that width, or not with a target.
        """
        kind = kind_of(spec.inner).sae
        inner = kind.make(spec.inner, shape, seed)
        assert isinstance(inner, FlatSae)
        return cls(spec, inner)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return latents [B, m] of input rows [B, d]."""
        return self.inner.encode(x, layer)

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:
        """Return the output [B, d_out] of latents [B, m], without the skip.

        The skip needs the input: see `predict`.
        """
        return self.inner.decode(latents, layer)

    def predict(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return output rows [B, d_out] of input rows [B, d]."""
        out = self.decode(self.encode(x, layer), layer)
        return out if self.W_skip is None else out + x @ self.W_skip

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows [B, d] with targets [B, d_out].

        Raises:
            SaeError: They have none.
        """
        skipped = self.skipped(rows)
        lessened = without(rows, skipped)
        step = self.inner.training_step(lessened, penalty, dead, parts)
        if skipped is None:
            return step
        # what the step reconstructed is y - x W_skip; its error is that of y already
        return step._replace(reconstruction=step.reconstruction + skipped)

    def inner_rows(self, rows: ScaledRows) -> ScaledRows:
        """Return rows as `inner` sees them.

        Raises:
            SaeError: They have no target.
        """
        return without(rows, self.skipped(rows))

    def selected(self, rows: ScaledRows, parts: Parts = ONE_PART) -> ScaledRows:
        """Return rows with what a selection over the whole batch keeps of them.

        It goes by the inputs, which `inner` sees as they are.
        """
        return self.inner.selected(rows, parts)

    def skipped(self, rows: ScaledRows) -> Tensor | None:
        """Return what the skip makes of the inputs, [B, d_out]; None without one."""
        return None if self.W_skip is None else rows.x @ self.W_skip


def without(rows: ScaledRows, skipped: Tensor | None) -> ScaledRows:
    """Return rows whose targets lack what the skip gives.

    Args:
        rows: B of them.
        skipped: [B, d_out], what the skip makes of them; None without one.

    Raises:
        SaeError: They have no target.
    """
    if rows.target is None:
        raise SaeError(
            "a transcoder needs rows of two sites of the same tokens:"
            " ScaledRows(x=inputs, target=outputs)"
        )
    return rows if skipped is None else rows._replace(target=rows.target - skipped)


def _saelens_holds(spec: Transcoder) -> bool:
    """Return whether it is one of SAELens' transcoders: standard latents, no skip."""
    return kind_of(spec.inner).saelens == "standard" and not spec.skip


register(
    Kind(
        Transcoder,
        TranscoderSae,
        stream_mode="pairs",
        wanted_rows="the same tokens at several sites, in pairs of input and output",
        mode_advice=(
            "set `stream.mode: pairs`, `stream.sites` (inputs) and `stream.targets`"
            " (outputs), or give --pairs-with"
        ),
        not_attachable=(
            "a transcoder's output is of another site than its input, so it cannot"
            " replace a site"
        ),
        saelens="transcoder",
        saelens_holds=_saelens_holds,
        imported=True,
        no_saelens_because=(
            "of transcoders only those with inner kind relu_l1 and without a skip"
            " connection have a place there"
        ),
    )
)
