"""Rescaling of layers, from the store's own norms: the trainer makes no pre-pass over
the data.

With n_l the mean L2 norm of layer l and phi in {sqrt, ln, ln(1 + .), identity}, the
factor of a layer is s_l = mean(phi(n)) / phi(n_l): the mean is over the streamed
layers, so the overall scale stays (methods, section 1). `unit` makes the mean squared
norm 1 (Gemma Scope), `sqrt_d` the mean norm sqrt(d) (SAELens'
expected_average_only_in).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SpecError
from actstore.store.store import Store
from schemas.stream import Rescale

if TYPE_CHECKING:
    import torch


class Rescaling(NamedTuple):
    """x' = (x - mean) * scale. scale: float64 [n_sites]; mean: float32 [n_sites, d], or
    None for no subtraction.
    """

    scale: NDArray[np.float64]
    mean: NDArray[np.float32] | None

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """scale float32 [n_sites, 1] and mean on a device."""
        import torch

        scale = torch.from_numpy(self.scale).to(device, torch.float32)[:, None]
        return scale, (
            None if self.mean is None else torch.from_numpy(self.mean).to(device)
        )


def rescaling(
    store: Store, sites: tuple[str, ...], kind: Rescale, center: bool = False
) -> Rescaling:
    """The factors of some sites. With `center`, `unit` uses the mean squared norm about
    the mean.

    Raises SpecError where a factor would not be finite and positive (`log` with a mean
    norm of 1 or below), or a site has no finite row to tell it from.
    """
    empty = [site for site in sites if not store.norms[site].all.count]
    if empty and (kind != "none" or center):
        raise SpecError(
            f"rescale {kind!r}{', centred' if center else ''}: {', '.join(empty)} has"
            " no finite training row, so neither mean nor norm; leave it out"
        )
    norms = np.array([store.norms[site].all.mean_norm for site in sites])
    widths = np.array([store.site(site).d for site in sites])
    means = (
        np.stack([store.mean(site) for site in sites]).astype(np.float32)
        if center
        else None
    )
    if kind == "log" and (norms <= 1).any():
        low = ", ".join(
            f"{s} ({n:.3g})" for s, n in zip(sites, norms, strict=True) if n <= 1
        )
        raise SpecError(
            f"rescale 'log' needs mean norms above 1, but there are {low}; use 'log1p'"
            " or 'sqrt'"
        )
    # a mean norm of 0 is refused below
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "unit":
            scale = 1 / np.sqrt(_mean_squares(store, sites, center))
        elif kind == "sqrt_d":
            scale = np.sqrt(widths) / norms
        else:
            g = _phi(kind, norms)
            scale = g.mean() / g
    if not np.isfinite(scale).all():
        bad = ", ".join(
            site for site, one in zip(sites, scale, strict=True) if not np.isfinite(one)
        ) or ", ".join(sites)
        why = "does not vary" if center and kind == "unit" else "has mean norm 0"
        raise SpecError(f"rescale {kind!r}: {bad} {why}; leave it out, or use 'none'")
    return Rescaling(scale, means)


def _phi(kind: Rescale, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind == "sqrt":
        return np.sqrt(norms)
    if kind == "log":
        return np.log(norms)
    if kind == "log1p":
        return np.log1p(norms)
    return norms if kind == "linear" else np.ones_like(norms)


def _mean_squares(
    store: Store, sites: tuple[str, ...], center: bool
) -> NDArray[np.float64]:
    if center:
        return np.array([store.variance(site).sum() for site in sites])
    return np.array([store.norms[site].all.mean_sq_norm for site in sites])
