"""From a forward's values to the rows of a unit: kept tokens, storage dtype, norms and
statistics.

All of it describes the rows *as stored* (after the cast), so that anyone who reads the
store finds the same figures. On a GPU the sums, the norms and the unit's permutation
are computed there; a finished unit goes to pinned memory on a stream of its own while
the model fills the other staging buffer. Buffers are made once and used again. Channel
sums are taken around a shift near the mean (the first rows of the unit), in float32
over a few hundred rows at a time and in float64 beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.errors import NumericsError
from actstore.format.permutation import unit_permutation
from actstore.format.statistics import none_finite
from actstore.harvesting.filled_unit import FilledUnit, _Channels
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.unit_buffer import UnitBuffer
from schemas.source import Site

ENOUGH = 256  # rows of a site, none of them finite, that end a harvest


_BLOCK = 256  # rows whose float32 copy stays in a core's cache


class _Batch(NamedTuple):
    """start, n: the rows of the unit it fills; keep: indices among [b * t], None for
    all; weights: float32 [2, n].
    """

    start: int
    n: int
    keep: Tensor | None
    weights: Tensor


@dataclass(slots=True)
class _Sums:
    """Channel sums of one site around `shift`, float64 [2, d] by stratum."""

    first: Tensor
    second: Tensor
    shift: Tensor | None = None


@dataclass(slots=True)
class RowCollector:
    """Fills a UnitBuffer from forward batches. `take` is a tap's sink."""

    sites: Sequence[Site]
    special_tokens: NDArray[np.int32]
    device: torch.device
    # two on the device, where that is not the host; they take turns
    staging: Sequence[UnitBuffer] = ()
    filter: TokenFilter = field(default_factory=TokenFilter)
    seed: int = 0
    # False: rows come in no sequences, so none of them is the first of one
    positions: bool = True
    _side: Any = None  # the CUDA stream of the copies to the host
    _target: UnitBuffer | None = None
    _turn: int = 0
    _buffer: UnitBuffer | None = None
    _batch: _Batch | None = None
    _sums: list[_Sums] = field(default_factory=list)
    _overflow: dict[int, Tensor] = field(default_factory=dict)
    # site -> rows so far, until the first finite one
    _no_finite: dict[int, int] = field(default_factory=dict)
    _n: int = 0

    def __post_init__(self) -> None:
        self._no_finite = dict.fromkeys(range(len(self.sites)), 0)

    def begin(self, buffer: UnitBuffer) -> None:
        """Start a unit in `buffer`."""
        self._buffer, self._target, self._n = buffer, buffer, 0
        if self.staging:
            self._target = self.staging[self._turn % len(self.staging)]
            self._turn += 1
            # its last copy to the host has to be over
            if self._target.ready is not None:
                torch.cuda.current_stream().wait_event(self._target.ready)
        self._overflow.clear()
        zeros = [
            torch.zeros(2, 2, site.d, dtype=torch.float64, device=self.device)
            for site in self.sites
        ]
        self._sums = [_Sums(pair[0], pair[1]) for pair in zeros]

    def batch(self, tokens: NDArray[np.int32], first_sequence: int) -> None:
        """Say which tokens, int32 [b, t] (-1: padding), the next values belong to."""
        assert self._buffer is not None
        sequence, position = np.nonzero(self.filter.keep(tokens))
        n, start = len(sequence), self._n
        self._buffer.rows[start : start + n, 0] = sequence + first_sequence
        self._buffer.rows[start : start + n, 1] = position
        special = np.isin(tokens[sequence, position], self.special_tokens)
        if self.positions:  # an imported sequence may begin behind padding
            special |= position == (tokens >= 0).argmax(axis=1)[sequence]
        self._buffer.special[start : start + n] = special
        weights = torch.from_numpy(np.stack([special, ~special]).astype(np.float32)).to(
            self.device
        )
        keep = None
        if n < tokens.size:
            keep = torch.from_numpy(sequence * tokens.shape[1] + position).to(
                self.device
            )
        self._batch = _Batch(start, n, keep, weights)
        self._n += n

    def take(self, site: int, x: Tensor) -> None:
        """Values of one site, [b, t, d]."""
        assert self._target is not None
        assert self._batch is not None
        batch, target = self._batch, self._target
        rows = x.flatten(0, 1)
        if batch.keep is not None:
            rows = rows.index_select(0, batch.keep)
        stop = batch.start + batch.n
        stored, norms = (
            target.values[site][batch.start : stop],
            target.norms[site, batch.start : stop],
        )
        step = _BLOCK if self.device.type == "cpu" else max(batch.n, 1)
        sums = torch.zeros(2, 2, stored.shape[1], device=self.device)
        for at in range(0, batch.n, step):
            block = slice(at, min(at + step, batch.n))
            stored[block].copy_(rows[block])
            self._add(
                site,
                rows[block],
                stored[block],
                norms[block],
                batch.weights[:, block],
                sums,
            )
        self._sums[site].first += sums[0]
        self._sums[site].second += sums[1]
        if site in self._no_finite:
            self._look_for_finite(site, norms)

    def finish(
        self, unit: int, n_sequences: int, batch: int | None = None
    ) -> FilledUnit:
        """The unit's rows; on a device other than the host the copies may still be
        under way.

        batch: the sequences per forward to record, where they were fewer than planned.
        """
        assert self._buffer is not None
        for site, overflow in self._overflow.items():
            if bool(overflow):
                raise NumericsError(
                    f"site {self.sites[site].name!r}: values too large for the storage"
                    f" dtype in unit {unit}; store bfloat16 or float32 (--dtype), or"
                    " leave the site out"
                )
        sums = [
            _Channels(s.first.cpu().numpy(), s.second.cpu().numpy(), _host(s.shift))
            for s in self._sums
        ]
        if self.staging:
            assert self._target is not None
            self._copy_to_host(unit, self._target, self._buffer)
        return FilledUnit(
            unit,
            n_sequences,
            self._n,
            self._buffer,
            sums,
            tuple(self.sites),
            batch,
            permuted=bool(self.staging),
        )

    def _add(
        self,
        site: int,
        x: Tensor,
        stored: Tensor,
        norms: Tensor,
        weights: Tensor,
        sums: Tensor,
    ) -> None:
        """Norms of some rows, and their part in the channel sums [2 (first, second), 2
        (strata), d].
        """
        wide = stored if stored.dtype == torch.float32 else stored.float()
        torch.linalg.vector_norm(wide, dim=1, out=norms)
        finite = norms.isfinite()
        every = self.device.type == "cpu" and bool(finite.all())
        shift = self._shift(site, wide)
        y = wide - shift
        if not every:
            y.masked_fill_(~finite[:, None], 0)
            lost = (x.isfinite() & ~stored.isfinite()).any()
            self._overflow[site] = (
                self._overflow[site] | lost if site in self._overflow else lost
            )
        sums[0].addmm_(weights, y)
        sums[1].addmm_(weights, y.square_())

    def _look_for_finite(self, site: int, norms: Tensor) -> None:
        """Raises NumericsError where enough rows of a site have come and none is
        finite.
        """
        if bool(norms.isfinite().any()):
            del self._no_finite[site]
            return
        self._no_finite[site] += len(norms)
        # `finish` tells an overflow
        if self._no_finite[site] >= ENOUGH and not bool(
            self._overflow.get(site, False)
        ):
            raise NumericsError(
                none_finite(
                    self.sites[site].name, f"its first {self._no_finite[site]:,} rows"
                )
            )

    def _shift(self, site: int, wide: Tensor) -> Tensor:
        """About the site's mean in this unit: any vector is right, a near one keeps the
        digits.
        """
        sums = self._sums[site]
        if sums.shift is None:
            mean = wide.mean(dim=0)
            sums.shift = torch.where(mean.isfinite(), mean, torch.zeros_like(mean))
        return sums.shift

    def _copy_to_host(self, unit: int, source: UnitBuffer, target: UnitBuffer) -> None:
        """Permute on the device and copy, behind what is queued now and beside what the
        model does next.
        """
        order = torch.from_numpy(unit_permutation(self.seed, unit, self._n)).to(
            self.device
        )
        cuda = self.device.type == "cuda"
        if cuda:
            self._side = self._side or torch.cuda.Stream(self.device)
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side) if cuda else nullcontext():
            for a, b in zip(source.values, target.values, strict=True):
                b[: self._n].copy_(a.index_select(0, order), non_blocking=True)
            target.norms[:, : self._n].copy_(
                source.norms[:, : self._n], non_blocking=True
            )
            if cuda:
                order.record_stream(self._side)
                target.ready = source.ready = torch.cuda.Event()
                target.ready.record(self._side)


def _host(shift: Tensor | None) -> NDArray[Any]:
    return np.zeros(1) if shift is None else shift.double().cpu().numpy()
