"""The stores that are damaged: small, one of each kind that there is, all their objects
held in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import actstore
from actstore.importing.import_activations import import_activations
from tests.support import grow, make_store

SITES = {"blocks.0.hook_mlp_out": 4, "blocks.1.hook_mlp_out": 4}
MORE = {"blocks.2.hook_mlp_out": 6}
SMALL: dict[str, Any] = {"unit_sequences": 2, "context": 8, "chunk_rows": 8}
TOKENIZER = {
    "tokenizer.json": b'{"version": "1.0"}\n',
    "tokenizer_config.json": b"{}\n",
}
Objects = dict[str, bytes]


class Stamp(NamedTuple):
    """A file's number, time of change (ns) and size."""

    inode: int
    changed: int
    size: int


def _grown(url: str) -> None:
    """Three generations: a harvest, a site more, a unit more; with a tokenizer."""
    make_store(url, SITES, n_units=2, tokenizer_files=TOKENIZER, padded=True, **SMALL)
    grow(actstore.open(url), MORE, 2, "bfloat16", **SMALL)
    grow(actstore.open(url), SITES | MORE, 3, "bfloat16", **SMALL)


def _imported(url: str) -> None:
    """Rows without tokens and without contexts."""
    rows = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    import_activations({"a": rows, "b": rows + 1}, url, unit_sequences=10, chunk_rows=5)


KINDS: dict[str, Callable[[str], object]] = {
    "grown": _grown,
    "raw": lambda url: make_store(
        url, SITES, n_units=3, dtype="float32", codec="raw", **SMALL
    ),
    "int8": lambda url: make_store(
        url, SITES, n_units=3, dtype="int8", codec="zstd", **SMALL
    ),
    "imported": _imported,
}


def made(kind: str, folder: Path) -> Objects:
    """A store of a kind in `folder`; its objects by key."""
    KINDS[kind](str(folder))
    return snapshot(folder)


def snapshot(folder: Path) -> Objects:
    """The regular files under a folder, by key."""
    files = {key: Path(folder, key) for key in stamps(folder)}
    return {
        key: path.read_bytes()
        for key, path in files.items()
        if path.is_file() and not path.is_symlink()
    }


def stamps(folder: Path) -> dict[str, Stamp]:
    """What tells whether a file was written since: of everything but folders under a
    folder, by key.
    """
    found, left = {}, [(str(folder), "")]
    while left:
        here, key = left.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append((entry.path, f"{key}{entry.name}/"))
                else:
                    about = entry.stat(follow_symlinks=False)
                    found[f"{key}{entry.name}"] = Stamp(
                        about.st_ino, about.st_mtime_ns, about.st_size
                    )
    return found
