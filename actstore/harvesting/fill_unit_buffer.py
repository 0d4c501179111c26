"""Puts the values of a model's forwards into the buffer of a unit, as rows.

Kept tokens are picked, and values are cast to the storage dtype; norms and channel sums
are taken on the way.

All figures are of the rows *as stored* (after the cast), so that anyone who reads the
store finds the same ones. On a GPU the sums, the norms and the unit's permutation are
computed there; a filled unit goes to pinned memory on a CUDA stream of its own while
the model fills the other staging buffer. Channel sums are taken around a shift near the
mean (that of the unit's first rows), in float32 over a few hundred rows at a time and
in float64 beyond.
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
from actstore.harvesting.filled_unit import ChannelSums, FilledUnit
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.unit_buffer import UnitBuffer
from actstore.machine.to_device import to_device
from schemas.source import Site

# Rows of a site, none of them finite, that end a harvest.
ENOUGH = 256

# Rows that the CPU takes at a time, so that their float32 copy stays in a core's cache.
_BLOCK_ROWS = 256


class _Batch(NamedTuple):
    """The rows of the forward that is under way: where they come from and go to.

    Attributes:
        start: The first of the unit's rows that they fill.
        n_rows: How many tokens of the batch are kept.
        kept: Which tokens are, int64 [n_rows] among [b * t]; None: all.
        stratum_weights: float32 [2, n_rows]: 1 in the stratum that a row is of, 0 in
            the other. Multiplying by it sums both strata at once.
    """

    start: int
    n_rows: int
    kept: Tensor | None
    stratum_weights: Tensor


@dataclass(slots=True)
class _SiteSums:
    """Channel sums of one site over a unit, on the device.

    Attributes:
        first: Sum of `value - shift` by stratum, float64 [2, d].
        second: Sum of `(value - shift) ** 2` by stratum, float64 [2, d].
        shift: float32 [d]; None until the unit's first rows have come.
    """

    first: Tensor
    second: Tensor
    shift: Tensor | None = None


@dataclass(slots=True)
class RowCollector:
    """Fills a UnitBuffer with the rows of one unit, forward by forward.

    `begin_unit`, then for each forward `begin_batch` and for each site `add_values` (as
    a tap's sink), then `finish_unit`.

    Attributes:
        sites: The sites that are harvested.
        special_tokens: Ids of special tokens, int32 [n]; their rows have a stratum of
            their own.
        device: Where the values are.
        staging: Two buffers on the device, which take turns; none where that is the
            host.
        filter: Which tokens' rows are kept.
        seed: The seed of the units' permutation.
        positions: Whether rows have a position in a sequence. An import of single rows
            has none, so none of its rows is the first of a sequence.
    """

    sites: Sequence[Site]
    special_tokens: NDArray[np.int32]
    device: torch.device
    staging: Sequence[UnitBuffer] = ()
    filter: TokenFilter = field(default_factory=TokenFilter)
    seed: int = 0
    positions: bool = True
    # The CUDA stream of the copies to the host, made with the first one.
    _copy_stream: Any = None
    # The unit's own buffer on the host, and the one that is filled: the same, or one of
    # `staging`.
    _host_buffer: UnitBuffer | None = None
    _target: UnitBuffer | None = None
    _n_staged: int = 0
    _batch: _Batch | None = None
    _sums: list[_SiteSums] = field(default_factory=list)
    # For each site, whether a finite value became infinite in the storage dtype, bool
    # [] on the device. It stays there until the unit is full: no forward waits for it.
    _overflow: dict[int, Tensor] = field(default_factory=dict)
    # The number of rows so far, for each site that has had no finite row yet.
    _no_finite: dict[int, int] = field(default_factory=dict)
    _n_rows: int = 0

    def __post_init__(self) -> None:
        self._no_finite = dict.fromkeys(range(len(self.sites)), 0)

    def begin_unit(self, buffer: UnitBuffer) -> None:
        """Start a unit whose rows go to `buffer` on the host.

        A unit that was begun and not finished is forgotten.
        """
        self._host_buffer = buffer
        self._target = buffer
        self._n_rows = 0
        if self.staging:
            self._target = self.staging[self._n_staged % len(self.staging)]
            self._n_staged += 1
            # The copy of its last unit to the host may not have ended yet.
            if self._target.ready is not None:
                torch.cuda.current_stream().wait_event(self._target.ready)
        self._overflow.clear()
        self._sums = []
        for site in self.sites:
            zeros = torch.zeros(2, 2, site.d, dtype=torch.float64, device=self.device)
            self._sums.append(_SiteSums(first=zeros[0], second=zeros[1]))

    def begin_batch(self, tokens: NDArray[np.int32], first_sequence: int) -> None:
        """Say of which tokens the next values are, and note where their rows come from.

        Args:
            tokens: int32 [b, t], -1 where there is padding.
            first_sequence: The number of the first of these sequences in the store.
        """
        assert self._host_buffer is not None
        sequence, position = np.nonzero(self.filter.keep(tokens))
        n_rows = len(sequence)
        start = self._n_rows
        stop = start + n_rows
        self._host_buffer.rows[start:stop, 0] = sequence + first_sequence
        self._host_buffer.rows[start:stop, 1] = position
        special = np.isin(tokens[sequence, position], self.special_tokens)
        if self.positions:
            # Not always position 0: an imported sequence may have padding before its
            # first token.
            first_position = (tokens >= 0).argmax(axis=1)
            special |= position == first_position[sequence]
        self._host_buffer.special[start:stop] = special
        weights = np.stack([special, ~special]).astype(np.float32)
        kept = None
        if n_rows < tokens.size:
            flat = sequence * tokens.shape[1] + position
            kept = to_device(torch.from_numpy(flat), self.device)
        stratum_weights = to_device(torch.from_numpy(weights), self.device)
        self._batch = _Batch(start, n_rows, kept, stratum_weights)
        self._n_rows = stop

    def add_values(self, site: int, values: Tensor) -> None:
        """Keep the rows of one site in the batch that was begun.

        Args:
            site: The site's index among `sites`.
            values: [b, t, d], as the forward computed them.

        Raises:
            NumericsError: Many rows of the site have come, and none is finite.
        """
        assert self._target is not None
        assert self._batch is not None
        batch = self._batch
        rows = values.flatten(0, 1)
        if batch.kept is not None:
            rows = rows.index_select(0, batch.kept)
        stop = batch.start + batch.n_rows
        stored = self._target.values[site][batch.start : stop]
        norms = self._target.norms[site, batch.start : stop]
        step = _BLOCK_ROWS if self.device.type == "cpu" else max(batch.n_rows, 1)
        # First and second sums, by stratum.
        sums = torch.zeros(2, 2, stored.shape[1], device=self.device)
        for start in range(0, batch.n_rows, step):
            block = slice(start, min(start + step, batch.n_rows))
            stored[block].copy_(rows[block])
            self._add_block(
                site,
                rows[block],
                stored[block],
                norms[block],
                batch.stratum_weights[:, block],
                sums,
            )
        self._sums[site].first += sums[0]
        self._sums[site].second += sums[1]
        if site in self._no_finite:
            self._look_for_finite(site, norms)

    def finish_unit(
        self, unit: int, n_sequences: int, batch: int | None = None
    ) -> FilledUnit:
        """Return the unit's rows; copies from a device may still be under way.

        Args:
            unit: Which unit of the store it is.
            n_sequences: How many sequences its token block has.
            batch: The sequences per forward to record, where they were fewer than
                planned.

        Raises:
            NumericsError: Finite values are too large for the storage dtype.
        """
        assert self._host_buffer is not None
        for site, overflow in self._overflow.items():
            if bool(overflow):
                raise NumericsError(
                    f"site {self.sites[site].name!r}: values too large for the storage"
                    f" dtype in unit {unit}; store bfloat16 or float32 (--dtype), or"
                    " leave the site out"
                )
        channel_sums = [_on_host(sums) for sums in self._sums]
        if self.staging:
            assert self._target is not None
            self._copy_to_host(unit, self._target, self._host_buffer)
        return FilledUnit(
            unit=unit,
            n_sequences=n_sequences,
            n_rows=self._n_rows,
            buffer=self._host_buffer,
            channel_sums=channel_sums,
            sites=tuple(self.sites),
            batch=batch,
            permuted=bool(self.staging),
        )

    def _add_block(
        self,
        site: int,
        computed: Tensor,
        stored: Tensor,
        norms: Tensor,
        stratum_weights: Tensor,
        sums: Tensor,
    ) -> None:
        """Write the norms of n rows, and add the rows to the channel sums.

        Args:
            site: The site's index.
            computed: The rows before the cast, [n, d].
            stored: The same rows after the cast, [n, d].
            norms: float32 [n], written here.
            stratum_weights: float32 [2, n].
            sums: float32 [2 (first, second), 2 (strata), d], added to here.
        """
        wide = stored if stored.dtype == torch.float32 else stored.float()
        torch.linalg.vector_norm(wide, dim=1, out=norms)
        finite = norms.isfinite()
        # On a GPU, asking would make the host wait, so rows are always masked there.
        all_finite = self.device.type == "cpu" and bool(finite.all())
        deviations = wide - self._shift(site, wide)
        if not all_finite:
            deviations.masked_fill_(~finite[:, None], 0)
            lost = (computed.isfinite() & ~stored.isfinite()).any()
            if site in self._overflow:
                lost = self._overflow[site] | lost
            self._overflow[site] = lost
        sums[0].addmm_(stratum_weights, deviations)
        sums[1].addmm_(stratum_weights, deviations.square_())

    def _look_for_finite(self, site: int, norms: Tensor) -> None:
        """Raise NumericsError once enough rows of a site have come and none is finite.

        norms: float32 [n], those of the batch.
        """
        if bool(norms.isfinite().any()):
            del self._no_finite[site]
            return
        self._no_finite[site] += len(norms)
        n_rows = self._no_finite[site]
        if n_rows < ENOUGH:
            return
        # An overflow has a cause and a message of its own, which `finish_unit` gives.
        if bool(self._overflow.get(site, False)):
            return
        name = self.sites[site].name
        raise NumericsError(none_finite(name, f"its first {n_rows:,} rows"))

    def _shift(self, site: int, rows: Tensor) -> Tensor:
        """Return what is taken off a site's rows before they are summed, float32 [d].

        It is the mean of the unit's first rows, float32 [n, d]. Any vector would give
        the right sums; one near the mean keeps the most digits.
        """
        sums = self._sums[site]
        if sums.shift is None:
            mean = rows.mean(dim=0)
            sums.shift = torch.where(mean.isfinite(), mean, torch.zeros_like(mean))
        return sums.shift

    def _copy_to_host(self, unit: int, source: UnitBuffer, target: UnitBuffer) -> None:
        """Permute the unit on the device and copy it to the host.

        With CUDA the copies begin after what is queued now, and go on beside what the
        model does next.
        """
        n_rows = self._n_rows
        permutation = unit_permutation(self.seed, unit, n_rows)
        order = to_device(torch.from_numpy(permutation), self.device)
        cuda = self.device.type == "cuda"
        if cuda:
            if self._copy_stream is None:
                self._copy_stream = torch.cuda.Stream(self.device)
            self._copy_stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copy_stream) if cuda else nullcontext():
            for on_device, on_host in zip(source.values, target.values, strict=True):
                on_host[:n_rows].copy_(
                    on_device.index_select(0, order), non_blocking=True
                )
            norms = source.norms[:, :n_rows]
            target.norms[:, :n_rows].copy_(norms, non_blocking=True)
            if cuda:
                # Without this, its memory could be given away while it is still read.
                order.record_stream(self._copy_stream)
                copied = torch.cuda.Event()
                copied.record(self._copy_stream)
                target.ready = copied
                source.ready = copied


def _on_host(sums: _SiteSums) -> ChannelSums:
    """Copy a site's channel sums to the host."""
    shift = np.zeros(1)
    if sums.shift is not None:
        shift = sums.shift.double().cpu().numpy()
    return ChannelSums(sums.first.cpu().numpy(), sums.second.cpu().numpy(), shift)
