"""Where the nonzeros of a sparse [B, m] matrix are, by row and by latent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Pattern:
    """Positions (row, latent) of n nonzeros in row order; the order by latent is made
    when first asked for.

    rows, latents: int64 [n]; row_start: int64 [B], where each row's nonzeros begin.
    Positions must differ.
    """

    def __init__(
        self, rows: Tensor, latents: Tensor, row_start: Tensor, n_latents: int
    ) -> None:
        self.rows, self.latents, self.row_start, self.n_latents = (
            rows,
            latents,
            row_start,
            n_latents,
        )

    @classmethod
    def per_row(cls, latents: Tensor, n_latents: int) -> Pattern:
        """The same number of nonzeros in every row: latents [B, k]."""
        n_rows, k = latents.shape
        every = torch.arange(n_rows * k, device=latents.device)
        start = torch.arange(n_rows, device=latents.device) * k
        return cls(every // k, latents.reshape(-1), start, n_latents)

    @classmethod
    def ragged(
        cls, rows: Tensor, latents: Tensor, n_rows: int, n_latents: int
    ) -> Pattern:
        """Any number in each row, none included: rows [n] ascending, latents [n]."""
        every = torch.arange(n_rows, device=rows.device)
        return cls(rows, latents, torch.searchsorted(rows, every), n_latents)

    @property
    def n_rows(self) -> int:
        return len(self.row_start)

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor]:
        ordered, order = self.latents.sort(stable=True)
        every = torch.arange(self.n_latents, device=ordered.device)
        return order, torch.searchsorted(ordered, every)

    @property
    def order(self) -> Tensor:
        """int64 [n]: the nonzeros in the order of their latents, then of their rows."""
        return self._by_latent[0]

    @property
    def latent_start(self) -> Tensor:
        """int64 [m]: where each latent's nonzeros begin in `order`."""
        return self._by_latent[1]

    @cached_property
    def rows_by_latent(self) -> Tensor:
        """int64 [n]: `rows` in `order`."""
        return self.rows[self.order]


class Chosen(NamedTuple):
    """What a selection keeps: values [n] of the pattern's nonzeros, as they were
    computed, without a gradient.

    Values of 0 only fill it up, on a device, to a size that does not depend on the
    data. In a row latents ascend.
    """

    values: Tensor
    pattern: Pattern

    def split(self, sizes: Sequence[int]) -> list[Chosen]:
        """By rows: a part for each of these numbers of rows. Waits for a device: sizes
        are the data's.
        """
        pattern, out, first = self.pattern, [], 0
        ends = torch.cat(
            [pattern.row_start, pattern.row_start.new_full((1,), len(pattern.rows))]
        ).tolist()
        for size in sizes:
            own = slice(ends[first], ends[first + size])
            start = pattern.row_start[first : first + size] - ends[first]
            rows = pattern.rows[own] - first
            out.append(
                Chosen(
                    self.values[own],
                    Pattern(rows, pattern.latents[own], start, pattern.n_latents),
                )
            )
            first += size
        return out
