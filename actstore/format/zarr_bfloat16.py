"""bfloat16 as the Zarr extension data type of that name, for zarr-python.

`import actstore.format.zarr_bfloat16` is the one line that every zarr-python since 3.1
needs to read it, and xarray with it. Newer ones (3.4) do without where actstore is
installed, by the entry point `zarr.data_type`; 3.1 collects such entry points and never
loads them. Where zarr-python knows the name by itself, its own class is used and
nothing is registered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import zarr.core.dtype as zarr_dtypes
from zarr.core.dtype.npy.float import BaseFloat

try:
    from zarr.errors import DataTypeValidationError
except ImportError:  # until zarr 3.1
    from zarr.core.dtype import DataTypeValidationError

__all__ = ["BFloat16", "DataTypeValidationError"]


@dataclass(frozen=True)
class _BFloat16(BaseFloat):  # type: ignore[misc]
    """The data type `bfloat16`, as zarr-python wants one to be."""

    dtype_cls = type(np.dtype(ml_dtypes.bfloat16))
    _zarr_v3_name: ClassVar[str] = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()
    endianness: str = "little"

    @property
    def item_size(self) -> int:
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> _BFloat16:
        if dtype != np.dtype(ml_dtypes.bfloat16):
            raise DataTypeValidationError(f"not bfloat16: {dtype}")
        return cls()

    def to_native_dtype(self) -> np.dtype[Any]:
        native: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return native

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        return ml_dtypes.bfloat16(data)

    def from_json_scalar(self, data: Any, *, zarr_format: int) -> Any:  # noqa: ARG002
        """Return the value that a JSON scalar stands for.

        It is a number; "NaN", "Infinity" or "-Infinity" (also in float()'s own
        spellings); or "0x" and 4 hex digits.
        """
        if isinstance(data, str) and data.startswith("0x"):
            # 0x3f80 is 1.0; its bytes in memory are 80 3f
            little_endian = bytes.fromhex(data[2:])[::-1]
            return np.frombuffer(little_endian, ml_dtypes.bfloat16)[0]
        return ml_dtypes.bfloat16(float(data))

    def to_json_scalar(self, data: object, *, zarr_format: int) -> Any:  # noqa: ARG002
        value = float(data)  # type: ignore[arg-type]
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value


# zarr-python's own class, where it has one
BFloat16 = zarr_dtypes.data_type_registry.contents.get("bfloat16", _BFloat16)
zarr_dtypes.data_type_registry.register("bfloat16", BFloat16)
__all__ = ["BFloat16"]
