"""`schemas/json`: what the models say, what real stores hold, and nothing else."""

from __future__ import annotations

import copy
import json
import math
import zipfile
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest
from pydantic import TypeAdapter

import actstore
from actstore.harvesting.extend import extend
from actstore.harvesting.harvest import harvest
from schemas.catalog import PublishedRun, PublishedStore, RunMetrics, TagRecord
from schemas.explorer import ExplorerRecord
from schemas.export import FOLDER, export
from schemas.manifest import CopyRecord
from schemas.records import (
    EvalRecord,
    LayerMetrics,
    RunRecord,
    StitchedFrom,
    StitchRecord,
    StoreOrigin,
)
from schemas.sae import FlatSpec, SaeSpec
from schemas.stream import StreamState
from tests.fixtures.old_stores import IMPORTED, SPEC, TOKENS, Tiny
from tests.store.test_old_stores import FIXTURES
from trainer.runs.machine_record import this_machine

NAMES = {
    "plan": "plan*.json",
    "manifest": "manifest.json",
    "unit": "units*/*.json",
    "block": "blocks/*.json",
}


def schema(name: str) -> jsonschema.Draft202012Validator:
    found = json.loads((FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Any]]:
    """(schema, value) of every JSON file of stores of today and before, harvested,
    extended and imported.
    """
    root = tmp_path_factory.mktemp("stores")
    for minor in (0, 1):
        with zipfile.ZipFile(FIXTURES / f"store_1_{minor}.zip") as archive:
            archive.extractall(root / f"old_{minor}")
    harvest(SPEC, str(root / "grown"), model=Tiny(), tokens=TOKENS)
    extend(str(root / "grown"), tokens=3 * 4, model=Tiny(), source=TOKENS)
    extend(str(root / "grown"), sites="second", model=Tiny())
    actstore.import_activations(
        {"a": IMPORTED}, str(root / "imported"), dtype="int8", tokens=np.arange(6)
    )
    found = [
        (name, json.loads(path.read_text()))
        for store in (*root.glob("old_*/*"), root / "grown", root / "imported")
        for name, pattern in NAMES.items()
        for path in store.glob(pattern)
    ]
    copied = CopyRecord(content_id="0" * 64, sites=("first",), units=((0, 2), (3, 4)))
    found.append(("copy", json.loads(copied.to_json())))
    return [*found, ("claim", {"batch": 4}), *_of_runs(), *_of_catalogs()]


def _of_catalogs() -> Iterator[tuple[str, Any]]:
    published = {
        "name": "a",
        "url": "s3://team/a",
        "content_id": "0" * 64,
        "model": "m",
        "sites": ("a",),
        "when": "2026-01-01T00:00:00+00:00",
        "actstore": "0.1.0",
    }
    store = PublishedStore(corpus=None, rows=0, bytes=0, dtype="int8", **published)
    metrics = RunMetrics(
        split="train", rows=0, fvu=math.nan, l0=1, ce_recovered=None, dead=0
    )
    run = PublishedRun(
        sae="topk", n_latents=8, steps=1, rows=1, store="", store_content_id="",
        metrics=metrics, **published,
    )  # fmt: skip
    tag = TagRecord(record=None, when=published["when"])
    yield "catalog_store", json.loads(store.to_json())
    yield "catalog_run", json.loads(run.to_json())
    yield "catalog_tag", json.loads(tag.to_json())


def _of_runs() -> Iterator[tuple[str, Any]]:
    kinds = [{"kind": one.model_fields["kind"].default} for one in get_args(FlatSpec)]
    inner = [
        {"kind": kind, "inner": {"kind": "topk"}}
        for kind in ("transcoder", "crosscoder")
    ]
    about = {
        "d": 4,
        "n_latents": 8,
        "sites": ("a",),
        "store": "s",
        "content_id": "0",
        "model": "m",
        "steps": 1,
    }
    for one in (*kinds, *inner):
        sae = TypeAdapter(SaeSpec).validate_python(one)
        record = RunRecord(sae=sae, rescale="log", center=True, rows=1, seed=0, **about)
        yield "sae", json.loads(record.to_json())
    layer = LayerMetrics(
        site="a",
        rows=0,
        fvu=math.nan,
        mse=math.inf,
        mse_per_element=0,
        l0=0,
        l1=0,
        l1_decoder=0,
        suppression=1,
    )
    yield "eval", json.loads(
        EvalRecord(
            run="r", store="s", content_id="0", split="train", rows=0, pooled=layer, fvu_layer_mean=math.nan,
            layers=(layer,), dead=0, dead_rows=1, alive_share=math.nan,
        ).to_json()
    )  # fmt: skip
    yield (
        "store",
        json.loads(
            StoreOrigin(store="/s", store_path="../s", content_id="0").to_json()
        ),
    )
    part = StitchedFrom(run="/r", name="r", n_latents=4, taken=3, without_direction=0)
    stitched = StitchRecord(
        site="a",
        threshold=0.7,
        runs=(part,),
        retrained_rows=5,
        batch=4,
        lr=0.1,
        seed=0,
        rows=9,
        mse_before=math.nan,
        mse_after=0.5,
    )
    yield "stitch", json.loads(stitched.to_json())
    yield "machine", json.loads(this_machine("cpu").to_json())
    explorer = ExplorerRecord(
        name="r",
        kind="topk",
        model="m",
        content_id="0",
        n_latents=4,
        layers=("a",),
        outputs=("a",),
        split="held_out",
        rows=9,
        sketch_tokens=1.0,
        row_group=256,
        before=12,
        after=12,
        no_logits=None,
    )
    yield "explorer", json.loads(explorer.to_json())
    yield (
        "stream_state",
        json.loads(StreamState(store="s", spec="t", epoch=0, batch=1).to_json()),
    )


def test_the_schemas_are_those_of_the_models() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert committed == export(), "run python -m schemas.export"


def test_real_files_fit_and_changed_ones_do_not(files: list[tuple[str, Any]]) -> None:
    validators = {name: schema(name) for name, _ in files}
    assert len(validators) == len(export())
    for name, value in files:
        validators[name].validate(value)
    changed = 0
    # of each kind the last: an imported store's
    for name, value in dict(files).items():
        for what, bad in mutations(value):
            changed += 1
            assert not validators[name].is_valid(bad), f"{name}: {what}"
    assert changed > 300


def mutations(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A key more, a digest that is none, a negative size, a number as a text; once
    each, at every depth.
    """
    for path, node in nodes(value):
        if path and path[-1] in {"cursor", "objects", "files", "$defs"}:
            continue
        yield f"a key more in {path}", replaced(value, path, {**node, "a key more": 1})
        for key, one in node.items():
            for bad in worse(key, one):
                yield (
                    f"{(*path, key)} is {bad!r}",
                    replaced(value, path, {**node, key: bad}),
                )


def worse(key: str, one: Any) -> list[Any]:
    if (
        key in {"digest", "content_id", "plan_digest", "units_digest"}
        and len(str(one)) == 64
    ):
        return [one[:-1], one.upper() if one.upper() != one else "x" * 64, 7]
    if isinstance(one, bool):
        return ["true"]
    if isinstance(one, int):
        return [str(one), one + 0.5] if key != "penalty" else []
    if isinstance(one, float):
        return [str(one), "nan", [one]]
    return [one[:-1], [*one, 1.0]] if key == "quantiles" else []


def nodes(
    value: Any, path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The objects in a JSON value, with where they are."""
    if isinstance(value, dict):
        yield path, value
    for key, one in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from nodes(one, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], node: Any) -> Any:
    made = copy.deepcopy(value)
    if not path:
        return node
    inside = made
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = node
    return made


def test_every_key_that_is_always_there_is_required(
    files: list[tuple[str, Any]],
) -> None:
    seen: dict[str, set[str]] = {}
    for name, value in files:
        seen[name] = seen.get(name, set(value)) & value.keys()
    optional = {
        "plan": {"format_minor", "imported", "separator_token", "subset"},
        "manifest": {"format_minor", "imported", "subset"},
    }
    for name, keys in seen.items():
        one = schema(name).schema
        assert set(one["required"]) == keys
        assert set(one["properties"]) - keys == optional.get(name, set())
        assert one["additionalProperties"] is False


def test_numbers_that_json_lacks_are_texts(files: list[tuple[str, Any]]) -> None:
    value = next(value for name, value in files if name == "manifest")
    for text, fits in (
        ("NaN", True),
        ("Infinity", True),
        ("-Infinity", True),
        ("nan", False),
        (None, False),
    ):
        norms = {
            **value["norms"][0],
            "rest": {**value["norms"][0]["rest"], "mean_norm": text},
        }
        assert schema("manifest").is_valid({**value, "norms": [norms]}) == fits, text
