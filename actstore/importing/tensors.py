"""Files of tensors: safetensors, and torch's `.pt` read as tensors only."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actstore.errors import SourceError
from actstore.importing.arrays import Array, dtype_name

_SAFE = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "I32": "int32", "I64": "int64"}
_SAFE |= {"I8": "int8", "I16": "int16", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"}


def open_safetensors(path: Path, stack: ExitStack) -> list[Array]:
    """Every tensor of a file; read in slices."""
    from safetensors import safe_open

    file = stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
    found = []
    for key in sorted(file.keys()):
        part = file.get_slice(key)
        shape, dtype = tuple(part.get_shape()), _SAFE.get(part.get_dtype(), str(part.get_dtype()).lower())
        found.append(Array(key, shape, dtype, partial(_slice, part)))
    return found


def open_pt(path: Path, stack: ExitStack) -> list[Array]:  # noqa: ARG001 (the mapping ends with the tensors)
    """A tensor, or a dict of tensors by name, mapped into memory; a file that holds anything else is refused."""
    try:
        found: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged or hostile file: whatever it leads to, the file is to blame
        if "_use_new_zipfile_serialization" in str(error):
            raise SourceError(f"{path}: it is of torch's format before 1.6; load it and save it again") from error
        raise SourceError(
            f"{path}: wanted a tensor or a dict of tensors and nothing else, but the file is damaged or would run code "
            "when read, so it was not read; if you trust it, save its tensors as safetensors"
        ) from error
    named = found if isinstance(found, dict) else {None: found}
    for key, value in named.items():
        if not isinstance(value, torch.Tensor) or not (key is None or isinstance(key, str)):
            what = type(value).__name__ if key is None else f"{type(value).__name__} under {key!r}"
            raise SourceError(f"{path}: wanted a tensor or a dict of tensors by name, got {what}")
        if value.layout != torch.strided or value.is_quantized:
            raise SourceError(f"{path}: {key or 'its tensor'} is sparse or quantised; save a plain tensor")
    return [Array(key, tuple(x.shape), dtype_name(x.dtype), partial(_slice, x)) for key, x in named.items()]


def _slice(values: Any, start: int, stop: int) -> Any:
    return values[start:stop]
