"""Computes the metrics of an SAE, one definition each (docs/metrics.md).

All are pure, in float64, in original activation units, for each layer and pooled. With
x a row, x' its reconstruction, mu_l the store's mean of its layer and f its latents in
original units (what the SAE gives, over the layer's scale s_l):

- FVU = sum |x - x'|^2 / sum |x - mu_l|^2. Pooled: both sums over all layers. NaN where
  all rows are the mean. Where a filter picks the rows, mu_l is their own mean.
- MSE = mean |x - x'|^2, summed over d. Per element: that over d.
- L0 = mean number of latents above 0.
- L1 = mean sum_i f_i. Decoder-weighted: mean sum_i f_i |W_dec,i|, which is the same
  where decoder directions have norm 1.
- Suppression = mean |x'| / |x| over rows with |x| > 0; below 1 is shrinkage. NaN where
  there is no such row.
- Reconstruction bias = sum |x'|^2 / sum <x', x>; 1 where no other length of x' would
  be nearer to x (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated
  Sparse Autoencoders"). NaN where the product is not above 0.
- Density of a latent = share of rows on which it fires. Dead: it fires on none of the
  rows that were evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from schemas.records import LayerMetrics, ModelMetrics
from trainer.saes.explained_variance import fvu

NEVER = 1e-10  # the density that stands for a latent that never fires
# Bins of a histogram of log10 density: from below -10 (never) to above 0 (every row).
LOWEST_LOG_DENSITY = -10.25
DENSITY_BINS_PER_DECADE = 4
DENSITY_BINS = 42


@dataclass
class LayerSums:
    """Running sums over rows of one layer, or of several layers added up.

    Attributes:
        firings: On how many rows each latent fired, int64 [m].
        rows: Number of rows.
        error: Sum of |x - x'|^2.
        variance: Sum of |x - mu_l|^2.
        l0: Number of latents above 0.
        l1: Sum of latents, in original units.
        l1_decoder: Sum of latents times the norms of their decoder directions.
        suppression: Sum of |x'| / |x| over rows with a norm above 0.
        nonzero: Number of those rows.
        square: Sum of |x'|^2.
        product: Sum of <x', x>.
        shift: Sum of x - mu_l, float64 [d]; of use for one layer only.
    """

    firings: Tensor
    rows: int = 0
    error: float = 0.0
    variance: float = 0.0
    l0: float = 0.0
    l1: float = 0.0
    l1_decoder: float = 0.0
    suppression: float = 0.0
    nonzero: int = 0
    square: float = 0.0
    product: float = 0.0
    shift: Tensor | float = 0.0

    def about_own_mean(self) -> None:
        """Take the variance about the mean of the rows that were summed.

        That is for rows that are not all rows of the store. The sum of squares about
        their own mean is that about mu_l less |shift|^2 / rows: rows 1 and 3 about 0
        have 1 + 9 = 10 and a shift of 4; about their mean 2 they have 10 - 16 / 2 = 2.
        """
        excess = torch.as_tensor(self.shift).square().sum() / max(self.rows, 1)
        self.variance = max(0.0, self.variance - float(excess))

    def __add__(self, other: LayerSums) -> LayerSums:
        names = [field.name for field in fields(self)]
        totals = {name: getattr(self, name) + getattr(other, name) for name in names}
        return LayerSums(**totals)

    def metrics(self, site: str, d: int) -> LayerMetrics:
        """Return the metrics that follow from the sums.

        Args:
            site: What the metrics are named by.
            d: Width of what is reconstructed.
        """
        n = self.rows or math.nan  # a mean over no rows is NaN
        return LayerMetrics(
            site=site,
            rows=self.rows,
            fvu=fvu(self.error, self.variance),
            mse=self.error / n,
            mse_per_element=self.error / n / d,
            l0=self.l0 / n,
            l1=self.l1 / n,
            l1_decoder=self.l1_decoder / n,
            suppression=self.suppression / self.nonzero if self.nonzero else math.nan,
            reconstruction_bias=(
                self.square / self.product if self.product > 0 else math.nan
            ),
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
    """Return the sums over rows of one layer.

    Args:
        x: Rows in original units, [B, d].
        reconstruction: What the SAE makes of them, [B, d].
        latents: Their latents in the units of training, [B, m].
        mean: The store's mean of the layer, [d].
        scale: The factor of the layer's rows in training.
        decoder_norms: Norms of the decoder directions, [m].
    """
    exact = x.double()
    exact_reconstruction = reconstruction.double()
    fires = latents > 0
    norms = exact.norm(dim=1)
    from_mean = exact - mean.double()
    has_length = norms > 0
    ratios = exact_reconstruction.norm(dim=1)[has_length] / norms[has_length]
    by_latent = latents.sum(dim=0, dtype=torch.float64)
    return LayerSums(
        firings=fires.sum(dim=0),
        rows=len(x),
        error=float((exact - exact_reconstruction).square().sum()),
        variance=float(from_mean.square().sum()),
        l0=float(fires.sum()),
        l1=float(latents.sum(dtype=torch.float64)) / scale,
        l1_decoder=float((by_latent * decoder_norms.double()).sum()) / scale,
        suppression=float(ratios.sum()),
        nonzero=len(ratios),
        square=float(exact_reconstruction.square().sum()),
        product=float((exact_reconstruction * exact).sum()),
        shift=from_mean.sum(dim=0),
    )


def density_bins(density: Tensor) -> Tensor:
    """Return how many densities lie in each bin of a histogram, int64 [DENSITY_BINS].

    Bins are a quarter of log10 wide, the first from -10.25 up: 0.01 is in that from -2
    to -1.75, and a latent that never fires, at -10, in one of its own.

    density: [n], between 0 and 1.
    """
    places = (log_density(density) - LOWEST_LOG_DENSITY) * DENSITY_BINS_PER_DECADE
    bins = places.floor().long().clamp(0, DENSITY_BINS - 1)
    return torch.bincount(bins, minlength=DENSITY_BINS)


def log_density(density: Tensor) -> Tensor:
    """Return log10 of densities [...]; -10 for a latent that never fires."""
    return density.clamp_min(NEVER).log10()


def layer_shares(firings: Tensor, rows: Tensor) -> Tensor:
    """Return how each latent's firings are spread over layers.

    The share of layer l is proportional to firings_l / rows_l (docs/methods.md,
    "1. Multi-layer SAE"): a latent that fires on 10 of 100 rows of one layer and on 30
    of 100 of another has shares 1/4 and 3/4.

    Args:
        firings: int64 [n_layers, m].
        rows: Rows of each layer, int64 [n_layers].

    Returns:
        Shares, float64 [n_layers, m], which sum to 1; to 0 for a silent latent.
    """
    rates = firings.double() / rows.double().clamp_min(1)[:, None]
    return rates / rates.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)


def spread(shares: Tensor) -> Tensor:
    """Return the effective number of layers of each latent.

    It is exp of the entropy of the latent's shares: 1 where all firings are at one
    layer, n where they are spread evenly over n layers.

    Args:
        shares: float64 [n_layers, m].

    Returns:
        float64 [m]; 0 for a silent latent.
    """
    logs = shares.clamp_min(torch.finfo(torch.float64).tiny).log()
    entropy = -(shares * logs).sum(dim=0)
    return torch.where(shares.sum(dim=0) > 0, entropy.exp(), 0.0)


def recovered(ablated: float, patched: float, clean: float) -> float:
    """Return the share of the cross-entropy lost by ablation that comes back.

    (CE_ablated - CE_patched) / (CE_ablated - CE_clean); NaN where ablation changes
    nothing.
    """
    # A CE of 5 without the site, 4 with the SAE and 3 with the model's own activations:
    # half of what ablation lost comes back.
    if ablated == clean:
        return math.nan
    return (ablated - patched) / (ablated - clean)


def pooled(sites: Sequence[ModelMetrics]) -> ModelMetrics:
    """Return the effect on the language model over all sites' tokens.

    CE and KL are means over tokens; the shares recovered follow from the pooled CEs.
    """
    with_tokens = [metrics for metrics in sites if metrics.tokens]
    tokens = sum(metrics.tokens for metrics in with_tokens)

    def mean(figure: str) -> float:
        if not tokens:
            return math.nan
        total = sum(
            getattr(metrics, figure) * metrics.tokens for metrics in with_tokens
        )
        return float(total / tokens)

    ce_clean = mean("ce_clean")
    ce_sae = mean("ce_sae")
    ce_zero = mean("ce_zero")
    ce_mean = mean("ce_mean")
    return ModelMetrics(
        site="pooled",
        tokens=tokens,
        ce_clean=ce_clean,
        ce_sae=ce_sae,
        ce_zero=ce_zero,
        ce_mean=ce_mean,
        recovered_zero=recovered(ce_zero, ce_sae, ce_clean),
        recovered_mean=recovered(ce_mean, ce_sae, ce_clean),
        kl=mean("kl"),
    )
