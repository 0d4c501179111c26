"""Rows of any store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from tests.store.by_the_page.numbers import checked


def read_site(folder: Path, site: str) -> dict[tuple[int, int], np.ndarray]:
    """Every row of a site of any store, float32 [d] by (sequence, position)."""
    manifest = json.loads((folder / "manifest.json").read_text())
    layout, spec = manifest["layout"], manifest["spec"]
    d = next(one["d"] for one in manifest["sites"] if one["name"] == site)
    last = len(manifest["generations"]) - 1
    counts = plain(
        folder / (f"columns-{last}" if last else "columns") / "rows/c/0",
        "<i4",
        (manifest["n_units"],),
    )
    found: dict[Any, Any] = {}
    for k, n in enumerate(counts):
        pairs = plain(folder / f"rows/c/{k}/0", "<i4", (layout["capacity"], 2))
        x = unit_values(folder, site, k, int(n), d, spec, layout)
        assert (pairs[n:] == -1).all()
        found |= {
            (int(a), int(b)): row for (a, b), row in zip(pairs[:n], x, strict=True)
        }
    return found


def plain(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    data = path.read_bytes()
    assert checked(data[:-4]) == data
    return np.frombuffer(data[:-4], dtype).reshape(shape)


def unit_values(
    folder: Path, site: str, k: int, n: int, d: int, spec: Any, layout: Any
) -> np.ndarray:
    data = (folder / f"acts/{site}/c/{k}/0").read_bytes()
    c, chunks = layout["chunk_rows"], layout["capacity"] // layout["chunk_rows"]
    raw = data[-(16 * chunks + 4) :]
    assert checked(raw[:-4]) == raw
    stored = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "int8": "i1"}[
        spec["dtype"]
    ]
    parts = []
    for offset, length in (
        np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)[: -(-n // c)].tolist()
    ):
        chunk = data[offset : offset + length]
        assert checked(chunk[:-4]) == chunk
        body = chunk[:-4] if spec["codec"] == "raw" else blosc.decompress(chunk[:-4])
        parts.append(np.frombuffer(body, stored).reshape(c, d))
    x = np.concatenate([*parts, np.zeros((0, d), stored)])[:n]
    if spec["dtype"] == "bfloat16":
        return (x.astype("<u4") << 16).view("<f4")
    if spec["dtype"] != "int8":
        return x.astype("<f4")
    scale = plain(folder / f"scale/{site}/c/{k}", "<f2", (layout["capacity"],))[
        :n
    ].astype("<f4")
    step = plain(folder / f"step/{site}/c/{k}/0/0", "<f4", (2, d))
    return step[0] + step[1] * (scale[:, None] * x.astype("<f4"))
