"""Batches of aligned sequences: out of a table of arrays, at any place, or from an
iterator, one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.errors import SourceError, SpecError
from actstore.format.token_ids import LARGEST, integers
from actstore.importing.array_checks import (
    aligned,
    check_activations,
    check_site,
    check_tokens,
    token_ids,
)
from actstore.importing.arrays import Joined, as_tensor, dtype_name
from actstore.importing.sources import Table
from schemas.source import Imported, ImportedArray, Site

READ_AHEAD = 256 << 20
Tokens = NDArray[np.int32]


class Batch(NamedTuple):
    """Some sequences. tokens: [b, context], -1 for padding, None where they are not
    known.
    """

    n: int
    tokens: Tokens | None
    values: dict[str, Tensor]


class Feed(Protocol):
    """What an import reads. narrows: whether there are float64 values, which no store
    keeps.

    left_out: arrays that lie beside those that are read, and that nobody asked for.
    """

    sites: tuple[Site, ...]
    context: int
    contexts: bool
    imported: Imported
    narrows: bool
    left_out: tuple[str, ...]

    @property
    def n_sequences(self) -> int | None:
        """How many there are; None where only the end will tell."""
        ...

    def batch(self, start: int, n: int) -> Batch:
        """The sequences start ... start + n - 1; fewer at the end."""
        ...

    def more(self, at: int) -> bool:
        """Whether there is a sequence `at`."""
        ...


class TableFeed:
    """Sequences of a table."""

    def __init__(self, table: Table, context: int | None, rows: int | None) -> None:
        self._table = table
        shapes = {one.names: (one.length, *one.tail) for one in table.sites.values()}
        ids = (
            None if table.tokens is None else (table.tokens.length, *table.tokens.tail)
        )
        self.context, self.contexts, n = aligned(shapes, ids, context)
        self.n_sequences = n if rows is None else min(n, -(-rows // self.context))
        self.sites = tuple(
            Site(name=name, d=one.tail[-1]) for name, one in table.sites.items()
        )
        self.imported = table.imported(contexts=self.contexts)
        self.narrows = any(one.dtype == "float64" for one in table.sites.values())
        self.left_out = table.left_out

    def batch(self, start: int, n: int) -> Batch:
        stop = min(start + n, self.n_sequences)
        values = {
            site.name: self._read(self._table.sites[site.name], start, stop, 2)
            for site in self.sites
        }
        ids = self._table.tokens
        tokens = (
            None
            if ids is None
            else token_ids(self._read(ids, start, stop, 1).numpy(), ids.names)
        )
        return Batch(stop - start, tokens, values)

    def more(self, at: int) -> bool:
        return at < self.n_sequences

    def _read(self, one: Joined, start: int, stop: int, axes: int) -> Tensor:
        """[stop - start, context, ...] of an array whose first axis is sequences (then
        it has `axes` more) or rows.
        """
        if len(one.tail) == axes:
            return one.read(start, stop)
        values = one.read(start * self.context, stop * self.context)
        return values.reshape(stop - start, self.context, *one.tail)


class IteratorFeed:
    """Sequences of an iterator whose items are {site: array}, (tokens, {site: array})
    or, of one site, arrays.

    Items are copied when they come, for a generator may fill the same array again.
    Without `rows`, up to READ_AHEAD bytes are read at once, so that of few rows it is
    known how many there are.
    """

    def __init__(
        self,
        items: Iterator[Any],
        site: str | None,
        context: int | None,
        rows: int | None,
    ) -> None:
        self._items, self._site, self._given = items, site, context
        self._waiting: deque[Batch] = deque()
        self._ended, self._taken, self._bytes = False, 0, 0
        first = self._next()
        if first is None:
            raise SourceError(
                "the iterator holds nothing; wanted at least one item with activations"
            )
        self._kinds = _kinds(first)
        self.context, self.contexts, _ = aligned(*_shapes(first), context, empty=True)
        self.sites = tuple(
            Site(name=name, d=x.shape[-1]) for name, x in first.values.items()
        )
        self._limit = LARGEST if rows is None else -(-rows // self.context)
        self._add(first)
        while rows is None and not self._ended and self._bytes < READ_AHEAD:
            self._pull()
        if not self._fill():
            raise SourceError("the iterator: there are no rows in it")
        waiting = sum(one.n for one in self._waiting)
        self.n_sequences = (
            waiting if self._ended else None if rows is None else self._limit
        )
        self.imported = Imported(
            arrays=tuple(
                ImportedArray(
                    site=one.name, format="iterator", dtype=self._kinds[one.name]
                )
                for one in self.sites
            ),
            tokens=None if first.tokens is None else "iterator",
            contexts=self.contexts,
        )
        self.narrows = "float64" in self._kinds.values()
        self.left_out: tuple[str, ...] = ()

    def batch(self, start: int, n: int) -> Batch:
        assert start == self._taken
        parts: list[Batch] = []
        n = min(n, self._limit - self._taken)
        while n and self._fill():
            one = self._waiting.popleft()
            if one.n > n:
                self._waiting.appendleft(_sliced(one, n, one.n))
                one = _sliced(one, 0, n)
            parts.append(one)
            n -= one.n
        found = _joined(parts)
        self._taken += found.n
        return found

    def more(self, at: int) -> bool:
        assert at == self._taken
        return at < self._limit and self._fill()

    def _fill(self) -> bool:
        """Have a sequence waiting; False where the iterator has ended."""
        while not self._waiting and not self._ended:
            self._pull()
        return bool(self._waiting)

    def _pull(self) -> None:
        item = self._next()
        if item is None:
            self._ended = True
            return
        if (found := _kinds(item)) != self._kinds:
            raise SourceError(
                f"the iterator's items differ: the first has {self._kinds}, a later one"
                f" {found}"
            )
        self._add(item)

    def _next(self) -> Batch | None:
        """The next item, copied and checked by itself; None at the end."""
        for item in self._items:
            tokens, arrays = (
                item if isinstance(item, tuple) and len(item) == 2 else (None, item)
            )
            if not isinstance(arrays, Mapping):
                arrays = {_only_site(self._site): arrays}
            elif self._site is not None:
                raise SpecError(
                    f"site {self._site!r}: the iterator's items name their sites"
                    " themselves; leave it out"
                )
            if not arrays:
                raise SourceError(
                    "the iterator's item names no site; wanted {site: array}"
                )
            values = {
                check_site(str(name)): _copied(name, x) for name, x in arrays.items()
            }
            for name, x in values.items():
                check_activations(name, "the iterator", dtype_name(x.dtype), x.shape)
            ids = (
                None
                if tokens is None
                else integers(tokens, "the iterator's tokens", SourceError).copy()
            )
            if ids is not None:
                check_tokens("the iterator", dtype_name(ids.dtype), ids.shape)
            return Batch(0, ids, values)
        return None

    def _add(self, item: Batch) -> None:
        """Put an item's sequences to those that wait."""
        context, contexts, n = aligned(*_shapes(item), self._given, empty=True)
        if (context, contexts) != (self.context, self.contexts):
            raise SourceError(
                f"the iterator's items differ: contexts of {self.context}, then of"
                f" {context}"
            )
        values = {}
        for site in self.sites:
            x = item.values[site.name]
            if x.shape[-1] != site.d:
                raise SourceError(
                    f"the iterator's items differ: site {site.name!r} has d {site.d},"
                    f" then {x.shape[-1]}"
                )
            values[site.name] = x.reshape(n, context, site.d)
            self._bytes += x.nbytes
        tokens = (
            None
            if item.tokens is None
            else token_ids(item.tokens.reshape(n, context), "the iterator")
        )
        if n:
            self._waiting.append(Batch(n, tokens, values))


def _copied(name: Any, x: Any) -> Tensor:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise SourceError(
            f"site {name!r}: wanted an array or a tensor, got {type(x).__name__}"
        )
    return as_tensor(x).clone()


def _only_site(site: str | None) -> str:
    if site is None:
        raise SpecError(
            "arrays without a name: give the site they are of (`site=`), or items"
            " {site: array}"
        )
    return site


def _kinds(item: Batch) -> dict[str, str]:
    """What has to be the same in every item."""
    kinds = {name: dtype_name(x.dtype) for name, x in item.values.items()}
    return kinds | ({} if item.tokens is None else {"(tokens)": "there"})


def _shapes(item: Batch) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...] | None]:
    shapes = {f"site {name!r}": tuple(x.shape) for name, x in item.values.items()}
    return shapes, None if item.tokens is None else item.tokens.shape


def _sliced(one: Batch, start: int, stop: int) -> Batch:
    tokens = None if one.tokens is None else one.tokens[start:stop]
    return Batch(
        stop - start, tokens, {name: x[start:stop] for name, x in one.values.items()}
    )


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    known = [one.tokens for one in parts if one.tokens is not None]
    values = {
        name: torch.cat([one.values[name] for one in parts]) for name in parts[0].values
    }
    return Batch(
        sum(one.n for one in parts), np.concatenate(known) if known else None, values
    )
