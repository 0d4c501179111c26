"""Tests that errors in a spec are told in the project's words, not pydantic's."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from actstore.errors import SpecError
from actstore.format.manifest import parse_manifest
from actstore.validation import sentences, validated
from schemas.base import Schema, parse_count, parse_size
from schemas.harvest import HarvestSpec
from schemas.train import TrainSpec

PROSE = re.compile(
    r"Input should|Extra inputs|Field required|pydantic|Value error|valid (integer|number|string|tuple)|\[type="
)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3), st.just({"kind": "topk", "x": 1}),
)  # fmt: skip
GOOD: dict[type[Schema], dict[str, Any]] = {
    TrainSpec: {
        "store": "s",
        "sae": {"kind": "relu_l1"},
        "stream": {},
        "optimiser": {},
        "resample": {},
    },
    HarvestSpec: {
        "model": {"name": "m"},
        "corpus": {"name": "c"},
        "sites": ["a"],
        "tokens": 1,
    },
}
INSIDE = {"sae": ("k", "l1", "expansion", "kind"), "stream": ("batch", "filter", "weights", "sites", "memory", "x"),
          "optimiser": ("lr", "betas"), "resample": ("every",), "model": ("dtype", "name"), "corpus": ("kind",)}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_error_speaks_as_pydantic_does(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(list(GOOD)))
    values = dict(GOOD[schema])
    for name in data.draw(
        st.sets(
            st.sampled_from([*schema.model_fields, "unknown"]), min_size=1, max_size=3
        )
    ):
        inside = name in INSIDE and name in values and data.draw(st.booleans())
        junk = data.draw(JUNK)
        values[name] = (
            {**values[name], data.draw(st.sampled_from(INSIDE[name])): junk}
            if inside
            else junk
        )
    text = told(schema, values)
    assert text is None or text.startswith("file.yaml: ")
    assert not PROSE.search(text or "")
    assert not re.search("; ;|: :", text or "")


def told(schema: type[Schema], values: dict[str, Any]) -> str | None:
    try:
        validated(schema, values, "file.yaml")
    except SpecError as error:
        return str(error)
    return None


def test_an_error_without_its_schema_is_told_too() -> None:
    with pytest.raises(ValidationError, match="tokens") as found:
        HarvestSpec.model_validate({**GOOD[HarvestSpec], "tokens": "no"})
    assert (
        sentences(found.value)
        == "tokens: 'no' is not a count; write 300k, 1M, 2.5B or plain digits"
    )
    with pytest.raises(Exception, match="manifest") as bad:
        parse_manifest(
            b'{"format": "actstore", "format_version": 1, "n_rows": "x"}', "there"
        )
    assert not PROSE.search(str(bad.value))


@given(st.integers(0, 10**15), st.sampled_from(["", "k", "m", "b", "t"]))
def test_counts_are_exact(n: int, unit: str) -> None:
    factor = 1000 ** ["", "k", "m", "b", "t"].index(unit)
    assert parse_count(f"{n}{unit}") == n * factor
    assert parse_count(f" {n}.000{unit.upper()} ") == n * factor


@pytest.mark.parametrize(
    "text", ["1.5", "0.0001k", "1e-3", "inf", "nan", "-1", "0x10", "1 000"]
)
def test_what_is_no_whole_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="count"):
        parse_count(text)


@pytest.mark.parametrize("text", ["1e6", "1 EB", "GB", "-1MB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_a_truth_is_no_count() -> None:
    with pytest.raises(SpecError, match="rows: true and false are no numbers"):
        validated(TrainSpec, {**GOOD[TrainSpec], "rows": True}, "f")
