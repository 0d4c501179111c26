"""The positions of the nonzeros in a sparse matrix of codes [B, m]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Pattern:
    """The positions (row, latent) of the n nonzeros of a matrix [B, m], in row order.

    A forward goes over the nonzeros row by row, a weight's gradient goes over them
    latent by latent. So the pattern can list them in both orders; the order by latent
    takes a sort and is made when it is first asked for.

    Attributes:
        rows: int64 [n], ascending, the row of each nonzero.
        latents: int64 [n], the latent of each nonzero. No (row, latent) comes twice.
        row_start: int64 [B], where each row's nonzeros begin in `rows` and `latents`.
            A row without nonzeros begins where the next one does.
        n_latents: m, the number of columns.

    Examples:
        The codes of B = 3 rows over m = 4 latents, with nonzeros a, b, c and d:

            latent    0  1  2  3
            row 0     .  a  .  b
            row 1     .  .  .  .
            row 2     c  .  .  d

        In row order they are a, b, c, d; in the order of latents c, a, b, d:

            rows            0 0 2 2
            latents         1 3 0 3
            row_start       0 2 2           row 1 is empty: it begins where row 2 does
            order           2 0 1 3         c is number 2 in row order, a is number 0
            rows_by_latent  2 0 0 2
            latent_start    0 1 2 2         latent 2 is empty
    """

    def __init__(
        self, rows: Tensor, latents: Tensor, row_start: Tensor, n_latents: int
    ) -> None:
        self.rows = rows
        self.latents = latents
        self.row_start = row_start
        self.n_latents = n_latents

    @classmethod
    def per_row(cls, latents: Tensor, n_latents: int) -> Pattern:
        """Return the pattern with the same number of nonzeros in every row.

        Args:
            latents: int64 [B, k], the latents of each row.
            n_latents: m.
        """
        n_rows, k = latents.shape
        device = latents.device
        rows = torch.arange(n_rows * k, device=device) // k
        row_start = torch.arange(n_rows, device=device) * k
        return cls(rows, latents.reshape(-1), row_start, n_latents)

    @classmethod
    def ragged(
        cls, rows: Tensor, latents: Tensor, n_rows: int, n_latents: int
    ) -> Pattern:
        """Return the pattern with any number of nonzeros in a row, none included.

        Args:
            rows: int64 [n], ascending.
            latents: int64 [n].
            n_rows: B, which `rows` alone does not tell: the last may be empty.
            n_latents: m.
        """
        every_row = torch.arange(n_rows, device=rows.device)
        row_start = torch.searchsorted(rows, every_row)
        return cls(rows, latents, row_start, n_latents)

    @property
    def n_rows(self) -> int:
        """B, the number of rows, empty ones included."""
        return len(self.row_start)

    @cached_property
    def _order_and_start(self) -> tuple[Tensor, Tensor]:
        # A stable sort keeps the rows of each latent ascending, so that sums over them
        # have the same order, and the same bits, every time.
        ascending, order = self.latents.sort(stable=True)
        every_latent = torch.arange(self.n_latents, device=ascending.device)
        return order, torch.searchsorted(ascending, every_latent)

    @property
    def order(self) -> Tensor:
        """int64 [n]: the nonzeros' numbers, by latent and within a latent by row."""
        return self._order_and_start[0]

    @property
    def latent_start(self) -> Tensor:
        """int64 [m]: where each latent's nonzeros begin in `order`."""
        return self._order_and_start[1]

    @cached_property
    def rows_by_latent(self) -> Tensor:
        """int64 [n]: the row of each nonzero, in the order of `order`."""
        return self.rows[self.order]


class Chosen(NamedTuple):
    """The entries that a selection keeps: values and positions, without gradients.

    On a device the number of entries does not depend on the data, so that the host need
    not wait for it: where fewer values are above 0, entries of value 0 fill up the
    rest. Within a row the latents ascend.

    Attributes:
        values: [n], the pre-activations at the pattern's positions, as computed.
        pattern: Where they are.
    """

    values: Tensor
    pattern: Pattern

    def split(self, sizes: Sequence[int]) -> list[Chosen]:
        """Return consecutive parts, with as many rows each as `sizes` says.

        Waits for the device: how many nonzeros a part has is in its memory.

        Examples:
            The pattern of three rows in `Pattern`'s example, split into [1, 2] rows:
            row_start 0 2 2 has the ends 0 2 2 4, so the first part has the nonzeros
            0 to 2, and the second, whose rows count from 0 again, has 2 to 4:

                rows 0 0, latents 1 3, row_start 0
                rows 1 1, latents 0 3, row_start 0 0
        """
        pattern = self.pattern
        n_nonzeros = pattern.row_start.new_full((1,), len(pattern.rows))
        ends = torch.cat([pattern.row_start, n_nonzeros]).tolist()
        parts: list[Chosen] = []
        first_row = 0
        for n_rows in sizes:
            stop_row = first_row + n_rows
            first = ends[first_row]
            nonzeros = slice(first, ends[stop_row])
            part = Pattern(
                rows=pattern.rows[nonzeros] - first_row,
                latents=pattern.latents[nonzeros],
                row_start=pattern.row_start[first_row:stop_row] - first,
                n_latents=pattern.n_latents,
            )
            parts.append(Chosen(self.values[nonzeros], part))
            first_row = stop_row
        return parts
