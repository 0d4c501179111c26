"""A crosscoder (Lindsey et al. 2024): one set of latents for n sites of the same token.

f = act(sum_s (x_s - b_dec,s) W_enc,s + b_enc), x'_s = f W_dec,s + b_dec,s, loss = sum_s
|x_s - x'_s|^2 + penalty. That is `inner` on the sites side by side, a row of n * d,
which is how it is computed. With `relu_l1` the penalty is l1 * sum_i f_i sum_s
|W_dec,s,i| and the decoder free; with the TopK kinds a latent's whole decoder row is at
norm 1.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from schemas.sae import Crosscoder
from trainer.errors import SaeError
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import Kind, kind_of, register
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.step import Penalty, Step
from trainer.saes.wrapper_sae import WrapperSae


class CrosscoderSae(WrapperSae):
    """`inner` at width n_sites * d.

    Attributes:
        n_sites: Sites of a row.
        d: Width of one site's vector.
    """

    def __init__(self, spec: Crosscoder, inner: FlatSae) -> None:
        super().__init__(spec, inner)
        self.n_sites = inner.shape.sites_per_row
        self.d = inner.d // self.n_sites

    @classmethod
    def make(cls, spec: Any, shape: Shape, seed: int) -> Self:
        """Return a fresh one for sites of width `shape.d`.

        Raises:
            SaeError: The inner spec cannot work at that width, or asks for parts by
                layer.
        """
        by_layer = ("per_layer_bias", "per_layer_threshold")
        if any(getattr(spec.inner, name, False) for name in by_layer):
            raise SaeError(
                "a crosscoder's row has all its layers, and a bias for each; leave the"
                " per_layer_ options out"
            )
        kind = kind_of(spec.inner).sae
        assert issubclass(kind, FlatSae)
        # the size goes by the width of one site, and `inner` is wider
        size = {"n_latents": spec.inner.size(shape.d)}
        update = {**size, **kind.crosscoder_options}
        inner_spec = spec.inner.model_copy(update=update)
        n_sites = shape.n_sites
        wide = shape._replace(d=shape.d * n_sites, sites_per_row=n_sites)
        inner = kind.make(inner_spec, wide, seed)
        return cls(spec, inner)

    @property
    def encoder(self) -> Tensor:
        """The encoder of each site: [n_sites, d, m]."""
        return self.inner.encoder.reshape(self.n_sites, self.d, -1)

    @property
    def W_dec(self) -> Tensor:  # noqa: N802 (its name where it is a parameter)
        """The decoder directions at each site: [m, n_sites, d]."""
        return self.inner.W_dec.view(-1, self.n_sites, self.d)

    @property
    def b_dec(self) -> Tensor:
        """The decoder bias of each site: [n_sites, d]."""
        return self.inner.b_dec.view(self.n_sites, self.d)

    def encode(self, x: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (a row has all its layers)
        """Return latents [B, m] of rows [B, n_sites, d]."""
        return self.inner.encode(self._side_by_side(x))

    def decode(self, latents: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (a row has all its layers)
        """Return the reconstruction [B, n_sites, d] of latents [B, m]."""
        side_by_side = self.inner.decode(latents)
        return side_by_side.view(-1, self.n_sites, self.d)

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows [B, n_sites, d], the sum of that at all sites."""
        wide = self.inner_rows(rows)
        step = self.inner.training_step(wide, penalty, dead, parts)
        by_site = step.reconstruction.view(-1, self.n_sites, self.d)
        return step._replace(reconstruction=by_site)

    def inner_rows(self, rows: ScaledRows) -> ScaledRows:
        """Return rows as `inner` sees them: [B, n_sites * d]."""
        return ScaledRows(
            self._side_by_side(rows.x),
            batch_position=rows.batch_position,
            selection=rows.selection,
        )

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set weights in place from rows of all sites."""
        self.inner.initialise(self.inner_rows(rows), centre, from_data)

    def _side_by_side(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1:] != (self.n_sites, self.d):
            raise SaeError(
                f"this crosscoder wants rows [B, {self.n_sites}, {self.d}], got"
                f" {list(x.shape)}"
            )
        return x.flatten(1)


register(
    Kind(
        Crosscoder,
        CrosscoderSae,
        stream_mode="aligned",
        wanted_rows="the same tokens at several sites, side by side",
        mode_advice="set `stream.mode: aligned`, or give --aligned",
        not_attachable=(
            "a crosscoder needs all its sites at once, so it cannot replace them one by"
            " one"
        ),
        no_saelens_because="its rows are of several sites at once",
    )
)
