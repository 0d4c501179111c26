"""The largest sizes that are possible, and the first ones that are not."""

from __future__ import annotations

from typing import Any

import pytest

from actstore.errors import CorruptError, SpecError
from actstore.format import object_sizes
from actstore.format.manifest_checks import (
    MOST,
    MOST_UNITS,
    check_plan,
    check_record,
    check_writable,
    is_site_name,
    is_tokenizer_file,
    layout_faults,
)
from schemas.harvest import HarvestSpec, Layout, Plan
from schemas.manifest import ObjectRecord, UnitRecord
from schemas.source import CorpusSource, ModelSource, Site

SITES = (Site(name="a", d=6), Site(name="b", d=10))
# Units of 3 sequences of 8 rows, in chunks of 5 rows: 5 chunks, 25 slots.
SIZES = {
    "context": 8,
    "n_sequences": 29,
    "unit_sequences": 3,
    "capacity": 25,
    "chunk_rows": 5,
    "n_units": 10,
}
CHANGED = "it was changed or badly written: copy the store again"


def spec(context: int = 8, model: str = "m", corpus: str = "c") -> HarvestSpec:
    return HarvestSpec(
        model=ModelSource(name=model),
        corpus=CorpusSource(name=corpus, kind="memory"),
        sites=("a", "b"),
        tokens=1,
        context=context,
        dtype="bfloat16",
        codec="raw",
    )


def layout(**update: int) -> Layout:
    return Layout(**{**SIZES, **update})


def plan(**update: Any) -> Plan:
    values = {"spec": spec(), "layout": layout(), "sites": SITES, "first_unit": 0}
    return Plan.model_construct(**{**values, **update})


def faults(sites: tuple[Site, ...] = SITES, **update: Any) -> list[str]:
    context = update.get("context", 8)
    return list(layout_faults(layout(**update), sites, spec(context)))


def test_sizes_that_fit_each_other() -> None:
    assert faults() == []
    assert faults(capacity=30) == [
        "capacity 30: 3 sequences of 8 in chunks of 5 rows make 25"
    ]
    assert faults(n_units=9) == ["layout.n_units 9: 29 sequences make 10"]
    assert faults(n_sequences=30) == []
    assert faults(n_sequences=31) == ["layout.n_units 10: 31 sequences make 11"]
    wrong = list(layout_faults(layout(), SITES, spec(context=7)))
    assert wrong == ["spec.context is 7, layout.context 8"]
    huge = faults(chunk_rows=10**30)
    assert huge[0] == (
        "capacity 25: 3 sequences of 8 in chunks of about 10^30 rows make about 10^30"
    )


LIMITS: dict[str, Any] = {
    "context": MOST,
    "unit_sequences": MOST,
    "n_sequences": 4 * MOST,
    "n_units": 4 * MOST,
    "capacity": 1 << 28,
}


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_largest_sizes(name: str) -> None:
    assert MOST == 2**31 - 1
    most = LIMITS[name]

    def told(value: int) -> list[str]:
        sizes: dict[str, Any] = {name: value}
        return [fault for fault in faults(**sizes) if "at most" in fault]

    assert told(most) == []
    end = f": at most {most} are possible"
    assert told(most + 1) == [f"{name} {most + 1}{end}"]
    assert told(10**24 - 1) == [f"{name} {10**24 - 1}{end}"]
    assert told(10**24) == [f"{name} about 10^24{end}"]


def test_the_widest_sites_and_the_largest_chunks() -> None:
    # chunks of 5 rows of 2^24 values of 2 bytes
    wide = (SITES[0], Site(name="b", d=1 << 24))
    assert faults(wide) == []
    wider = (SITES[0], Site(name="b", d=(1 << 24) + 1))
    assert faults(wider) == ["d 16777217: at most 16777216 are possible"]
    # 2^30 bytes: 2^24 values in 32 rows
    sizes: dict[str, Any] = {
        "unit_sequences": 4,
        "chunk_rows": 32,
        "capacity": 32,
        "n_units": 8,
    }
    assert faults(wide, **sizes) == []
    sizes = {"context": 33, "unit_sequences": 1, "n_units": 29}
    large = faults(wide, **sizes, chunk_rows=33, capacity=33)
    assert large == [
        f"site b: chunks of {33 << 25} bytes; at most 1073741824 are possible"
    ]


def test_a_plan_that_cannot_be() -> None:
    check_plan(plan(), "here")
    check_plan(plan(first_unit=10), "here")
    units = {"n_sequences": 3 * MOST_UNITS + 3, "n_units": MOST_UNITS + 1}
    many = layout(**units)
    check_plan(plan(layout=many, first_unit=MOST_UNITS), "here")
    told: dict[str, dict[str, Any]] = {
        "first_unit 11 of 10 units": {"first_unit": 11},
        f"first_unit {MOST_UNITS + 1} of {MOST_UNITS + 1} units": {
            "layout": many,
            "first_unit": MOST_UNITS + 1,
        },
        "layout.n_units 9: 29 sequences make 10": {"layout": layout(n_units=9)},
        "there are no sites": {"sites": ()},
        "site a is there twice": {"sites": (*SITES, SITES[0])},
        "site 'x/y': wanted letters, digits, `.`, `_` and `-`": {
            "sites": (SITES[0], Site(name="x/y", d=1))
        },
        "'m\\x7f': a name with control characters": {"spec": spec(model="m\x7f")},
        "'c\\n': a name with control characters": {"spec": spec(corpus="c\n")},
    }
    for message, update in told.items():
        with pytest.raises(CorruptError) as error:
            check_plan(plan(**update), "here")
        assert str(error.value) == f"here: {message}; {CHANGED}"
        with pytest.raises(SpecError) as refused:
            check_writable(plan(**update))
        assert str(refused.value) == (
            f"{message}; choose other names, or other sizes of units and chunks"
        )


def test_a_plan_of_more_units_than_can_be_opened() -> None:
    check_writable(plan())
    most = layout(n_sequences=3 * MOST_UNITS, n_units=MOST_UNITS)
    check_writable(plan(layout=most))
    more = layout(n_sequences=3 * MOST_UNITS + 1, n_units=MOST_UNITS + 1)
    with pytest.raises(SpecError) as error:
        check_writable(plan(layout=more))
    assert str(error.value) == (
        "4194305 units; 4194304 at most, choose a larger --unit-sequences"
    )
    # of what comes from an iterator nobody knows how much it is
    n_units = -(-MOST // 3)
    check_writable(plan(layout=layout(n_sequences=MOST, n_units=n_units)))
    below = layout(n_sequences=MOST - 1, n_units=-(-(MOST - 1) // 3))
    with pytest.raises(SpecError, match="units; 4194304 at most"):
        check_writable(plan(layout=below))


def test_names_and_files() -> None:
    for name in ("a", "blocks.0.hook_z", "_", "-", "Z9", "a" * 200):
        assert is_site_name(name), name
    for name in ("", ".a", "a/b", "a b", "é", "a\n", "a" * 201, "zarr.json"):
        assert not is_site_name(name), name
    for key in ("tokenizer/a", "tokenizer/tokenizer.json"):
        assert is_tokenizer_file(key), key
    for key in ("tokenizer/", "tokenizer/.a", "tokenizer/a/b", "x/tokenizer/a", "a"):
        assert not is_tokenizer_file(key), key


# The record of unit 4, with 11 rows

UNIT, N_ROWS = 4, 11


def record(objects: dict[str, ObjectRecord] | None = None, **update: Any) -> UnitRecord:
    ranges = object_sizes.unit_bytes(
        spec(), layout(), SITES, UNIT, N_ROWS, "units/00004.stats", tokens=True
    )
    all_objects = {
        key: ObjectRecord(bytes=n, digest="0a" * 32) for key, (n, _) in ranges.items()
    }
    values: dict[str, Any] = {
        "unit": UNIT,
        "n_sequences": 2,
        "n_rows": N_ROWS,
        **update,
    }
    return UnitRecord.model_construct(
        objects={**all_objects, **(objects or {})},
        batch=None,
        **values,
    )


def check(one: UnitRecord, of: Any = None) -> None:
    check_record(of or plan(), 0, UNIT, one, "here")


def test_a_record_of_a_unit() -> None:
    check(record())
    check(record(n_sequences=3))
    # one without sequences has no rows, and so shards of other sizes
    with pytest.raises(CorruptError, match=r"^here: acts/a/c/4/0: "):
        check(record(n_sequences=0, n_rows=0))
    told: dict[str, dict[str, Any]] = {
        "it is of unit 5": {"unit": 5},
        "-1 sequences, a unit has at most 3": {"n_sequences": -1},
        "4 sequences, a unit has at most 3": {"n_sequences": 4},
        "11 rows of 1 sequences": {"n_sequences": 1},
        "25 rows of 3 sequences": {"n_sequences": 3, "n_rows": 25},
    }
    for message, update in told.items():
        with pytest.raises(CorruptError) as error:
            check(record(**update))
        assert str(error.value) == (
            f"here: {message}; it is not the record that was committed"
        )


def test_a_record_of_objects() -> None:
    good = record().objects["norm/a/c/4"]
    assert good.bytes == 25 * 4 + 4
    told = {
        "'other' is no object of it": {"other": good},
        f"norm/a/c/4: 103 bytes, digest '{'0a' * 32}'; wanted 104 to 104 bytes": {
            "norm/a/c/4": ObjectRecord(bytes=103, digest="0a" * 32)
        },
        f"norm/a/c/4: 105 bytes, digest '{'0a' * 32}'; wanted 104 to 104 bytes": {
            "norm/a/c/4": ObjectRecord(bytes=105, digest="0a" * 32)
        },
        "norm/a/c/4: 104 bytes, digest 'x'; wanted 104 to 104 bytes": {
            "norm/a/c/4": ObjectRecord.model_construct(bytes=104, digest="x")
        },
    }
    for message, objects in told.items():
        with pytest.raises(CorruptError) as error:
            check(record(objects))
        assert str(error.value) == (
            f"here: {message}; it is not the record that was committed"
        )
    fewer = record()
    del fewer.objects["norm/a/c/4"]
    with pytest.raises(CorruptError, match=r"^here: 'norm/a/c/4' is missing; "):
        check(fewer)


def test_a_record_of_a_generation_that_adds_sites_has_no_tokens() -> None:
    later = record()
    for key in ("tokens/c/4/0", "rows/c/4/0"):
        del later.objects[key]
    objects = dict(later.objects)
    objects["units-1/00004.stats"] = objects.pop("units/00004.stats")
    later = later.model_copy(update={"objects": objects})
    check_record(plan(), 1, UNIT, later, "here")
    adds_units = plan(first_unit=1)
    with pytest.raises(CorruptError, match="'rows/c/4/0' is missing"):
        check_record(adds_units, 1, UNIT, later, "here")
