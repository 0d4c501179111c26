"""Rows and tokens that are asked for and rounded: every command says what it really
takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.harvesting.harvest_command import rounding
from schemas.records import RunRecord
from schemas.stream import StreamSpec
from tests.cli.conftest import Cli
from tests.support import make_store

SAE = ("--sae", "topk", "--k", "2", "--expansion", "2")
HARVEST = (
    "--model",
    "builtin:mini",
    "--corpus",
    "builtin:stdlib",
    "--sites",
    "blocks.0.hook_mlp_out",
    "--context",
    "32",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> actstore.Store:
    """3 sites of 2,944 training rows: an epoch is 8,832 rows, 9 batches of 1,000 with
    832 in the last.
    """
    return make_store(tmp_path_factory.mktemp("round") / "store")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"skip_rows": 100},
        {"skip_rows": 9000},
        {"skip_rows": 2000, "batch": 777},
        {"mode": "aligned"},
        {"weights": {"blocks.0.*": 2}},
        {"filter": {"positions": (1, 20)}},
        {"epochs": 3, "batch": 10_000},
    ],
)
def test_the_rows_of_batches_are_those_that_come(
    fields: dict[str, Any], store: actstore.Store
) -> None:
    spec = StreamSpec.model_validate({"batch": 1000, "epochs": None, **fields})
    with store.stream(spec) as stream:
        counts = [
            len(batch.row)
            for batch, _ in zip(
                stream, range(25 if spec.epochs is None else 3), strict=False
            )
        ]
        assert [stream.rows_in(n) for n in range(len(counts) + 1)] == [
            0,
            *np.cumsum(counts).tolist(),
        ]


def test_training_says_what_it_trains_on(
    store: actstore.Store, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "run"
    train = ("trainer", "train", "--store", store.url, *SAE, "--batch", "1000")
    code, _, err = cli(*train, "--rows", "20k", "--out", str(out))
    assert code == 0
    rows = 2 * 8832 + 2000
    assert RunRecord.model_validate_json((out / "sae.json").read_bytes()).rows == rows
    first = "training: 19,664 rows (20,000 were asked) in 20 batches of 1,000, an epoch ends with a smaller one"
    assert err.splitlines()[0] == first
    assert "19,664 rows in " in err
    _, _, err = cli(*train, "--rows", "4000", "--out", str(tmp_path / "even"))
    assert err.splitlines()[0] == "training: 4,000 rows in 4 batches of 1,000"
    assert "4,000 rows in " in err
    sweep = tmp_path / "sweep.yaml"
    base = f"base: {{store: {store.url}, sae: {{kind: topk, k: 2, expansion: 2}}, stream: {{batch: 1000}}}}\n"
    sweep.write_text(f"{base}grid: {{rows: [1500, 2500, 3000]}}\n")
    _, _, err = cli("trainer", "sweep", str(sweep), "--out", str(tmp_path / "sweep"))
    assert "training: 2,000 rows (1,500 were asked) in 2 batches of 1,000\n" in err
    assert err.count("training: 3,000 rows") == 2
    code, _, err = cli("trainer", "eval", str(out), "--rows", "1M")
    assert (
        f"note: {out}: there are 128 such rows of each site, 1,000,000 were asked"
        in err
    )
    assert "were asked" not in cli("trainer", "eval", str(out), "--rows", "50")[2]


def test_contexts_are_whole_and_said_to_be(tmp_path: Path, cli: Cli) -> None:
    out = str(tmp_path / "s")
    note = "note: 1,024 tokens in 32 contexts of 32 (1,000 were asked)\n"
    code, _, err = cli("actstore", "harvest", *HARVEST, "--tokens", "1k", "--out", out)
    assert code == 0
    assert err.count("were asked") == 1
    assert note in err
    told = cli("actstore", "plan", *HARVEST, "--tokens", "1k", "--batches", "1")[1]
    assert (
        "tokens         1,024 tokens in 32 contexts of 32 (1,000 were asked)\n" in told
    )
    code, _, err = cli("actstore", "extend", out, "--tokens", "40")
    assert code == 0
    assert "note: 64 tokens in 2 contexts of 32 (40 were asked)\n" in err
    assert rounding(64, 32) is None


def test_an_import_says_how_many_rows_it_takes(tmp_path: Path, cli: Cli) -> None:
    np.save(tmp_path / "x.npy", np.ones((10, 4, 2), np.float32))
    words = ("actstore", "import", str(tmp_path / "x.npy"), "--site", "a", "--out")
    _, _, err = cli(*words, str(tmp_path / "a"), "--rows", "7")
    assert "8 rows, 2 sequences of 4 (7 were asked)" in err
    _, _, err = cli(*words, str(tmp_path / "b"), "--rows", "1k")
    assert "40 rows, 10 sequences of 4 (1,000 were asked)" in err
    assert "were asked" not in cli(*words, str(tmp_path / "c"), "--rows", "8")[2]
