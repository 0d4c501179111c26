"""The rows of a batch as an SAE sees them: rescaled, with all a kind asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from trainer.errors import SaeError
from trainer.kernels.layer_sums import rows_of_layers
from trainer.kernels.nonzeros import Chosen

Layer = int | Tensor | None
"""The layer of all rows, or int64 [B], that of each; None where there is one only."""


class Selection(NamedTuple):
    """The latents that a selection over a whole batch keeps."""

    chosen: Chosen
    """Values of these rows, and where they are."""
    smallest: Tensor
    """float32 [n_thresholds]: the smallest value kept of the whole batch, of each
    layer's rows where layers have their own thresholds; inf where none was kept."""

    def split(self, sizes: Sequence[int]) -> list[Selection]:
        """Return a part for each of these numbers of rows."""
        return [self._replace(chosen=chosen) for chosen in self.chosen.split(sizes)]


class ScaledRows(NamedTuple):
    """A batch as an architecture sees it, after rescaling."""

    x: Tensor
    """[B, d]; for a crosscoder [B, n_sites, d]."""
    layer: Tensor | None = None
    """int64 [B]: index of each row's site."""
    norm: Tensor | None = None
    """[n_sites]: mean L2 norm of each layer's rows."""
    target: Tensor | None = None
    """[B, d_out]: what a transcoder reconstructs."""
    batch_position: Tensor | None = None
    """int64 [B] on the host, ascending: where each row is in the whole batch, of which
    these may be a part; None for a whole one."""
    selection: Selection | None = None
    """The latents that a selection over the whole batch keeps of these rows, for kinds
    that have one; None: the training step selects among these rows."""

    @property
    def wanted(self) -> Tensor:
        """The rows to reconstruct: the target, or the rows themselves.

        [B, d_out]; [B, n_sites, d] for a crosscoder.
        """
        return self.x if self.target is None else self.target


def of_layer(values: Tensor, layer: Layer) -> Tensor:
    """Return the entry of each row's layer.

    Args:
        values: [n_sites, p], or [p] where all layers share them.
        layer: int64 [B], one index for all rows, or None.

    Returns:
        [B, p]; [p] where all rows have the same.

    Raises:
        SaeError: The values differ by layer, and no layer is given.
    """
    if values.ndim == 1:
        return values
    if layer is None:
        raise SaeError(
            f"this SAE has parts for each of {len(values)} layers: say with `layer`"
            " which one a row is from"
        )
    if isinstance(layer, int):
        return values[layer]
    return rows_of_layers(values, layer)
