"""Whole harvests with the smallest model that ships: what is stored is what
TransformerLens computes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import actstore
from actstore.errors import (
    CorpusError,
    ExistsError,
    HarvestWarning,
    ModelError,
    NumericsError,
    SiteError,
    SpecError,
    StorageError,
)
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.progress import Progress
from actstore.harvesting.store_writer import StoreWriter
from actstore.model.load_model import load_model
from actstore.model.open_tap import open_tap
from schemas.manifest import BlockRecord
from schemas.source import ModelSource
from tests.model.test_tap import values

SPEC: dict[str, Any] = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": ("blocks.*.hook_mlp_out", "blocks.0.attn.hook_z"),
    "tokens": 2000,
    "context": 32,
    "batch": 2,
    "unit_sequences": 3,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> actstore.Store:
    return actstore.harvest(SPEC, str(tmp_path_factory.mktemp("mini") / "store"))


def objects(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    return {key: storage.read(key) for key in storage.list()}


def test_the_stored_rows_are_the_models_values(store: actstore.Store) -> None:
    assert store.sites == (
        *(f"blocks.{i}.hook_mlp_out" for i in range(6)),
        "blocks.0.attn.hook_z",
    )
    assert store.manifest.n_rows == 63 * 32
    assert store.manifest.n_units == 21
    rows = store.rows()[::7]
    where = store.provenance(rows)
    sequences = np.unique(where.sequence)
    tokens = store.tokens(sequences)
    assert (
        tokens[np.searchsorted(sequences, where.sequence), where.position]
        == where.token
    ).all()
    model = load_model(ModelSource(name="builtin:mini"))
    tap = open_tap(model, store.sites)
    exact = values(tap, torch.from_numpy(tokens).long())
    for site in store.sites:
        wanted = exact[site][
            np.searchsorted(sequences, where.sequence), where.position
        ].numpy()
        got = store.read(site, rows)
        np.testing.assert_allclose(got, wanted, rtol=2**-7, atol=1e-6)
        np.testing.assert_allclose(
            store.read_norms(site, rows), np.linalg.norm(got, axis=1), rtol=1e-5
        )


def test_the_statistics_are_those_of_the_stored_training_rows(
    store: actstore.Store,
) -> None:
    rows = store.rows("train")
    where = store.provenance(rows)
    special = (where.position == 0) | (where.token == 0)
    for site in store.sites:
        x = store.read(site, rows).astype(np.float64)
        norms = np.linalg.norm(x, axis=1)
        stats = store.norms[site]
        for stratum, mask in ((stats.special, special), (stats.rest, ~special)):
            assert (stratum.count, stratum.non_finite) == (int(mask.sum()), 0)
            assert stratum.mean_norm == pytest.approx(norms[mask].mean(), rel=1e-5)
            assert stratum.mean_sq_norm == pytest.approx(
                np.square(norms[mask]).mean(), rel=1e-5
            )
            assert stratum.max_norm == pytest.approx(norms[mask].max(), rel=1e-6)
        np.testing.assert_allclose(
            store.mean(site), x.mean(axis=0), atol=1e-5 * np.abs(x).max()
        )
        np.testing.assert_allclose(
            store.variance(site), x.var(axis=0), rtol=1e-3, atol=1e-9
        )


def test_documents_follow_each_other_behind_bos(store: actstore.Store) -> None:
    from actstore.builtin import stdlib_corpus

    stream = store.tokens(np.arange(63)).reshape(-1)
    assert stream[0] == 0
    text = "".join(
        f"<|endoftext|>{text}"
        for _, text in itertools.islice(stdlib_corpus.documents(), 30)
    )
    whole = store.tokenizer()(text, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    assert stream.tolist() == whole[: len(stream)]
    assert store.manifest.model.bos_token == 0


def test_any_fsspec_url(store: actstore.Store) -> None:
    other = actstore.harvest(SPEC, "memory://harvests/mini")
    assert other.manifest.content_id == store.manifest.content_id
    assert objects("memory://harvests/mini") == objects(store.url)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2**-10), ("int8", 0.03)]
)
def test_other_dtypes(store: actstore.Store, dtype: str, tolerance: float) -> None:
    other = actstore.harvest(
        {**SPEC, "tokens": 500, "dtype": dtype}, f"memory://dtype/{dtype}"
    )
    exact = actstore.harvest(
        {**SPEC, "tokens": 500, "dtype": "float32"}, f"memory://exact/{dtype}"
    )
    for site in other.sites:
        got, wanted = other.read(site, other.rows()), exact.read(site, exact.rows())
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


def test_without_packing_padding_is_masked_and_never_stored(tmp_path: Path) -> None:
    texts = ["import os\n", "def f(x):\n    return x + 1\n" * 20, "x = 1\n", ""]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.py").write_text(text)
    spec = {
        **SPEC,
        "corpus": str(tmp_path),
        "pack": False,
        "tokens": 96,
        "batch": 2,
        "dtype": "float32",
    }
    got = actstore.harvest(spec, "memory://no-pack")
    tokens = got.tokens(np.arange(3))
    lengths = (tokens >= 0).sum(axis=1)
    assert lengths[1] == 32
    assert lengths[0] < 32
    assert got.manifest.n_rows == lengths.sum()
    rows = got.rows()
    where = got.provenance(rows)
    assert (where.token >= 0).all()
    tap = open_tap(load_model(ModelSource(name="builtin:mini")), (got.sites[5],))
    for k in range(3):
        alone = torch.from_numpy(tokens[k, : lengths[k]]).long()[None]
        exact = values(tap, alone)[got.sites[5]]
        mine = rows[where.sequence == k]
        mine = mine[np.argsort(got.provenance(mine).position)]
        np.testing.assert_allclose(
            got.read(got.sites[5], mine), exact[0].numpy(), rtol=1e-4, atol=1e-5
        )


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at_call", [1, 40])
def test_what_is_interrupted_goes_on_to_the_same_bytes(
    store: actstore.Store, at_call: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = str(tmp_path / "store")
    calls = 0
    write = Storage.put

    def failing(self: Storage, key: str, data: Any) -> Any:
        nonlocal calls
        calls += key.startswith("acts/")
        if calls == at_call:
            raise KilledError(key)
        return write(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", failing)
        with pytest.raises(KilledError):
            actstore.harvest(SPEC, out)
    assert not (tmp_path / "store" / "manifest.json").exists()
    actstore.harvest(SPEC, out)
    assert objects(out) == objects(store.url)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_instants_the_store_has_the_same_bytes(
    store: actstore.Store, tmp_path: Path
) -> None:
    """SIGKILL, several times in one harvest; children are forked, since a cold start
    takes seconds.
    """
    out = tmp_path / "store"
    rng = np.random.default_rng(0)
    code = textwrap.dedent(
        """
        import os, sys, time
        import torch, actstore.model.hugging_face_tap, transformers, transformer_lens
        from tests.harvesting.test_harvest import SPEC
        import actstore
        from actstore.harvesting.harvest import harvest
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                harvest(SPEC, line.strip())
                os._exit(0)
            print(child, flush=True)
            os.waitpid(child, 0)
            print("ended", flush=True)
        """
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        for delay in [*rng.uniform(0.4, 2.0, 6), None]:
            if (out / "manifest.json").exists():
                break
            server.stdin.write(f"{out}\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            if delay is not None:
                time.sleep(delay)
                # It may have been done before that.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            assert server.stdout.readline() == "ended\n"
    finally:
        server.stdin.close()
        server.wait(30)
        server.stdout.close()
    assert objects(str(out)) == objects(store.url)


def test_finished_or_other_things_at_the_place_are_refused(
    store: actstore.Store, tmp_path: Path
) -> None:
    before = objects(store.url)
    with pytest.raises(ExistsError, match="finished store is already there"):
        actstore.harvest(SPEC, store.url)
    assert objects(store.url) == before
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ExistsError, match="not empty"):
        actstore.harvest(SPEC, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_another_spec_at_an_unfinished_harvest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            StoreWriter, "commit", lambda *_: (_ for _ in ()).throw(KilledError)
        )
        with pytest.raises(KilledError):
            actstore.harvest(SPEC, str(tmp_path))
    with pytest.raises(ExistsError, match=r"spec\.seed: wanted 5, there is 0"):
        actstore.harvest({**SPEC, "seed": 5}, str(tmp_path))
    with pytest.raises(actstore.errors.UnfinishedError, match="has not ended"):
        actstore.open(str(tmp_path))


def test_a_corpus_that_ends_early_is_said_and_finished(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("import os\nprint(os.getcwd())\n" * 40)
    with pytest.warns(
        HarvestWarning,
        match=r"the corpus ended early: \d+ tokens in \d+ sequences, wanted 2,000",
    ):
        got = actstore.harvest({**SPEC, "corpus": str(tmp_path)}, "memory://short")
    n = got.manifest.n_sequences
    assert 0 < n < 63
    assert got.manifest.n_rows == n * 32
    assert BlockRecord.model_validate_json(
        got.storage.read(object_keys.block_key(got.manifest.n_units - 1))
    ).last


@pytest.mark.parametrize("tokens", [31, 32, 40, 63, 64, 70])
def test_a_corpus_that_ends_at_a_unit_is_finished(tokens: int, tmp_path: Path) -> None:
    spec = {key: value for key, value in SPEC.items() if key != "corpus"}
    with pytest.warns(HarvestWarning, match="the corpus ended early"):
        got = actstore.harvest(
            {**spec, "tokens": 200, "unit_sequences": 1},
            str(tmp_path),
            tokens=[[5] * tokens],
        )
    assert got.manifest.n_sequences == (tokens + 1) // 32


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"tokens": 0}, SpecError, "tokens: wanted a count above 0"),
        ({"context": 300}, SpecError, "256 positions"),
        ({"sites": "blocks.0.mlp_out"}, SiteError, "blocks.0.hook_mlp_out"),
        ({"model": "builtin:none"}, ModelError, "builtin:mini"),
        ({"corpus": "{tmp}"}, CorpusError, "no file in it"),
        (
            {"corpus": "{tmp}/tiny.txt"},
            CorpusError,
            "not even one context of 32 tokens",
        ),
        ({"typo": 1}, SpecError, "typo: there is no such key"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    changes: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    if changes.get("corpus", "").endswith("tiny.txt"):
        (tmp_path / "tiny.txt").write_text("x")
    changes = {
        k: v.format(tmp=tmp_path) if isinstance(v, str) else v
        for k, v in changes.items()
    }
    with pytest.raises(error) as caught:
        actstore.harvest({**SPEC, **changes}, str(tmp_path / "out"))
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


class Scaled(nn.Module):
    """An embedding of the token's own number, in all of 4 channels."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 4)
        with torch.no_grad():
            self.embed.weight.copy_(torch.arange(100.0)[:, None].expand(100, 4) * scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embed(tokens)


def test_modules_and_tokens_in_memory() -> None:
    tokens = np.random.default_rng(0).integers(0, 100, (40, 8))
    tokens[3, 5:] = -1
    got = actstore.harvest(
        {"sites": "embed", "dtype": "float32"},
        "memory://module",
        model=Scaled(1),
        tokens=tokens,
    )
    rows = got.rows()
    assert got.manifest.n_rows == 40 * 8 - 3
    assert (got.read("embed", rows) == got.provenance(rows).token[:, None]).all()
    assert sorted(map(tuple, np.stack(got.provenance(rows)[:2], 1).tolist())) == [
        (s, p) for s in range(40) for p in range(8) if tokens[s, p] >= 0
    ]
    with pytest.raises(CorpusError, match="vocabulary has 4096"):
        actstore.harvest(
            {**SPEC, "corpus": "x"}, "memory://big", tokens=np.full((40, 32), 5000)
        )


def test_non_finite_rows_are_counted_and_stored() -> None:
    module = Scaled(1)
    with torch.no_grad():
        module.embed.weight[7, 2] = float("nan")
        module.embed.weight[9, 1] = float("inf")
    tokens = np.random.default_rng(0).integers(0, 100, (400, 8))
    with pytest.warns(
        HarvestWarning, match=r"not finite: \d+ of 3,200 rows at embed; they are stored"
    ):
        got = actstore.harvest(
            {"sites": "embed", "dtype": "float32"},
            "memory://nan",
            model=module,
            tokens=tokens,
        )
    rows = got.rows("train")
    bad = np.isin(got.provenance(rows).token, [7, 9])
    assert got.norms["embed"].all.non_finite == bad.sum() > 0
    assert (~np.isfinite(got.read("embed", rows)).all(axis=1) == bad).all()
    assert got.mean("embed") == pytest.approx(got.provenance(rows[~bad]).token.mean())


def test_float16_overflow_is_refused_with_its_site(tmp_path: Path) -> None:
    tokens = np.arange(64).reshape(8, 8)
    spec = {"sites": "embed", "dtype": "float16"}
    with pytest.raises(
        NumericsError, match=r"site 'embed': values too large .* bfloat16 or float32"
    ):
        actstore.harvest(spec, str(tmp_path / "out"), model=Scaled(2000), tokens=tokens)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_full_disk_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(StoreWriter, "commit", full)
    with pytest.raises(StorageError, match="disk is full"):
        actstore.harvest(SPEC, str(tmp_path / "out"))


def test_progress_counts_up_to_the_whole(tmp_path: Path) -> None:
    seen: list[Progress] = []
    actstore.harvest(SPEC, str(tmp_path / "out"), progress=seen.append)
    assert [now.stage for now in seen[:2]] == [
        "loading the model",
        "reading the corpus",
    ]
    counts = [now.tokens for now in seen[2:]]
    assert counts == sorted(counts)
    assert (seen[-1].tokens, seen[-1].n_tokens) == (63 * 32, 63 * 32)
    assert max(now.in_flight for now in seen) <= 3


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The plan pins torch's thread count; other tests must not change it in between."""
    before = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(before)
