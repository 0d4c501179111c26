"""The arrays that files of activations hold, each read along its first axis.

The same array of several files is joined to one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actstore.errors import ActstoreError, SourceError, first_line
from actstore.format.stored_dtypes import NUMPY, to_torch
from schemas.source import ImportFormat

FLOATS = ("float16", "bfloat16", "float32", "float64")
# Bytes of an array in chunks that are decoded and kept at once: each site keeps so
# many, and an import may have hundreds of sites.
SLAB_BYTES = 8 << 20
Read = Callable[[int, int], Any]
"""(start, stop) along the first axis -> a numpy array or tensor of these rows."""


@dataclass(frozen=True, slots=True)
class SourceArray:
    """One array of an open file.

    Attributes:
        key: Its name in the file; None where a file holds only one.
        shape: Its shape; the first axis is the one that is read along.
        dtype: Its dtype, as `dtype_name` writes it.
        read: Reads some of it.
    """

    key: str | None
    shape: tuple[int, ...]
    dtype: str
    read: Read

    @property
    def is_activations(self) -> bool:
        """True if it can be a site: floating-point rows, or sequences of rows."""
        return can_be_site(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.key or 'the array'} ({self.dtype} {list(self.shape)})"


def can_be_site(dtype: str, shape: Sequence[int]) -> bool:
    """Return whether an array has floats [n, d] or [n_sequences, context, d]."""
    return dtype in FLOATS and len(shape) in {2, 3}


Opener = Callable[[ExitStack], list[SourceArray]]
"""Opens a file and returns its arrays, which can be read until the stack is closed."""


class SourceFile(NamedTuple):
    """A file, or a folder that is one data set, or an array in memory.

    Attributes:
        name: What the store says of it.
        where: What messages call it.
        format: How it is read.
        open: Gives its arrays.
    """

    name: str
    where: str
    format: ImportFormat
    open: Opener

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[SourceArray]]:
        """Open the file for the length of a `with` block, and give its arrays."""
        with ExitStack() as stack:
            yield self.open(stack)

    def array(self, stack: ExitStack, key: str | None) -> SourceArray:
        """Open the file until the stack is closed, and return the array of that name.

        Raises:
            SourceError: There is none; the message lists those that there are.
        """
        arrays = self.open(stack)
        for array in arrays:
            if array.key == key:
                return array
        listed = ", ".join(map(str, arrays)) or "nothing"
        raise SourceError(f"{self.where}: there is no {key!r} in it; it holds {listed}")


@dataclass(slots=True)
class JoinedArray:
    """The same array of several files, joined along the first axis.

    One file is open at a time.

    Attributes:
        files: In the order in which they follow one another.
        key: The array's name in each of them.
        lengths: How long the first axis is in each of them.
        tail: The shape without the first axis.
        dtype: As `dtype_name` writes it.
    """

    files: tuple[SourceFile, ...]
    key: str | None
    lengths: tuple[int, ...]
    tail: tuple[int, ...]
    dtype: str
    _open_file: int = -1  # which of `files` is open
    _open_array: SourceArray | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def of(cls, files: Sequence[SourceFile], key: str | None) -> JoinedArray:
        """Look at the array of that name in every file, and join them.

        Raises:
            SourceError: It is missing in a file, or two files do not fit together.
        """
        arrays: list[SourceArray] = []
        # Each is closed again at once: an import may have thousands of files.
        for file in files:
            with ExitStack() as stack:
                arrays.append(file.array(stack, key))
        first = arrays[0]
        for file, array in zip(files, arrays, strict=True):
            same_tail = array.shape[1:] == first.shape[1:]
            if not same_tail or array.dtype != first.dtype:
                raise SourceError(
                    f"{file.where}: {array} does not continue {first} of"
                    f" {files[0].where}; parts of one array have the same dtype and the"
                    " same shape but for their first axis"
                )
        lengths = tuple(array.shape[0] for array in arrays)
        return cls(tuple(files), key, lengths, first.shape[1:], first.dtype)

    @property
    def length(self) -> int:
        """The length of the first axis, over all files."""
        return sum(self.lengths)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole."""
        return (self.length, *self.tail)

    @property
    def names(self) -> str:
        """Its files and its name in them, for messages."""
        names = [file.where for file in self.files]
        text = names[0]
        if len(names) > 1:
            text = f"{names[0]} ... {names[-1]} ({len(names)} files)"
        return text if self.key is None else f"{text}: {self.key}"

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return rows start ... stop - 1 of the first axis: [stop - start, *tail].

        Raises:
            SourceError: A file cannot be read, or was changed.
        """
        blocks = []
        before = 0  # rows in the files before this one
        for i, length in enumerate(self.lengths):
            file_start = max(start - before, 0)
            file_stop = min(stop - before, length)
            if file_start < file_stop:
                blocks.append(as_tensor(self._read_file(i, file_start, file_stop)))
            before += length
        # No copy where one file has all of them.
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def close(self) -> None:
        """Close the file that is open."""
        self._open_file = -1
        self._open_array = None
        self._stack.close()

    def _read_file(self, i: int, start: int, stop: int) -> Any:
        """Return rows of file i."""
        file = self.files[i]
        if self._open_array is None or self._open_file != i:
            self.close()
            self._open_array = file.array(self._stack, self.key)
            self._open_file = i
        array = self._open_array
        # The rows before were read from a file of the shape that was found at first.
        if array.shape != (self.lengths[i], *self.tail):
            raise SourceError(
                f"{file.where}: it was changed while it was imported; start again"
            )
        with reading(file.where, file.format):
            rows = array.read(start, stop)
        if tuple(rows.shape) != (stop - start, *self.tail):
            raise SourceError(
                f"{file.where}: wanted rows {start}..{stop} of {array}, got"
                f" {list(rows.shape)}"
            )
        return rows


@contextlib.contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Turn what a library raises at a damaged file into a SourceError that names it."""
    try:
        yield
    except (ActstoreError, MemoryError):  # not the file's fault, or told already
        raise
    except Exception as error:  # libraries raise what they like
        raise SourceError(
            f"{name}: it cannot be read as {kind}: {first_line(error)}; it may be"
            " damaged, cut short, or of another format (--format)"
        ) from error


def as_tensor(values: Any) -> torch.Tensor:
    """Return values [...] as a CPU tensor [...] of the same shape and dtype.

    They are copied only if they must be.
    """
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    array = in_native_order(np.asarray(values))
    # torch wants memory that may be written to and that lies row by row.
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = np.array(array, order="C")
    return to_torch(array)


def in_native_order(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same values [*] in this machine's byte order."""
    if array.dtype == NUMPY["bfloat16"] or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def dtype_name(dtype: Any) -> str:
    """Return `float32` and the like for a numpy, torch or Arrow dtype."""
    # `>f4` is float32 as well: `as_tensor` brings values into native order.
    if isinstance(dtype, np.dtype):
        if dtype == NUMPY["bfloat16"]:
            return "bfloat16"
        return dtype.newbyteorder("=").name
    text = str(dtype).removeprefix("torch.")
    arrow = {"halffloat": "float16", "float": "float32", "double": "float64"}
    return arrow.get(text, text)


def slicing(values: Any) -> Read:
    """Read by slicing: of arrays, tensors, and what h5py and zarr open."""

    def read(start: int, stop: int) -> Any:
        return values[start:stop]

    return read


def read_plain_rows(
    file: IO[bytes],
    offset: int,
    shape: tuple[int, ...],
    itemsize: int,
    start: int,
    stop: int,
) -> bytearray:
    """Return the bytes of rows of an array that lies in a file as it does in memory.

    Rows are read and not mapped, so that a process' memory does not seem to grow with
    the file.

    Args:
        file: The open file.
        offset: Where in it the array begins, in bytes.
        shape: The array's shape.
        itemsize: Bytes of one value.
        start: The first row.
        stop: The row after the last.

    Raises:
        EOFError: The file ends before the last row.
    """
    row_bytes = math.prod(shape[1:]) * itemsize
    data = bytearray((stop - start) * row_bytes)
    file.seek(offset + start * row_bytes)
    # Straight into the memory that becomes the array: no second copy.
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise EOFError(f"it ends before row {stop}")
    return data


def array_in_chunks(
    key: str | None, node: Any, read: Read | None = None
) -> SourceArray:
    """Return an array of h5py's or zarr's, which may be stored in chunks.

    Args:
        key: Its name in the file.
        node: What the library opened.
        read: Reads its rows; None: by slicing.
    """
    read = read or slicing(node)
    if node.chunks:
        read = by_slabs(read, node.shape, node.chunks[0], node.dtype.itemsize)
    return SourceArray(key, node.shape, dtype_name(node.dtype), read)


def by_slabs(read: Read, shape: tuple[int, ...], chunk: int, itemsize: int) -> Read:
    """Read whole slabs of rows and keep the last one: a chunk is decoded only once.

    A slab is some chunks along that axis, or one where they are large. With slabs of
    100 rows, rows 90 to 130 are the last 10 of slab 0 and the first 30 of slab 1; rows
    130 to 170, which usually come next, are in slab 1, too, which is still here.

    Args:
        read: Reads rows.
        shape: The array's shape.
        chunk: Rows of one chunk.
        itemsize: Bytes of one value.
    """
    row_bytes = itemsize * max(1, math.prod(shape[1:]))
    chunks_per_slab = max(1, SLAB_BYTES // (chunk * row_bytes))
    slab_rows = chunk * chunks_per_slab
    kept_slab = -1
    kept_rows: Any = None

    def slab(i: int) -> Any:
        nonlocal kept_slab, kept_rows
        if kept_slab != i:
            # Let go of the old one before the next one takes memory.
            kept_slab = -1
            kept_rows = None
            kept_rows = read(i * slab_rows, min((i + 1) * slab_rows, shape[0]))
            kept_slab = i
        return kept_rows

    def read_slabs(start: int, stop: int) -> Any:
        blocks = []
        for i in range(start // slab_rows, math.ceil(stop / slab_rows)):
            first = i * slab_rows
            block_start = max(start - first, 0)
            block_stop = min(stop - first, slab_rows)
            blocks.append(slab(i)[block_start:block_stop])
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    return read_slabs
