"""Storage dtypes: bfloat16 without a native numpy type, and int8 rows.

int8 (one unit's rows, [n, d]): channels are standardised, y = (x - mean) / step with the unit's own channel mean and
standard deviation; each row has a scale s = max|y| / 127 (float16), and q = round(y / s). So x ~ mean + step * s * q.
A row with a NaN or an infinity has the scale NaN and decodes to NaN.
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
_BITS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


class Int8Rows(NamedTuple):
    """values int8 [n, d], scale float16 [n], step float32 [2, d] (channel mean, channel step)."""

    values: NDArray[np.int8]
    scale: NDArray[np.float16]
    step: NDArray[np.float32]


def numpy_dtype(name: StorageDtype) -> np.dtype[Any]:
    """The numpy dtype of stored values."""
    return NUMPY[name]


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as unsigned integers: copying them is faster than copying extension types."""
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
    """Quantise the rows of one unit, float32 [n, d]."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(x).all(axis=1))
    kept = x[finite] if not finite.all() else x
    mean = kept.mean(axis=0, dtype=np.float64) if len(kept) else np.zeros(x.shape[1])
    step = kept.std(axis=0, dtype=np.float64) if len(kept) else np.ones(x.shape[1])
    channels = np.stack([mean, np.where(step > 0, step, 1.0)]).astype(np.float32)
    y = (np.where(finite[:, None], x, 0) - channels[0]) / channels[1]
    exact = np.abs(y).max(axis=1) / 127
    scale = exact.astype(np.float16)
    scale = np.where(scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    scale = np.where(scale > 0, scale, np.float16(1))
    values = np.clip(np.rint(y / scale.astype(np.float32)[:, None]), -127, 127).astype(np.int8)
    values[~finite] = 0
    return Int8Rows(values, np.where(finite, scale, np.float16(np.nan)).astype(np.float16), channels)


def decode_int8(rows: Int8Rows) -> NDArray[np.float32]:
    """float32 [n, d] back from quantised rows."""
    scaled = rows.values.astype(np.float32) * rows.scale.astype(np.float32)[:, None]
    result: NDArray[np.float32] = rows.step[0] + rows.step[1] * scaled
    return result
