"""Computes rows of a store again with the language model, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.errors import ModelError
from actstore.format import object_keys
from actstore.harvesting.model_inputs import autocast, model_inputs
from actstore.model.forward import out_of_memory
from actstore.model.load_model import LoadedModel
from actstore.model.tap import Tap
from actstore.recomputing import allowances
from actstore.recomputing.allowances import Floats, coarsest
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
        lines: A line for each of the first wrong ones.
    """

    site: str
    rows: int = 0
    wrong: int = 0
    worst: float = 0.0
    lines: list[str] = field(default_factory=list)


class ModelRows:
    """Computes rows again, run by run, and compares them at every site.

    Attributes:
        store: The store.
        model: The model that is run.
        tap: Its sites; the same as the store's, in any order.
        device: Where the tokens go.
        sites: What has been found so far, by site.
    """

    def __init__(
        self, store: Store, model: LoadedModel, tap: Tap, device: torch.device
    ) -> None:
        self.store = store
        self.model = model
        self.tap = tap
        self.device = device
        self.sites = {site: SiteRows(site) for site in store.sites}
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
        sequence = torch.from_numpy(in_unit[slots].astype(np.int64)) - run.start
        position = torch.from_numpy(rows.pairs[slots, 1].astype(np.int64))
        values = self._forward(
            rows.tokens[run.start : run.stop], lambda x: x[sequence, position]
        )
        for site in self.store.sites:
            self._compare(site, rows, slots, values)

    def problems(self) -> Iterator[str]:
        """Yield lines for the rows that are not what the model gives."""
        for found in self.sites.values():
            yield from found.lines
            if found.wrong > len(found.lines):
                yield (
                    f"wrong    {self.store.url}: site {found.site}: {found.wrong:,} of"
                    f" {found.rows:,} rows are not what the model gives"
                )

    def _forward(
        self, tokens: NDArray[np.int32], chosen: Callable[[Tensor], Tensor]
    ) -> dict[str, Floats]:
        """Return some rows of each site for some sequences, float64 [n, d].

        Args:
            tokens: int32 [b, context], -1 where there is padding.
            chosen: Picks the rows of values [b, context, d].
        """
        parts: dict[str, list[Tensor]] = {site.name: [] for site in self.tap.sites}

        def keep(i: int, x: Tensor) -> None:
            parts[self.tap.sites[i].name].append(x.detach().cpu())

        size = len(tokens)
        while True:
            try:
                for start in range(0, len(tokens), size):
                    self._run(tokens[start : start + size], keep)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise ModelError(
                        f"out of memory on {self.device} with one sequence of"
                        f" {tokens.shape[1]}"
                    ) from error
                size //= 2
                for kept in parts.values():
                    kept.clear()
        return {
            name: chosen(torch.cat(kept)).double().numpy()
            for name, kept in parts.items()
        }

    def _run(
        self, tokens: NDArray[np.int32], keep: Callable[[int, Tensor], None]
    ) -> None:
        """Run the model on some sequences, int32 [b, context]."""
        ids, mask = model_inputs(tokens, self.model.pad, self.device)
        with autocast(self.store.manifest.spec.autocast, self.device):
            self.tap.run(ids, mask, keep)

    def _compare(
        self,
        site: str,
        rows: UnitRows,
        slots: NDArray[np.int64],
        values: dict[str, Floats],
    ) -> None:
        """Compare the rows in some slots, [n], with the values computed, [n, d]."""
        computed = values[site]
        ids = rows.unit * self.store.layout.capacity + slots
        stored = self.store.read(site, ids).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            shares, row_shares = self._shares(site, rows.unit, slots, stored, computed)
        # A row that is not finite has no values to compare: both sides must be so.
        neither = ~np.isfinite(computed).all(axis=1) & ~np.isfinite(stored).all(axis=1)
        worst = np.maximum(shares.max(axis=1), row_shares)
        worst = np.where(np.isnan(worst), np.inf, worst)
        worst[neither] = 0
        found = self.sites[site]
        found.rows += len(slots)
        found.worst = max(found.worst, float(worst.max()))
        wrong = np.flatnonzero(worst > 1)
        found.wrong += len(wrong)
        for i in wrong[: _SHOWN - len(found.lines)].tolist():
            channel = int(np.abs(stored[i] - computed[i]).argmax())
            found.lines.append(
                f"wrong    {self._where(site, rows.unit)}:"
                f" {place(self.store, rows, int(slots[i]))}: channel {channel}: wanted"
                f" {computed[i, channel]:.6g}, found {stored[i, channel]:.6g}"
                f" (the row is off by {worst[i]:.3g} times what rounding allows)"
                f"{self._guess(site, stored[i], i, rows, slots, values)}"
            )

    def _shares(
        self,
        site: str,
        unit: int,
        slots: NDArray[np.int64],
        stored: Floats,
        computed: Floats,
    ) -> tuple[Floats, Floats]:
        """Return how far stored values are off, as shares of what rounding allows.

        Args:
            site: The site.
            unit: The unit.
            slots: Slots of the rows, int64 [n].
            stored: The rows, float64 [n, d].
            computed: The same rows computed again, float64 [n, d].

        Returns:
            Of each value, float64 [n, d], and of each row as a whole, float64 [n].
        """
        dtype = self.store.manifest.spec.dtype
        quantised = None
        if dtype == "int8":
            scale, step = self.store.int8_parts(site, unit)
            quantised = as_quantised(scale[slots], step)
        of_storing = allowances.of_stored_values(computed, dtype, quantised)
        of_values = of_storing + allowances.of_forward(computed, self._dtype)
        of_rows = allowances.of_rows(computed, self._dtype, of_storing)
        distances = np.abs(stored - computed)
        return distances / of_values, np.linalg.norm(distances, axis=1) / of_rows

    def _where(self, site: str, unit: int) -> str:
        """Return the URL of the shard with a site's rows of a unit."""
        key = object_keys.chunk_key(object_keys.acts_key(site), unit, 0)
        return f"{self.store.url}/{key}"

    def _guess(
        self,
        site: str,
        stored: Floats,
        i: int,
        rows: UnitRows,
        slots: NDArray[np.int64],
        values: dict[str, Floats],
    ) -> str:
        """Return words that say whose values a wrong row has, where that is plain.

        Args:
            site: The site of the row.
            stored: The row, float64 [d].
            i: Its place among the rows that were computed.
            rows: The rows of its unit.
            slots: Slots of the rows that were computed, int64 [n].
            values: What was computed at each site, float64 [n, d].
        """
        nearest = _nearest(stored, values[site])
        if nearest is not None and nearest != i:
            sequence, position = rows.pairs[slots[nearest]].tolist()
            return f"; it has the values of sequence {sequence}, position {position}"
        for other, computed in values.items():
            if other == site or computed.shape[1] != len(stored):
                continue
            if _nearest(stored, computed[i : i + 1]) is not None:
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
