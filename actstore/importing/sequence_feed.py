"""Reads an import's activations some sequences at a time.

Arrays are read at any place, an iterator one item after the other.
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
    align,
    as_token_ids,
    check_activations,
    check_site,
    check_tokens,
)
from actstore.importing.site_arrays import SiteArrays
from actstore.importing.source_arrays import JoinedArray, as_tensor, dtype_name
from schemas.source import Imported, ImportedArray, Site

READ_AHEAD = 256 << 20
"""Bytes of an iterator's items that are read before an import begins.

An iterator that ends within them gets a plan of its own size; of a longer one nobody
knows the size, and the plan is as large as a store can be.
"""


class SequenceBatch(NamedTuple):
    """Some sequences at every site.

    Attributes:
        n: How many.
        tokens: int32 [n, context], -1 for padding; None where they are not known.
        values: By site, [n, context, d].
    """

    n: int
    tokens: NDArray[np.int32] | None
    values: dict[str, Tensor]


class Feed(Protocol):
    """The sequences that an import reads.

    Attributes:
        sites: Its sites and their widths.
        context: Tokens per sequence.
        has_contexts: Whether rows came in sequences; if not, each row is one of its
            own.
        imported: What the store says of where its activations come from.
        narrows: Whether there are float64 values, which no store keeps.
        left_out: Arrays that lie beside those that are read, and that nobody asked for.
    """

    sites: tuple[Site, ...]
    context: int
    has_contexts: bool
    imported: Imported
    narrows: bool
    left_out: tuple[str, ...]

    @property
    def n_sequences(self) -> int | None:
        """The number of sequences; None if only the end will tell."""
        ...

    def read(self, start: int, n: int) -> SequenceBatch:
        """Return sequences start ... start + n - 1; fewer where they end."""
        ...

    def has(self, sequence: int) -> bool:
        """Return whether there is a sequence of that number."""
        ...


class ArrayFeed:
    """A feed of arrays that can be read anywhere.

    Args:
        arrays: The arrays by site.
        context: Tokens per sequence, where the arrays do not show it.
        rows: Take at most so many rows, rounded up to a sequence; None: all.
    """

    def __init__(
        self, arrays: SiteArrays, context: int | None, rows: int | None
    ) -> None:
        self._arrays = arrays
        shapes = {array.names: array.shape for array in arrays.sites.values()}
        token_shape = None if arrays.tokens is None else arrays.tokens.shape
        alignment = align(shapes, token_shape, context)
        self.context = alignment.context
        self.has_contexts = alignment.has_contexts
        self.n_sequences = alignment.n_sequences
        if rows is not None:
            self.n_sequences = min(self.n_sequences, -(-rows // self.context))
        self.sites = tuple(
            Site(name=name, d=array.tail[-1]) for name, array in arrays.sites.items()
        )
        self.imported = arrays.imported(has_contexts=self.has_contexts)
        self.narrows = any(array.dtype == "float64" for array in arrays.sites.values())
        self.left_out = arrays.left_out

    def read(self, start: int, n: int) -> SequenceBatch:
        stop = min(start + n, self.n_sequences)
        values = {}
        for site in self.sites:
            array = self._arrays.sites[site.name]
            values[site.name] = self._sequences(
                array, start, stop, is_by_sequence=len(array.tail) == 2
            )
        tokens = None
        ids = self._arrays.tokens
        if ids is not None:
            read_ids = self._sequences(
                ids, start, stop, is_by_sequence=len(ids.tail) == 1
            )
            tokens = as_token_ids(read_ids.numpy(), ids.names)
        return SequenceBatch(stop - start, tokens, values)

    def has(self, sequence: int) -> bool:
        return sequence < self.n_sequences

    def _sequences(
        self, array: JoinedArray, start: int, stop: int, *, is_by_sequence: bool
    ) -> Tensor:
        """Return [stop - start, context, ...] of an array.

        Its first axis is either sequences or rows.
        """
        if is_by_sequence:
            return array.read(start, stop)
        rows = array.read(start * self.context, stop * self.context)
        return rows.reshape(stop - start, self.context, *array.tail)


class IteratorFeed:
    """A feed of an iterator, which is read once, in order.

    Items are {site: array}, (tokens, {site: array}) or, of one site, arrays. They are
    copied when they come, for a generator may fill the same array again. An item can
    hold any number of sequences: they wait here until they are asked for.

    Without `rows`, up to READ_AHEAD bytes are read at once, so that it is known how
    many sequences a short iterator holds.

    Args:
        items: The iterator.
        site: The name of the one site, where items are arrays without a name.
        context: Tokens per sequence, where the arrays do not show it.
        rows: Take at most so many rows, rounded up to a sequence; None: all.
    """

    def __init__(
        self,
        items: Iterator[Any],
        site: str | None,
        context: int | None,
        rows: int | None,
    ) -> None:
        self._items = items
        self._site = site
        self._given_context = context
        self._waiting: deque[SequenceBatch] = deque()
        self._ended = False
        self._n_taken = 0  # sequences given out
        self._n_bytes = 0  # of all items so far

        first = self._next_item()
        if first is None:
            raise SourceError(
                "the iterator holds nothing; wanted at least one item with activations"
            )
        self._dtypes = first.dtypes()
        # One item may be empty, such as the first of a filtered source; not all.
        alignment = align(
            first.shapes(), first.token_shape(), context, may_be_empty=True
        )
        self.context = alignment.context
        self.has_contexts = alignment.has_contexts
        self.sites = tuple(
            Site(name=name, d=array.shape[-1]) for name, array in first.values.items()
        )
        self._limit = LARGEST if rows is None else -(-rows // self.context)

        self._add(first)
        # With `rows` their number is known without reading ahead.
        while rows is None and not self._ended and self._n_bytes < READ_AHEAD:
            self._pull()
        if not self._has_waiting():
            raise SourceError("the iterator: there are no rows in it")
        self.n_sequences: int | None = None
        if self._ended:
            self.n_sequences = sum(batch.n for batch in self._waiting)
        elif rows is not None:
            self.n_sequences = self._limit

        self.imported = Imported(
            arrays=tuple(
                ImportedArray(
                    site=site.name, format="iterator", dtype=self._dtypes[site.name]
                )
                for site in self.sites
            ),
            tokens=None if first.tokens is None else "iterator",
            contexts=self.has_contexts,
        )
        self.narrows = "float64" in self._dtypes.values()
        self.left_out: tuple[str, ...] = ()

    def read(self, start: int, n: int) -> SequenceBatch:
        # An iterator cannot go back, nor jump without losing what it passes over.
        assert start == self._n_taken
        missing = min(n, self._limit - self._n_taken)
        taken: list[SequenceBatch] = []
        while missing and self._has_waiting():
            batch = self._waiting.popleft()
            # A longer one is cut, and its rest waits for the next call.
            if batch.n > missing:
                self._waiting.appendleft(_sliced(batch, missing, batch.n))
                batch = _sliced(batch, 0, missing)
            taken.append(batch)
            missing -= batch.n
        joined = _joined(taken)
        self._n_taken += joined.n
        return joined

    def has(self, sequence: int) -> bool:
        assert sequence == self._n_taken
        return sequence < self._limit and self._has_waiting()

    def _has_waiting(self) -> bool:
        """Have at least one sequence waiting; False where the iterator has ended."""
        while not self._waiting and not self._ended:
            self._pull()
        return bool(self._waiting)

    def _pull(self) -> None:
        """Take one item more."""
        item = self._next_item()
        if item is None:
            self._ended = True
            return
        dtypes = item.dtypes()
        if dtypes != self._dtypes:
            raise SourceError(
                f"the iterator's items differ: the first has {self._dtypes}, a later"
                f" one {dtypes}"
            )
        self._add(item)

    def _next_item(self) -> _Item | None:
        """Return the next item, copied, and checked by itself; None at the end."""
        try:
            item = next(self._items)
        except StopIteration:
            return None
        # A list of two arrays is not taken for tokens and values, only a tuple.
        tokens = None
        arrays = item
        if isinstance(item, tuple) and len(item) == 2:
            tokens, arrays = item
        values = {
            check_site(str(name)): _copied(name, array)
            for name, array in self._by_site(arrays).items()
        }
        for name, array in values.items():
            dtype = dtype_name(array.dtype)
            check_activations(name, "the iterator", dtype, array.shape)
        if tokens is None:
            return _Item(None, values)
        ids = integers(tokens, "the iterator's tokens", SourceError).copy()
        check_tokens("the iterator", dtype_name(ids.dtype), ids.shape)
        return _Item(ids, values)

    def _by_site(self, arrays: Any) -> Mapping[Any, Any]:
        """Return an item's arrays by site."""
        if not isinstance(arrays, Mapping):
            if self._site is None:
                raise SpecError(
                    "arrays without a name: give the site they are of (`site=`), or"
                    " items {site: array}"
                )
            return {self._site: arrays}
        if self._site is not None:
            raise SpecError(
                f"site {self._site!r}: the iterator's items name their sites"
                " themselves; leave it out"
            )
        if not arrays:
            raise SourceError("the iterator's item names no site; wanted {site: array}")
        return arrays

    def _add(self, item: _Item) -> None:
        """Put an item's sequences to those that wait."""
        alignment = align(
            item.shapes(), item.token_shape(), self._given_context, may_be_empty=True
        )
        same_context = alignment.context == self.context
        if not same_context or alignment.has_contexts != self.has_contexts:
            raise SourceError(
                f"the iterator's items differ: contexts of {self.context}, then of"
                f" {alignment.context}"
            )
        n = alignment.n_sequences
        values = {}
        for site in self.sites:
            array = item.values[site.name]
            if array.shape[-1] != site.d:
                raise SourceError(
                    f"the iterator's items differ: site {site.name!r} has d {site.d},"
                    f" then {array.shape[-1]}"
                )
            values[site.name] = array.reshape(n, self.context, site.d)
            self._n_bytes += array.nbytes
        tokens = None
        if item.tokens is not None:
            ids = item.tokens.reshape(n, self.context)
            tokens = as_token_ids(ids, "the iterator")
        if n:
            self._waiting.append(SequenceBatch(n, tokens, values))


class _Item(NamedTuple):
    """One item of an iterator, in the shapes in which it came.

    Attributes:
        tokens: [n] or [n_sequences, context]; None where the item has none.
        values: By site, [n, d] or [n_sequences, context, d].
    """

    tokens: NDArray[Any] | None
    values: dict[str, Tensor]

    def dtypes(self) -> dict[str, str]:
        """Return what has to be the same in every item."""
        dtypes = {name: dtype_name(array.dtype) for name, array in self.values.items()}
        if self.tokens is not None:
            # Their dtype may vary: it becomes int32. That they are there may not.
            dtypes["(tokens)"] = "there"
        return dtypes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each site's array."""
        return {
            f"site {name!r}": tuple(array.shape) for name, array in self.values.items()
        }

    def token_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the token ids."""
        return None if self.tokens is None else self.tokens.shape


def _copied(name: Any, array: Any) -> Tensor:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise SourceError(
            f"site {name!r}: wanted an array or a tensor, got {type(array).__name__}"
        )
    return as_tensor(array).clone()


def _sliced(batch: SequenceBatch, start: int, stop: int) -> SequenceBatch:
    tokens = None if batch.tokens is None else batch.tokens[start:stop]
    values = {name: array[start:stop] for name, array in batch.values.items()}
    return SequenceBatch(stop - start, tokens, values)


def _joined(batches: list[SequenceBatch]) -> SequenceBatch:
    if len(batches) == 1:
        return batches[0]
    known = [batch.tokens for batch in batches if batch.tokens is not None]
    tokens = np.concatenate(known) if known else None
    values = {
        name: torch.cat([batch.values[name] for batch in batches])
        for name in batches[0].values
    }
    return SequenceBatch(sum(batch.n for batch in batches), tokens, values)
