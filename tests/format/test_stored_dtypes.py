"""bfloat16 without numpy's help, and int8 rows, against plain formulas."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from actstore.format import stored_dtypes
from actstore.format.stored_dtypes import (
    Int8Rows,
    bits,
    decode_int8,
    encode_int8,
    numpy_dtype,
    to_float32,
    to_numpy,
    to_torch,
)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "int8"])
def test_dtypes_go_to_torch_and_back_without_a_copy(name: str) -> None:
    dtype = numpy_dtype(name)  # type: ignore[arg-type]
    array = np.array([[1, -2, 3], [4, 5, -6]]).astype(dtype)
    tensor = to_torch(array)
    assert tensor.dtype == getattr(torch, name)
    assert tensor.tolist() == [[1, -2, 3], [4, 5, -6]]
    again = to_numpy(tensor.requires_grad_(name != "int8"))
    assert again.dtype == dtype
    array[0, 0] = 7
    assert again[0, 0] == 7
    assert tensor[0, 0] == 7
    words = bits(array)
    assert words.dtype == np.dtype(f"<u{dtype.itemsize}")
    assert words.tobytes() == array.tobytes()
    assert np.shares_memory(words, array)


def test_values_become_float32() -> None:
    values = np.array([1.5, -0.0, np.inf, 3e38, 1e-40], np.float32)
    assert to_float32(values) is values
    brain = values.astype(ml_dtypes.bfloat16)
    wide = to_float32(brain.reshape(5, 1))
    assert wide.dtype == np.float32
    assert wide.shape == (5, 1)
    np.testing.assert_array_equal(wide[:, 0], brain.astype(np.float32))
    half = to_float32(np.array([0.1], np.float16))
    assert half.dtype == np.float32
    assert half[0] == np.float32(np.float16(0.1))


def test_int8_in_numbers() -> None:
    rows = encode_int8(np.array([[1, 10], [3, 30]], np.float32))
    assert rows.step.tolist() == [[2, 20], [1, 10]]
    assert rows.values.tolist() == [[-127, -127], [127, 127]]
    # 1 / 127, rounded up in float16
    scale = np.nextafter(np.float16(1 / 127), np.float16(1))
    assert float(np.float16(1 / 127)) < 1 / 127 < float(scale)
    assert rows.scale.tolist() == [float(scale)] * 2
    again = decode_int8(rows)
    wanted = [2 - 127 * float(scale), 20 - 1270 * float(scale)]
    np.testing.assert_allclose(again[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(again[1], [4 - wanted[0], 40 - wanted[1]], rtol=1e-6)
    assert [array.dtype for array in rows] == [np.int8, np.float16, np.float32]
    assert again.dtype == np.float32


def plain_int8(x: np.ndarray) -> Int8Rows:
    """As the module's description has it, in float64 but for what is stored."""
    finite = np.isfinite(x).all(axis=1)
    kept = x[finite].astype(np.float64)
    mean, step = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if len(kept):
        mean, step = kept.mean(axis=0), kept.std(axis=0)
    step[step == 0] = 1
    channels = np.stack([mean, step]).astype(np.float32)
    values, scales = np.zeros(x.shape, np.int8), np.full(len(x), np.nan, np.float16)
    for i in np.flatnonzero(finite):
        y = (x[i] - channels[0]) / channels[1]
        exact = np.abs(y).max() / 127
        above = np.float16(exact)
        while np.float32(above) < exact:
            above = np.nextafter(above, np.float16(np.inf))
        above = above or np.float16(1)
        scales[i] = above
        values[i] = np.rint(y / np.float32(above))
    return Int8Rows(values, scales, channels)


@pytest.mark.parametrize("block", [3, 1024])
def test_int8_is_the_plain_formula_block_by_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_dtypes, "_ROWS", block)
    monkeypatch.setattr(stored_dtypes, "_CHANNELS", block)
    g = np.random.default_rng(3)
    x = (g.normal(size=(40, 7)) * 10.0 ** g.integers(-3, 3, (40, 1))).astype(np.float32)
    x[:, 2] = 5
    for bad in (None, (11, 3, np.nan), (39, 0, np.inf)):
        if bad is not None:
            x[bad[0], bad[1]] = bad[2]
        rows, wanted = encode_int8(x), plain_int8(x)
        np.testing.assert_array_equal(rows.values, wanted.values)
        np.testing.assert_array_equal(rows.scale, wanted.scale)
        np.testing.assert_allclose(rows.step, wanted.step, rtol=1e-6)
    again = decode_int8(rows)
    finite = np.isfinite(x).all(axis=1)
    assert np.isnan(again[~finite]).all()
    assert (~finite).sum() == 2
    step = rows.step[1] * rows.scale[finite].astype(np.float32)[:, None]
    assert (np.abs(again[finite] - x[finite]) <= 0.5001 * step + 1e-5).all()


def test_rows_that_are_the_mean_or_not_finite() -> None:
    rows = encode_int8(np.full((3, 2), 5, np.float32))
    assert rows.values.tolist() == [[0, 0]] * 3
    assert rows.scale.tolist() == [1] * 3
    assert rows.step.tolist() == [[5, 5], [1, 1]]
    none = encode_int8(np.full((2, 2), np.nan, np.float32))
    assert none.values.tolist() == [[0, 0]] * 2
    assert np.isnan(none.scale).all()
    assert none.step.tolist() == [[0, 0], [1, 1]]
