"""The stores, and the rows that all packages train on: our stream's batches, in its
order, in a file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import actstore
from actstore.importing.known_features import KnownFeatures
from actstore.store.store import Store
from schemas.stream import StreamSpec
from schemas.toy import FeatureSpec
from tests.benchmarks.quality.known_features import SUPERPOSED, make_known_store

CLI = "from actstore.cli import main; main()"
HARVEST = (
    "--model",
    "builtin:tiny",
    "--corpus",
    "builtin:stdlib",
    "--sites",
    "blocks.*.hook_mlp_out",
    "--tokens",
    "1M",
)


class Setting(NamedTuple):
    """What is trained from a store. k: latents per row of all kinds, as a number or as
    the wanted mean.
    """

    n_latents: int
    batch: int
    rows: int
    k: int


SETTINGS = {
    "builtin": Setting(1024, 4096, 999_424, 32),
    "known": Setting(2048, 1024, 524_288, 25),
}
KNOWN_ROWS = 1 << 20


def open_store(
    name: str, work: Path, url: str | None, rows: int = KNOWN_ROWS
) -> tuple[Store, KnownFeatures | None]:
    """The store, made in `work` where it is not there yet, and its features if they are
    known.

    url: where a store of that kind lies already. Features are kept in a file beside the
    store.
    """
    path = Path(url or work / f"{name}_store")
    if name == "builtin":
        if not path.exists():
            subprocess.run(
                [sys.executable, "-c", CLI, "harvest", *HARVEST, "--out", str(path)],
                check=True,
            )
        return actstore.open(path), None
    beside = path.with_suffix(".features.json")
    if not beside.exists():
        known = KnownFeatures(SUPERPOSED)
        make_known_store(path, known, rows)
        # last: it says that the store is whole
        beside.write_text(known.spec.model_dump_json() + "\n")
    return actstore.open(path), KnownFeatures(
        FeatureSpec.model_validate_json(beside.read_text())
    )


def stream_spec(batch: int, seed: int) -> StreamSpec:
    """What a run of ours streams, and what the file of rows is made of."""
    return StreamSpec(batch=batch, seed=seed, epochs=None)


def rows_file(store: Store, name: str, setting: Setting, seed: int, work: Path) -> Path:
    """float32 [rows, d] in the order of the seed's stream, with the rows' layers beside
    it (`.layers.npy`).
    """
    path = work / f"rows_{name}_{seed}.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) >= setting.rows:
        return path
    temporary = path.with_suffix(".part")
    with store.stream(stream_spec(setting.batch, seed)) as stream:
        shape = (setting.rows, stream.d)
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        layers, done = np.empty(setting.rows, np.int8), 0
        while done < setting.rows:
            batch = next(stream)
            n = min(len(batch.x), setting.rows - done)
            out[done : done + n], layers[done : done + n] = (
                batch.x[:n].numpy(),
                batch.layer[:n].numpy(),
            )
            done += n
    out.flush()
    np.save(path.with_suffix(".layers.npy"), layers)
    temporary.rename(path)
    return path


def first_rows(path: Path, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first n rows, and their layers."""
    layers = np.load(path.with_suffix(".layers.npy"), mmap_mode="r")[:n].astype(
        np.int64
    )
    return np.array(np.load(path, mmap_mode="r")[:n]), layers
