"""Draws rows in proportion to a weight, in one pass over more than memory holds.

Of all rows the n with the largest keys log(u) / weight are kept, u uniform on (0, 1):
that draws n rows without replacement, each next one in proportion to the weights of
those left (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir").
With u = 0.5 for each, weights of 1, 2 and 7 give the keys -0.69, -0.35 and -0.10, so
that the third is drawn first; with other u the first is, once in ten times. u is a hash
of the draw's key and the row's id, so neither the order in which rows come nor the
process that sees them matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.format.permutation import key64, mix64
from trainer.saes.scaled_rows import ScaledRows

# 2^64 over the golden ratio: it spreads consecutive ids over all 64 bits.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LEAST = 1e-300  # a weight of 0, or none: drawn when no other row is left


class Drawn(NamedTuple):
    """Rows that were drawn, the first drawn first."""

    key: Tensor
    """float64 [n]: the larger, the earlier."""
    id: Tensor
    """int64 [n]."""
    x: Tensor
    """[n, d]."""
    layer: Tensor | None
    """int64 [n]."""
    target: Tensor | None
    """[n, d_out]."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        """Return the same change of every field that is there.

        change: From [n, ...] to [k, ...], the same k rows of each.
        """
        return Drawn(
            change(self.key),
            change(self.id),
            change(self.x),
            None if self.layer is None else change(self.layer),
            None if self.target is None else change(self.target),
        )


class Draw:
    """The n rows drawn so far."""

    def __init__(self, n: int, *key: int) -> None:
        """Begin a draw.

        Args:
            n: How many rows.
            key: Integers; another key, another draw.
        """
        self._n = n
        self._key = key64(*key)
        self._pieces: list[Drawn] = []
        self._n_held = 0
        # Rows with a smaller key than this can no longer be among the n.
        self._least = -np.inf

    def add(self, rows: ScaledRows, weight: Tensor, ids: Tensor) -> None:
        """Take in rows.

        Args:
            rows: B of them.
            weight: [B], at least 0.
            ids: int64 [B]. A row that comes twice can be drawn once.
        """
        device = rows.x.device
        # on the host: float64, and a hash in uint64, that no device need have
        host_weight = weight.double().cpu().numpy()
        host_ids = ids.cpu().numpy()
        key = torch.from_numpy(self._keys(host_weight, host_ids))
        is_candidate = key > self._least
        kept = is_candidate.nonzero()[:, 0].to(device)
        new = Drawn(key.to(device), ids, rows.x, rows.layer, rows.target)
        self._pieces.append(new.map(lambda field: field[kept]))
        self._n_held += len(kept)
        # not after every batch: joining the pieces copies all that is held
        if self._n_held > 2 * self._n + len(key):
            self.result()

    def result(
        self, gathered: Callable[[Tensor], Tensor] | None = None
    ) -> Drawn | None:
        """Return at most n rows; None where none was added.

        gathered: Joins a tensor's rows [n, ...] with those of the other processes'
            draws.
        """
        if not self._pieces:
            return None
        fields = [
            None if field[0] is None else torch.cat(field)
            for field in zip(*self._pieces, strict=True)
        ]
        best = self._best(Drawn(*fields))  # type: ignore[arg-type]
        if gathered is not None:
            return self._best(best.map(gathered))
        self._pieces = [best]
        self._n_held = len(best.key)
        if self._n_held == self._n:
            self._least = float(best.key[-1])
        return best

    def _best(self, rows: Drawn) -> Drawn:
        """Return the n rows with the largest keys, each once."""
        order = rows.key.argsort(descending=True, stable=True)
        # `unique` sorts by id; the places where ids first come, sorted, have the order
        # of keys again. Ids 7, 4, 7, 2 first come at places 0, 1 and 3.
        ordered_ids = rows.id[order].cpu().numpy()
        _, first_places = np.unique(ordered_ids, return_index=True)
        best_places = np.sort(first_places)[: self._n]
        best = torch.from_numpy(best_places).to(order.device)
        chosen = order[best]
        return rows.map(lambda field: field[chosen])

    def _keys(
        self,
        weight: NDArray[np.float64],
        ids: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return log(u) / weight, float64 [B], u from the upper 53 bits of a hash."""
        with np.errstate(over="ignore"):
            words = mix64(ids.astype(np.uint64) * _GOLDEN + self._key)
        # half a step up, so that u is never 0, which has no logarithm
        upper_bits = (words >> np.uint64(11)).astype(np.float64)
        uniform = (upper_bits + 0.5) * 2.0**-53
        # a row with a NaN loss must not be drawn before all others
        weight = np.where(np.isfinite(weight), weight, 0.0)
        positive = np.maximum(weight, _LEAST)
        keys: NDArray[np.float64] = np.log(uniform) / positive
        return keys
