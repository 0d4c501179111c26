"""`actstore ls` and `actstore runs`: what is shown, filters and order."""

from __future__ import annotations

import json
import math

import pytest

import actstore
from actstore.catalog.catalog import Catalog
from schemas.catalog import PublishedRun, RunMetrics
from tests.catalog.publishers import WHEN, record
from tests.cli.conftest import Cli


@pytest.fixture
def stores(team: str) -> Catalog:
    catalog = Catalog()
    catalog.add(record("gpt2-mlp", 1))
    more = {"model": "gpt2", "corpus": "stories", "sites": ("b.0", "b.1"), "by": "me"}
    catalog.add(record("gpt2-resid", 2).model_copy(update=more))
    return catalog


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ["gpt2-mlp", "gpt2-resid"]),
        ("--name *resid", ["gpt2-resid"]),
        ("--model gpt2", ["gpt2-resid"]),
        ("--corpus stor*", ["gpt2-resid"]),
        ("--site a", ["gpt2-mlp"]),
        ("--site b.*", ["gpt2-resid"]),
        ("--site b.* --model m", []),
        ("--catalog nowhere-at-all", None),
    ],
)
def test_stores_are_filtered(
    words: str, names: list[str] | None, stores: Catalog, cli: Cli
) -> None:
    code, out, err = cli("actstore", "ls", *words.split(), "--json")
    if names is None:
        assert code == 1
        assert "no such folder" in err
        return
    assert code == 0
    assert [one["name"] for one in json.loads(out)] == names
    if names:
        code, out, _ = cli("actstore", "ls", *words.split())
        assert all(name in out for name in names)


def test_every_column_is_shown(stores: Catalog, cli: Cli) -> None:
    _, out, _ = cli("actstore", "ls", "--name", "gpt2-resid")
    for text in (
        "gpt2", "stories", "2", "int8", f"me {WHEN[:10]}", f"{2:064x}"[:12],
    ):  # fmt: skip
        assert text in out, text


def test_a_folder_is_listed_as_before_and_not_filtered(
    stores: Catalog, store: str, cli: Cli
) -> None:
    code, out, _ = cli("actstore", "ls", store)
    assert code == 0
    assert out.startswith(store)
    code, _, err = cli("actstore", "ls", store, "--model", "x", "--site", "y")
    assert code == 1
    assert "--model, --site: only what is published is filtered" in err


def run(name: str, fvu: float | None, recovered: float | None, k: int) -> PublishedRun:
    metrics = None
    if fvu is not None:
        metrics = RunMetrics(
            split="held_out", rows=1, fvu=fvu, l0=k, ce_recovered=recovered, dead=0
        )
    return PublishedRun(
        name=name, url=f"s3://team/{name}", content_id=f"{k:064x}", model="gpt2", sites=("a",), when=WHEN, actstore="0.1.0",
        sae="topk" if k % 2 else "jumprelu", n_latents=k, steps=1, rows=1, store="", store_content_id="", metrics=metrics,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ["a", "b", "c", "d"]),
        ("--sort fvu", ["b", "a", "c", "d"]),
        ("--sort ce-recovered", ["a", "b", "c", "d"]),
        ("--sort l0", ["c", "b", "a", "d"]),
        ("--sort latents", ["d", "c", "b", "a"]),
        ("--sae topk", ["b", "d"]),
        ("--name b", ["b"]),
        ("--model gpt3", []),
        ("--site a --sae j*", ["a", "c"]),
    ],
)
def test_runs_are_filtered_and_sorted(
    words: str, names: list[str], team: str, cli: Cli
) -> None:
    catalog = Catalog()
    for one in (
        run("a", 0.2, 0.9, 4),
        run("b", 0.1, 0.8, 3),
        run("c", math.nan, None, 2),
        run("d", None, None, 1),
    ):
        catalog.add(one)
    code, out, _ = cli("actstore", "runs", *words.split(), "--json")
    assert code == 0
    found = json.loads(out)
    assert [one["name"] for one in found] == names
    code, out, _ = cli("actstore", "runs", *words.split())
    assert code == 0
    assert all(name in out for name in names)


def test_an_unknown_metric_is_refused(team: str, cli: Cli) -> None:
    code, _, err = cli("actstore", "runs", "--sort", "mse")
    assert code == 1
    assert "--sort mse: wanted fvu, l0, ce-recovered, latents" in err


def test_from_python_what_cannot_be_read_is_a_warning(team: str, store: str) -> None:
    actstore.publish(store, "mini")
    catalog = Catalog()
    catalog.storage.put("records/store/mini/x.json", b"{}")
    with pytest.warns(UserWarning, match="no record of a catalog"):
        found = actstore.published()
    assert [one.name for one in found] == ["catalog:mini:latest"]
