"""Storage dtypes: bfloat16 without a native numpy type, and int8 rows.

int8 (one unit's rows, [n, d]): channels are standardised, y = (x - mean) / step with
the unit's own channel mean and standard deviation; each row has a scale s = max|y| /
127 (float16), and q = round(y / s). So x ~ mean + step * s * q. A row with a NaN or an
infinity has the scale NaN and decodes to NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

from schemas.source import StorageDtype

NUMPY: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "int8": np.dtype("i1"),
}
_CHANNELS, _ROWS = 64, 1024  # quantised at a time
_BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
}


class Int8Rows(NamedTuple):
    """values int8 [n, d], scale float16 [n], step float32 [2, d] (channel mean, channel
    step).
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float16]
    step: NDArray[np.float32]


def numpy_dtype(name: StorageDtype) -> np.dtype[Any]:
    """The numpy dtype of stored values."""
    return NUMPY[name]


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as unsigned integers: copying them is faster than copying
    extension types.
    """
    words: NDArray[Any] = array.view(_BITS[array.dtype.itemsize])
    return words


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Values as float32; bfloat16 by widening its bits."""
    if array.dtype == NUMPY["bfloat16"]:
        return (bits(array).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A CPU tensor's memory as numpy, bfloat16 included, without a copy."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(NUMPY["bfloat16"])
    array: NDArray[Any] = tensor.detach().numpy()
    return array


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A numpy array's memory as a tensor, bfloat16 included, without a copy."""
    import torch

    if array.dtype == NUMPY["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def encode_int8(x: NDArray[np.float32]) -> Int8Rows:
    """Quantise the rows of one unit, float32 [n, d].

    Some channels, then some rows at a time: a copy of a whole unit in float64 would be
    more than its buffers.
    """
    n, d = x.shape
    finite = np.empty(n, np.bool_)
    for at in range(0, n, _ROWS):
        finite[at : at + _ROWS] = np.isfinite(x[at : at + _ROWS]).all(axis=1)
    mean, step = np.zeros(d), np.ones(d)
    if finite.any():
        for at in range(0, d, _CHANNELS):
            part = (
                x[:, at : at + _CHANNELS]
                if finite.all()
                else x[finite, at : at + _CHANNELS]
            )
            mean[at : at + _CHANNELS] = part.mean(axis=0, dtype=np.float64)
            step[at : at + _CHANNELS] = part.std(axis=0, dtype=np.float64)
    channels = np.stack([mean, np.where(step > 0, step, 1.0)]).astype(np.float32)
    values, scale = np.empty((n, d), np.int8), np.empty(n, np.float16)
    for at in range(0, n, _ROWS):
        block = slice(at, at + _ROWS)
        values[block], scale[block] = _quantised(x[block], finite[block], channels)
    return Int8Rows(values, scale, channels)


def _quantised(
    x: NDArray[np.float32], finite: NDArray[np.bool_], channels: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Values and scales of some rows."""
    y = (np.where(finite[:, None], x, 0) - channels[0]) / channels[1]
    exact = np.abs(y).max(axis=1) / 127
    scale = exact.astype(np.float16)
    scale = np.where(
        scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale
    )
    scale = np.where(scale > 0, scale, np.float16(1))
    values = np.clip(np.rint(y / scale.astype(np.float32)[:, None]), -127, 127).astype(
        np.int8
    )
    values[~finite] = 0
    return values, np.where(finite, scale, np.float16(np.nan)).astype(np.float16)


def decode_int8(rows: Int8Rows) -> NDArray[np.float32]:
    """float32 [n, d] back from quantised rows."""
    scaled = rows.values.astype(np.float32) * rows.scale.astype(np.float32)[:, None]
    result: NDArray[np.float32] = rows.step[0] + rows.step[1] * scaled
    return result
