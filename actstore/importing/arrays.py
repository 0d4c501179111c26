"""What every format gives: the arrays of a file, each read along its first axis; and
arrays in several files as one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.errors import ActstoreError, SourceError, first_line
from actstore.format.dtypes import NUMPY, to_torch
from schemas.source import ImportFormat

FLOATS = ("float16", "bfloat16", "float32", "float64")
# (start, stop) along the first axis -> numpy array or tensor
Read = Callable[[int, int], Any]


@dataclass(frozen=True, slots=True)
class Array:
    """One array of an open file. `key` is its name there, None where a file holds only
    one.
    """

    key: str | None
    shape: tuple[int, ...]
    dtype: str
    read: Read

    @property
    def is_activations(self) -> bool:
        """Whether it can be a site: floating-point rows, or sequences of rows."""
        return can_be_site(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.key or 'the array'} ({self.dtype} {list(self.shape)})"


def can_be_site(dtype: str, shape: Sequence[int]) -> bool:
    """Whether an array holds rows [n, d] or [n_sequences, context, d] of floating-point
    values.
    """
    return dtype in FLOATS and len(shape) in {2, 3}


Opener = Callable[[ExitStack], list[Array]]


class Part(NamedTuple):
    """A file, or a folder that is one data set. `open` gives its arrays until the stack
    is closed.

    name: what the store says of it; where: what messages say.
    """

    name: str
    where: str
    format: ImportFormat
    open: Opener

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[Array]]:
        """Its arrays, for a look."""
        with ExitStack() as stack:
            yield self.open(stack)

    def array(self, stack: ExitStack, key: str | None) -> Array:
        """One of them. Raises SourceError with those there are."""
        found = self.open(stack)
        for one in found:
            if one.key == key:
                return one
        there = ", ".join(map(str, found)) or "nothing"
        raise SourceError(f"{self.where}: there is no {key!r} in it; it holds {there}")


@dataclass(slots=True)
class Joined:
    """The same array of several parts, one behind the other along the first axis. One
    part is open at a time.
    """

    parts: tuple[Part, ...]
    key: str | None
    lengths: tuple[int, ...]
    tail: tuple[int, ...]  # the shape behind the first axis
    dtype: str
    _open: tuple[int, Array] | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def of(cls, parts: Sequence[Part], key: str | None) -> Joined:
        """Look at every part. Raises SourceError where two of them do not fit together."""
        found: list[Array] = []
        for part in parts:
            with ExitStack() as stack:
                found.append(part.array(stack, key))
        first = found[0]
        for part, one in zip(parts, found, strict=True):
            if (one.shape[1:], one.dtype) != (first.shape[1:], first.dtype):
                raise SourceError(
                    f"{part.where}: {one} does not continue {first} of"
                    f" {parts[0].where}; parts of one array have the same dtype and the"
                    " same shape but for their first axis"
                )
        lengths = tuple(one.shape[0] for one in found)
        return cls(tuple(parts), key, lengths, first.shape[1:], first.dtype)

    @property
    def length(self) -> int:
        """Of the first axis, over all parts."""
        return sum(self.lengths)

    @property
    def names(self) -> str:
        """For messages."""
        names = [part.where for part in self.parts]
        text = (
            names[0]
            if len(names) == 1
            else f"{names[0]} ... {names[-1]} ({len(names)} files)"
        )
        return text if self.key is None else f"{text}: {self.key}"

    def read(self, start: int, stop: int) -> torch.Tensor:
        """[stop - start, *tail]."""
        found, before = [], 0
        for i, n in enumerate(self.lengths):
            a, b = max(start - before, 0), min(stop - before, n)
            before += n
            if a < b:
                found.append(as_tensor(self._read_part(i, a, b)))
        return found[0] if len(found) == 1 else torch.cat(found)

    def close(self) -> None:
        """Close the part that is open."""
        self._open = None
        self._stack.close()

    def _read_part(self, i: int, start: int, stop: int) -> Any:
        if self._open is None or self._open[0] != i:
            self.close()
            self._open = i, self.parts[i].array(self._stack, self.key)
        array = self._open[1]
        if (array.shape[0], array.shape[1:]) != (self.lengths[i], self.tail):
            raise SourceError(
                f"{self.parts[i].where}: it was changed while it was imported; start"
                " again"
            )
        with reading(self.parts[i].where, self.parts[i].format):
            found = array.read(start, stop)
        if tuple(found.shape) != (stop - start, *self.tail):
            raise SourceError(
                f"{self.parts[i].where}: wanted rows {start}..{stop} of {array}, got"
                f" {list(found.shape)}"
            )
        return found


@contextlib.contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Whatever a damaged file makes a library raise, as a SourceError that names the
    file.
    """
    try:
        yield
    except (ActstoreError, MemoryError):
        raise
    except Exception as error:  # libraries raise what they like
        raise SourceError(
            f"{name}: it cannot be read as {kind}: {first_line(error)}; it may be"
            " damaged, cut short, or of another format (--format)"
        ) from error


def as_tensor(values: Any) -> torch.Tensor:
    """Values as a CPU tensor of their own dtype; a copy only where byte order or memory
    make it necessary.
    """
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    array = native(np.asarray(values))
    return to_torch(
        array
        if array.flags.writeable and array.flags.c_contiguous
        else np.array(array, order="C")
    )


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in this machine's byte order."""
    if array.dtype == NUMPY["bfloat16"] or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def dtype_name(dtype: Any) -> str:
    """`float32` and the like, of a numpy, torch or Arrow dtype."""
    if isinstance(dtype, np.dtype):
        return (
            "bfloat16" if dtype == NUMPY["bfloat16"] else dtype.newbyteorder("=").name
        )
    text = str(dtype).removeprefix("torch.")
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(
        text, text
    )


SLAB_BYTES = 8 << 20


def by_slabs(read: Read, shape: tuple[int, ...], chunk: int, itemsize: int) -> Read:
    """Read whole slabs along the first axis, the last one kept, so that a stored chunk
    is decoded only once.

    A slab is some chunks of `chunk` along that axis, or one where they are large.
    """
    size = chunk * max(
        1, SLAB_BYTES // (chunk * itemsize * max(1, math.prod(shape[1:])))
    )
    kept: list[Any] = [-1, None]

    def slab(i: int) -> Any:
        if kept[0] != i:
            kept[:] = [-1, None]  # before the next one comes
            kept[:] = [i, read(i * size, min((i + 1) * size, shape[0]))]
        return kept[1]

    def sliced(start: int, stop: int) -> Any:
        found = []
        for i in range(start // size, -(-stop // size)):
            a, b = max(start, i * size), min(stop, (i + 1) * size)
            found.append(slab(i)[a - i * size : b - i * size])
        return found[0] if len(found) == 1 else np.concatenate(found)

    return sliced
