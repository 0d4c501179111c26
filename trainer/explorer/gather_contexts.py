"""One pass over a store's rows: what every latent of an SAE fires on.

Rows come unit by unit and sequence by sequence, all sites of the same tokens one after
the other, are encoded in blocks, and only their nonzeros go on. These are collected up
to a limit and then, latent by latent, counted and kept (`kept_firings.py`). What is
proportional to the dictionary lies in files (`latent_arrays.py`), so that the memory
that the pass takes is the one it was given.

Activations are what `TrainedSae.encode` gives, in the units of training, in which the
layers of a mixture are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actstore.store.store import Store
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import row_ids
from trainer.explorer.activation_bins import BINS, bin_of
from trainer.explorer.firings import Codes, Firings, block_rows, codes_of, joined
from trainer.explorer.hashed import hashed
from trainer.explorer.kept_firings import Keeper, SortedFirings, numbers_within
from trainer.explorer.latent_arrays import Arrays, Entry, LatentArrays
from trainer.explorer.row_sketch import (
    MOST_NONZEROS,
    NONZERO_BYTES,
    RowSketch,
    together,
    trajectories,
)
from trainer.explorer.token_windows import TokenFile
from trainer.runs.run_store import check_fits
from trainer.runs.trained_sae import TrainedSae

Ints = NDArray[np.int64]
Tick = Callable[[int, int], None]

MEMORY = 1 << 30  # bytes, beside the SAE itself
CONTEXTS = 12  # strongest contexts of a latent
GROUPS = 10  # quantile groups
PER_GROUP = 2  # contexts of each
TOGETHER = 8  # latents that fire with a latent
SPARE = 2  # sampled firings for each context of a group: some are shown already
STAGE = 70  # a part of the seed, so that no other draw shares it
# Bytes that a buffered firing takes until it is counted: its own twelve, and sorted
# copies, keys and scores.
_FIRING_BYTES = 96
_ROW_BYTES = 64
ALL_SITES = "all sites"  # the layer of a crosscoder's latents


@dataclass(frozen=True)
class Gathered:
    """The result of a pass over the rows, in files below a folder.

    Attributes:
        arrays: `firings` int64 and `sums` float64 [m, n_layers], `most` float32 [m,
            n_layers], `histogram` [m, BINS], those of the keepers, and from the
            sketch `trajectory` [m, n_layers], `trajectory_tokens` [m] and the latents
            that fire together with each, `together` [m, TOGETHER], 1 more than their
            numbers, so that 0 is none, with `together_cosine` and `together_share`.
        keepers: The strongest firings ("top"), the strongest of each layer ("layer"),
            and a uniform sample ("sample").
        layers: The layers that latents fire at: sites, or one for a crosscoder.
        sketch: Whole rows of a sample of tokens.
        tokens: The tokens of the sequences that were looked at.
        rows: Rows of each layer that were looked at.
        split: "held_out" or "train".
    """

    arrays: LatentArrays
    keepers: dict[str, Keeper]
    layers: tuple[str, ...]
    sketch: RowSketch
    tokens: TokenFile
    rows: int
    split: str


@dataclass
class _Buffer:
    """Firings that wait to be counted."""

    parts: list[Firings] = field(default_factory=list)
    bytes: int = 0

    def add(self, firings: Firings) -> None:
        self.parts.append(firings)
        self.bytes += _FIRING_BYTES * len(firings.codes.row)
        self.bytes += _ROW_BYTES * len(firings.row_id)


def gather(
    sae: TrainedSae,
    store: Store,
    folder: Path,
    *,
    split: str = "held_out",
    max_rows: int | None = None,
    n_contexts: int = CONTEXTS,
    memory: int = MEMORY,
    seed: int = 0,
    tick: Tick | None = None,
) -> Gathered:
    """Gather the contexts of every latent.

    Args:
        sae: The SAE.
        store: A store that has its sites.
        folder: An empty folder for files: some kilobytes for each latent.
        split: "held_out" or "train".
        max_rows: At most so many rows of each site, the first ones; None for all.
        n_contexts: How many of the strongest contexts of each latent are kept.
        memory: Bytes that may be taken, beside the SAE and one sequence of rows.
        seed: What the samples depend on.
        tick: Is told how many rows, over all sites, are done, and how many there are.

    Raises:
        RunError: The store does not have the SAE's sites, or no rows of the split.
    """
    check_fits(sae.record, store)
    ids = row_ids(sae, store, split)[:max_rows]
    if not len(ids):
        raise RunError(
            f"{store.url}: no {split} rows; a store of fewer than 20 units holds none"
            " out, use --split train"
        )
    layers = (ALL_SITES,) if sae.of_all_sites else sae.sites
    keepers = {
        "top": Keeper("top", 1, n_contexts, one_per_sequence=True),
        "layer": Keeper("layer", len(layers), 1, one_per_sequence=False),
        "sample": Keeper("sample", 1, GROUPS * PER_GROUP * SPARE, False),
    }
    entries = {
        "firings": Entry(np.int64, (len(layers),)),
        "sums": Entry(np.float64, (len(layers),)),
        "most": Entry(np.float32, (len(layers),)),
        "histogram": Entry(np.uint32, (BINS,)),
        "trajectory": Entry(np.float32, (len(layers),)),
        "trajectory_tokens": Entry(np.int64),
        "together": Entry(np.int32, (TOGETHER,)),
        "together_cosine": Entry(np.float32, (TOGETHER,)),
        "together_share": Entry(np.float32, (TOGETHER,)),
    }
    for keeper in keepers.values():
        entries.update(keeper.entries())
    arrays = LatentArrays(folder, sae.n_latents, entries, memory // 8)
    tokens = TokenFile(folder, store)
    sketch = RowSketch(seed, min(MOST_NONZEROS, memory // 8 // NONZERO_BYTES))
    found = Gathered(arrays, keepers, layers, sketch, tokens, len(ids), split)
    total = len(ids) * len(layers)
    done = 0
    buffer = _Buffer()
    for firings in firings_of(sae, store, ids, memory // 8):
        found.sketch.add(firings)
        found.tokens.add(firings.sequence)
        buffer.add(firings)
        done += len(firings.row_id)
        if buffer.bytes > memory // 8:
            _count(found, buffer, seed)
        if tick is not None:
            tick(done, total)
    _count(found, buffer, seed)
    _count_sketch(found)
    return found


def firings_of(
    sae: TrainedSae, store: Store, ids: Ints, memory: int
) -> Iterator[Firings]:
    """Yield the firings on rows: all sites of some sequences, then of the next ones.

    Args:
        sae: The SAE.
        store: The store.
        ids: Ids of rows, int64 [n], ascending.
        memory: Bytes for the rows that are read at once; one sequence is the least.
    """
    size = block_rows(sae.n_latents, memory)
    sites = [sae.sites] if sae.of_all_sites else [(site,) for site in sae.sites]
    row_bytes = 8 * sae.d * len(sites[0])  # as they are read, and side by side
    units = ids // store.layout.capacity
    for unit in np.unique(units):
        for group in _sequences(store, ids[units == unit], memory // row_bytes):
            for layer, sources in enumerate(sites):
                read = [store.read(site, group.row_id) for site in sources]
                rows = np.stack(read, axis=1) if sae.of_all_sites else read[0]
                index = None if sae.of_all_sites else layer
                codes = codes_of(sae, rows, index, size)
                site = np.full(len(group.row_id), layer, np.int64)
                yield group._replace(site=site, codes=codes)


def _sequences(store: Store, ids: Ints, most: int) -> Iterator[Firings]:
    """Yield rows of a unit by sequence and position, some whole sequences at once.

    most: rows that are wanted at once; a sequence with more comes alone.
    """
    came_from = store.provenance(ids)
    order = np.lexsort((came_from.position, came_from.sequence))
    sequence = came_from.sequence[order]
    ends = np.append(np.flatnonzero(np.diff(sequence)) + 1, len(sequence))
    first = 0
    while first < len(sequence):
        fitting = ends[(ends > first) & (ends <= first + most)]
        end = int(fitting[-1]) if len(fitting) else int(ends[ends > first][0])
        part = order[first:end]
        nothing = np.zeros(0, np.int64)
        yield Firings(
            ids[part],
            came_from.sequence[part],
            came_from.position[part],
            nothing,
            Codes(nothing, nothing.astype(np.int32), nothing.astype(np.float32)),
        )
        first = end


def _count(found: Gathered, buffer: _Buffer, seed: int) -> None:
    """Count and keep the firings of the buffer, which is empty after it."""
    if not buffer.parts:
        return
    rows = joined(buffer.parts)
    buffer.parts.clear()
    buffer.bytes = 0
    codes = rows.codes
    # Stable, so that a latent's firings stay in the order of rows.
    order = np.argsort(codes.latent, kind="stable")
    latents = codes.latent[order]
    draws = hashed(rows.row_id * len(found.layers) + rows.site, STAGE + seed)
    for first, end in found.arrays.ranges():
        low, high = np.searchsorted(latents, (first, end))
        if low == high:
            continue
        part = order[low:high]
        firings = SortedFirings(
            rows,
            latents[low:high].astype(np.int64) - first,
            codes.row[part],
            codes.value[part],
        )
        _count_range(found, found.arrays.mapped(first, end), firings, draws)


def _count_range(
    found: Gathered,
    arrays: Arrays,
    firings: SortedFirings,
    draws: NDArray[np.float64],
) -> None:
    """Count and keep firings of a range of latents.

    draws: a number in (0, 1) for each row.
    """
    n_layers = len(found.layers)
    n_here = len(arrays["firings"])
    site = firings.rows.site[firings.row]
    cell = firings.latent * n_layers + site
    n_cells = n_here * n_layers
    shape = (n_here, n_layers)
    arrays["firings"] += np.bincount(cell, minlength=n_cells).reshape(shape)
    value = firings.value.astype(np.float64)
    arrays["sums"] += np.bincount(cell, value, minlength=n_cells).reshape(shape)
    np.maximum.at(arrays["most"].reshape(-1), cell, firings.value)
    bins, counts = np.unique(
        firings.latent * BINS + bin_of(firings.value), return_counts=True
    )
    arrays["histogram"].reshape(-1)[bins] += counts.astype(np.uint32)
    found.keepers["top"].add(arrays, firings, firings.latent, value)
    found.keepers["layer"].add(arrays, firings, cell, value)
    found.keepers["sample"].add(arrays, firings, firings.latent, draws[firings.row])


def _count_sketch(found: Gathered) -> None:
    """Count what the sampled rows say, and write it into the arrays."""
    rows = found.sketch.rows()
    if rows is None:
        return
    of_layers = ("trajectory", "trajectory_tokens")
    for first, end in found.arrays.ranges():
        arrays = found.arrays.mapped(first, end, of_layers)
        means, tokens = trajectories(rows, first, end, len(found.layers))
        arrays["trajectory"][:] = means
        arrays["trajectory_tokens"][:] = tokens
    names = ("together", "together_cosine", "together_share")
    for part in together(rows, found.arrays.n_latents, TOGETHER):
        if not len(part.latent):
            continue
        first = int(part.latent[0])
        arrays = found.arrays.mapped(first, int(part.latent[-1]) + 1, names)
        place = (part.latent - first, numbers_within(part.latent))
        arrays["together"][place] = part.other + 1
        arrays["together_cosine"][place] = part.cosine
        arrays["together_share"][place] = part.share
