"""Imports from memory and iterators: exact rows and provenance, resume, and what an
import does not know.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import (
    ExistsError,
    HarvestWarning,
    NumericsError,
    SourceError,
    SpecError,
    UnfinishedError,
)
from actstore.format.storage import Storage
from actstore.harvesting.extend import extend
from actstore.harvesting.progress import Progress
from actstore.importing import sequence_feed
from actstore.inspect.verify import verify
from schemas.stream import StreamSpec
from tests.support import make_store
from trainer.errors import RunError
from trainer.evaluation.cross_entropy_and_kl import model_metrics

ROOT = Path(__file__).parents[2]
KEPT = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def objects(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    return {key: storage.read(key) for key in storage.list()}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n, context = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    d = draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(["float16", "float32", "float64", "bfloat16"]))
    flat = draw(st.booleans())
    known = draw(st.sampled_from(["none", "flat", "contexts"]))
    tokens = rng.integers(-1 if draw(st.booleans()) else 0, 50, (n, context))
    tokens[0, 0] = 7
    sites = {}
    for i, width in enumerate(d):
        x = torch.from_numpy(rng.standard_normal((n, context, width))).to(
            getattr(torch, dtype)
        )
        sites[f"site.{i}"] = x
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    stored = {
        "dtype": draw(st.sampled_from(sorted(KEPT))),
        "unit_sequences": draw(st.sampled_from([None, 1, 4])),
        "chunk_rows": draw(st.sampled_from([None, 3])),
        "codec": draw(st.sampled_from(["lz4", "raw"])),
        "seed": draw(st.integers(0, 5)),
    }
    return {
        "sites": sites, "tokens": None if known == "none" else tokens, "flat_tokens": known == "flat", "flat": flat,
        "cuts": [0, *cuts, n], "stored": stored, "context": draw(st.booleans()),
    }  # fmt: skip


def items(case: dict[str, Any], context: int) -> Iterator[Any]:
    """The case cut into items; one buffer per site is filled again and again, as
    loaders do.
    """
    buffers = {name: x.clone() for name, x in case["sites"].items()}
    for a, b in zip(case["cuts"], case["cuts"][1:], strict=False):
        arrays = {}
        for name, x in case["sites"].items():
            buffers[name][: b - a] = x[a:b]
            part = buffers[name][: b - a]
            arrays[name] = part.flatten(0, 1) if case["flat"] else part
        if case["tokens"] is None:
            yield arrays
        else:
            ids = case["tokens"][a:b]
            yield (ids.reshape(-1) if case["flat_tokens"] else ids), arrays


@pytest.mark.parametrize("way", ["memory", "iterator"])
@given(case=cases())
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_rows_of_the_store_are_those_of_the_source(
    way: str, case: dict[str, Any]
) -> None:
    n, context = next(iter(case["sites"].values())).shape[:2]
    shaped = not case["flat"] or (
        case["tokens"] is not None and not case["flat_tokens"]
    )
    options: dict[str, Any] = {
        **case["stored"],
        "context": context if case["context"] else None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HarvestWarning)
        url = f"memory://import-{np.random.default_rng().integers(1 << 62)}"
        if way == "iterator":
            store = actstore.import_activations(items(case, context), url, **options)
        else:
            arrays = {
                k: x.flatten(0, 1) if case["flat"] else x
                for k, x in case["sites"].items()
            }
            ids = case["tokens"]
            ids = ids.reshape(-1) if ids is not None and case["flat_tokens"] else ids
            store = actstore.import_activations(arrays, url, tokens=ids, **options)
    contexts = shaped or case["context"]
    assert (store.manifest.has_contexts, store.manifest.has_tokens) == (
        contexts,
        case["tokens"] is not None,
    )
    assert store.layout.context == (context if contexts else 1)
    ids = store.rows()
    found = store.provenance(ids)
    index = found.sequence * store.layout.context + found.position
    tokens = (
        case["tokens"].reshape(-1)
        if case["tokens"] is not None
        else np.full(n * context, -1)
    )
    there = (
        np.flatnonzero(tokens >= 0)
        if case["tokens"] is not None
        else np.arange(n * context)
    )
    assert np.array_equal(np.sort(index), there)
    assert np.array_equal(found.token, tokens[index])
    for name, x in case["sites"].items():
        wanted = x.flatten(0, 1).to(KEPT[case["stored"]["dtype"]]).float().numpy()
        assert np.array_equal(store.read(name, ids), wanted[index])
    assert not verify(store).problems
    assert (
        store.manifest.n_sequences
        == n * context // store.layout.context
        == store.layout.n_sequences
    )


def test_an_import_has_the_bytes_of_the_harvest_it_came_from(tmp_path: Path) -> None:
    """Values, norms, rows and tokens of a store, written again from its own rows."""
    first = make_store(tmp_path / "a", n_units=21, dtype="float32")
    size, context = first.manifest.n_sequences, first.layout.context
    found = first.provenance(first.rows())
    arrays = {}
    for site in first.sites:
        x = np.empty((size, context, first.site(site).d), np.float32)
        x[found.sequence, found.position] = first.read(site, first.rows())
        arrays[site] = x
    layout = first.layout
    stored: dict[str, Any] = {
        "dtype": "float32",
        "unit_sequences": layout.unit_sequences,
        "chunk_rows": layout.chunk_rows,
    }
    tokens = first.tokens(np.arange(size))
    actstore.import_activations(arrays, str(tmp_path / "b"), tokens=tokens, **stored)
    a, b = objects(str(tmp_path / "a")), objects(str(tmp_path / "b"))
    same = [key for key in a if key.startswith(("acts", "rows", "tokens"))]
    assert len(same) > 100
    assert all(a[key] == b[key] for key in same)
    second = actstore.open(str(tmp_path / "b"))
    for one, other in zip(first.manifest.norms, second.manifest.norms, strict=True):
        assert np.isclose(one.all.mean_norm, other.all.mean_norm)
        assert one.all.count == other.all.count
        assert other.special.count == 20 * layout.unit_sequences


def test_what_an_import_does_not_know_is_refused_not_guessed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    store = actstore.import_activations(x, str(tmp_path / "s"), site="a")
    for rule, word in (
        ({"tokens": [1]}, "without tokens"),
        ({"exclude_tokens": [1]}, "without tokens"),
        ({"positions": (0, 1)}, "without contexts"),
    ):
        with pytest.raises(SpecError, match=word):
            next(iter(store.stream(StreamSpec(batch=8, filter=rule))))
    with pytest.raises(SpecError, match="without tokens"):
        store.tokens([0])
    assert (
        len(
            next(
                iter(
                    store.stream(
                        StreamSpec(batch=8, filter={"norms": [{"medians": 10}]})
                    )
                )
            ).row
        )
        == 8
    )
    assert store.norms["a"].special.count == 0
    with pytest.raises(SpecError, match="was imported"):
        extend(store.url, tokens=100)
    sae: Any = None
    with pytest.raises(RunError, match="were imported"):
        model_metrics(sae, store)


def test_rows_that_are_not_finite_are_counted_and_too_large_ones_refused(
    tmp_path: Path,
) -> None:
    x = np.ones((100, 4), np.float32)
    x[3, 1], x[5, 2] = np.nan, np.inf
    with pytest.warns(HarvestWarning, match="not finite: 2 of 100 rows at a"):
        store = actstore.import_activations({"a": x}, str(tmp_path / "s"))
    assert store.norms["a"].all.non_finite == 2
    x[7] = 1e6
    with pytest.raises(NumericsError, match="too large"):
        actstore.import_activations({"a": x}, str(tmp_path / "t"), dtype="float16")


def stopped(after: int) -> Any:
    def report(now: Progress) -> None:
        if now.units >= after:
            raise KeyboardInterrupt

    return report


def test_an_interrupted_import_goes_on_and_another_file_does_not(
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(0).standard_normal((64, 5, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    source = {"a": tmp_path / "x.npy"}
    whole, out = str(tmp_path / "whole"), str(tmp_path / "out")
    actstore.import_activations(source, whole)
    with pytest.raises(KeyboardInterrupt):
        actstore.import_activations(source, out, progress=stopped(5))
    assert 5 <= len(list((tmp_path / "out" / "units").glob("*.json"))) < 32
    with pytest.raises(UnfinishedError, match="import"):
        actstore.open(out)
    np.save(tmp_path / "x.npy", x + 1)
    with pytest.raises(ExistsError, match="imported"):
        actstore.import_activations(source, out)
    with pytest.raises(ExistsError, match="iterator"):
        actstore.import_activations(iter([x]), out, site="a")
    np.save(tmp_path / "x.npy", x)
    actstore.import_activations(source, out)
    assert objects(out) == objects(whole)
    with pytest.raises(ExistsError, match="already there"):
        actstore.import_activations(source, out)


def test_a_long_iterator_has_no_known_end_until_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what is read ahead, units are planned for any number; the store ends with
    the layout of what came.
    """
    monkeypatch.setattr(sequence_feed, "READ_AHEAD", 1000)
    x = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    parts = (x[a : a + 30] for a in range(0, 1000, 30))
    store = actstore.import_activations(
        parts, str(tmp_path / "s"), site="a", dtype="float32", unit_sequences=100
    )
    assert (store.manifest.n_units, store.layout.n_units, store.layout.n_sequences) == (
        10,
        10,
        1000,
    )
    assert store.manifest.spec.tokens == 1000
    ids = store.rows()
    assert np.array_equal(store.read("a", ids), x[store.provenance(ids).sequence])
    assert not verify(store).problems
    parts = (x[a : a + 30] for a in range(0, 1000, 30))
    store = actstore.import_activations(parts, str(tmp_path / "t"), site="a", rows=100)
    assert (store.manifest.n_rows, store.manifest.n_units) == (100, 25)


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (
        {"a": np.ones((10, 2), np.float32), "b": np.ones((9, 2), np.float32)},
        {},
        "rows differ.*10.*9",
    ),
    (
        {"a": np.ones((10, 2), np.float32)},
        {"tokens": np.ones((5, 3), int)},
        "rows differ",
    ),
    (
        {"a": np.ones((5, 2, 2), np.float32)},
        {"tokens": np.ones((2, 5), int)},
        "contexts differ",
    ),
    ({"a": np.ones((5, 2, 2), np.float32)}, {"context": 5}, "contexts differ"),
    ({"a": np.ones((5, 2), np.float32)}, {"tokens": np.ones(5)}, "not token ids"),
    (
        {"a": np.ones((5, 2), np.float32)},
        {"tokens": np.full(5, -2)},
        "-2 is not a token id",
    ),
    (
        {"a": np.ones((5, 2), np.float32)},
        {"tokens": np.full(5, -100)},
        "padding is -1, so replace -100",
    ),
    (
        {"a": np.ones((5, 2), np.float32)},
        {"tokens": np.full(5, 2**32 + 7, np.uint64)},
        f"{2**32 + 7} is not a token id",
    ),
    (
        {"a": np.ones((5, 2), np.float32)},
        {"tokens": np.full(5, 2**64 - 1, np.uint64)},
        f"{2**64 - 1} is not a token id",
    ),
    ({"a": np.ones((5, 2), np.float32)}, {"tokens": np.ones(5, bool)}, "not token ids"),
    (
        {"a": np.ones((5, 2), np.float32)},
        {"tokens": [1, 2, 3, 4, 5.5]},
        "float are not token ids",
    ),
    ({"a": np.ones((5, 2), np.float32)}, {"tokens": 7}, "wanted an array"),
    ({"a": np.ones((5, 2), np.float32)}, {"tokens": np.full(5, -1)}, "no row"),
    (
        {"a": np.ones((5, 2), np.float32)},
        {"tokens": np.full(5, 1 << 31)},
        "not a token id",
    ),
    ({"../a": np.ones((5, 2), np.float32)}, {}, "site name"),
    (np.ones((5, 2), np.float32), {}, "site="),
    ({}, {}, "no arrays"),
    ({"a": np.ones((5, 2), np.float32)}, {"keys": ["b"]}, "keys"),
    ({"a": np.ones((5, 2), np.float32)}, {"skip_first": 3}, "no such option"),
    ({"a": np.ones((5, 2), np.float32)}, {"dtype": "float8"}, "dtype"),
    ({"a": np.ones((5, 2), np.float32)}, {"rows": 0}, "wanted a count above 0"),
    (iter([]), {"site": "a"}, "holds nothing"),
    (iter([np.ones((0, 2), np.float32)]), {"site": "a"}, "no rows"),
    (iter([np.ones((3, 0, 2), np.float32)]), {"site": "a", "rows": 3}, "no rows"),
    (
        iter([{"a": np.ones((5, 2), np.float32)}, {"b": np.ones((5, 2), np.float32)}]),
        {},
        "items differ",
    ),
    (
        iter([{"a": np.ones((5, 2), np.float32)}, {"a": np.ones((5, 3), np.float32)}]),
        {},
        "items differ",
    ),
    (
        iter([{"a": np.ones((5, 2), np.float32)}, {"a": np.ones((5, 2), np.float16)}]),
        {},
        "items differ",
    ),
    (
        iter(
            [
                {"a": np.ones((5, 2), np.float32)},
                (np.ones(5, int), {"a": np.ones((5, 2), np.float32)}),
            ]
        ),
        {},
        "differ",
    ),
    (iter([np.ones((5, 2), np.float32)]), {}, "site="),
    (iter([["a"]]), {"site": "a"}, "array or a tensor"),
    (
        iter([("abc", {"a": np.ones((3, 2), np.float32)})]),
        {},
        "tokens: <U3 are not token ids",
    ),
    (
        iter([([1.0] * 3, {"a": np.ones((3, 2), np.float32)})]),
        {},
        "float are not token ids",
    ),
    (
        iter([(np.full(3, -100), {"a": np.ones((3, 2), np.float32)})]),
        {},
        "-100 is not a token id",
    ),
    (
        iter([(np.full(3, 2**32, np.uint64), {"a": np.ones((3, 2), np.float32)})]),
        {},
        f"{2**32} is not a token id",
    ),
    (7, {}, "iterator of arrays"),
]


@pytest.mark.parametrize(("source", "options", "reason"), BAD)
def test_arrays_that_do_not_fit_are_refused(
    source: Any, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises((SourceError, SpecError), match=reason):
        actstore.import_activations(source, str(tmp_path / "s"), **options)
    assert not (tmp_path / "s" / "manifest.json").exists()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8"])
def test_token_ids_of_any_integer_dtype(dtype: str, tmp_path: Path) -> None:
    """In memory, in files that are parts of one, and as a plain list."""
    x, ids = np.ones((6, 2), np.float32), np.arange(6)
    np.save(tmp_path / "x.npy", x)
    for i in range(2):
        np.save(tmp_path / f"ids-{i}.npy", ids[3 * i : 3 * i + 3].astype(dtype))
    files = sorted(map(str, tmp_path.glob("ids-*.npy")))
    ways: dict[str, Any] = {
        "array": ids.astype(dtype),
        "files": files,
        "list": ids.tolist(),
    }
    for name, tokens in ways.items():
        source = {"a": str(tmp_path / "x.npy")} if name == "files" else {"a": x}
        store = actstore.import_activations(source, str(tmp_path / name), tokens=tokens)
        found = store.provenance()
        assert found.token[np.argsort(found.sequence)].tolist() == ids.tolist()


def test_padding_before_an_imported_rows_tokens_keeps_its_place(tmp_path: Path) -> None:
    """Nothing is computed, so nothing is moved; the first token of a sequence is
    special wherever it stands.
    """
    x, ids = (
        np.arange(1, 9, dtype=np.float32).reshape(2, 4, 1),
        np.array([[-1, -1, 5, 6], [7, 8, 9, 1]]),
    )
    with pytest.warns(HarvestWarning, match="2 rows were left out"):
        store = actstore.import_activations(
            {"a": x}, str(tmp_path / "s"), tokens=ids, dtype="float32"
        )
    found, got = store.provenance(), store.read("a")[:, 0]
    assert sorted(zip(found.sequence, found.position, found.token, got, strict=True)) == [
        (0, 2, 5, 3.0), (0, 3, 6, 4.0), (1, 0, 7, 5.0), (1, 1, 8, 6.0), (1, 2, 9, 7.0), (1, 3, 1, 8.0),
    ]  # fmt: skip
    assert (store.norms["a"].special.count, store.norms["a"].special.mean_norm) == (
        2,
        4.0,
    )


MEMORY = """
import json, sys, numpy as np, torch
torch.set_num_threads(1)
from actstore.machine.glibc_malloc import keep_freed_memory
keep_freed_memory()
import actstore
from actstore.harvesting.process_memory import peak, reset_peak
actstore.import_activations({"a": np.ones((99, 8), np.float32)}, "memory://first")
before = reset_peak()
store = actstore.import_activations(sys.argv[1], sys.argv[2], memory=24 << 20, codec="raw")
print(json.dumps({"grown": peak() - before, "rows": store.manifest.n_rows}))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="needs Linux' peak of resident memory",
)
def test_a_file_four_times_the_memory_it_may_take(tmp_path: Path) -> None:
    rows, d = 40_000, 1024
    made = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (rows, d))
    for start in range(0, rows, 1000):
        made[start : start + 1000] = start
    made.flush()
    words = [sys.executable, "-c", MEMORY, str(tmp_path / "x.npy"), str(tmp_path / "s")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == rows
    assert found["grown"] < rows * d * 4 / 4
