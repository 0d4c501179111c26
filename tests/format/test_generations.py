"""A manifest of three generations, and what is said of it with one thing changed.

The first has units 0 to 3 of sites a and b; the second adds site c to these; the third
adds units 4 and 5 of all three.
"""

from __future__ import annotations

from typing import Any

import pytest

from actstore.errors import CorruptError
from actstore.format import object_sizes
from actstore.format.content_id import content_id
from actstore.format.manifest_checks import check_manifest
from schemas.harvest import HarvestSpec, Layout
from schemas.manifest import (
    Generation,
    NormStats,
    ObjectRecord,
    StoreManifest,
    StratumNorms,
)
from schemas.source import CorpusSource, ModelSource, Site

A, B, C = (Site(name=name, d=4) for name in "abc")
LAYOUT = Layout(
    context=8, n_sequences=18, unit_sequences=3, capacity=24, chunk_rows=8, n_units=6
)
SPEC = HarvestSpec(
    model=ModelSource(name="m"),
    corpus=CorpusSource(name="c", kind="memory"),
    sites=("a", "b", "c"),
    tokens=1,
    context=8,
)
# All rows of the store are training rows: 6 units of 3 sequences of 8 tokens.
N_ROWS = 6 * 24
DIGEST = "0a" * 32


def generation(number: int, **update: Any) -> Generation:
    suffix = f"-{number}" if number else ""
    values: dict[str, Any] = {
        "plan": f"plan{suffix}.json",
        "units": f"units{suffix}/",
        "plan_digest": f"{number}" * 64,
        "units_digest": DIGEST,
        **[
            {"sites": (A, B), "first_unit": 0, "n_units": 4},
            {"sites": (C,), "first_unit": 0, "n_units": 4},
            {"sites": (A, B, C), "first_unit": 4, "n_units": 2},
        ][number],
    }
    values["n_sequences"] = 3 * values["n_units"]
    values["n_rows"] = 24 * values["n_units"]
    return Generation(**{**values, **update})


def files_of(generations: tuple[Generation, ...]) -> dict[str, ObjectRecord]:
    """The files that these three must have."""
    sizes = {"README.md": 99}
    # Each generation writes the columns anew: of the units and the sites so far.
    for i, (n_units, sites) in enumerate(((4, (A, B)), (4, (A, B, C)), (6, (A, B, C)))):
        suffix = f"-{i}" if i else ""
        sizes |= object_sizes.column_bytes(i, n_units, len(sites))
        sizes[f"norms{suffix}.stats"] = object_sizes.stats_bytes(sites)
        sizes[f"plan{suffix}.json"] = 77
        for key in object_sizes.column_metadata(i):
            sizes[key] = 55
    records = {key: ObjectRecord(bytes=n, digest=DIGEST) for key, n in sizes.items()}
    for one in generations:
        if one.plan in records:
            records[one.plan] = ObjectRecord(bytes=77, digest=one.plan_digest)
    return records


def norms_of(site: Site) -> NormStats:
    figures = {"mean_norm": 1.0, "mean_sq_norm": 1.0, "max_norm": 1.0, "outliers": 0}
    stratum: dict[str, Any] = {**figures, "non_finite": 0, "quantiles": (1.0,) * 9}
    every = StratumNorms(count=N_ROWS, **stratum)
    none = StratumNorms(count=0, **stratum)
    return NormStats(site=site.name, d=site.d, all=every, special=none, rest=every)


def manifest(
    *changed: Generation, n_generations: int = 3, **update: Any
) -> StoreManifest:
    """The manifest, with these in the place of the last generations."""
    generations = tuple(generation(i) for i in range(n_generations))
    generations = generations[: n_generations - len(changed)] + changed
    own = [content_id(generations[: n + 1]) for n in range(len(generations))]
    values = {
        "format_minor": 1,
        "content_id": own[-1],
        "parent": own[-2] if len(own) > 1 else None,
        "spec": SPEC,
        "sites": (A, B, C),
        "layout": LAYOUT,
        "generations": generations,
        "n_units": 6,
        "n_sequences": 18,
        "n_rows": N_ROWS,
        "n_train_rows": N_ROWS,
        "n_bytes": 0,
        "norms": tuple(norms_of(site) for site in (A, B, C)),
        "files": files_of(generations),
        **update,
    }
    return StoreManifest.model_construct(**values)


def fault(m: StoreManifest) -> str:
    with pytest.raises(CorruptError) as error:
        check_manifest(m, "here")
    start = "here/manifest.json: "
    end = "; it was changed or badly written: copy the store again"
    message = str(error.value)
    assert message.startswith(start)
    assert message.endswith(end)
    return message.removeprefix(start).removesuffix(end)


def record(n: int, digest: str = DIGEST) -> ObjectRecord:
    return ObjectRecord.model_construct(bytes=n, digest=digest)


def with_file(key: str, one: ObjectRecord) -> StoreManifest:
    m = manifest()
    return m.model_copy(update={"files": {**m.files, key: one}})


def test_three_generations_make_a_store() -> None:
    check_manifest(manifest(), "here")
    two = manifest(
        n_generations=2,
        n_units=4,
        n_sequences=12,
        n_rows=96,
        n_train_rows=0,
        norms=tuple(
            norms_of(site).model_copy(
                update={"all": none_of(site), "rest": none_of(site)}
            )
            for site in (A, B, C)
        ),
    )
    kept = {key: one for key, one in two.files.items() if "-2" not in key}
    check_manifest(two.model_copy(update={"files": kept}), "here")


def none_of(site: Site) -> StratumNorms:
    return norms_of(site).special


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (generation(2, plan="plan.json"), "plan 'plan.json' and units 'units-2/' are not where they must be"),
        (generation(2, units="units-2"), "plan 'plan-2.json' and units 'units-2' are not where they must be"),
        (generation(2, plan="x" * 300, units="y" * 300), f"plan '{'x' * 200}' and units '{'y' * 200}' are not where they must be"),
        (generation(2, sites=()), "it has no sites"),
        (generation(2, n_units=0), "0 units; 1 to 4194304 are possible"),
        (generation(2, n_units=(1 << 22) + 1), "4194305 units; 1 to 4194304 are possible"),
        (generation(2, n_sequences=0), "0 sequences in 2 units"),
        (generation(2, n_sequences=7), "7 sequences in 2 units"),
        (generation(2, n_rows=-1), "-1 rows of 6 sequences"),
        (generation(2, n_rows=49), "49 rows of 6 sequences"),
        (generation(2, n_sequences=1, n_rows=9), "9 rows of 1 sequences"),
        (generation(2, first_unit=3), "it begins at unit 3, after 4 units"),
        (generation(2, first_unit=5), "it begins at unit 5, after 4 units"),
        (generation(2, sites=(A, B)), "it adds units of other sites"),
    ],
)  # fmt: skip
def test_a_last_generation_that_cannot_be(changed: Generation, message: str) -> None:
    assert fault(manifest(changed)) == f"generation 2: {message}"


@pytest.mark.parametrize(
    ("update", "found"),
    [
        ({"n_units": 5, "n_sequences": 12, "n_rows": 96}, "5 units, 12 sequences and 96"),
        ({"n_sequences": 11, "n_rows": 88}, "4 units, 11 sequences and 88"),
        ({"n_rows": 95}, "4 units, 12 sequences and 95"),
    ],
)  # fmt: skip
def test_sites_are_added_to_all_units(update: dict[str, int], found: str) -> None:
    second = generation(1, **update)
    assert fault(manifest(second, generation(2))) == (
        f"generation 1: it adds sites to {found} rows of (4, 12, 96)"
    )


def test_a_first_generation_begins_at_unit_0() -> None:
    late = generation(0, first_unit=1)
    assert fault(manifest(late, generation(1), generation(2))) == (
        "generation 0: it begins at unit 1, after 0 units"
    )


def test_a_unit_may_be_without_rows_and_hold_one_sequence() -> None:
    small = generation(2, n_units=1, n_sequences=1, n_rows=0)
    assert (
        fault(manifest(small))
        == "its generations make 5 units, 13 sequences and 96 rows"
    )


def test_digests_are_hexadecimal() -> None:
    for field in ("plan_digest", "units_digest"):
        for wrong in ("0A" * 32, "0a" * 31, "0a" * 33):
            one = generation(2).model_copy(update={field: wrong})
            assert fault(manifest(one)) == "generation 2: its digests are none"


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"sites": (A, C, B), "norms": ()}, "its sites are not those of its generations, in their order"),
        ({"n_units": 5}, "its generations make 6 units, 18 sequences and 144 rows"),
        ({"n_sequences": 17}, "its generations make 6 units, 18 sequences and 144 rows"),
        ({"n_rows": 143}, "its generations make 6 units, 18 sequences and 144 rows"),
        ({"spec": SPEC.model_copy(update={"sites": ("a",)})}, "spec.sites are not its sites"),
        ({"n_train_rows": -1}, "n_train_rows -1 of 144"),
        ({"n_train_rows": 145}, "n_train_rows 145 of 144"),
        ({"n_bytes": -1}, "n_bytes -1"),
        ({"content_id": "x"}, f"content_id x: its generations make {manifest().content_id}"),
        ({"parent": None}, f"parent None: its generations make {manifest().parent}"),
        ({"layout": LAYOUT.model_copy(update={"n_sequences": 15, "n_units": 5})}, "n_units 6: 5 at most"),
    ],
)  # fmt: skip
def test_counts_that_cannot_be(update: dict[str, Any], message: str) -> None:
    assert fault(manifest(**update)) == message


def test_patterns_may_stand_in_the_spec_of_one_generation() -> None:
    """Only `extend` writes the sites' own names."""
    first = generation(0)
    one = manifest(
        first,
        n_generations=1,
        sites=(A, B),
        norms=(norms_of(A), norms_of(B)),
        n_units=4,
        n_sequences=12,
        n_rows=96,
    )
    assert one.parent is None
    assert fault(one) == "n_train_rows 144 of 96"
    several = one.model_copy(update={"n_train_rows": 96})
    assert fault(several) == "norms of a: they are not of 96 rows"


def test_a_store_without_rows() -> None:
    generations = [generation(i, n_rows=0) for i in range(3)]
    assert fault(manifest(*generations, n_rows=0, n_train_rows=0)) == (
        "n_rows 0: a store has at least one row"
    )
    one_row = [generation(i, n_rows=n) for i, n in enumerate((1, 1, 0))]
    assert fault(manifest(*one_row, n_rows=1, n_train_rows=1)) == (
        "norms of a: they are not of 1 rows"
    )


def test_files_are_those_that_follow_from_the_generations() -> None:
    good = manifest().files
    for key in (
        "README.md",
        "plan-1.json",
        "columns-2/sums/zarr.json",
        "norms-1.stats",
    ):
        less = {name: one for name, one in good.items() if name != key}
        m = manifest(files=less)
        assert fault(m) == f"files: {key} is missing"
    for key in ("tokenizer/tokenizer.json", "tokenizer/merges.txt"):
        check_manifest(with_file(key, record(1 << 28)), "here")
        assert fault(with_file(key, record((1 << 28) + 1))) == (
            f"files: {key} has 268435457 bytes, wanted at most 268435456"
        )
    assert fault(with_file("x" * 300, record(1))) == (
        f"files: '{'x' * 200}' is no file of a store"
    )
    n = object_sizes.stats_bytes((A, B, C))
    for wrong in (n - 1, n + 1):
        assert fault(with_file("norms-2.stats", record(wrong))) == (
            f"files: norms-2.stats has {wrong} bytes, wanted {n}"
        )
    limits = {
        "README.md": 1 << 28,
        "columns-1/zarr.json": 1 << 20,
    }
    for key, most in limits.items():
        check_manifest(with_file(key, record(most)), "here")
        assert fault(with_file(key, record(most + 1))) == (
            f"files: {key} has {most + 1} bytes, wanted at most {most}"
        )
    assert fault(with_file("plan-1.json", record(77))) == (
        "generation 1: plan_digest is not that in files"
    )
    check_manifest(with_file("plan-1.json", record(1 << 25, "1" * 64)), "here")
    assert fault(with_file("plan-1.json", record((1 << 25) + 1, "1" * 64))) == (
        "files: plan-1.json has 33554433 bytes, wanted at most 33554432"
    )
    assert fault(with_file("README.md", record(1, "x"))) == (
        "files: the digest of README.md is none"
    )
