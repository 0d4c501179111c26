"""ScaledRows drawn in proportion to a weight, from more rows than fit into memory, in
one pass.

Of all rows the n with the largest keys log(u) / weight are kept, u uniform on (0, 1):
that draws n rows without replacement, each next one in proportion to the weights of
those left (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir").
u is a hash of the draw's key and the row's id, so neither the order in which rows come
nor the process that sees them matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.format.permutation import key64, mix64
from trainer.saes.ops import ScaledRows

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LEAST = 1e-300  # a weight of 0, or none: drawn when no other row is left


class Drawn(NamedTuple):
    """ScaledRows with their keys, float64 [n], and ids, int64 [n]."""

    key: Tensor
    id: Tensor
    x: Tensor
    layer: Tensor | None
    target: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        """The same change of every field that is there."""
        return Drawn(*(None if field is None else change(field) for field in self))  # type: ignore[arg-type]


class Draw:
    """The n rows drawn so far. key: integers; another one, another draw."""

    def __init__(self, n: int, *key: int) -> None:
        self._n, self._key = n, key64(*key)
        self._pieces: list[Drawn] = []
        self._held, self._least = 0, -np.inf

    def add(self, rows: ScaledRows, weight: Tensor, ids: Tensor) -> None:
        """ScaledRows [B], weight >= 0 [B], and int64 ids [B]: a row that comes twice
        can be drawn once.
        """
        key = torch.from_numpy(
            self._keys(weight.double().cpu().numpy(), ids.cpu().numpy())
        )
        at = (key > self._least).nonzero()[:, 0].to(rows.x.device)
        new = Drawn(key.to(rows.x.device), ids, rows.x, rows.layer, rows.target)
        self._pieces.append(new.map(lambda field: field[at]))
        self._held += len(at)
        if self._held > 2 * self._n + len(key):
            self.result()

    def result(
        self, gathered: Callable[[Tensor], Tensor] | None = None
    ) -> Drawn | None:
        """At most n rows, the first drawn first; None where none was added.

        gathered: joins a tensor's rows with those of the other processes' draws.
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
        self._pieces, self._held = [best], len(best.key)
        if self._held == self._n:
            self._least = float(best.key[-1])
        return best

    def _best(self, rows: Drawn) -> Drawn:
        order = rows.key.argsort(descending=True, stable=True)
        _, first = np.unique(rows.id[order].cpu().numpy(), return_index=True)
        at = order[torch.from_numpy(np.sort(first)[: self._n]).to(order.device)]
        return rows.map(lambda field: field[at])

    def _keys(
        self, weight: NDArray[np.float64], ids: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            words = mix64(ids.astype(np.uint64) * _GOLDEN + self._key)
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        weight = np.where(np.isfinite(weight), weight, 0.0)
        keys: NDArray[np.float64] = np.log(uniform) / np.maximum(weight, _LEAST)
        return keys
