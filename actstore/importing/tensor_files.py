"""Files of tensors: safetensors, and torch's `.pt` read as tensors only."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch

from actstore.errors import SourceError
from actstore.importing.source_arrays import (
    Read,
    SourceArray,
    dtype_name,
    read_plain_rows,
    slicing,
)

_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
"""Names of dtypes in a safetensors header, and ours."""


def open_safetensors(path: Path, stack: ExitStack) -> list[SourceArray]:
    """Return every tensor of a file.

    The library checks the header. Rows are read here, for it would map the file.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device="cpu") as checked:
        dtypes = {
            key: checked.get_slice(key).get_dtype() for key in sorted(checked.keys())
        }
    # A file is: the header's length in 8 bytes, the header, the tensors' bytes.
    file = stack.enter_context(path.open("rb"))
    header_bytes = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(header_bytes))
    arrays = []
    for key, safetensors_dtype in dtypes.items():
        # One that we have no name for (F8_E4M3) is listed in messages, and no site.
        dtype = _DTYPES.get(safetensors_dtype, str(safetensors_dtype).lower())
        shape = tuple(header[key]["shape"])
        offset = 8 + header_bytes + header[key]["data_offsets"][0]
        read = _rows_reader(file, offset, shape, dtype)
        arrays.append(SourceArray(key, shape, dtype, read))
    return arrays


def _rows_reader(
    file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: str
) -> Read:
    def read(start: int, stop: int) -> torch.Tensor:
        torch_dtype: torch.dtype = getattr(torch, dtype)
        data = read_plain_rows(file, offset, shape, torch_dtype.itemsize, start, stop)
        values = torch.frombuffer(data, dtype=torch_dtype)
        return values.reshape(stop - start, *shape[1:])

    return read


def open_pt(path: Path, stack: ExitStack) -> list[SourceArray]:  # noqa: ARG001 (the mapping ends with the tensors)
    """Return a tensor, or a dict of tensors by name, mapped into memory.

    Raises:
        SourceError: The file holds anything else, or would run code when read.
    """
    # Mapped: rows are read when they are asked for. `weights_only`: a pickle from a
    # stranger may hold any code.
    try:
        saved: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
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
    tensors = saved if isinstance(saved, dict) else {None: saved}
    for key, tensor in tensors.items():
        _check_tensor(path, key, tensor)
    return [
        SourceArray(key, tuple(tensor.shape), dtype_name(tensor.dtype), slicing(tensor))
        for key, tensor in tensors.items()
    ]


def _check_tensor(path: Path, key: Any, tensor: Any) -> None:
    is_name = key is None or isinstance(key, str)
    if not isinstance(tensor, torch.Tensor) or not is_name:
        what = type(tensor).__name__
        if key is not None:
            what = f"{what} under {key!r}"
        raise SourceError(
            f"{path}: wanted a tensor or a dict of tensors by name, got {what}"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise SourceError(
            f"{path}: {key or 'its tensor'} is sparse or quantised; save a plain tensor"
        )
