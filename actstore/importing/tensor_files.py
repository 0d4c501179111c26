"""Files of tensors: safetensors, and torch's `.pt` read as tensors only."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from actstore.errors import SourceError
from actstore.importing.arrays import Array, dtype_name

_SAFE = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I32": "int32",
    "I64": "int64",
}
_SAFE |= {
    "I8": "int8",
    "I16": "int16",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}


def open_safetensors(path: Path, stack: ExitStack) -> list[Array]:
    """Every tensor of a file. The library checks the header; rows are read and not
    mapped, so memory stays small.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device="cpu") as checked:
        kinds = {
            key: checked.get_slice(key).get_dtype() for key in sorted(checked.keys())
        }
    file = stack.enter_context(path.open("rb"))
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    found = []
    for key, kind in kinds.items():
        shape, dtype = tuple(header[key]["shape"]), _SAFE.get(kind, str(kind).lower())
        start = 8 + size + header[key]["data_offsets"][0]
        found.append(
            Array(key, shape, dtype, partial(_rows, file, start, shape, dtype))
        )
    return found


def _rows(
    file: IO[bytes],
    offset: int,
    shape: tuple[int, ...],
    dtype: str,
    start: int,
    stop: int,
) -> torch.Tensor:
    kind, each = getattr(torch, dtype), math.prod(shape[1:])
    file.seek(offset + start * each * kind.itemsize)
    data = bytearray((stop - start) * each * kind.itemsize)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise EOFError(f"it ends before row {stop}")
    return torch.frombuffer(data, dtype=kind).reshape(stop - start, *shape[1:])


def open_pt(path: Path, stack: ExitStack) -> list[Array]:  # noqa: ARG001 (the mapping ends with the tensors)
    """A tensor, or a dict of tensors by name, mapped into memory; a file that holds
    anything else is refused.
    """
    try:
        found: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        # a damaged or hostile file: whatever it leads to, the file is to blame
        if "_use_new_zipfile_serialization" in str(error):
            raise SourceError(
                f"{path}: it is of torch's format before 1.6; load it and save it again"
            ) from error
        raise SourceError(
            f"{path}: wanted a tensor or a dict of tensors and nothing else, but the"
            " file is damaged or would run code when read, so it was not read; if you"
            " trust it, save its tensors as safetensors"
        ) from error
    named = found if isinstance(found, dict) else {None: found}
    for key, value in named.items():
        if not isinstance(value, torch.Tensor) or not (
            key is None or isinstance(key, str)
        ):
            what = (
                type(value).__name__
                if key is None
                else f"{type(value).__name__} under {key!r}"
            )
            raise SourceError(
                f"{path}: wanted a tensor or a dict of tensors by name, got {what}"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise SourceError(
                f"{path}: {key or 'its tensor'} is sparse or quantised; save a plain"
                " tensor"
            )
    return [
        Array(key, tuple(x.shape), dtype_name(x.dtype), partial(_slice, x))
        for key, x in named.items()
    ]


def _slice(values: Any, start: int, stop: int) -> Any:
    return values[start:stop]
