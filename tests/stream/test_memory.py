"""A stream takes the memory of its windows, whatever the store's size: held by a limit
of the kernel.

A process of its own opens a store of 1 GiB, streams a few batches from the smallest
windows (libraries, threads and allocator are there then), and takes what it has as the
baseline. The limit is the baseline and 256 MiB more: two windows (128 MiB), batches and
the order have to fit; every row of the store comes by, and every value is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic import linked_store

MIB = 1 << 20
EXTRA, MEMORY = 256 * MIB, 128 * MIB
N_SITES, N_UNITS, UNIT_ROWS, CHUNK_ROWS, D = 8, 33, 8192, 2048, 256
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel's limit on private memory is Linux'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training units and 8 sites of 4 MiB shards: 1 GiB, in 4 MiB of disk."""
    where = tmp_path_factory.mktemp("memory") / "store"
    linked_store(
        where,
        n_units=N_UNITS,
        unit_rows=UNIT_ROWS,
        chunk_rows=CHUNK_ROWS,
        n_sites=N_SITES,
        d=D,
    )
    return where


def in_a_limited_process(folder: Path, memory: int) -> dict[str, Any]:
    """What `child` says."""
    words = [sys.executable, "-m", "tests.stream.test_memory", str(folder), str(memory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_store_of_four_times_the_limit_streams_through(folder: Path) -> None:
    said = in_a_limited_process(folder, MEMORY)
    rows = N_SITES * (N_UNITS - 1) * UNIT_ROWS
    assert rows * D * 2 == 4 * EXTRA
    assert said["error"] is None
    assert said["windows"] == MEMORY
    assert said["rows"] == said["distinct"] == rows
    assert said["wrong"] == 0
    assert said["peak"] <= said["baseline"] + EXTRA


def test_windows_above_the_limit_are_refused_by_the_kernel(folder: Path) -> None:
    """So the limit is one that holds, and the test above can fail."""
    said = in_a_limited_process(folder, 4 * EXTRA)
    assert said["windows"] > EXTRA
    assert said["error"] == "MemoryError"
    assert said["rows"] == 0


def private_bytes() -> int:
    """Private writable memory of this process: what RLIMIT_DATA counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(
        int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")
    )


def child(folder: str, memory: int) -> dict[str, Any]:
    """Stream a whole store under the limit; compares every value with unit 0's, which
    all units hold.
    """
    import resource

    import torch

    import actstore
    from schemas.stream import StreamSpec

    store = actstore.open(folder)
    truth = (
        torch.from_numpy(store.read_unit(store.sites[0], 0))
        .to(torch.bfloat16)
        .view(torch.int16)
    )
    seen = torch.zeros(
        len(store.sites),
        store.manifest.n_units * store.layout.capacity,
        dtype=torch.bool,
    )
    spec = StreamSpec(batch=8192, dtype="bfloat16", memory=memory)
    small = StreamSpec(
        batch=8192, dtype="bfloat16", window_chunks=1, lanes=1, limit_rows=40_000
    )
    with store.stream(small) as stream:
        for _ in stream:
            pass
    baseline = peak = private_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (baseline + EXTRA, baseline + EXTRA))
    said: dict[str, Any] = {"rows": 0, "wrong": 0, "error": None, "baseline": baseline}
    with store.stream(spec) as stream:
        said["windows"] = (
            2
            * stream.window_chunks
            * store.layout.chunk_rows
            * D
            * 2
            * len(store.sites)
        )
        try:
            for batch in stream:
                wanted = truth[batch.row % store.layout.capacity]
                said["wrong"] += int(
                    (batch.x.view(torch.int16) != wanted).any(dim=1).sum()
                )
                seen[batch.layer, batch.row] = True
                said["rows"] += len(batch.row)
                peak = max(peak, private_bytes())
        except MemoryError:
            said["error"] = "MemoryError"
    return {**said, "peak": peak, "distinct": int(seen.sum())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(child(sys.argv[1], int(sys.argv[2]))))
