"""Corpora and odd paths on the command line: what is chosen, left out and refused is
said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import actstore
from tests.cli.test_bad_input import refused

Cli = Callable[..., tuple[int, str, str]]
SITE = "blocks.0.hook_mlp_out"
ODD = ("a[1]", "b*c?::d [bold]")


def words(command: str, corpus: Path | str, *more: str) -> list[str]:
    base = [
        "actstore",
        command,
        "--model",
        "builtin:mini",
        "--sites",
        SITE,
        "--context",
        "32",
        "--batch",
        "2",
    ]
    return [*base, "--tokens", "500", "--corpus", str(corpus), *more]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c").mkdir()
    for name, text in (("train", "import os\n" * 300), ("test", "x = 1\n" * 300)):
        (tmp_path / "c" / f"{name}.jsonl").write_text(
            json.dumps({"doc": {"text": text}}) + "\n"
        )
    (tmp_path / "c" / "notes.txt").write_text("no corpus")
    return tmp_path / "c"


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_split_selects_and_what_is_left_out_is_said(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    stores = {}
    for split in ("train", "test", "all", ""):
        given = ["--split", split] if split else []
        out = tmp_path / f"out-{split}"
        code, _, err = cli(
            *words(
                "harvest",
                folder,
                "--text-column",
                "doc.text",
                "--out",
                str(out),
                *given,
            )
        )
        assert code == 0, err
        assert (
            "1 file left out, not .jsonl or .ndjson or .json (the corpus is read as jsonl): notes.txt"
            in one_line(err)
        )
        assert ("split test (test.jsonl)" in one_line(err)) == (split in {"train", ""})
        stores[split] = actstore.open(out).tokens(np.arange(8))
    assert np.array_equal(stores[""], stores["train"])
    assert not np.array_equal(stores["test"], stores["train"])
    # test.jsonl comes first by name
    assert np.array_equal(stores["all"], stores["test"])
    code, _, err = cli(*words("plan", folder, "--text-column", "doc.text"))
    assert code == 0
    assert "note: corpus" in err
    assert "split train is read" in one_line(err)


def test_options_that_would_do_nothing(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x = 1\n" * 300)
    for corpus, option, value, says in (
        (folder, "--split", "nosuch", "there is no split 'nosuch'; it has train, test"),
        (
            folder,
            "--corpus-revision",
            "abc",
            "revision (--corpus-revision) belongs to a data set on the hub",
        ),
        (
            folder,
            "--corpus-config",
            "en",
            "config (--corpus-config) belongs to a data set on the hub",
        ),
        (
            folder,
            "--revision",
            "abc",
            "revision (--revision) belongs to a model on the hub",
        ),
        (tmp_path / "texts", "--split", "test", "named after a split"),
        (
            tmp_path / "texts",
            "--text-column",
            "body",
            "of kind text, but text_column (--text-column)",
        ),
        (
            tmp_path / "texts",
            "--token-column",
            "ids",
            "of kind text, but token_column (--token-column)",
        ),
        ("builtin:stdlib", "--split", "test", "of kind builtin, but split (--split)"),
        ("builtin:stdlib", "--separator", "sep", "has no SEP token"),
        ("builtin:stdlib", "--separator", "moon", "--separator"),
        (
            "builtin:stdlib",
            "--separator",
            "99999",
            "separator (--separator) 99999: the model's vocabulary has",
        ),
    ):
        refused(cli(*words("harvest", corpus, *out, option, value)), says)
    refused(
        cli(*words("plan", "builtin:stdlib", "--separator", "99999")),
        "the model's vocabulary has the tokens 0 to",
    )
    assert not (tmp_path / "out").exists()


def test_a_document_that_is_no_text(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n{"text": 5}\n')
    says = ["a.jsonl, line 3 (at byte 18), column 'text': wanted text, got 5 (int)"]
    refused(
        cli(*words("harvest", tmp_path / "a.jsonl", "--out", str(tmp_path / "out"))),
        *says,
    )


def test_a_separator_that_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    texts = ["x = 1\n" * 60, "y = 2\n" * 200]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    found = {}
    for separator in ("bos", "7", "none"):
        out = tmp_path / separator
        code, _, err = cli(
            *words(
                "harvest",
                tmp_path / "a.jsonl",
                "--out",
                str(out),
                "--separator",
                separator,
            )
        )
        assert code == 0, err
        found[separator] = actstore.open(out).tokens(np.arange(16)).ravel()
        assert str(actstore.open(out).manifest.spec.separator) == separator
    assert (found["bos"] == 0).sum() == 2
    assert found["bos"][0] == 0
    bare = [token for token in found["bos"] if token != 0]
    assert found["none"].tolist()[: len(bare)] == bare
    at = int(np.flatnonzero(found["bos"] == 0)[1])
    assert found["7"][at - 1] == 7
    assert found["7"][: at - 1].tolist() == bare[: at - 1]


@pytest.mark.parametrize("name", ODD)
def test_stores_of_odd_names(
    name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "a1").mkdir()  # what the pattern a[1] would mean
    code, _, err = cli(*words("harvest", "builtin:stdlib", "--out", f"{name}/store"))
    assert code == 0, err
    assert f"{name}/store: 512 rows" in one_line(err)
    assert (tmp_path / name / "store" / "manifest.json").exists()
    assert cli("actstore", "ls", name)[1].startswith(f"{name}/store  builtin:mini")
    for command in ("info", "norms", "verify"):
        assert cli("actstore", command, f"{name}/store")[0] == 0
    assert cli("actstore", "extend", f"{name}/store", "--tokens", "100")[0] == 0
    store = actstore.open(f"{name}/store")
    assert len(next(iter(store.stream(batch=64))).x) == 64
    assert (
        zarr.open_group(store.storage.zarr_store(), mode="r")["tokens"].shape[1] == 32
    )
    run = (
        "trainer",
        "train",
        "--store",
        f"{name}/store",
        "--out",
        f"{name}/run",
        "--k",
        "2",
        "--batch",
        "64",
    )
    assert cli(*run, "--rows", "256")[0] == 0
    assert cli("trainer", "eval", f"{name}/run")[0] == 0


@pytest.mark.parametrize("name", ODD)
def test_imports_of_odd_names(
    name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    (tmp_path / name).mkdir()
    np.save(tmp_path / name / "x[0].npy", rows)
    zarr.save_array(zarr.storage.LocalStore(tmp_path / name / "y.zarr"), rows)
    for file, out in (
        (f"{name}/x[0].npy", "npy"),
        (f"{name}/y.zarr", "zarr"),
        (f"acts={name}/x[0].npy", "named"),
    ):
        site = [] if "=" in file else ["--site", "acts"]
        code, _, err = cli(
            "actstore", "import", file, *site, "--out", out, "--dtype", "float32"
        )
        assert code == 0, err
        assert np.array_equal(actstore.open(out).read("acts", [0]).shape, (1, 8))


def test_drives(cli: Cli, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    says = "a path with a drive letter, and this system has no drives"
    refused(cli(*words("harvest", "C:\\data", *out)), "C:\\data", says)
    refused(
        cli(*words("harvest", "builtin:stdlib", "--out", "C:\\store")),
        "C:\\store",
        says,
    )
    refused(
        cli(*words("harvest", "builtin:stdlib", *out, "--model", "D:/m")), "D:/m", says
    )
    refused(cli("actstore", "info", "C:\\store"), "C:\\store", says)
    refused(cli("actstore", "import", "C:\\x.npy", *out), "C:\\x.npy", says)
    assert not (tmp_path / "out").exists()
