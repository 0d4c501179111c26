"""Rescaling of layers, from the norms that the store keeps.

So the trainer makes no pass over the data before it begins.

With n_l the mean L2 norm of layer l and phi one of sqrt, ln, ln(1 + .) and the
identity, the factor of a layer is s_l = mean(phi(n)) / phi(n_l): the mean is over the
streamed layers, so the overall scale stays (`docs/methods.md`, section 1). `unit` makes
the mean squared norm 1 (Gemma Scope), `sqrt_d` the mean norm sqrt(d) (SAELens'
expected_average_only_in).

In numbers: two layers of mean norm 4 and 16. `sqrt` has phi 2 and 4, mean 3, and the
factors 3/2 and 3/4: the norms become 6 and 12. `linear` makes both 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SpecError
from actstore.store.streamed_store import StreamedStore
from schemas.stream import Rescale

if TYPE_CHECKING:
    import torch


class Rescaling(NamedTuple):
    """x' = (x - mean) * scale, by site.

    Attributes:
        scale: float64 [n_sites].
        mean: float32 [n_sites, d]; None: nothing is subtracted.
    """

    scale: NDArray[np.float64]
    mean: NDArray[np.float32] | None

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scale, float32 [n_sites, 1], and mean on a device."""
        import torch

        scale = torch.from_numpy(self.scale).to(device, torch.float32)
        scale = scale[:, None]
        if self.mean is None:
            return scale, None
        return scale, torch.from_numpy(self.mean).to(device)


def rescaling(
    store: StreamedStore,
    sites: tuple[str, ...],
    kind: Rescale,
    center: bool = False,
) -> Rescaling:
    """Return the factors of some sites, and with `center` their means.

    With `center`, `unit` uses the mean squared norm about the mean.

    Raises:
        SpecError: A factor would not be finite and positive (`log` with a mean norm of
            1 or below), or a site has no finite row to tell it from.
    """
    norms = [store.norms[site].all for site in sites]
    empty = [site for site in sites if store.norms[site].all.count == 0]
    if empty and (kind != "none" or center):
        raise SpecError(
            f"rescale {kind!r}{', centred' if center else ''}: {', '.join(empty)} has"
            " no finite training row, so neither mean nor norm; leave it out"
        )
    mean_norms = np.array([norm.mean_norm for norm in norms])
    means = None
    if center:
        exact_means = [store.mean(site) for site in sites]
        means = np.stack(exact_means).astype(np.float32)
    if kind == "log":
        _check_norms_above_one(sites, mean_norms)
    # A mean norm of 0 is refused below.
    with np.errstate(divide="ignore", invalid="ignore"):
        # `unit` and `sqrt_d` look at one site alone; the others keep the sites' mean.
        if kind == "unit":
            scale = 1 / np.sqrt(_mean_squares(store, sites, center))
        elif kind == "sqrt_d":
            widths = np.array([store.site(site).d for site in sites])
            scale = np.sqrt(widths) / mean_norms
        else:
            phi = _phi(kind, mean_norms)
            scale = phi.mean() / phi
    if not np.isfinite(scale).all():
        infinite = [
            site
            for site, factor in zip(sites, scale, strict=True)
            if not np.isfinite(factor)
        ]
        named = ", ".join(infinite)
        reason = "does not vary" if center and kind == "unit" else "has mean norm 0"
        raise SpecError(
            f"rescale {kind!r}: {named} {reason}; leave it out, or use 'none'"
        )
    return Rescaling(scale, means)


def _check_norms_above_one(
    sites: tuple[str, ...], mean_norms: NDArray[np.float64]
) -> None:
    """Raise SpecError where a logarithm would not be positive."""
    low = [
        f"{site} ({norm:.3g})"
        for site, norm in zip(sites, mean_norms, strict=True)
        if norm <= 1
    ]
    if low:
        raise SpecError(
            f"rescale 'log' needs mean norms above 1, but there are {', '.join(low)};"
            " use 'log1p' or 'sqrt'"
        )


def _phi(kind: Rescale, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the factors are in inverse proportion to: 1 for "none"."""
    if kind == "sqrt":
        return np.sqrt(norms)
    if kind == "log":
        return np.log(norms)
    if kind == "log1p":
        return np.log1p(norms)
    if kind == "linear":
        return norms
    return np.ones_like(norms)


def _mean_squares(
    store: StreamedStore, sites: tuple[str, ...], center: bool
) -> NDArray[np.float64]:
    """Return each site's mean squared norm, with `center` about its mean, [n_sites]."""
    if center:
        # A squared norm is a sum over channels, and so is its mean.
        return np.array([store.variance(site).sum() for site in sites])
    norms = [store.norms[site].all for site in sites]
    return np.array([norm.mean_sq_norm for norm in norms])
