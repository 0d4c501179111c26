"""Keeps a few firings of each latent out of very many: the strongest, or a sample.

Each firing has a score, and the highest scores are kept: the activation itself, or a
number drawn by chance, which makes a uniform sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.explorer.firings import Firings
from trainer.explorer.latent_arrays import Arrays, Entry

BEFORE = 16  # tokens that are shown before a firing
AFTER = 8  # and after it
WINDOW = BEFORE + 1 + AFTER
_PIECE = 1 << 12  # windows that are made at once

Ints = NDArray[np.int64]


class SortedFirings(NamedTuple):
    """Firings of a range of latents, by latent; of a latent, in the order of rows.

    Attributes:
        rows: The rows that they are on.
        latent: Counted from the range's first one, int64 [n], ascending.
        row: Index of the row, int64 [n].
        value: float32 [n].
    """

    rows: Firings
    latent: Ints
    row: Ints
    value: NDArray[np.float32]


class Keeper(NamedTuple):
    """Keeps the firings of highest score of each key; a latent has one or more keys.

    Attributes:
        name: What its arrays begin with.
        keys: Keys of a latent: 1, or one for each site.
        most: Firings that are kept of each key.
        one_per_sequence: Of two firings in one sequence, the one of higher score only.
    """

    name: str
    keys: int
    most: int
    one_per_sequence: bool

    def entries(self) -> dict[str, Entry]:
        """Return the arrays that it needs; a score of 0 is a free place."""
        places = (self.keys * self.most,)
        return {
            f"{self.name}.score": Entry(np.float64, places),
            f"{self.name}.value": Entry(np.float32, places),
            f"{self.name}.row": Entry(np.int64, places),
            f"{self.name}.sequence": Entry(np.int64, places),
            f"{self.name}.position": Entry(np.int32, places),
            f"{self.name}.site": Entry(np.int16, places),
            # Where its window is: windows stay where they are while ranks change.
            f"{self.name}.slot": Entry(np.int16, places),
            f"{self.name}.window": Entry(np.float32, (*places, WINDOW)),
        }

    def add(
        self,
        arrays: Arrays,
        firings: SortedFirings,
        key: Ints,
        score: NDArray[np.float64],
    ) -> None:
        """Keep those of some firings that are among the best so far, in place.

        Args:
            arrays: The arrays of the firings' range.
            firings: The firings.
            key: latent * keys + the number of the key, int64 [n].
            score: Above 0, [n].
        """
        scores = arrays[f"{self.name}.score"].reshape(-1, self.most)
        # The last place has the lowest score, 0 where it is free: most candidates of
        # a latent that has fired often end here.
        hopeful = np.flatnonzero(score > scores[key, -1])
        if not len(hopeful):
            return
        merged = _merged(self, arrays, firings, key[hopeful], score[hopeful], hopeful)
        self._write(arrays, firings, merged)

    def _write(self, arrays: Arrays, firings: SortedFirings, merged: _Merged) -> None:
        """Write what is kept of some keys into the arrays."""
        scores = arrays[f"{self.name}.score"].reshape(-1, self.most)
        scores[merged.touched] = 0
        places = merged.key * self.most + merged.rank
        is_new = merged.new >= 0
        new = merged.new[is_new]
        rows = firings.rows
        row = firings.row[new]
        fresh = {
            "value": firings.value[new],
            "row": rows.row_id[row],
            "sequence": rows.sequence[row],
            "position": rows.position[row],
            "site": rows.site[row],
        }
        for name, values in fresh.items():
            flat = arrays[f"{self.name}.{name}"].reshape(-1)
            kept = flat[np.maximum(merged.old, 0)]
            kept[is_new] = values
            flat[places] = kept
        arrays[f"{self.name}.score"].reshape(-1)[places] = merged.score
        slots = _slots(self, arrays, merged)
        arrays[f"{self.name}.slot"].reshape(-1)[places] = slots
        windows = arrays[f"{self.name}.window"].reshape(-1, self.most, WINDOW)
        keys = merged.key[is_new]
        new_slots = slots[is_new]
        for first in range(0, len(new), _PIECE):
            piece = slice(first, first + _PIECE)
            made = windows_of(firings, new[piece])
            windows[keys[piece], new_slots[piece]] = made


class _Merged(NamedTuple):
    """The firings kept for keys that have a new candidate, by key and rank.

    Attributes:
        touched: These keys, int64 [t], ascending.
        key: [n].
        rank: 0 for the best of its key, [n].
        score: [n].
        old: The flat place where it was kept before, -1 where it is new.
        new: The number of the firing that it is, -1 where it is old.
    """

    touched: Ints
    key: Ints
    rank: Ints
    score: NDArray[np.float64]
    old: Ints
    new: Ints


def _merged(
    keeper: Keeper,
    arrays: Arrays,
    firings: SortedFirings,
    key: Ints,
    score: NDArray[np.float64],
    numbers: Ints,
) -> _Merged:
    """Put candidates among what is kept, and keep the best.

    key, score, numbers: of the candidates.
    """
    most = keeper.most
    touched = np.unique(key)
    kept_scores = arrays[f"{keeper.name}.score"].reshape(-1, most)[touched]
    which, place = np.nonzero(kept_scores > 0)
    old = touched[which] * most + place
    kept_sequences = arrays[f"{keeper.name}.sequence"].reshape(-1)[old]
    none_old = np.full(len(old), -1, np.int64)
    none_new = np.full(len(key), -1, np.int64)
    every_key = np.concatenate([touched[which], key])
    every_score = np.concatenate([kept_scores[which, place], score])
    every_old = np.concatenate([old, none_new])
    every_new = np.concatenate([none_old, numbers])
    chosen = np.arange(len(every_key))
    if keeper.one_per_sequence:
        sequence = firings.rows.sequence[firings.row[numbers]]
        every_sequence = np.concatenate([kept_sequences, sequence])
        order = np.lexsort((-every_score, every_sequence, every_key))
        chosen = np.sort(order[_firsts(every_key[order], every_sequence[order])])
    # stable: of equal scores those that came first
    order = chosen[np.lexsort((-every_score[chosen], every_key[chosen]))]
    rank = numbers_within(every_key[order])
    kept = order[rank < most]
    return _Merged(
        touched,
        every_key[kept],
        rank[rank < most],
        every_score[kept],
        every_old[kept],
        every_new[kept],
    )


def _slots(keeper: Keeper, arrays: Arrays, merged: _Merged) -> Ints:
    """Return the slot of each kept firing's window: the old one's, or a free one."""
    old_slots = arrays[f"{keeper.name}.slot"].reshape(-1)[np.maximum(merged.old, 0)]
    # A copy, for the places in the file are overwritten.
    slots = old_slots.astype(np.int64)
    is_new = merged.new >= 0
    which = np.searchsorted(merged.touched, merged.key)
    used = np.zeros((len(merged.touched), keeper.most), bool)
    used[which[~is_new], slots[~is_new]] = True
    # With slots 0 and 2 of 4 in use, the free ones are 1 and 3: they come first here.
    free = np.argsort(used, axis=1, kind="stable")
    slots[is_new] = free[which[is_new], numbers_within(which[is_new])]
    return slots


def windows_of(firings: SortedFirings, chosen: Ints) -> NDArray[np.float32]:
    """Return a latent's activations around some of its firings.

    Args:
        firings: The firings, all those of the sequences of the chosen ones included.
        chosen: Numbers of firings, int64 [c].

    Returns:
        float32 [c, WINDOW]; NaN at tokens that have no row.
    """
    windows = np.full((len(chosen), WINDOW), np.nan, np.float32)
    shifts = np.arange(-BEFORE, AFTER + 1)
    rows = firings.rows
    row = firings.row[chosen]
    # Rows lie by position, and positions have gaps: the row that is j further on is j
    # tokens further on, or more.
    other = row[:, None] + shifts
    _place(windows, rows, row, other, len(rows.row_id), None)
    # In the same way the latent's other firings lie around this one.
    number = chosen[:, None] + shifts
    inside = (number >= 0) & (number < len(firings.row))
    number = np.where(inside, number, 0)
    same = inside & (firings.latent[number] == firings.latent[chosen][:, None])
    other = np.where(same, firings.row[number], -1)
    _place(windows, rows, row, other, len(rows.row_id), firings.value[number])
    return windows


def _place(
    windows: NDArray[np.float32],
    rows: Firings,
    row: Ints,
    other: Ints,
    n_rows: int,
    values: NDArray[np.float32] | None,
) -> None:
    """Write values (None: 0) of other rows where they stand in the window of a row.

    other: [c, w], rows of which some are of other sequences or sites, or none at all.
    """
    inside = (other >= 0) & (other < n_rows)
    other = np.where(inside, other, 0)
    apart = rows.position[other] - rows.position[row][:, None]
    same = rows.sequence[other] == rows.sequence[row][:, None]
    same &= rows.site[other] == rows.site[row][:, None]
    shown = inside & same & (apart >= -BEFORE) & (apart <= AFTER)
    at, column = np.nonzero(shown)
    place = apart[at, column] + BEFORE
    windows[at, place] = 0 if values is None else values[at, column]


def numbers_within(keys: Ints) -> Ints:
    """Return the number of each entry among those of its key: 4 4 7 gives 0 1 0.

    keys: int64 [n], equal ones together.
    """
    starts = np.flatnonzero(_firsts(keys))
    lengths = np.diff(np.append(starts, len(keys)))
    return np.arange(len(keys)) - np.repeat(starts, lengths)


def _firsts(*keys: Ints) -> NDArray[np.bool_]:
    """Tell which entries differ from the one before, bool [n]."""
    differs = np.ones(len(keys[0]), bool)
    if len(differs):
        differs[1:] = False
        for key in keys:
            differs[1:] |= key[1:] != key[:-1]
    return differs
