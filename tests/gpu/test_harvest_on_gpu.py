"""A harvest on a GPU: a CPU's values up to rounding, and the same bytes again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
from actstore.errors import HarvestWarning
from actstore.format.storage import Storage
from actstore.store.store import Store
from tests.gpu import on_gpu

pytestmark = on_gpu
CONTEXT = 64
SPEC: dict[str, Any] = {
    "model": "builtin:mini",
    "sites": ["blocks.*.hook_mlp_out", "blocks.1.hook_resid_post"],
    "unit_sequences": 24,
    "batch": 8,
}


def tokens(padded: bool = False) -> np.ndarray:
    made = np.random.default_rng(0).integers(1, 400, (200, CONTEXT)).astype(np.int32)
    if padded:
        made[::3, CONTEXT // 2 :] = -1
    return made


def harvested(folder: Path, device: str, padded: bool = False, **more: Any) -> Store:
    return actstore.harvest(
        {**SPEC, **more}, folder, tokens=tokens(padded), device=device
    )


def objects(store: Store) -> dict[str, bytes]:
    storage = Storage(store.url)
    return {key: storage.read(key) for key in storage.list()}


@pytest.mark.parametrize("padded", [False, True])
def test_values_are_those_of_a_cpu(padded: bool, tmp_path: Path) -> None:
    here = harvested(tmp_path / "cpu", "cpu", padded, dtype="float32")
    there = harvested(tmp_path / "cuda", "cuda", padded, dtype="float32")
    assert here.sites == there.sites
    rows = here.rows("train")
    assert (rows == there.rows("train")).all()
    for site in here.sites:
        wanted, ours = here.read(site, rows), there.read(site, rows)
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(there.mean(site), here.mean(site), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert actstore.verify(there).problems == []


@pytest.mark.parametrize("more", [{}, {"dtype": "int8"}, {"autocast": "bfloat16"}])
def test_the_same_bytes_again(more: dict[str, Any], tmp_path: Path) -> None:
    one, other = (harvested(tmp_path / n, "cuda", **more) for n in ("one", "other"))
    shards = [
        {key: value for key, value in objects(store).items() if "json" not in key}
        for store in (one, other)
    ]
    assert shards[0] == shards[1]
    assert len(shards[0]) > 10


@pytest.mark.parametrize("more", [{}, {"dtype": "int8"}, {"autocast": "bfloat16"}])
def test_it_is_found_right_by_computing_it_again(
    more: dict[str, Any], tmp_path: Path
) -> None:
    store = harvested(tmp_path / "store", "cuda", padded=True, **more)
    for device in ("cuda", "cpu"):
        if more.get("autocast") and device == "cpu":
            continue
        found = actstore.verify_deep(store, device=device, all_units=True)
        assert found.problems == []


def test_it_goes_on_where_the_gpu_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is really refused: more is asked for than there is."""
    whole = harvested(tmp_path / "whole", "cuda", dtype="float32")
    from actstore.harvesting.worker import Worker

    forward = Worker._forward
    refused: list[int] = []

    def without_room(self: Worker, batch: np.ndarray, collector: Any) -> None:
        if len(batch) > 4 and len(refused) < 2:
            refused.append(len(batch))
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        forward(self, batch, collector)

    monkeypatch.setattr(Worker, "_forward", without_room)
    with pytest.warns(HarvestWarning, match="out of memory on cuda"):
        cut = harvested(tmp_path / "cut", "cuda", dtype="float32")
    assert refused
    for site in whole.sites:
        rows = whole.rows("train")
        np.testing.assert_allclose(
            cut.read(site, rows), whole.read(site, rows), rtol=1e-3, atol=1e-4
        )
