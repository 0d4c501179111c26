"""The dtypes of stored values: bfloat16, which numpy has no type for, and int8 rows.

int8 quantises the rows of one unit together, [n, d]. Channels are standardised, y = (x
- mean) / step with the unit's own channel mean and standard deviation; each row has a
scale s = max|y| / 127 (float16, rounded up), and q = round(y / s). So x is about mean +
step * s * q. A row with a NaN or an infinity has the scale NaN and decodes to NaN.

For example the rows (1, 10) and (3, 30): channel means are (2, 20), steps (1, 10). The
first row has y = (-1, -1), its scale is 1 / 127 or 0.00788 in float16, and q = (-127,
-127). It decodes to 2 - 127 * 0.00788 * 1 = 0.999 and 20 - 127 * 0.00788 * 10 = 9.991.
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
# Rows that are quantised at a time: a copy of a whole unit in float64 would be more
# than the buffers that the unit is in.
_CHANNELS = 64
_ROWS = 1024
_INT8_MOST = 127
_BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
}


class Int8Rows(NamedTuple):
    """Quantised rows of one unit.

    Attributes:
        values: int8 [n, d].
        scale: Scale of each row, float16 [n].
        step: Mean and step of each channel, float32 [2, d].
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float16]
    step: NDArray[np.float32]


def numpy_dtype(name: StorageDtype) -> np.dtype[Any]:
    """Return the numpy dtype of stored values."""
    return NUMPY[name]


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same memory as unsigned integers, [*] as it came.

    Copying these is faster than copying extension types.
    """
    words: NDArray[Any] = array.view(_BITS[array.dtype.itemsize])
    return words


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return values [*] as float32, the same memory where they are that already."""
    if array.dtype == NUMPY["bfloat16"]:
        # bfloat16 is the upper half of a float32, and ml_dtypes' own cast is slower.
        words = bits(array).astype(np.uint32)
        words <<= np.uint32(16)
        return words.view(np.float32)
    return array.astype(np.float32, copy=False)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a CPU tensor's memory as an array, bfloat16 included, without a copy.

    tensor: [...] of a stored dtype. The array has the same shape.
    """
    import torch

    if tensor.dtype == torch.bfloat16:
        # torch and numpy know no bfloat16 of each other, but both know int16.
        words = tensor.detach().view(torch.int16)
        return words.numpy().view(NUMPY["bfloat16"])
    array: NDArray[Any] = tensor.detach().numpy()
    return array


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Return a numpy array's memory as a tensor, bfloat16 included, without a copy.

    array: [...] of a stored dtype. The tensor has the same shape.
    """
    import torch

    if array.dtype == NUMPY["bfloat16"]:
        words = torch.from_numpy(array.view(np.int16))
        return words.view(torch.bfloat16)
    return torch.from_numpy(array)


def encode_int8(x: NDArray[np.float32]) -> Int8Rows:
    """Return the rows of one unit, float32 [n, d], quantised."""
    n, d = x.shape
    finite = np.empty(n, np.bool_)
    for start in range(0, n, _ROWS):
        block = slice(start, start + _ROWS)
        finite[block] = np.isfinite(x[block]).all(axis=1)
    channels = _channel_steps(x, finite)
    values = np.empty((n, d), np.int8)
    scale = np.empty(n, np.float16)
    for start in range(0, n, _ROWS):
        block = slice(start, start + _ROWS)
        values[block], scale[block] = _quantised(x[block], finite[block], channels)
    return Int8Rows(values, scale, channels)


def _channel_steps(
    x: NDArray[np.float32], finite: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return each channel's mean and standard deviation, float32 [2, d].

    They are over the rows that are finite.
    """
    d = x.shape[1]
    mean = np.zeros(d)
    step = np.ones(d)
    if finite.any():
        all_finite = finite.all()
        for start in range(0, d, _CHANNELS):
            channels = slice(start, start + _CHANNELS)
            part = x[:, channels] if all_finite else x[finite, channels]
            mean[channels] = part.mean(axis=0, dtype=np.float64)
            step[channels] = part.std(axis=0, dtype=np.float64)
    # A channel that is the same in all rows has the step 1, for what is divided by it.
    step = np.where(step > 0, step, 1.0)
    return np.stack([mean, step]).astype(np.float32)


def _quantised(
    x: NDArray[np.float32],
    finite: NDArray[np.bool_],
    channels: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return values, int8 [n, d], and scales, float16 [n], of some rows [n, d]."""
    mean, step = channels
    # A row that is not finite is taken as zeros here, and marked below. One expression:
    # numpy works in place where nobody else holds what lies between.
    y = (np.where(finite[:, None], x, 0) - mean) / step
    exact = np.abs(y).max(axis=1) / _INT8_MOST
    scale = exact.astype(np.float16)
    # A scale that float16 rounds down would need values above 127: take the next one.
    too_small = scale.astype(np.float32) < exact
    next_scale = np.nextafter(scale, np.float16(np.inf))
    scale = np.where(too_small, next_scale, scale)
    scale = np.where(scale > 0, scale, np.float16(1))  # a row of zeros
    rounded = np.rint(y / scale.astype(np.float32)[:, None])
    values = np.clip(rounded, -_INT8_MOST, _INT8_MOST).astype(np.int8)
    values[~finite] = 0
    nan = np.float16(np.nan)
    scale = np.where(finite, scale, nan).astype(np.float16)
    return values, scale


def decode_int8(rows: Int8Rows) -> NDArray[np.float32]:
    """Return quantised rows as they were, up to rounding, float32 [n, d]."""
    scale = rows.scale.astype(np.float32)
    scaled = rows.values.astype(np.float32) * scale[:, None]
    mean, step = rows.step
    decoded: NDArray[np.float32] = mean + step * scaled
    return decoded
