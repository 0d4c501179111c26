"""The thresholds at which rows have a wanted number of active latents, exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from schemas.sae import SaeSpec, inner_of
from trainer.distributed.learner_protocol import Parallel
from trainer.distributed.single_process import SINGLE_PROCESS
from trainer.saes.build import Sae, latents_kind, latents_of
from trainer.saes.scaled_rows import ScaledRows

ROWS = 1 << 17


# margins kept, over those wanted; the second where the first rows were unlike the rest
SPARES = (1.5, 6.0)


MARGINS = 1 << 30  # bytes of margins of the runs that are calibrated together


_BLOCK = 512  # rows whose margins [n, m] are in memory at once


def wanted_l0(spec: SaeSpec) -> float | None:
    """Return the mean L0 that a spec asks for outside training.

    None where it asks for none, or has it anyway (topk).
    """
    inner = inner_of(spec)
    if latents_kind(spec).selects_over_batch:
        return inner.latents_per_row
    return inner.steered_l0


class Levels:
    """The largest margins of rows, and the level that the wanted number of them exceed.

    There is one level for each threshold that moves by itself. With 100 rows and a
    wanted L0 of 32 it is the 3,200th largest margin.
    """

    def __init__(
        self, sae: Sae, l0: float, spare: float, parallel: Parallel = SINGLE_PROCESS
    ) -> None:
        """Begin with no rows.

        Args:
            sae: What gives the margins.
            l0: Margins per row that are to be above the level.
            spare: How many more margins are kept than are wanted, as a factor.
            parallel: The processes that have other rows or latents.
        """
        self._sae = sae
        none = sae.W_dec.new_zeros(0)
        n_thresholds = latents_of(sae).thresholds_by_layer()
        self._levels = [_Level(l0, spare, parallel, none) for _ in range(n_thresholds)]

    @property
    def seen(self) -> int:
        """Rows so far, in all processes."""
        return sum(level.rows for level in self._levels)

    def counts(self, rows: ScaledRows) -> list[int]:
        """Return how many of the rows there are for each threshold."""
        if len(self._levels) == 1 or rows.layer is None:
            return [len(rows.x)]
        counts: list[int] = torch.bincount(
            rows.layer, minlength=len(self._levels)
        ).tolist()
        return counts

    def add(self, rows: ScaledRows, counts: list[int]) -> None:
        """Take in rows of this process.

        counts: those of all processes, for each threshold.
        """
        for level, count in zip(self._levels, counts, strict=True):
            level.rows += count
        # all processes come to the first floor, with rows or none
        for first in range(0, max(1, len(rows.x)), _BLOCK):
            block = slice(first, first + _BLOCK)
            x = rows.x[block].flatten(1)  # a crosscoder's sites side by side
            layer = None if rows.layer is None else rows.layer[block]
            margins = latents_of(self._sae).margins(x, layer)
            for i, level in enumerate(self._levels):
                own = margins
                if layer is not None and len(self._levels) > 1:
                    own = margins[layer == i]
                level.add(own, together=first == 0)

    def enough(self) -> bool:
        """Return whether as many margins were kept as are wanted."""
        return all(level.enough() for level in self._levels)

    def found(self) -> Tensor:
        """Return by how much thresholds have to rise: [1], or [n_sites]."""
        return torch.stack([level.found() for level in self._levels])


class _Level:
    """The largest margins of some rows."""

    def __init__(
        self, l0: float, spare: float, parallel: Parallel, none: Tensor
    ) -> None:
        self._l0 = l0
        self._spare = spare
        self._parallel = parallel
        self._kept: list[Tensor] = [none]
        # only margins above it are kept
        self._floor: float | None = None
        self.rows = 0

    def add(self, margins: Tensor, together: bool) -> None:
        """Take in margins [n, m].

        together: all processes do this now, and may agree on a floor.
        """
        alone = self._parallel.world.size == 1
        if self._floor is None and (together or alone):
            self._floor = self._first_floor(margins)
        flat = margins.flatten()
        self._kept.append(flat if self._floor is None else flat[flat > self._floor])

    def enough(self) -> bool:
        n_kept = sum(len(margins) for margins in self._kept)
        return self._parallel.world.total(n_kept) >= self._wanted

    def found(self) -> Tensor:
        return self._parallel.nth_largest(torch.cat(self._kept), self._wanted)

    @property
    def _wanted(self) -> int:
        """The number of margins that are to be above the level."""
        return max(1, round(self._l0 * self.rows)) if self.rows else 0

    def _first_floor(self, margins: Tensor) -> float | None:
        """Return a level that more margins than are wanted exceed, going by these.

        None where there are none. With an L0 of 32, a spare of 1.5 and 512 rows it is
        the 24,576th largest.
        """
        flat = margins.flatten()
        n_kept = math.ceil(self._spare * self._l0 * len(margins))
        floor = math.inf
        if n_kept < len(flat):
            floor = float(flat.topk(n_kept).values[-1])
        elif len(margins):
            floor = -math.inf
        floor = self._parallel.world.least(floor)
        return None if floor == math.inf else floor
