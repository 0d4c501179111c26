"""Reads which units of a store are meant: `0:100`, `7`, `40:`, or several of these."""

from __future__ import annotations

import re

from actstore.errors import SpecError

UnitRanges = tuple[tuple[int, int], ...]
"""Units as ranges in ascending order: first, and the one behind the last."""

_PART = re.compile(r"\s*([0-9]{1,9})?\s*(:)?\s*([0-9]{1,9})?\s*")


def unit_ranges(text: str, n_units: int) -> UnitRanges:
    """Return the units that a text means, of a store of `n_units`.

    Parts stand between commas: `7` is unit 7, `0:100` are units 0 to 99, as in Python;
    `40:` are those from 40 on.

    Raises:
        SpecError: It is no selection, or names units that there are not.
    """
    ranges = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or not part.strip():
            raise SpecError(
                f"--units {text!r}: wanted numbers of units and ranges of them, such as"
                f" 0:100,150; got {part!r}"
            )
        first = int(match[1] or 0)
        end = int(match[3] or n_units) if match[2] else first + 1
        if not first < end <= n_units:
            raise SpecError(
                f"--units {text!r}: {part.strip()} is not of this store; it has units 0"
                f" to {n_units - 1}"
            )
        ranges.append((first, end))
    return joined(ranges)


def joined(ranges: list[tuple[int, int]]) -> UnitRanges:
    """Return ranges in ascending order; those that touch become one."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((first, end))
    return tuple(merged)


def in_both(some: UnitRanges, others: UnitRanges) -> UnitRanges:
    """Return the units that lie in both."""
    shared = []
    for first, end in some:
        for other_first, other_end in others:
            both = max(first, other_first), min(end, other_end)
            if both[0] < both[1]:
                shared.append(both)
    return joined(shared)


def has(ranges: UnitRanges, unit: int) -> bool:
    """Return whether a unit is among them."""
    return any(first <= unit < end for first, end in ranges)
