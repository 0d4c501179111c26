"""`actstore import` of every format, through the command line: the rows are the file's,
with their tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from datasets import Array2D, Dataset, Features, Sequence, Value
from datasets.utils.logging import disable_progress_bar
from safetensors.torch import save_file

import actstore
from actstore.inspect.verify import verify
from actstore.store.store import Store
from schemas.stream import StreamSpec
from tests.cli.conftest import cli
from tests.cli.test_bad_input import Cli, refused

__all__ = ["cli"]
SITE, OTHER = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
N, CONTEXT, D = 60, 5, 6
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N * CONTEXT, D)).astype(np.float16).astype(np.float32)
Y = RNG.standard_normal((N, CONTEXT, 4)).astype(np.float32)
TOKENS = RNG.integers(0, 1000, (N, CONTEXT)).astype(np.int64)


def check(store: Store, site: str, x: np.ndarray, *, tokens: bool = True) -> None:
    """Every row of the store is the row of x [n_sequences, context, d] that its
    provenance names; none is missing.
    """
    ids = store.rows()
    found = store.provenance(ids)
    wide = x.reshape(-1, store.layout.context, x.shape[-1])
    assert sorted(zip(found.sequence, found.position, strict=True)) == [
        (s, p) for s in range(len(wide)) for p in range(wide.shape[1])
    ]
    wanted = torch.from_numpy(wide).to(torch.bfloat16).float().numpy()
    assert np.array_equal(store.read(site, ids), wanted[found.sequence, found.position])
    ids = TOKENS.reshape(-1, store.layout.context)[found.sequence, found.position]
    assert np.array_equal(found.token, ids if tokens else np.full(len(found.token), -1))


def npy(folder: Path) -> list[str]:
    np.save(folder / "x.npy", X)
    np.save(folder / "t.npy", TOKENS.astype(np.uint16))
    return [f"{SITE}={folder / 'x.npy'}", "--tokens", str(folder / "t.npy")]


def npy_parts(folder: Path) -> list[str]:
    """Fifteen parts in a folder, `part-10` among them; one is empty."""
    (folder / "parts").mkdir()
    for i in range(15):
        np.save(
            folder / "parts" / f"part-{i}.npy",
            X[(i - (i > 7)) * 25 :][: 0 if i == 7 else 25],
        )
    np.save(folder / "t.npy", TOKENS)
    return [str(folder / "parts"), "--site", SITE, "--tokens", str(folder / "t.npy")]


def npy_fortran(folder: Path) -> list[str]:
    np.save(folder / "x.npy", np.asfortranarray(X.reshape(N, CONTEXT, D).astype(">f8")))
    np.save(folder / "t.npy", np.asfortranarray(TOKENS.astype(">i4")))
    return [str(folder / "x.npy"), "--site", SITE, "--tokens", str(folder / "t.npy")]


def pt(folder: Path) -> list[str]:
    made = {
        SITE: torch.from_numpy(X).bfloat16(),
        OTHER: torch.from_numpy(Y),
        "ids": torch.from_numpy(TOKENS),
    }
    torch.save(made, folder / "x.pt")
    return [str(folder / "x.pt"), "--token-key", "ids"]


def safetensors(folder: Path) -> list[str]:
    tensors = {SITE: torch.from_numpy(X).half(), OTHER: torch.from_numpy(Y).bfloat16()}
    save_file({**tensors, "ids": torch.from_numpy(TOKENS)}, folder / "x.safetensors")
    return [
        str(folder / "x.safetensors"),
        "--key",
        SITE,
        "--key",
        OTHER,
        "--token-key",
        "ids",
    ]


def hdf5(folder: Path) -> list[str]:
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("blocks/0/out", data=X, chunks=(7, D), compression="gzip")
        file["ids"] = TOKENS
    return [str(folder / "x.h5"), "--site", SITE, "--token-key", "ids"]


def parquet(folder: Path) -> list[str]:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), D)
    columns = {SITE: lists, "text": ["a"] * len(X), "ids": pa.array(TOKENS.reshape(-1))}
    pq.write_table(pa.table(columns), folder / "x.parquet", row_group_size=70)
    return [str(folder / "x.parquet"), "--token-key", "ids", "--context", str(CONTEXT)]


def parquet_nested(folder: Path) -> list[str]:
    """Sequences as lists of lists, in two files."""
    for i, part in enumerate((slice(0, 20), slice(20, N))):
        lists = pa.array(
            X.reshape(N, CONTEXT, D)[part].tolist(), pa.list_(pa.list_(pa.float32()))
        )
        ids = pa.array(TOKENS[part].tolist(), pa.list_(pa.int64()))
        pq.write_table(
            pa.table({SITE: lists, "ids": ids}),
            folder / f"{i}.parquet",
            row_group_size=7,
        )
    return [str(folder / "0.parquet"), str(folder / "1.parquet"), "--token-key", "ids"]


def zarr_group(folder: Path) -> list[str]:
    group = zarr.open_group(folder / "g.zarr", mode="w")
    for name, x in (
        (SITE, X.astype(ml_dtypes.bfloat16).astype(np.float32)),
        ("ids", TOKENS),
    ):
        group.create_array(name, data=x, chunks=(7, x.shape[1] // 2))
    return [str(folder / "g.zarr"), "--token-key", "ids"]


def zarr_v2(folder: Path) -> list[str]:
    zarr.create_array(folder / "x", data=X.astype(">f4"), chunks=(64, D), zarr_format=2)
    np.save(folder / "t.npy", TOKENS)
    return [str(folder / "x"), "--site", SITE, "--tokens", str(folder / "t.npy")]


def saelens(folder: Path) -> list[str]:
    """As SAELens' CacheActivationsRunner writes it."""
    disable_progress_bar()
    features = {
        SITE: Array2D((CONTEXT, D), "float16"),
        "token_ids": Sequence(Value("int32"), length=CONTEXT),
    }
    columns = {
        SITE: X.reshape(N, CONTEXT, D).astype(np.float16),
        "token_ids": TOKENS.astype(np.int32),
    }
    Dataset.from_dict(columns, Features(features)).save_to_disk(
        folder / "cache", num_shards=3
    )
    return [str(folder / "cache")]


EVERY = (
    npy,
    npy_parts,
    npy_fortran,
    pt,
    safetensors,
    hdf5,
    parquet,
    parquet_nested,
    zarr_group,
    zarr_v2,
    saelens,
)


@pytest.mark.parametrize("write", EVERY)
def test_rows_and_tokens_are_those_of_the_files(
    write: Callable[[Path], list[str]], tmp_path: Path, cli: Cli
) -> None:
    words, out = write(tmp_path), str(tmp_path / "store")
    code, _, err = cli(
        "actstore",
        "import",
        *words,
        "--out",
        out,
        "--unit-sequences",
        "2",
        "--memory",
        "1MB",
    )
    assert code == 0, err
    store = actstore.open(out)
    check(store, SITE, X)
    if OTHER in store.sites:
        check(store, OTHER, Y)
    assert store.layout.context == CONTEXT
    assert np.array_equal(store.tokens(np.arange(N)), TOKENS)
    assert not verify(store).problems
    m = store.manifest
    assert m.imported is not None
    assert (m.imported.contexts, len(m.imported.files) > 0) == (True, True)
    assert not [one.name for one in m.imported.files if one.name.startswith("/")]
    assert str(tmp_path) not in m.to_json()
    code, text, _ = cli("actstore", "info", out)
    assert f"{m.imported.arrays[0].format}, {m.imported.arrays[0].dtype}" in text
    seen = np.concatenate(
        [
            batch.row
            for batch in store.stream(
                StreamSpec(batch=16, rescale="log", sites=(SITE,))
            )
        ]
    )
    assert sorted(seen) == sorted(store.rows("train"))


def pointer(path: Path) -> None:
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    )


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def hostile(path: Path) -> None:
    torch.save(print, path)


def short(path: Path) -> None:
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-1])


def bfloat16_npy(path: Path) -> None:
    np.save(path, X.astype(ml_dtypes.bfloat16))


def short_safetensors(path: Path) -> None:
    save_file({"x": torch.from_numpy(X)}, path)
    path.write_bytes(path.read_bytes()[:-8])


def short_parquet(path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array(X.tolist())}), path)
    path.write_bytes(path.read_bytes()[:-20])


def ragged_parquet(path: Path) -> None:
    rows = X.tolist()
    rows[7], rows[8] = rows[7][:-1], [*rows[8], 0.0]
    pq.write_table(pa.table({"x": pa.array(rows)}), path)


def short_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = X
    path.write_bytes(path.read_bytes()[:-200])


def unwritten_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", X.shape, "f4", chunks=(50, D))[:100] = X[:100]


def unwritten_zarr(path: Path) -> None:
    zarr.create_array(path, shape=X.shape, dtype="f4", chunks=(50, D))[:100] = X[:100]


BAD: list[tuple[Any, str, str]] = [
    (pointer, "x.npy", "git-LFS"),
    (pointer, "x.safetensors", "git-LFS"),
    (objects, "x.npy", "pickle"),
    (hostile, "x.pt", "run code"),
    (short, "x.npy", "cut short"),
    (bfloat16_npy, "x.npy", "bfloat16"),
    (short_safetensors, "x.safetensors", "safetensors"),
    (short_parquet, "x.parquet", "parquet"),
    (ragged_parquet, "x.parquet", "wanted [6] values"),
    (short_hdf5, "x.h5", "hdf5"),
    (unwritten_hdf5, "x.h5", "2 of 6 chunks"),
    (unwritten_zarr, "x.zarr", "2 of 6 chunks"),
    (lambda path: np.save(path, X.astype(np.int32)), "x.npy", "int32"),
    (lambda path: np.save(path, X.astype(np.complex64)), "x.npy", "complex64"),
    (lambda path: np.save(path, X[:0]), "x.npy", "no rows"),
    (lambda path: np.save(path, X[0]), "x.npy", "[n, d]"),
    (lambda path: np.save(path, X[:, :0]), "x.npy", "rows without values"),
    (
        lambda path: torch.save({"x": torch.from_numpy(X), "n": 3}, path),
        "x.pt",
        "int under 'n'",
    ),
    (
        lambda path: torch.save(
            torch.from_numpy(X), path, _use_new_zipfile_serialization=False
        ),
        "x.pt",
        "before 1.6",
    ),
    (lambda path: path.write_bytes(b"nonsense"), "x.npy", "cannot be read as npy"),
    (lambda path: path.write_bytes(b""), "x.parquet", "cannot be read as parquet"),
    (lambda path: path.mkdir(), "x", "no file in it"),
]


@pytest.mark.parametrize(("write", "name", "reason"), BAD)
def test_bad_files_are_refused_by_name(
    write: Any, name: str, reason: str, tmp_path: Path, cli: Cli
) -> None:
    write(tmp_path / name)
    out = tmp_path / "store"
    words = ["--out", str(out), "--unit-sequences", "8"]
    refused(
        cli("actstore", "import", str(tmp_path / name), *words),
        name,
        *reason.split("|"),
    )
    assert not (out / "manifest.json").exists()
