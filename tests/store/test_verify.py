"""`verify` names each metadata object that is missing or changed, and no other; what
follows from others is repaired.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import actstore
from actstore.cli import app
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from actstore.store.store import Store
from tests.support import SITES, grow, make_store, make_tokens, started

MORE = {"blocks.3.hook_mlp_out": 8}
UNITS = 4


def extended(url: str, dtype: str) -> Store:
    """Two units, then one site more, then two units more (the last of them with
    padding).
    """
    store = make_store(url, n_units=2, dtype=dtype)
    grow(store, MORE, 2, dtype)
    return grow(actstore.open(url), SITES | MORE, UNITS, dtype)


@pytest.fixture(params=["bfloat16", "int8"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return extended(str(tmp_path / "store"), request.param)


def run(*words: str) -> tuple[int, str]:
    """`actstore`'s exit code and standard output."""
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout


def metadata_keys(store: Store) -> list[str]:
    """Everything but values and the manifest, which is what `verify` starts from."""
    return [
        key
        for key in store.storage.list()
        if "/c/" not in key and key != object_keys.MANIFEST
    ]


def named(store: Store, problems: list[str]) -> list[str]:
    return [problem.split(f"{store.url}/")[1].split(":")[0] for problem in problems]


def changes(data: bytes, other: bytes, rng: np.random.Generator) -> list[bytes | None]:
    """Gone, empty, cut off, another object of the store in its place, one bit flipped
    here and there.
    """
    at_byte = rng.integers(len(data), size=3)
    bits = [
        data[:i] + bytes([data[i] ^ 1 << int(rng.integers(8))]) + data[i + 1 :]
        for i in at_byte
    ]
    return [None, b"", data[: len(data) // 2], other, *bits]


def test_every_metadata_object_is_named_whatever_befalls_it(store: Store) -> None:
    assert verify(store).problems == []
    # all but the manifest
    assert verify(store).objects == len(store.storage.list()) - 1
    rng = np.random.default_rng(0)
    keys = metadata_keys(store)
    assert {
        "zarr.json",
        "acts/zarr.json",
        "rows/zarr.json",
        "blocks/00003.json",
        "plan-2.json",
    } <= set(keys)
    for key in keys:
        good, other = (
            store.storage.read(key),
            store.storage.read("plan-1.json" if key != "plan-1.json" else "plan.json"),
        )
        for bad in changes(good, other, rng):
            if bad is None:
                store.storage.delete(key)
            else:
                store.storage.put(key, bad)
            if (
                key.startswith("blocks/")
                and bad is not None
                and same_but_cursor(good, bad)
            ):
                continue  # the one thing that nothing in a store can contradict
            problems = verify(store).problems
            assert named(store, problems) == [key], (key, bad, problems)
            assert problems[0].startswith("missing " if bad is None else "corrupt ")
        store.storage.put(key, good)
    assert verify(store).problems == []


def same_but_cursor(good: bytes, bad: bytes) -> bool:
    try:
        one, two = json.loads(good), json.loads(bad)
    except ValueError:
        return False
    free = ("cursor", "skipped_documents")
    return isinstance(two, dict) and {
        k: v for k, v in one.items() if k not in free
    } == {k: v for k, v in two.items() if k not in free}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit", 2),
        ("n_sequences", 3),
        ("n_tokens", 115),
        ("last", True),
        ("cursor", {}),
        ("cursor", {"end": True}),
        ("cursor", {"document": -1}),
        ("cursor", {"document": "1"}),
        ("tokens", {"bytes": 516, "digest": "0"}),
    ],
)
def test_each_field_of_a_block_record_is_held_against_its_unit(
    tmp_path: Path, field: str, value: Any
) -> None:
    store = make_store(tmp_path / "s", n_units=3, padded=True)
    key = object_keys.block_key(1)
    record = json.loads(store.storage.read(key))
    assert record[field] != value
    # other white space is the same record
    store.storage.put(key, json.dumps(record).encode())
    assert verify(store).problems == []
    store.storage.put(key, json.dumps(record | {field: value}).encode())
    code, out = run("verify", "--repair", store.url)
    assert code == 1
    # which says itself that it cannot be
    assert (f"{key}: {field}: " in out) == (value != {"end": True})
    assert f"{store.url}/{key}: " in out.replace("\n", "")
    assert "another copy" in out
    assert " 1 bad" in out


def test_zarr_json_is_repaired_and_nothing_else_is(store: Store) -> None:
    before = {key: store.storage.read(key) for key in store.storage.list()}
    zarr = [
        key
        for key in before
        if key.endswith("zarr.json") and not key.startswith("columns")
    ]
    store.storage.delete(zarr[0])
    for key in zarr[1:]:
        store.storage.put(
            key, before[key].replace(b'"zarr_format": 3', b'"zarr_format": true')
        )
    norms = object_keys.chunk_key(object_keys.norm_key(store.sites[0]), 0)
    store.storage.put(norms, b"")
    code, out = run("verify", store.url)
    assert code == 1
    assert out.count("verify --repair") == len(zarr)
    assert "zarr_format: wanted 3, got true" in out
    code, out = run("verify", store.url, "--repair", "--json")
    found = json.loads(out)
    assert code == 1
    assert sorted(found["repaired"]) == sorted(zarr)
    assert named(store, found["problems"]) == [norms]
    store.storage.put(norms, before[norms])
    assert run("verify", store.url)[0] == 0
    assert {key: store.storage.read(key) for key in store.storage.list()} == before


def test_arrays_grown_by_an_extension_that_has_not_ended_are_as_they_should_be(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path / "s", n_units=2)
    writer, plan = started(store, SITES, UNITS, "bfloat16")
    writer.commit_block(2, make_tokens(plan, 2), {"document": 1}, last=False)
    writer.close()
    assert (
        json.loads(store.storage.read("tokens/zarr.json"))["shape"][0]
        == UNITS * store.layout.unit_sequences
    )
    assert verify(store).problems == []
    Storage(store.url).delete(object_keys.plan_key(1))
    assert {key.split("/")[0] for key in named(store, verify(store).problems)} == {
        "acts",
        "norm",
        "rows",
        "tokens",
    }


def test_what_nothing_names_is_not_looked_at(store: Store) -> None:
    before = verify(store)
    store.storage.put("blocks/00099.json", b"leftover")
    store.storage.put("notes.txt", b"mine")
    assert verify(store) == before
