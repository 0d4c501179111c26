"""Batches on a GPU are those on the host, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actstore.store.store import Store
from actstore.stream.stream import Batch
from tests.gpu import noting_waits, on_gpu
from tests.support import make_store

pytestmark = on_gpu
PAIRS = {
    "mode": "pairs",
    "sites": ["blocks.0.hook_mlp_out"],
    "targets": ["blocks.1.hook_mlp_out"],
}
SPECS: dict[str, dict[str, Any]] = {
    "as stored": {},
    "rescaled": {"rescale": "log", "center": True, "dtype": "bfloat16"},
    "aligned": {"mode": "aligned", "rescale": "linear"},
    "pairs": PAIRS,
    "skipping": {"skip_rows": 1000, "limit_rows": 3000},
}


def small_store(folder: Path, dtype: str = "bfloat16") -> Store:
    return make_store(folder / dtype, dtype=dtype, n_units=24, unit_sequences=8)


def batches(store: Store, device: str, n: int = 40, **spec: Any) -> list[Batch]:
    """The first batches of two epochs, of several windows each, on the host."""
    stream = store.stream(
        {"batch": 100, "epochs": 2, "window_chunks": 4, **spec}, device=device
    )
    found = []
    with stream:
        for _, batch in zip(range(n), stream, strict=False):
            assert batch.x.device.type == device
            assert batch.layer.device.type == device
            found.append(Batch._make(t if t is None else t.cpu() for t in batch))
    return found


def same(ours: list[Batch], wanted: list[Batch]) -> None:
    assert len(ours) == len(wanted) > 3
    for there, here in zip(ours, wanted, strict=True):
        for one, other in zip(there, here, strict=True):
            if one is None or other is None:
                assert one is other
            else:
                assert torch.equal(one, other)


@pytest.mark.parametrize("name", list(SPECS))
def test_batches_are_those_on_the_host(name: str, tmp_path: Path) -> None:
    store = small_store(tmp_path)
    there = batches(store, "cuda", 400, **SPECS[name])
    same(there, batches(store, "cpu", 400, **SPECS[name]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_every_storage_type(dtype: str, tmp_path: Path) -> None:
    store = small_store(tmp_path, dtype)
    same(batches(store, "cuda"), batches(store, "cpu"))


def test_of_int8_up_to_rounding(tmp_path: Path) -> None:
    """It is decoded on the GPU, which may fuse a product and a sum."""
    store = small_store(tmp_path, "int8")
    for there, here in zip(batches(store, "cuda"), batches(store, "cpu"), strict=True):
        assert torch.equal(there.row, here.row)
        assert torch.allclose(there.x, here.x, rtol=1e-6, atol=1e-6)


def test_a_stream_is_restored(tmp_path: Path) -> None:
    """Right after a batch, while its window may still be on its way to the GPU."""
    store = small_store(tmp_path)
    spec = {"batch": 100, "window_chunks": 4}
    with (
        store.stream(spec, device="cpu") as here,
        store.stream(spec, device="cuda") as there,
    ):
        for _ in range(5):
            state = here.state()
            wanted = [next(here) for _ in range(3)]
            there.restore(state)
            for batch in wanted:
                assert torch.equal(next(there).x.cpu(), batch.x)


def test_a_batch_does_not_wait_for_what_the_gpu_does(tmp_path: Path) -> None:
    """Training has queued work; a batch of the same window comes without its end."""
    store = small_store(tmp_path)
    with store.stream({"batch": 100}, device="cuda") as stream:
        next(stream)
        with noting_waits() as waits:
            for _ in range(3):
                next(stream)
    assert waits == []
