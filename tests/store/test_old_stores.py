"""Stores of formats 1.0 and 1.1, written by the last actstore that wrote them, are
read, verified, streamed, extended, resumed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
from actstore.errors import FormatVersionError
from actstore.harvesting.extend import extend
from actstore.harvesting.harvest import harvest
from actstore.inspect.verify import verify
from tests.fixtures.old_stores import IMPORTED, SPEC, TOKENS, Tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"


DEFAULTS = (("split", "train"), ("text_column", "text"))


@pytest.fixture(params=[0, 1], ids=["1.0", "1.1"])
def minor(request: pytest.FixtureRequest) -> int:
    """The minor version of the old stores."""
    return int(request.param)


@pytest.fixture
def old(tmp_path: Path, minor: int) -> Path:
    """A folder of three stores: `harvested`, `extended` (by tokens, then by a site) and
    `imported` (int8).
    """
    with zipfile.ZipFile(FIXTURES / f"store_1_{minor}.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def more(folder: Path) -> actstore.Store:
    """What was done to `harvested` to make `extended`."""
    extend(str(folder), tokens=3 * 4, model=Tiny(), source=TOKENS)
    return extend(str(folder), sites="second", model=Tiny())


def outputs(sequence: np.ndarray, position: np.ndarray) -> dict[str, np.ndarray]:
    model = Tiny()
    with torch.no_grad():
        first = model.first(model.embedding(torch.from_numpy(TOKENS)))
        made = {"first": first, "second": model.second(first)}
    return {
        name: x.bfloat16().float().numpy()[sequence, position]
        for name, x in made.items()
    }


@pytest.mark.parametrize("name", ["harvested", "extended"])
def test_rows_are_read_verified_and_streamed(old: Path, minor: int, name: str) -> None:
    store = actstore.open(old / name)
    assert store.manifest.format_minor == minor
    assert verify(store).problems == []
    found = store.provenance(store.rows())
    assert len(found.sequence) == (20 if name == "harvested" else 32)
    assert np.array_equal(
        found.token,
        TOKENS[
            np.where(found.sequence < 6, found.sequence, found.sequence - 1),
            found.position,
        ],
    )
    wanted = outputs(
        np.where(found.sequence < 6, found.sequence, found.sequence - 1), found.position
    )
    for site in store.sites:
        assert np.array_equal(store.read(site), wanted[site])
        batches = list(store.stream(sites=site, batch=7))
        assert np.array_equal(
            np.sort(np.concatenate([batch.row for batch in batches])), store.rows()
        )


def test_an_import_is_read_and_verified(old: Path) -> None:
    store = actstore.open(old / "imported")
    assert verify(store).problems == []
    assert np.allclose(
        store.read("a"), IMPORTED[store.provenance(store.rows()).sequence], atol=0.03
    )


def test_zarr_opens_them(old: Path) -> None:
    import zarr

    import actstore.format.zarr_bfloat16

    store = actstore.open(old / "extended")
    array = zarr.open_group(old / "extended", mode="r", use_consolidated=False)[
        "acts/second"
    ]
    assert np.array_equal(
        array.oindex[store.rows()].astype(np.float32), store.read("second")
    )


def test_extended_it_has_what_the_old_actstore_wrote(old: Path) -> None:
    """The same metadata, records and values, and no key that the older one does not
    know; so whoever reads that reads it still.
    """
    store = more(old / "harvested")
    assert verify(store).problems == []
    made, wanted = (
        {p.relative_to(old / n): p for p in (old / n).rglob("*") if p.is_file()}
        for n in ("harvested", "extended")
    )
    assert made.keys() == wanted.keys()
    for key, path in made.items():
        if path.name == "manifest.json" or path.name.startswith("plan-"):
            new, before = (
                stated(json.loads(one.read_text())) for one in (path, wanted[key])
            )
            assert new == before, (
                f"{key}: it must be what the older one wrote; give new fields an `exclude_if`"
            )
        elif not str(key).startswith("columns"):
            # these have digests of what has the version of torch
            assert path.read_bytes() == wanted[key].read_bytes(), key


def stated(value: Any) -> Any:
    """A JSON value but for what depends on the version of torch, and what 1.0 takes for
    said where it is not.
    """
    if isinstance(value, dict):
        left_out = {"numerics", "parent", "content_id", "plan_digest", "files"}
        said = {key: one for key, one in value.items() if (key, one) not in DEFAULTS}
        return {
            key: None if key in left_out else stated(one) for key, one in said.items()
        }
    return [stated(one) for one in value] if isinstance(value, list) else value


def test_extended_in_between_it_is_what_the_new_actstore_reads(old: Path) -> None:
    before = actstore.open(old / "harvested")
    more(old / "harvested")
    assert verify(before).problems == []


def test_one_that_was_not_finished_is_resumed_in_its_own_format(
    old: Path, minor: int, tmp_path: Path
) -> None:
    finished, begun = old / "harvested", old / "begun"
    now = harvest(SPEC, str(tmp_path / "now"), model=Tiny(), tokens=TOKENS)
    assert now.manifest.format_minor == 2
    plan = json.loads((finished / "plan.json").read_text())
    shutil.copytree(
        finished,
        begun,
        ignore=shutil.ignore_patterns("manifest.json", "columns", "norms.stats"),
    )
    (begun / "units/00001.json").unlink()
    # else it is another machine's
    plan["numerics"] = now.manifest.numerics.model_dump()
    (begun / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    store = harvest(SPEC, str(begun), model=Tiny(), tokens=TOKENS)
    assert store.manifest.format_minor == minor
    assert verify(store).problems == []
    assert np.array_equal(store.read("first"), now.read("first"))
    for key in (
        "zarr.json",
        "acts/zarr.json",
        "acts/first/zarr.json",
        "columns/rows/zarr.json",
        "columns/zarr.json",
    ):
        assert (begun / key).read_bytes() == (finished / key).read_bytes()


def test_a_newer_minor_is_refused_with_what_is_known(old: Path, minor: int) -> None:
    there = old / "harvested"
    for key in ("manifest.json", "plan.json"):
        values = json.loads((there / key).read_text())
        assert values.get("format_minor", 0) == minor
        (there / key).write_text(json.dumps({**values, "format_minor": 3, "x": 0}))
    refusal = r"version 1\.3, this actstore reads 1\.0 to 1\.2; upgrade"
    with pytest.raises(FormatVersionError, match=refusal):
        actstore.open(there)
    (there / "manifest.json").unlink()
    with pytest.raises(FormatVersionError, match=refusal):
        harvest(SPEC, str(there), model=Tiny(), tokens=TOKENS)
