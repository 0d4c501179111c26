"""bfloat16 as zarr-python's data type: its scalars in JSON."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from actstore.format.zarr_bfloat16 import DataTypeValidationError, _BFloat16


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (1, 1.0),
        (-2.5, -2.5),
        ("0x3f80", 1.0),
        ("0xc020", -2.5),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
    ],
)
def test_scalars_from_json(text: object, value: float) -> None:
    scalar = _BFloat16().from_json_scalar(text, zarr_format=3)
    assert type(scalar) is ml_dtypes.bfloat16
    assert float(scalar) == value


def test_scalars_to_json() -> None:
    it = _BFloat16()
    values = [0.0, -2.5, math.inf, -math.inf, math.nan]
    written = [
        it.to_json_scalar(ml_dtypes.bfloat16(value), zarr_format=3) for value in values
    ]
    assert written == [0.0, -2.5, "Infinity", "-Infinity", "NaN"]
    assert math.isnan(it.from_json_scalar("NaN", zarr_format=3))


def test_numpys_dtype() -> None:
    native = np.dtype(ml_dtypes.bfloat16)
    assert _BFloat16.from_native_dtype(native) == _BFloat16()
    assert _BFloat16().to_native_dtype() == native
    assert _BFloat16().item_size == native.itemsize
    assert type(_BFloat16().cast_scalar(1)) is ml_dtypes.bfloat16
    with pytest.raises(DataTypeValidationError, match="not bfloat16: float32"):
        _BFloat16.from_native_dtype(np.dtype("f4"))
