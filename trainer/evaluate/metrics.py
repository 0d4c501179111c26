"""Metrics, one definition each; pure, in float64, in original activation units, per
layer and pooled.

With x a row, x' its reconstruction, mu_l the store's mean of its layer and f its
latents in original units (what the SAE gives, over the layer's scale s_l):

- FVU = sum |x - x'|^2 / sum |x - mu_l|^2; pooled: the sums over all layers; NaN where
  all rows are the mean. Of rows that a filter keeps, mu_l is their own mean.
- MSE = mean |x - x'|^2 (summed over d); per element: that over d
- L0 = mean number of latents above 0
- L1 = mean sum_i f_i; decoder-weighted: mean sum_i f_i |W_dec,i| (equal for decoder
rows of norm 1)
- suppression = mean |x'| / |x| over rows with |x| > 0 (below 1 is shrinkage); NaN where
there is none
- density of a latent = share of rows on which it is above 0; dead: on none of the rows
evaluated
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from schemas.records import LayerMetrics, ModelMetrics

NEVER = 1e-10


@dataclass
class LayerSums:
    """Running sums of one layer, or of several added up. firings: int64 [m]."""

    firings: Tensor
    rows: int = 0
    error: float = 0.0
    variance: float = 0.0
    l0: float = 0.0
    l1: float = 0.0
    l1_decoder: float = 0.0
    suppression: float = 0.0
    nonzero: int = 0  # rows with a norm above 0
    # sum of the rows' distances from the stored mean, float64 [d]; of one layer only
    shift: Tensor | float = 0.0

    def about_own_mean(self) -> None:
        """Take the variance of one layer's rows about their own mean, where they are
        not all rows of the store.
        """
        moved = torch.as_tensor(self.shift).square().sum() / max(self.rows, 1)
        self.variance = max(0.0, self.variance - float(moved))

    def __add__(self, other: LayerSums) -> LayerSums:
        names = [field.name for field in fields(self)]
        return LayerSums(
            **{name: getattr(self, name) + getattr(other, name) for name in names}
        )

    def metrics(self, site: str, d: int) -> LayerMetrics:
        """The figures, from the sums."""
        n = self.rows or math.nan  # means over nothing are none
        return LayerMetrics(
            site=site,
            rows=self.rows,
            fvu=self.error / self.variance if self.variance else math.nan,
            mse=self.error / n,
            mse_per_element=self.error / n / d,
            l0=self.l0 / n,
            l1=self.l1 / n,
            l1_decoder=self.l1_decoder / n,
            suppression=self.suppression / self.nonzero if self.nonzero else math.nan,
        )

    @property
    def density(self) -> Tensor:
        """Share of rows on which each latent fires, float64 [m]."""
        return self.firings.double() / max(self.rows, 1)


def layer_sums(
    x: Tensor,
    reconstruction: Tensor,
    latents: Tensor,
    mean: Tensor,
    scale: float,
    decoder_norms: Tensor,
) -> LayerSums:
    """Sums over rows of one layer: x and reconstruction [B, d], latents [B, m], the
    layer's mean [d] and scale.
    """
    exact, again = x.double(), reconstruction.double()
    active = latents > 0
    norms = exact.norm(dim=1)
    away = exact - mean.double()
    ratio = again.norm(dim=1)[norms > 0] / norms[norms > 0]
    return LayerSums(
        firings=active.sum(dim=0),
        rows=len(x),
        error=float((exact - again).square().sum()),
        variance=float(away.square().sum()),
        l0=float(active.sum()),
        l1=float(latents.sum(dtype=torch.float64)) / scale,
        l1_decoder=float(
            (latents.sum(dim=0, dtype=torch.float64) * decoder_norms.double()).sum()
        )
        / scale,
        suppression=float(ratio.sum()),
        nonzero=len(ratio),
        shift=away.sum(dim=0),
    )


def log_density(density: Tensor) -> Tensor:
    """log10 of the density, with 1e-10 for a latent that never fires."""
    return density.clamp_min(NEVER).log10()


def layer_shares(firings: Tensor, rows: Tensor) -> Tensor:
    """p_l of each latent [n_layers, m], proportional to firings_l / rows_l (methods,
    section 1); 0 if it is silent.
    """
    rate = firings.double() / rows.double().clamp_min(1)[:, None]
    return rate / rate.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)


def spread(shares: Tensor) -> Tensor:
    """Effective number of layers of each latent: exp of the entropy of its shares
    [n_layers, m]; 0 if silent.
    """
    entropy = -(shares * shares.clamp_min(torch.finfo(torch.float64).tiny).log()).sum(
        dim=0
    )
    return torch.where(shares.sum(dim=0) > 0, entropy.exp(), 0.0)


def recovered(ablated: float, patched: float, clean: float) -> float:
    """(CE_ablated - CE_patched) / (CE_ablated - CE_clean); NaN where ablating changes
    nothing.
    """
    return (ablated - patched) / (ablated - clean) if ablated != clean else math.nan


def pooled(sites: Sequence[ModelMetrics]) -> ModelMetrics:
    """Over all sites' tokens: CE and KL are means over tokens, and the shares recovered
    follow from the pooled CEs.
    """
    seen = [one for one in sites if one.tokens]
    tokens = sum(one.tokens for one in seen)

    def mean(figure: str) -> float:
        return (
            sum(getattr(one, figure) * one.tokens for one in seen) / tokens
            if tokens
            else math.nan
        )

    ce = {
        figure: mean(figure) for figure in ("ce_clean", "ce_sae", "ce_zero", "ce_mean")
    }
    return ModelMetrics(
        site="pooled",
        tokens=tokens,
        **ce,
        recovered_zero=recovered(ce["ce_zero"], ce["ce_sae"], ce["ce_clean"]),
        recovered_mean=recovered(ce["ce_mean"], ce["ce_sae"], ce["ce_clean"]),
        kl=mean("kl"),
    )
