"""Where objects lie, how large they are, and their digests: `docs/FORMAT.md` in numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from blake3 import blake3
from pydantic import BaseModel

from actstore.errors import CorruptError, SpecError
from actstore.format import object_keys as keys
from actstore.format import object_sizes as sizes
from actstore.format.content_id import content_id, content_ids
from actstore.format.json_records import (
    DEEPEST,
    check_depth,
    parsed_json,
    parsed_record,
    read_record,
)
from actstore.format.object_records import files_digest, object_record, put
from actstore.format.storage import Storage
from schemas.harvest import HarvestSpec, Layout
from schemas.manifest import Generation
from schemas.source import CorpusSource, ModelSource, Site

SITES = (Site(name="a", d=6), Site(name="b", d=10))
# Units of 3 sequences of 8 rows, in chunks of 5 rows: 5 chunks, 25 slots.
LAYOUT = Layout(
    context=8, n_sequences=30, unit_sequences=3, capacity=25, chunk_rows=5, n_units=10
)


def spec(**update: Any) -> HarvestSpec:
    raw = {
        "model": ModelSource(name="m"),
        "corpus": CorpusSource(name="c", kind="memory"),
        "sites": ("a", "b"),
        "tokens": 1,
        "context": 8,
    }
    return HarvestSpec.model_validate({**raw, **update})


def test_keys() -> None:
    assert keys.acts_key("a.b") == "acts/a.b"
    assert keys.norm_key("a.b") == "norm/a.b"
    assert keys.scale_key("a.b") == "scale/a.b"
    assert keys.step_key("a.b") == "step/a.b"
    assert keys.chunk_key("tokens", 3, 0) == "tokens/c/3/0"
    assert keys.chunk_key("norm/a", 12) == "norm/a/c/12"
    assert keys.block_key(42) == "blocks/00042.json"
    assert keys.claim_key(42) == "claims/00042.json"


def test_keys_of_generations() -> None:
    assert [keys.plan_key(), keys.plan_key(0), keys.plan_key(2)] == [
        "plan.json",
        "plan.json",
        "plan-2.json",
    ]
    assert [keys.units_prefix(), keys.units_prefix(1)] == ["units", "units-1"]
    assert [keys.columns_prefix(), keys.columns_prefix(1)] == ["columns", "columns-1"]
    assert [keys.merged_stats_key(), keys.merged_stats_key(1)] == [
        "norms.stats",
        "norms-1.stats",
    ]
    assert [keys.unit_key(7), keys.unit_key(123456, 3)] == [
        "units/00007.json",
        "units-3/123456.json",
    ]
    assert [keys.unit_stats_key(7), keys.unit_stats_key(7, 3)] == [
        "units/00007.stats",
        "units-3/00007.stats",
    ]


def test_sizes_of_statistics_and_columns() -> None:
    assert sizes.plain((3, 5), 4) == 3 * 5 * 4 + 4
    figures = (5 + 12 + 2048) + (5 + 20 + 2048)
    assert sizes.stats_bytes(SITES) == figures * 2 * 8
    assert sizes.column_shape("digests", 7, 2) == (7, 32)
    assert sizes.column_shape("sums", 7, 3) == (7, 3, 2, 5)
    assert sizes.column_bytes(0, 7, 3) == {
        "columns/rows/c/0": 7 * 4 + 4,
        "columns/bytes/c/0": 7 * 8 + 4,
        "columns/digests/c/0/0": 7 * 32 + 4,
        "columns/sums/c/0/0/0/0": 7 * 3 * 2 * 5 * 8 + 4,
    }
    assert next(iter(sizes.column_bytes(2, 7, 3))) == "columns-2/rows/c/0"
    assert sizes.column_key(2, "sums") == "columns-2/sums/c/0/0/0/0"
    assert sizes.column_metadata(1) == (
        "columns-1/zarr.json",
        "columns-1/rows/zarr.json",
        "columns-1/bytes/zarr.json",
        "columns-1/digests/zarr.json",
        "columns-1/sums/zarr.json",
    )


def test_sizes_of_a_units_objects() -> None:
    # 11 rows are in 3 chunks of 5 rows of 6 or 10 values, 2 bytes each; the index has
    # 16 bytes for each of 5 chunks, and a checksum
    index = 5 * 16 + 4
    raw = {"a": 3 * (60 + 4) + index, "b": 3 * (100 + 4) + index}
    exact = {
        "stats": sizes.stats_bytes(SITES),
        "tokens/c/4/0": 3 * 8 * 4 + 4,
        "rows/c/4/0": 25 * 2 * 4 + 4,
        "norm/a/c/4": 25 * 4 + 4,
        "norm/b/c/4": 25 * 4 + 4,
        "acts/a/c/4/0": raw["a"],
        "acts/b/c/4/0": raw["b"],
    }
    wanted = {key: (n, n) for key, n in exact.items()}
    plain = spec(codec="raw", dtype="bfloat16")
    found = sizes.unit_bytes(plain, LAYOUT, iter(SITES), 4, 11, "stats", tokens=True)
    assert found == wanted
    without = sizes.unit_bytes(plain, LAYOUT, SITES, 4, 11, "stats", tokens=False)
    assert without == {
        key: size for key, size in wanted.items() if key[:4] not in {"toke", "rows"}
    }
    # compressed: a header of 16 bytes at least, and at most that much more
    packed = spec(codec="lz4", dtype="bfloat16")
    found = sizes.unit_bytes(packed, LAYOUT, SITES, 4, 11, "stats", tokens=True)
    assert found["acts/a/c/4/0"] == (3 * (16 + 4) + index, raw["a"] + 3 * 16)
    assert found["norm/a/c/4"] == wanted["norm/a/c/4"]


def test_sizes_of_a_units_int8_objects() -> None:
    int8 = spec(codec="raw", dtype="int8")
    found = sizes.unit_bytes(int8, LAYOUT, SITES, 4, 11, "stats", tokens=False)
    assert {key: n for key, (n, _) in found.items() if key[:2] in {"sc", "st"}} == {
        "stats": sizes.stats_bytes(SITES),
        "scale/a/c/4": 25 * 2 + 4,
        "scale/b/c/4": 25 * 2 + 4,
        "step/a/c/4/0/0": 2 * 6 * 4 + 4,
        "step/b/c/4/0/0": 2 * 10 * 4 + 4,
    }
    n = 3 * (30 + 4) + 5 * 16 + 4
    assert found["acts/a/c/4/0"] == (n, n)


# Digests


def generation(number: int) -> Generation:
    digests: Any = {"plan_digest": f"p{number}", "units_digest": f"u{number}"}
    return Generation.model_construct(**digests)


class Manifest:
    content_id = "own"
    generations = tuple(generation(i) for i in range(3))


def test_content_ids_are_of_all_generations_newest_first() -> None:
    def digest(text: str) -> str:
        return blake3(text.encode()).hexdigest()

    assert content_id(Manifest.generations) == digest("p0u0p1u1p2u2")
    ids = content_ids(Manifest())  # type: ignore[arg-type]
    assert ids == ("own", digest("p0u0p1u1"), digest("p0u0"), "followed-p0")


def test_records_of_objects(tmp_path: Any) -> None:
    parts = [b"ab", b"c"]
    for data in (b"abc", parts):
        record = object_record(data)
        assert record.bytes == 3
        assert record.digest == blake3(b"abc").hexdigest()
    storage = Storage(str(tmp_path))
    assert put(storage, "x/y", parts) == object_record(b"abc")
    assert (tmp_path / "x" / "y").read_bytes() == b"abc"


def test_the_digest_of_files_is_over_names_sizes_and_bytes() -> None:
    wanted = blake3("a\0002\0xyé\0000\0".encode()).hexdigest()
    assert files_digest({"é": b"", "a": b"xy"}) == wanted


# JSON of others


class Point(BaseModel):
    x: int


def test_records_are_read_and_refused(tmp_path: Any) -> None:
    (tmp_path / "good.json").write_text('{"x": 1}')
    (tmp_path / "bad.json").write_text('{"x": "?"}')
    (tmp_path / "deep.json").write_text("[" * 65 + "]" * 65)
    storage = Storage(str(tmp_path))
    assert read_record(storage, "good.json", Point) == Point(x=1)
    assert parsed_record(Point, b'{"x": 2}', "here").x == 2
    with pytest.raises(CorruptError) as error:
        read_record(storage, "bad.json", Point)
    assert str(error.value).startswith(f"{storage.url}/bad.json: not a valid Point: ")
    assert "x" in str(error.value).removeprefix(storage.url).split("Point: ")[1]
    with pytest.raises(
        CorruptError, match=r"deep.json: not valid JSON: nested 65 deep"
    ):
        read_record(storage, "deep.json", Point)
    with pytest.raises(CorruptError):
        read_record(storage, "good.json", Point, limit=7)
    assert read_record(storage, "good.json", Point, limit=8).x == 1


def test_json_is_utf8_and_no_other() -> None:
    assert parsed_json('{"é": [1]}'.encode(), "here") == {"é": [1]}
    with pytest.raises(CorruptError, match=r"^here: not valid JSON: "):
        parsed_json('{"é": [1]}'.encode("utf-16"), "here")
    with pytest.raises(SpecError, match=r"^here: not valid JSON: "):
        parsed_json(b"{", "here", SpecError)
    with pytest.raises(SpecError, match=r"^here: not valid JSON: nested 65 deep"):
        parsed_json(b"[" * 65, "here", SpecError)


@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_brackets_may_be_64_deep(pair: str) -> None:
    assert DEEPEST == 64
    opened, closed = pair[0], pair[1]
    check_depth((opened * 64 + closed * 64).encode(), "here")
    with pytest.raises(CorruptError) as error:
        check_depth((opened * 65 + closed * 65).encode(), "here")
    assert str(error.value) == (
        "here: not valid JSON: nested 65 deep; at most 64 are read"
    )
    # side by side, or in strings, they nest nothing
    check_depth((pair * 500).encode(), "here")
    check_depth(json.dumps({"x": opened * 70 + '\\"' + opened * 70}).encode(), "here")
    # what comes after the deepest place does not matter
    deep_first = opened * 70 + closed * 70 + pair
    with pytest.raises(CorruptError, match="nested 70 deep"):
        check_depth(deep_first.encode(), "here")
