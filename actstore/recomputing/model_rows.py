"""Computes rows of a store again with the language model, and compares them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.errors import ActstoreError, first_line
from actstore.format import object_keys
from actstore.recomputing import allowances
from actstore.recomputing.allowances import Floats, coarsest
from actstore.recomputing.forward_rows import ForwardRows, Places
from actstore.recomputing.own_rounding import widening
from actstore.recomputing.sampled_sequences import SequenceRun
from actstore.recomputing.site_values import as_quantised
from actstore.recomputing.unit_rows import UnitRows, place, read_unit_rows
from actstore.store.store import Store

_SHOWN = 4  # rows that are named for each site


@dataclass(slots=True)
class SiteRows:
    """The result of comparing a site's rows with those computed again.

    Attributes:
        site: Its name.
        rows: How many were compared.
        wrong: How many are not what the model gives.
        worst: The largest distance of a value, as a share of what is allowed.
        times: At most so many times what is usual was allowed, since the model's own
            rounding moves its values so far.
        lines: A line for each of the first wrong ones.
    """

    site: str
    rows: int = 0
    wrong: int = 0
    worst: float = 0.0
    times: float = 1.0
    lines: list[str] = field(default_factory=list)


class ComputedRows(NamedTuple):
    """Rows of a unit that were computed again.

    Attributes:
        rows: All rows of the unit.
        slots: The slots of those that were computed, int64 [n].
        values: Their values by site, float64 [n, d].
    """

    rows: UnitRows
    slots: NDArray[np.int64]
    values: dict[str, Floats]


class ModelRows:
    """Computes rows again, run by run, and compares them at every site.

    Attributes:
        store: The store.
        forward: Computes rows; its sites are the store's, in any order.
        sites: What has been found so far, by site.
        unmeasured: Why the model's own rounding could not be measured where rows seemed
            wrong; empty where it could.
    """

    def __init__(self, store: Store, forward: ForwardRows) -> None:
        self.store = store
        self.forward = forward
        self.sites = {site: SiteRows(site) for site in store.sites}
        self.unmeasured = ""
        spec = store.manifest.spec
        self._dtype = coarsest(store.manifest.numerics.dtype, spec.autocast)

    def add(self, run: SequenceRun) -> None:
        """Compute the rows of some sequences again, and compare them.

        Raises:
            ModelError: The device has no room for one sequence.
            CorruptError: Stored rows cannot be read.
        """
        rows = read_unit_rows(self.store, run.unit)
        first = run.unit * self.store.layout.unit_sequences
        in_unit = rows.pairs[:, 0] - first
        slots = np.flatnonzero((in_unit >= run.start) & (in_unit < run.stop))
        if not len(slots):
            return
        places = Places(
            tokens=rows.tokens[run.start : run.stop],
            sequence=in_unit[slots].astype(np.int64) - run.start,
            position=rows.pairs[slots, 1].astype(np.int64),
        )
        computed = ComputedRows(rows, slots, self.forward.rows(places))
        times: dict[str, float] | None = None
        for site in self.store.sites:
            stored = self._stored(site, computed)
            worst = self._worst(site, computed, stored, 1)
            if (worst > 1).any():
                times = times or self._times(places, computed)
                worst = self._worst(site, computed, stored, times[site])
                self.sites[site].times = max(self.sites[site].times, times[site])
            self._keep(site, computed, stored, worst)

    def notes(self) -> Iterator[str]:
        """Yield what else there is to say."""
        times = {site: found.times for site, found in self.sites.items()}
        most = max(times, key=times.__getitem__)
        if times[most] > 1:
            yield (
                "this model magnifies its own rounding, as a forward in a wider"
                f" precision shows: up to {times[most]:.3g} times what is usual was"
                f" allowed, at {most}"
            )
        if self.unmeasured:
            yield (
                "how far the model's own rounding goes could not be measured:"
                f" {self.unmeasured}"
            )

    def problems(self) -> Iterator[str]:
        """Yield lines for the rows that are not what the model gives."""
        for found in self.sites.values():
            yield from found.lines
            if found.wrong > len(found.lines):
                yield (
                    f"wrong    {self.store.url}: site {found.site}: {found.wrong:,} of"
                    f" {found.rows:,} rows are not what the model gives"
                )

    def _stored(self, site: str, computed: ComputedRows) -> Floats:
        """Return the stored rows, float64 [n, d]."""
        ids = computed.rows.unit * self.store.layout.capacity + computed.slots
        stored: Floats = self.store.read(site, ids).astype(np.float64)
        return stored

    def _times(self, places: Places, computed: ComputedRows) -> dict[str, float]:
        """Return how many times what is usual may be allowed, by site."""
        try:
            wide = self.forward.wider_rows(places)
        except (ActstoreError, RuntimeError, TypeError, ValueError) as error:
            self.unmeasured = first_line(error)
            return dict.fromkeys(self.store.sites, 1.0)
        return {
            site: widening(computed.values[site], wide[site], self._dtype)
            for site in self.store.sites
        }

    def _worst(
        self, site: str, computed: ComputedRows, stored: Floats, times: float
    ) -> Floats:
        """Return how far rows are off, as shares of what is allowed, float64 [n]."""
        values = computed.values[site]
        with np.errstate(invalid="ignore", over="ignore"):
            shares, row_shares = self._shares(site, computed, stored, times)
        # A row that is not finite has no values to compare: both sides must be so.
        neither = ~np.isfinite(values).all(axis=1) & ~np.isfinite(stored).all(axis=1)
        worst = np.maximum(shares.max(axis=1), row_shares)
        worst = np.where(np.isnan(worst), np.inf, worst)
        worst[neither] = 0
        return worst

    def _keep(
        self, site: str, computed: ComputedRows, stored: Floats, worst: Floats
    ) -> None:
        """Keep what was found of a site's rows, [n]."""
        rows, slots = computed.rows, computed.slots
        values = computed.values[site]
        found = self.sites[site]
        found.rows += len(slots)
        found.worst = max(found.worst, float(worst.max()))
        wrong = np.flatnonzero(worst > 1)
        found.wrong += len(wrong)
        for i in wrong[: _SHOWN - len(found.lines)].tolist():
            channel = int(np.abs(stored[i] - values[i]).argmax())
            found.lines.append(
                f"wrong    {self._where(site, rows.unit)}:"
                f" {place(self.store, rows, int(slots[i]))}: channel {channel}: wanted"
                f" {values[i, channel]:.6g}, found {stored[i, channel]:.6g}"
                f" (the row is off by {worst[i]:.3g} times what rounding allows)"
                f"{_guess(site, stored[i], i, computed)}"
            )

    def _shares(
        self, site: str, computed: ComputedRows, stored: Floats, times: float
    ) -> tuple[Floats, Floats]:
        """Return how far stored values are off, as shares of what rounding allows.

        Args:
            site: The site.
            computed: Its rows computed again.
            stored: The same rows as they are stored, float64 [n, d].
            times: So many times what is usual of a forward is allowed.

        Returns:
            Of each value, float64 [n, d], and of each row as a whole, float64 [n].
        """
        values = computed.values[site]
        dtype = self.store.manifest.spec.dtype
        quantised = None
        if dtype == "int8":
            scale, step = self.store.int8_parts(site, computed.rows.unit)
            quantised = as_quantised(scale[computed.slots], step)
        of_storing = allowances.of_stored_values(values, dtype, quantised)
        of_forward = allowances.of_forward(values, self._dtype, times)
        of_rows = allowances.of_rows(values, self._dtype, of_storing, times)
        distances = np.abs(stored - values)
        of_values = of_storing + of_forward
        return distances / of_values, np.linalg.norm(distances, axis=1) / of_rows

    def _where(self, site: str, unit: int) -> str:
        """Return the URL of the shard with a site's rows of a unit."""
        key = object_keys.chunk_key(object_keys.acts_key(site), unit, 0)
        return f"{self.store.url}/{key}"


def _guess(site: str, stored: Floats, i: int, computed: ComputedRows) -> str:
    """Return words that say whose values a wrong row has, where that is plain.

    Args:
        site: The site of the row.
        stored: The row, float64 [d].
        i: Its place among the rows that were computed.
        computed: These.
    """
    nearest = _nearest(stored, computed.values[site])
    if nearest is not None and nearest != i:
        slot = computed.slots[nearest]
        sequence, position = computed.rows.pairs[slot].tolist()
        return f"; it has the values of sequence {sequence}, position {position}"
    for other, values in computed.values.items():
        if other == site or values.shape[1] != len(stored):
            continue
        if _nearest(stored, values[i : i + 1]) is not None:
            return f"; it has the values of site {other}"
    return ""


def _nearest(row: Floats, others: Floats) -> int | None:
    """Return which of some rows, [n, d], is nearly the same as a row, [d].

    None where none is within an eighth of its norm.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.linalg.norm(others - row, axis=1)
    distances = np.where(np.isfinite(distances), distances, np.inf)
    nearest = int(distances.argmin())
    limit = np.linalg.norm(row) / 8
    return nearest if distances[nearest] < limit else None
