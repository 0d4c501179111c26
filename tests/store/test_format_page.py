"""`docs/FORMAT.md` on generations, held against a store that was extended three
times.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

import actstore
from actstore.format import object_keys
from actstore.harvesting.extend import extend

SPEC: dict[str, Any] = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": ("blocks.0.hook_mlp_out",),
    "tokens": 70 * 32,
    "context": 32,
    "unit_sequences": 20,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sites, units, sites; the first harvest's last unit is half full."""
    out = tmp_path_factory.mktemp("format") / "store"
    actstore.harvest(SPEC, str(out))
    extend(str(out), sites="blocks.1.hook_mlp_out")
    extend(str(out), tokens=30 * 32)
    extend(str(out), sites="blocks.0.attn.hook_z")
    return out


def plain(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """One chunk's values: everything but its checksum."""
    return np.frombuffer(path.read_bytes()[:-4], dtype).reshape(shape)


def test_names_of_generations_are_those_on_the_page(store: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/FORMAT.md").read_text()
    for key in (
        object_keys.plan_key(),
        object_keys.units_prefix(),
        object_keys.columns_prefix(),
        object_keys.merged_stats_key(),
        object_keys.MANIFEST,
    ):
        assert f"`{key}" in page
    for key in (
        object_keys.plan_key(7),
        object_keys.units_prefix(7),
        object_keys.columns_prefix(7),
        object_keys.merged_stats_key(7),
    ):
        assert f"`{key.replace('7', 'g')}" in page
    for key in (
        object_keys.block_key(42),
        object_keys.claim_key(42),
        object_keys.unit_key(42),
        object_keys.unit_stats_key(42),
    ):
        assert f"`{key}`" in page
    assert f"`{object_keys.unit_key(42, 7).replace('-7', '-g')}`" in page
    there = {path.name for path in store.iterdir()}
    suffixes = ("", "-1", "-2", "-3")
    wanted = {
        name
        for s in suffixes
        for name in (f"plan{s}.json", f"units{s}", f"columns{s}", f"norms{s}.stats")
    }
    fixed = {
        "zarr.json",
        "acts",
        "norm",
        "tokens",
        "rows",
        "blocks",
        "tokenizer",
        "README.md",
        "norms.svg",
        "croissant.json",
        "manifest.json",
    }
    assert there == wanted | fixed


def test_kinds_units_and_holes(store: Path) -> None:
    m = json.loads((store / "manifest.json").read_text())
    assert [
        (g["first_unit"], g["n_units"], len(g["sites"])) for g in m["generations"]
    ] == [
        *((0, 4, 1), (0, 4, 1), (4, 2, 2), (0, 6, 1)),
    ]
    assert [site["name"] for site in m["sites"]] == [
        *("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "blocks.0.attn.hook_z"),
    ]
    assert (m["n_units"], m["n_sequences"], m["n_rows"], m["spec"]["tokens"]) == (
        6,
        100,
        3200,
        3200,
    )
    plan = json.loads((store / "plan-2.json").read_text())
    assert (
        plan["spec"]["tokens"],
        plan["layout"]["n_sequences"],
        plan["layout"]["n_units"],
    ) == (960, 110, 6)
    tokens = plain(store / "tokens" / "c" / "3" / "0", "<i4", (20, 32))
    assert (tokens[:10] >= 0).all()
    assert (tokens[10:] == -1).all()
    for generation in (1, 3):
        record = json.loads((store / f"units-{generation}" / "00000.json").read_text())
        assert not [
            key for key in record["objects"] if key.startswith(("rows", "tokens"))
        ]


def test_content_ids_and_parents(store: Path) -> None:
    m = json.loads((store / "manifest.json").read_text())
    text = ""
    ids: list[str] = []
    for i, generation in enumerate(m["generations"]):
        first, n = generation["first_unit"], generation["n_units"]
        suffix = f"-{i}" if i else ""
        plan = (store / f"plan{suffix}.json").read_bytes()
        records = [
            (store / f"units{suffix}" / f"{k:05d}.json").read_bytes()
            for k in range(first, first + n)
        ]
        assert json.loads(plan)["parent"] == (ids[-1] if ids else None)
        assert generation["plan_digest"] == blake3(plan).hexdigest()
        assert generation["units_digest"] == blake3(b"".join(records)).hexdigest()
        text += generation["plan_digest"] + generation["units_digest"]
        ids.append(blake3(text.encode()).hexdigest())
    assert (m["content_id"], m["parent"]) == (ids[3], ids[2])


def test_columns_of_the_newest_generation(store: Path) -> None:
    digests = plain(store / "columns-3" / "digests" / "c" / "0" / "0", "|u1", (6, 32))
    n_bytes = plain(store / "columns-3" / "bytes" / "c" / "0", "<i8", (6,))
    sums = plain(
        store / "columns-3" / "sums" / "c" / "0" / "0" / "0" / "0", "<f8", (6, 3, 2, 5)
    )
    rows = plain(store / "columns-3" / "rows" / "c" / "0", "<i4", (6,))
    assert rows.tolist() == [640, 640, 640, 320, 640, 320]
    assert (sums[..., 0].sum(axis=2) == rows[:, None]).all()
    for unit in range(6):
        names = ("units", "units-1", "units-3") if unit < 4 else ("units-2", "units-3")
        records = [(store / name / f"{unit:05d}.json").read_bytes() for name in names]
        digest = blake3(records[0]).digest()
        for record in records[1:]:
            digest = blake3(digest + blake3(record).digest()).digest()
        assert digests[unit].tobytes() == digest
        assert n_bytes[unit] == sum(
            one["bytes"]
            for record in records
            for one in json.loads(record)["objects"].values()
        )


def test_what_is_under_which_digest(store: Path) -> None:
    m = json.loads((store / "manifest.json").read_text())
    keys = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    records = {key for key in keys if key.startswith("units") and key.endswith(".json")}
    objects = {
        key
        for record in records
        for key in json.loads((store / record).read_text())["objects"]
    }
    left = keys - records - objects - set(m["files"]) - {"manifest.json"}
    assert all(key.endswith("zarr.json") or key.startswith("blocks/") for key in left)
    wanted = ("columns", "norms", "plan", "tokenizer/", "README.md", "croissant")
    assert all(key.startswith(wanted) for key in m["files"])
    for key, one in m["files"].items():
        data = (store / key).read_bytes()
        assert (len(data), blake3(data).hexdigest()) == (one["bytes"], one["digest"])
