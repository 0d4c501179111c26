"""A copy that is killed (SIGKILL) and begun again ends equal to the byte."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore.errors import NotAStoreError, UnfinishedError
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from tests.sharing.killing import copy_slowly
from tests.support import make_store

PARTS: list[dict[str, Any]] = [{}, {"sites": "blocks.{0,2}.*", "units": "1:3,5:"}]


def kills(store: actstore.Store, there: str, part: dict[str, Any], n_kills: int) -> int:
    """Copy with so many kills; return how many found the copy unfinished."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sharing.killing"])
    rng = random.Random(7)
    n_unfinished = 0
    for _ in range(n_kills):
        process = context.Process(target=copy_slowly, args=(store.url, there, part))
        process.start()
        process.join(rng.uniform(0.3, 1.0))
        process.kill()
        process.join()
        process.close()
        if Storage(there).exists("manifest.json"):
            continue
        n_unfinished += 1
        # nothing at all may have been written by then
        with pytest.raises(
            (UnfinishedError, NotAStoreError), match=r"copy|no manifest"
        ):
            actstore.open(there)
    return n_unfinished


def check(
    tmp_path: Path, there: str, part: dict[str, Any], *, n_units: int, n_kills: int
) -> None:
    store = make_store(tmp_path / "s", n_units=n_units, padded=True)
    actstore.copy(store.url, tmp_path / "wanted", **part)
    wanted = Storage(tmp_path / "wanted")
    assert kills(store, there, part, n_kills), "no kill came before the end"
    actstore.copy(store.url, there, **part)
    target = Storage(there)
    assert target.list() == wanted.list()
    for key in wanted.list():
        assert target.read(key) == wanted.read(key), key
    assert verify(there).problems == []


@pytest.mark.parametrize("part", PARTS, ids=["whole", "part"])
def test_killed_three_times(tmp_path: Path, part: dict[str, Any]) -> None:
    check(tmp_path, str(tmp_path / "c"), part, n_units=9, n_kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=["whole", "part"])
def test_killed_at_twenty_instants(tmp_path: Path, part: dict[str, Any]) -> None:
    check(tmp_path, str(tmp_path / "c"), part, n_units=60, n_kills=20)


@pytest.mark.slow
@pytest.mark.real_s3
def test_killed_at_twenty_instants_on_a_real_server(
    tmp_path: Path, real_s3_url: str
) -> None:
    check(tmp_path, f"{real_s3_url}/c", {}, n_units=60, n_kills=20)
