"""Stores from someone else: each fault is a typed error, in no time and little memory,
and nothing outside is touched.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from typer.testing import CliRunner

import actstore
from actstore.cli import app
from actstore.errors import (
    ActstoreError,
    CorruptError,
    ModelError,
    NotAStoreError,
    ObjectError,
    SpecError,
    StorageError,
)
from actstore.format import object_keys
from actstore.format.content_id import content_id
from actstore.format.local_files import FOLLOW_LINKS
from actstore.format.manifest import read_plan
from actstore.format.object_sizes import column_bytes, stats_bytes
from actstore.format.shard import encode_plain, with_checksum
from actstore.format.statistics import UnitStats
from actstore.format.storage import Storage
from actstore.harvesting.store_writer import StoreWriter
from actstore.inspect.list_stores import stores
from actstore.inspect.verify import verify
from actstore.store.store import Store
from schemas.manifest import Generation
from schemas.stream import StreamSpec
from tests.store.test_verify import extended
from tests.support import make_plan, make_store

SITES = {"a": 8, "b": 8}
SIZES: dict[str, Any] = {
    "n_units": 21,
    "unit_sequences": 1,
    "context": 20,
    "chunk_rows": 16,
}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good store, for copies."""
    return Path(
        make_store(
            tmp_path_factory.mktemp("hostile") / "whole", SITES, codec="raw", **SIZES
        ).url
    )


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "stores" / "bad"))


def changed(folder: Path, change: Callable[[Json], Any]) -> None:
    """Change the manifest, and make its content id right again."""
    path = folder / object_keys.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def claim_file(manifest: Json, folder: Path, key: str, data: bytes) -> None:
    """Another object of the manifest's, with the right size and digest."""
    (folder / key).write_bytes(data)
    manifest["files"][key] = {"bytes": len(data), "digest": blake3(data).hexdigest()}


def refused(folder: Path, words: str) -> None:
    """Opening says why; the folder above is still listed, this store in one line."""
    with pytest.raises(CorruptError, match=words) as error:
        actstore.open(str(folder))
    assert str(folder) in str(error.value)
    listed = CliRunner().invoke(app, ["ls", str(folder.parent)])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [str(folder)]


# Names


OUTSIDE = [
    "../../outside",
    "/tmp/outside",
    "..",
    ".",
    "",
    "a/../../b",
    "C:\\x",
    "C:x",
    "a\\b",
    "a\0b",
    "a\nb",
    "ä",
    "x" * 300,
]


@pytest.mark.parametrize("name", [*OUTSIDE, "zarr.json"])
def test_site_names_are_of_a_strict_alphabet(folder: Path, name: str) -> None:
    def change(m: Json) -> None:
        for sites in (m["sites"], m["generations"][0]["sites"]):
            sites[0]["name"] = name
        m["norms"][0]["site"] = name

    changed(folder, change)
    refused(folder, "site .*wanted letters")


@pytest.mark.parametrize(
    "name",
    [*OUTSIDE, "notes.txt", "tokenizer/../x", "tokenizer/a/b", "columns-1/rows/c/0"],
)
def test_files_are_those_of_a_store(folder: Path, name: str) -> None:
    changed(folder, lambda m: m["files"].update({name: m["files"]["README.md"]}))
    refused(folder, "files: .*is no file of a store")


@pytest.mark.parametrize(
    ("field", "value"),
    [("plan", "../plan.json"), ("units", "/tmp/"), ("plan", "plan-1.json")],
)
def test_plans_and_records_are_where_they_must_be(
    folder: Path, field: str, value: str
) -> None:
    changed(folder, lambda m: m["generations"][0].update({field: value}))
    refused(folder, "not where they must be")


@pytest.mark.parametrize("key", OUTSIDE)
def test_objects_of_a_unit_are_those_that_it_has(folder: Path, key: str) -> None:
    path = folder / object_keys.unit_key(3)
    record = json.loads(path.read_text())
    record["objects"][key] = {"bytes": 1, "digest": "0" * 64}
    path.write_text(json.dumps(record))
    store = actstore.open(str(folder))
    with pytest.raises(CorruptError, match="is no object of it"):
        store.record(3)
    assert [
        line
        for line in verify(store, repair=True).problems
        if "is no object of it" in line
    ]


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/hostname", "a//b", "a/./b", "a\0b", "a/.."]
)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_storage_has_no_keys_that_lead_out(
    tmp_path: Path, memory_url: str, place: str, key: str
) -> None:
    storage = Storage(tmp_path / "in" if place == "local" else memory_url)
    storage.put("a/b", b"mine")
    calls: list[Callable[[], Any]] = [
        lambda: storage.read(key),
        lambda: storage.read_ranges(key, [(0, 1)]),
    ]
    calls += [
        lambda: storage.put(key, b"x"),
        lambda: storage.create(key, b"x"),
        lambda: storage.delete(key),
    ]
    calls += [
        lambda: storage.exists(key),
        lambda: storage.size(key),
        lambda: storage.list(key),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="lead out"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == (
        ["in"] if place == "local" else []
    )


def test_a_module_with_such_a_name_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    for name in ("../up", "a b", "x" * 201):
        with pytest.raises(SpecError, match="wanted letters"):
            StoreWriter.create(Storage(tmp_path / "s"), make_plan({name: 4}))
    with pytest.raises(SpecError, match="chunks of"):
        StoreWriter.create(
            Storage(tmp_path / "s"), make_plan({"a": 1 << 24}, chunk_rows=64)
        )
    assert not (tmp_path / "s").exists()


# Links, pipes, devices, folders


def test_links_are_followed_inside_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = object_keys.chunk_key(object_keys.norm_key("a"), 0)
    good = actstore.open(str(folder)).read_norms("a", [0])
    (folder / key).rename(folder / "kept")
    (folder / key).symlink_to(folder / "kept")
    np.testing.assert_array_equal(actstore.open(str(folder)).read_norms("a", [0]), good)
    (folder / "kept").rename(tmp_path / "outside")
    (folder / key).unlink()
    (folder / key).symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptError, match="outside of the folder"):
        actstore.open(str(folder)).read_norms("a", [0])
    assert any(
        key in line and "outside" in line
        for line in verify(actstore.open(str(folder))).problems
    )
    monkeypatch.setenv(FOLLOW_LINKS, "1")
    np.testing.assert_array_equal(actstore.open(str(folder)).read_norms("a", [0]), good)


def test_a_store_in_the_hub_s_cache_is_links_and_is_read(
    whole: Path, tmp_path: Path
) -> None:
    for path in (path for path in whole.rglob("*") if path.is_file()):
        blob = tmp_path / "blobs" / blake3(str(path).encode()).hexdigest()
        link = tmp_path / "snapshots" / "0a1b" / path.relative_to(whole)
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    store = actstore.open(str(tmp_path / "snapshots" / "0a1b"))
    np.testing.assert_array_equal(store.read("a"), actstore.open(str(whole)).read("a"))
    assert verify(store).problems == []


def test_nothing_is_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder / "acts" / "a").rename(outside)
    (outside / "zarr.json").write_text("mine")
    (folder / "acts" / "a").symlink_to(outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    result = verify(actstore.open(str(folder)), repair=True)
    assert any("outside" in line for line in result.problems)
    assert {
        path: path.read_bytes() for path in outside.rglob("*") if path.is_file()
    } == before
    storage = Storage(folder)
    for write in (storage.put, storage.create):
        with pytest.raises(CorruptError, match="outside"):
            write("acts/a/new", b"x")
    (folder / "journal").symlink_to(tmp_path / "new")
    with pytest.raises(StorageError):
        storage.append("journal", b"x", sync=False)
    assert not (tmp_path / "new").exists()


def test_listing_goes_in_no_circle(folder: Path) -> None:
    (folder / "blocks" / "up").symlink_to(folder)
    (folder / "tokenizer").symlink_to("/")
    storage = Storage(folder)
    assert storage.list("blocks") == [object_keys.block_key(unit) for unit in range(21)]
    with pytest.raises(CorruptError, match="outside"):
        storage.list("tokenizer")


KEYS = [
    object_keys.MANIFEST,
    object_keys.chunk_key("columns/rows", 0),
    "norms.stats",
    "plan.json",
    "acts/zarr.json",
    object_keys.unit_key(0),
    object_keys.block_key(0),
    *(object_keys.chunk_key(name, 0, 0) for name in ("acts/a", "rows", "tokens")),
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "device", "folder", "loop"])
def test_what_is_no_file_is_not_read(folder: Path, key: str, kind: str) -> None:
    """And nobody waits for it: a pipe without a writer would for ever."""
    path = folder / key
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        if os.geteuid():
            pytest.skip("making a device takes root")
        try:
            # a /dev/zero of its own, inside of the store
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("no devices can be made here")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else kind)
    everything(str(folder))


def everything(url: str, *, fails: bool = True) -> None:
    """Every way to read a store raises a typed error or works; at least one finds a
    fault, and none takes memory.
    """
    found: list[Exception] = []

    def look(call: Callable[[], Any]) -> None:
        try:
            call()
        except ActstoreError as error:
            found.append(error)

    def opened() -> None:
        store = actstore.open(url)
        for site in store.sites:
            look(partial(store.read, site))
            look(partial(store.read_norms, site))
        look(store.provenance)
        look(lambda: store.tokens([0]))
        look(lambda: store.statistics)
        look(lambda: [store.record(unit) for unit in store.units()])
        look(lambda: stream(store))
        result = verify(store)
        found.extend(map(ValueError, result.problems))

    look(opened)
    entries = stores(str(Path(url).parent))
    assert len(entries) <= 1
    assert bool(found) is fails


def stream(store: Store) -> None:
    with store.stream(
        StreamSpec(batch=64, window_chunks=4, lanes=1, epochs=1), threads=1
    ) as batches:
        for _ in batches:
            pass


def test_everything_works_on_a_good_store(folder: Path) -> None:
    everything(str(folder), fails=False)


# JSON


DEEP = {
    "lists": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}


@pytest.mark.parametrize("key", [key for key in KEYS if key.endswith(".json")])
@pytest.mark.parametrize("form", sorted(DEEP))
@pytest.mark.parametrize("where", ["whole", "value"])
def test_json_nested_deeply(folder: Path, key: str, form: str, where: str) -> None:
    data = DEEP[form]
    if where == "value":
        text = (folder / key).read_bytes().rstrip()
        data = text[:-1] + b',"more":' + data + b"}"
    (folder / key).write_bytes(data)
    if key == object_keys.MANIFEST:
        refused(folder, "nested 100000 deep|nested 100001 deep")
    elif key == "plan.json":
        with pytest.raises(CorruptError, match="deep"):
            actstore.open(str(folder), follow=True)
    everything(str(folder))


def test_brackets_in_strings_nest_nothing(folder: Path) -> None:
    name = "[[{" * 1000
    changed(folder, lambda m: m["spec"]["corpus"].update(name=name))
    assert actstore.open(str(folder)).manifest.spec.corpus.name == name


def test_json_larger_than_any_manifest_is_not_read(folder: Path) -> None:
    with (folder / object_keys.MANIFEST).open("r+b") as file:
        file.truncate(1 << 40)  # takes no space
    refused(folder, "bytes, wanted at most")


@pytest.mark.parametrize(
    "key",
    [
        "norms.stats",
        object_keys.chunk_key("columns/rows", 0),
        object_keys.chunk_key("norm/a", 0),
    ],
)
def test_objects_are_read_up_to_their_size(folder: Path, key: str) -> None:
    with (folder / key).open("r+b") as file:
        file.truncate(1 << 40)
    everything(str(folder))


def test_an_integer_of_thousands_of_digits(folder: Path) -> None:
    for field in ("n_rows", "n_units", "n_train_rows", "n_bytes"):
        text = json.loads((folder / object_keys.MANIFEST).read_text())
        (folder / object_keys.MANIFEST).write_text(
            json.dumps(text | {field: -(10**4000)})
        )
        with pytest.raises(CorruptError):
            actstore.open(str(folder))
        (folder / object_keys.MANIFEST).write_text(json.dumps(text))
    for field in (
        "capacity",
        "chunk_rows",
        "context",
        "unit_sequences",
        "n_units",
        "n_sequences",
    ):
        (folder / object_keys.MANIFEST).write_text(
            json.dumps(text | {"layout": text["layout"] | {field: 10**4000}})
        )
        with pytest.raises(CorruptError):
            actstore.open(str(folder))


# Arithmetic


def layout(**update: int) -> Callable[[Json], None]:
    return lambda m: m["layout"].update(update)


def quantiles(n: int) -> Callable[[Json], None]:
    def change(m: Json) -> None:
        one = m["norms"][0]["all"]
        one["quantiles"] = (one["quantiles"] * 2)[:n]

    return change


def both(**update: Any) -> Callable[[Json], Any]:
    """The manifest's counts and its only generation's."""
    return lambda m: (m.update(update), m["generations"][0].update(update))


def wide(m: Json, d: int = 1 << 24) -> None:
    for one in (m["sites"][0], m["generations"][0]["sites"][0], m["norms"][0]):
        one["d"] = d


FAULTS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "no rows": (both(n_rows=0), "n_rows 0|rows"),
    "no sites": (
        lambda m: (m.update(sites=[], norms=[]), m["generations"][0].update(sites=[])),
        "there are no sites",
    ),
    "a site twice": (
        lambda m: [
            x.update(sites=[m["sites"][0]] * 2) for x in (m, m["generations"][0])
        ],
        "is there twice",
    ),
    "no norms": (lambda m: m.update(norms=[]), "norms are not one for each site"),
    "norms in another order": (
        lambda m: m.update(norms=m["norms"][::-1]),
        "norms are not one for each site",
    ),
    "sites in another order": (
        lambda m: m.update(sites=m["sites"][::-1], norms=m["norms"][::-1]),
        "in their order",
    ),
    "a quantile less": (quantiles(8), "wanted 9 quantiles"),
    "a quantile more": (quantiles(10), "wanted 9 quantiles"),
    "no quantiles": (quantiles(0), "wanted 9 quantiles"),
    "quantiles that fall": (
        lambda m: m["norms"][0]["all"]["quantiles"].reverse(),
        "its quantiles cannot be",
    ),
    "a norm below zero": (
        lambda m: m["norms"][0]["all"].update(mean_norm=-1.0),
        "negative or no number",
    ),
    "a norm that is none": (
        lambda m: m["norms"][0]["all"].update(max_norm="NaN"),
        "negative or no number",
    ),
    "rows that norms are not of": (
        lambda m: m["norms"][0]["rest"].update(count=1),
        "not that of special and rest",
    ),
    "chunks above capacity": (layout(chunk_rows=64), "capacity 32: "),
    "capacity 2^62": (
        layout(capacity=1 << 62),
        "capacity 4611686018427387904: at most",
    ),
    "units of 2^31": (
        layout(unit_sequences=1 << 31, n_units=1),
        "unit_sequences 2147483648: at most",
    ),
    "one chunk of 2^27 rows": (
        layout(chunk_rows=1 << 27, capacity=1 << 27),
        "chunks of 2147483648 bytes",
    ),
    "d 2^24": (wide, "norms.stats has"),
    "d 2^25": (lambda m: wide(m, 1 << 25), "d 33554432: at most"),
    "10^9 units": (both(n_units=10**9), "1000000000 units; 1 to"),
    "10^12 units": (both(n_units=10**12), "1000000000000 units; 1 to"),
    "4,000,000 units": (
        lambda m: (both(n_units=4_000_000)(m), layout(n_units=4_000_000)(m)),
        "make 21",
    ),
    "no units": (both(n_units=0), "0 units; 1 to"),
    "units below none": (both(n_units=-1), "-1 units; 1 to"),
    "more units than planned": (both(n_units=22), "n_units 22: 21 at most"),
    "another number of rows": (
        lambda m: m.update(n_rows=m["n_rows"] + 1),
        "its generations make 21 units",
    ),
    "more training rows than rows": (
        lambda m: m.update(n_train_rows=m["n_rows"] + 1),
        "n_train_rows 421 of 420",
    ),
    "more sequences than units hold": (
        both(n_sequences=22),
        "22 sequences in 21 units",
    ),
    "no generation": (
        lambda m: m.update(generations=[]),
        "its sites are not those of its generations",
    ),
    "a generation twice": (
        lambda m: m.update(generations=m["generations"] * 2),
        "not where they must be",
    ),
    "units that begin late": (
        lambda m: m["generations"][0].update(first_unit=1),
        "it begins at unit 1",
    ),
    "another content id": (lambda m: m.update(content_id="0" * 64), "content_id"),
    "another parent": (lambda m: m.update(parent="0" * 64), "parent"),
    "a digest that is none": (
        lambda m: m["generations"][0].update(units_digest="x"),
        "its digests are none",
    ),
    "a column of another size": (
        lambda m: m["files"][object_keys.chunk_key("columns/rows", 0)].update(bytes=92),
        "has 92 bytes",
    ),
    "no statistics": (
        lambda m: m["files"].pop("norms.stats"),
        "norms.stats is missing",
    ),
    "a context of its own": (
        lambda m: m["spec"].update(context=21),
        "spec.context is 21",
    ),
    "a name with a line in it": (
        lambda m: m["spec"]["model"].update(name="a\nb"),
        "control characters",
    ),
    "version true": (lambda m: m.update(format_version=True), "format version True"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_manifest_that_cannot_be(folder: Path, fault: str) -> None:
    change, words = FAULTS[fault]
    changed(folder, change)
    with pytest.raises(ActstoreError, match=words):
        actstore.open(str(folder))
    if fault != "version true":
        refused(folder, words)


def test_a_file_that_is_not_the_size_recorded_is_seen_on_opening(folder: Path) -> None:
    """d 2^24 with a record to match: what is there is as small as before, and no memory
    was taken.
    """

    def change(m: Json) -> None:
        wide(m)
        m["files"]["norms.stats"]["bytes"] += 32 * ((1 << 24) - 8)

    changed(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "norms.stats: .* bytes, recorded")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_wide_site_takes_no_memory_until_a_chunk_is_as_wide(folder: Path) -> None:
    """Even where everything that opening looks at agrees, in a file that takes no
    space.
    """

    def change(m: Json) -> None:
        wide(m)
        m["files"]["norms.stats"]["bytes"] += 32 * ((1 << 24) - 8)
        with (folder / "norms.stats").open("r+b") as file:
            file.truncate(m["files"]["norms.stats"]["bytes"])

    changed(folder, change)
    code = f"""
import resource, actstore
from actstore.errors import CorruptError
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
store = actstore.open({str(folder)!r})
try:
    store.read("a")
except CorruptError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "acts/a/c/0/0" in done.stdout


# What other objects say


def rows_column(folder: Path, rows: np.ndarray, *, counts: bool) -> None:
    """Other counts of rows, recorded as they must be; `counts`: and summed up in the
    manifest.
    """

    def change(m: Json) -> None:
        key = object_keys.chunk_key("columns/rows", 0)
        claim_file(m, folder, key, encode_plain(rows.astype("<i4"), rows.shape, 0))
        if counts:
            m["n_rows"] = m["generations"][0]["n_rows"] = int(rows.sum())

    changed(folder, change)


def test_row_counts_above_capacity(folder: Path) -> None:
    """Row 20 of a unit with 16 slots would be another unit's row 4."""
    rows = np.full(21, 20)
    rows[3:5] = 40, 0
    rows_column(folder, rows, counts=True)
    refusal = "40 rows in a unit; it has 0 to 20"
    with pytest.raises(CorruptError, match=refusal):
        actstore.open(str(folder))


@pytest.mark.parametrize(("unit", "n"), [(3, -1), (3, 21), (3, 19), (19, 19)])
def test_row_counts_that_do_not_add_up(folder: Path, unit: int, n: int) -> None:
    rows = np.full(21, 20)
    rows[unit] = n
    rows_column(folder, rows, counts=False)
    with pytest.raises(CorruptError, match="columns/rows"):
        actstore.open(str(folder))


@pytest.mark.parametrize(
    "pair", [(2, 0), (4, 0), (-1, -1), (3, 20), (3, -1), (2**31 - 1, 0)]
)
def test_a_provenance_pair_out_of_range(folder: Path, pair: tuple[int, int]) -> None:
    key = object_keys.chunk_key("rows", 3, 0)
    pairs = np.frombuffer((folder / key).read_bytes()[:-4], "<i4").reshape(32, 2).copy()
    pairs[7] = pair
    (folder / key).write_bytes(with_checksum(pairs.tobytes()))
    store = actstore.open(str(folder))
    for rows in ([3 * 32 + 7], None):
        with pytest.raises(
            CorruptError, match=rf"{key}: .*\(sequence, position\) of unit 3"
        ):
            store.provenance(rows)


@pytest.mark.parametrize("token", [-2, 100, 2**31 - 1])
def test_a_token_out_of_the_vocabulary(folder: Path, token: int) -> None:
    key = object_keys.chunk_key("tokens", 3, 0)
    tokens = np.frombuffer((folder / key).read_bytes()[:-4], "<i4").copy()
    tokens[5] = token
    (folder / key).write_bytes(with_checksum(tokens.tobytes()))
    store = actstore.open(str(folder))
    for look in (lambda: store.provenance([3 * 32]), lambda: store.tokens([3])):
        with pytest.raises(CorruptError, match=f"{key}: token ids"):
            look()


RECORDS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "another unit": (lambda r: r.update(unit=4), "it is of unit 4"),
    "too many rows": (lambda r: r.update(n_rows=21), "21 rows of 1 sequences"),
    "too many sequences": (
        lambda r: r.update(n_sequences=2),
        "2 sequences, a unit has at most 1",
    ),
    "an object less": (
        lambda r: r["objects"].pop(object_keys.chunk_key("norm/a", 3)),
        "'norm/a/c/3' is missing",
    ),
    "another unit's object": (
        lambda r: r["objects"].update({"norm/a/c/4": r["objects"]["norm/a/c/3"]}),
        "no object of it",
    ),
    "another size": (
        lambda r: r["objects"]["norm/a/c/3"].update(bytes=1 << 40),
        "wanted 132 to 132 bytes",
    ),
    "a shard of another size": (
        lambda r: r["objects"]["acts/a/c/3/0"].update(bytes=1 << 40),
        "wanted 556 to 556 bytes",
    ),
}


@pytest.mark.parametrize("fault", sorted(RECORDS))
def test_a_record_that_cannot_be(folder: Path, fault: str) -> None:
    change, words = RECORDS[fault]
    path = folder / object_keys.unit_key(3)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    store = actstore.open(str(folder))
    with pytest.raises(CorruptError, match=words):
        store.record(3)
    assert (
        len(
            [line for line in verify(store).problems if object_keys.unit_key(3) in line]
        )
        == 1
    )


# Indexes of shards


@pytest.fixture(params=["raw", "lz4", "zstd"])
def indexed(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return make_store(
        tmp_path / "s",
        SITES,
        codec=request.param,
        n_units=3,
        unit_sequences=1,
        context=40,
        chunk_rows=16,
    )


def index_changes(pairs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "swapped", pairs[[1, 0, 2]]
    yield "one twice", pairs[[0, 0, 2]]
    gap = pairs.copy()
    gap[2, 0] += 1
    yield "a gap", gap
    hidden = pairs.copy()
    hidden[2] = 2**64 - 1
    yield "one absent", hidden
    first = pairs.copy()
    first[:, 0] += 8
    yield "not from the start", first
    shorter = pairs.copy()
    shorter[1, 1] -= 1
    shorter[2, 0] -= 1
    yield "a byte shorter", shorter


def test_an_index_lies_as_the_page_says(indexed: Store) -> None:
    """After a swap `read` gave other rows than `stream`: both refuse, or both give what
    was written.
    """
    key, size = (
        object_keys.chunk_key(object_keys.acts_key("a"), 1, 0),
        indexed.codec("a").index_bytes,
    )
    shard, good = indexed.storage.read(key), indexed.read("a", slice(40, 80))
    streamed = rows_of(indexed)
    pairs = np.frombuffer(shard[-size:-4], "<u8").reshape(-1, 2)
    for what, change in index_changes(pairs):
        indexed.storage.put(key, shard[:-size] + with_checksum(change.tobytes()))
        with pytest.raises(CorruptError, match=key):
            actstore.open(indexed.url).read("a", slice(40, 80))
        # found by arithmetic, so that the index makes no difference
        if indexed.manifest.spec.codec == "raw":
            assert rows_of(actstore.open(indexed.url)) == streamed, what
        else:
            with pytest.raises(CorruptError, match=key):
                rows_of(actstore.open(indexed.url))
    indexed.storage.put(key, shard)
    np.testing.assert_array_equal(
        actstore.open(indexed.url).read("a", slice(40, 80)), good
    )


def rows_of(store: Store) -> dict[int, bytes]:
    with store.stream(
        StreamSpec(sites=("a",), batch=64, window_chunks=4, lanes=1, epochs=1),
        threads=1,
    ) as batches:
        return {
            int(row): x.numpy().tobytes()
            for batch in batches
            for row, x in zip(batch.row, batch.x, strict=True)
        }


# Verify


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if not items:
        yield path
    for key, one in items or ():
        yield from leaves(one, (*path, key))


def flipped(value: Any) -> list[Any]:
    """Other values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 1.001 + 1e-6, value * 100 + 1]
    if isinstance(value, str):
        return [value[:-1] + ("1" if value[-1:] != "1" else "2"), value + "x"]
    return [1, "x"] if value is None else []


def with_leaf(manifest: Json, path: tuple[Any, ...], value: Any) -> Json:
    made = copy.deepcopy(manifest)
    at_: Any = made
    for key in path[:-1]:
        at_ = at_[key]
    at_[path[-1]] = value
    return made


@pytest.mark.parametrize("generations", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_changed_leaf_of_a_manifest_is_found(
    tmp_path: Path, generations: int
) -> None:
    """By opening, or by `verify`, which then repairs nothing."""
    url = str(tmp_path / "s")
    store = (
        extended(url, "int8")
        if generations > 1
        else make_store(url, {"a": 4}, n_units=1)
    )
    good = json.loads(store.storage.read(object_keys.MANIFEST))
    looked = 0
    for path in leaves(good):
        old: Any = good
        for key in path:
            old = old[key]
        for value in flipped(old):
            store.storage.put(
                object_keys.MANIFEST, json.dumps(with_leaf(good, path, value)).encode()
            )
            try:
                result = verify(actstore.open(store.url), threads=1, repair=True)
            except ActstoreError:
                continue
            looked += 1
            assert result.problems, (path, old, value)
            assert result.repaired == [], (path, old, value)
    assert looked > 50
    store.storage.put(object_keys.MANIFEST, json.dumps(good).encode())
    assert verify(actstore.open(store.url)).problems == []


def test_norms_that_were_all_multiplied(folder: Path) -> None:
    """Rescaling divides by them."""

    def change(m: Json) -> None:
        for one in (m["norms"][0][name] for name in ("all", "special", "rest")):
            one.update(
                {name: one[name] * 100 for name in ("mean_norm", "max_norm")},
                mean_sq_norm=one["mean_sq_norm"] * 1e4,
            )
            one["quantiles"] = [q * 100 for q in one["quantiles"]]

    changed(folder, change)
    (line,) = verify(actstore.open(str(folder))).problems
    assert "its norms of a are not those of the merged statistics" in line


def test_statistics_that_were_replaced_as_well(folder: Path) -> None:
    store = actstore.open(str(folder))
    stats = store.statistics
    for one in stats.sites.values():
        one.sum_norm *= 2
        one.sum_sq_norm *= 4
        one.max_norm *= 2

    def change(m: Json) -> None:
        claim_file(m, folder, "norms.stats", stats.to_bytes())
        for norms, one in zip(m["norms"], stats.norms(), strict=True):
            norms.update(one.model_dump(mode="json"))

    changed(folder, change)
    (line,) = verify(actstore.open(str(folder))).problems
    assert "norms.stats: it is not the sum" in line


def test_columns_that_were_replaced_with_their_digests(folder: Path) -> None:
    sizes = column_bytes(0, 21, 2)
    for key in ("columns/bytes/c/0", "columns/digests/c/0/0", "columns/sums/c/0/0/0/0"):
        body = bytearray((folder / key).read_bytes()[:-4])
        assert len(body) == sizes[key] - 4
        body[9] ^= 1
        data = with_checksum(bytes(body))
        changed(folder, partial(claim_file, folder=folder, key=key, data=data))
    problems = verify(actstore.open(str(folder))).problems
    assert sorted(
        line.split(":")[0].rpartition("columns/")[2] for line in problems
    ) == [
        *("bytes/c/0", "digests/c/0/0", "sums/c/0/0/0/0"),
    ]


def test_a_plan_that_was_replaced_with_its_digests_is_told_and_nothing_is_repaired(
    folder: Path,
) -> None:
    """A manifest of another width, consistent with its plan in every digest: only the
    units say otherwise.
    """
    plan = json.loads((folder / "plan.json").read_text())
    plan["spec"]["seed"] = 5
    data = json.dumps(plan).encode()

    def change(m: Json) -> None:
        claim_file(m, folder, "plan.json", data)
        m["generations"][0]["plan_digest"] = blake3(data).hexdigest()
        m["content_id"] = content_id(
            [Generation.model_validate(g) for g in m["generations"]]
        )

    changed(folder, change)
    (folder / "acts" / "zarr.json").unlink()
    code = CliRunner().invoke(app, ["verify", "--repair", str(folder)])
    assert code.exit_code == 1
    assert "spec.seed: wanted 0, there is 5" in code.stdout.replace("\n", " ")
    assert "nothing is repaired" in code.stdout
    assert not (folder / "acts" / "zarr.json").exists()


# The tokenizer


def test_a_tokenizer_s_code_is_never_run(tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "Evil",
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
    }
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: pass\n"
    files = {
        "tokenizer_config.json": json.dumps(config).encode(),
        "evil.py": code.encode(),
    }
    store = make_store(tmp_path / "s", SITES, tokenizer_files=files, **SIZES)
    with pytest.raises(ModelError, match="its tokenizer is custom code"):
        store.tokenizer()
    assert not (tmp_path / "ran").exists()
    # what no record names is not looked at
    (tmp_path / "s" / "tokenizer" / "more.json").write_text("{}")
    assert store.tokenizer_keys() == [
        "tokenizer/evil.py",
        "tokenizer/tokenizer_config.json",
    ]


# Other places


def test_a_limit_holds_in_other_places(memory_url: str, s3_url: str) -> None:
    for url in (memory_url, s3_url):
        storage = Storage(f"{url}/x")
        storage.put("a", b"12345")
        storage.put("none", b"")
        assert storage.read("a", 5) == b"12345"
        assert storage.read("none", 5) == b""
        with pytest.raises(CorruptError, match="more than 4 bytes"):
            storage.read("a", 4)
        with pytest.raises(ObjectError, match="no such object"):
            storage.read("b", 4)


def test_a_folder_for_a_manifest_is_no_store(folder: Path) -> None:
    (folder / object_keys.MANIFEST).unlink()
    (folder / object_keys.MANIFEST).mkdir()
    (folder / "plan.json").unlink()
    with pytest.raises(NotAStoreError):
        actstore.open(str(folder))


def test_statistics_are_as_large_as_the_arithmetic_says(whole: Path) -> None:
    store = actstore.open(str(whole))
    assert stats_bytes(store.manifest.sites) == len(
        UnitStats(store.manifest.sites).to_bytes()
    )


def unfinished(folder: Path) -> StoreWriter:
    """What a harvest that was stopped just before its end finds there."""
    (folder / object_keys.MANIFEST).unlink()
    storage = Storage(str(folder))
    return StoreWriter(storage, read_plan(storage))


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": 7},
        {"n_rows": 10**9},
        {"objects": {"../../x": {"bytes": 0, "digest": ""}}},
    ],
)
def test_a_harvest_that_goes_on_commits_no_record_that_cannot_be(
    folder: Path, changes: Json
) -> None:
    writer, path = unfinished(folder), folder / object_keys.unit_key(2)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(CorruptError, match=r"units/00002\.json"):
        writer.finish()
    assert not (folder / object_keys.MANIFEST).exists()


@pytest.mark.parametrize(
    "changes", [{"tokens": {"bytes": 1 << 60, "digest": "0" * 64}}, {"unit": 7}]
)
def test_a_harvest_that_goes_on_takes_no_tokens_but_those_recorded(
    folder: Path, changes: Json
) -> None:
    writer, path = unfinished(folder), folder / object_keys.block_key(2)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(CorruptError, match=r"blocks/00002\.json"):
        writer.block_tokens(writer.committed_blocks()[2])


@pytest.mark.parametrize("name", ["._00002.json", "x.json"])
def test_a_harvest_that_goes_on_does_not_look_at_other_files(
    folder: Path, name: str
) -> None:
    writer = unfinished(folder)
    for place in ("units", "blocks"):
        (folder / place / name).write_text("no JSON")
    assert (
        len(writer.committed_blocks())
        == len(writer.committed_units())
        == SIZES["n_units"]
    )
    writer.finish()
    assert not verify(actstore.open(folder)).problems
