"""int8 rows of the builtin model: how many bytes they take, and how little they lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import actstore
from tests.benchmarks.codecs import bytes_per_value

SITES = ("blocks.{0,3,5}.hook_mlp_out", "blocks.{0,5}.hook_resid_post")


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_int8_takes_a_byte_per_value_and_loses_less_than_a_ten_thousandth(
    tmp_path: Path, codec: str
) -> None:
    spec = {
        "model": "builtin:tiny",
        "corpus": "builtin:stdlib",
        "sites": SITES,
        "tokens": 1 << 14,
    }
    spec |= {"unit_sequences": 16, "chunk_rows": 512, "codec": codec}
    exact = actstore.harvest({**spec, "dtype": "float32"}, str(tmp_path / "exact"))
    store = actstore.harvest({**spec, "dtype": "int8"}, str(tmp_path / "int8"))
    assert bytes_per_value(store) <= 1.02
    rows = exact.rows()
    for site in exact.sites:
        x, y = exact.read(site, rows).astype(np.float64), store.read(site, rows)
        assert np.square(x - y).sum() <= 1e-4 * np.square(x - x.mean(axis=0)).sum(), (
            site
        )
