"""The command `diff`: exit codes 0, 1 and 2, lines for people, JSON for scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import actstore
from tests.cli.conftest import Cli
from tests.support import make_store


def test_the_command(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=4, padded=True)
    other = make_store(tmp_path / "o", n_units=4, padded=True, dtype="float32")
    code, out, _ = cli("actstore", "diff", store.url, store.url)
    assert code == 0
    assert out.endswith("no difference\n")
    code, out, _ = cli("actstore", "diff", store.url, other.url)
    assert code == 1
    assert "settings     spec.dtype: bfloat16 | float32\n" in out
    assert "values       blocks.0.hook_mlp_out: 0 of " in out
    code, out, _ = cli(
        "actstore", "diff", store.url, other.url, "--json", "--rows", "64"
    )
    told = json.loads(out)
    assert code == 1
    assert told["fields"] == [{"path": "spec.dtype", "a": "bfloat16", "b": "float32"}]
    assert told["values"][0]["rows"] == 64
    again = json.loads(
        cli(
            "actstore",
            "diff",
            store.url,
            other.url,
            "--json",
            "--rows",
            "64",
            "--seed",
            "5",
        )[1]
    )
    assert told["values"] != again["values"]
    code, _, err = cli("actstore", "diff", store.url, str(tmp_path / "none"))
    assert code == 2
    assert err.startswith("error: ")


def test_a_part_is_called_one(tmp_path: Path, cli: Cli) -> None:
    store = make_store(tmp_path / "s", n_units=4, padded=True)
    actstore.copy(store.url, tmp_path / "p", units="1:3")
    actstore.copy(store.url, tmp_path / "q", units="1")
    short = store.manifest.content_id[:16]
    _, out, _ = cli("actstore", "diff", store.url, str(tmp_path / "p"))
    assert ", a part of A\n" in out
    assert "settings" not in out
    _, out, _ = cli("actstore", "diff", str(tmp_path / "p"), store.url)
    assert ", a part of B\n" in out
    _, out, _ = cli("actstore", "diff", str(tmp_path / "p"), str(tmp_path / "q"))
    assert out.count(f", a part of {short}\n") == 2


def test_what_ends_it_early_is_no_difference(tmp_path: Path, cli: Cli) -> None:
    url = make_store(tmp_path / "s", n_units=2).url
    for words in (
        [url, "catalog:none", "--catalog", str(tmp_path / "catalog")],
        [url, "s3://b/s", "--storage-options", "{"],
        [url, url, "--catalog", ""],
        [url, url, "--rows", "0"],
        [url],
    ):
        code, out, err = cli("actstore", "diff", *words)
        assert (code, out) == (2, ""), words
        assert err


def test_storage_options_hold_for_both_stores(
    tmp_path: Path, cli: Cli, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make_store(f"{s3_url}/{name}", n_units=2)
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "key": "k"}
    options["secret"] = "s"
    # Nobody listens there: only the option can say where to go.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    words = ["--storage-options", json.dumps(options)]
    code, out, err = cli("actstore", "diff", f"{s3_url}/a", f"{s3_url}/b", *words)
    assert (code, err) == (0, "")
    assert out.endswith("no difference\n")
