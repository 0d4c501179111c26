"""The command `verify --deep`: what it prints, its exit code, and its options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from tests.cli.conftest import Cli
from tests.recomputing.forging import Forger
from tests.recomputing.test_verify_deep import FIRST, SPEC, UNIT


def test_the_command(tmp_path: Path, cli: Cli) -> None:
    forger = Forger(actstore.harvest(SPEC, tmp_path / "good"))
    url = forger.store.url
    code, out, _ = cli("actstore", "verify", url, "--deep", "--all")
    assert code == 0
    assert "rows with the model: 0 wrong" in out
    forger.values(FIRST, UNIT, lambda x: x * 2)
    bad = forger.write(tmp_path / "s").url
    assert cli("actstore", "verify", bad)[0] == 0
    code, out, _ = cli("actstore", "verify", bad, "--deep", "--json", "--rows", "9999")
    told = json.loads(out)
    assert code == 1
    assert told["problems"] == []
    assert f"acts/{FIRST}/c/{UNIT}/0" in "".join(told["deep"]["problems"])
    for words in (["--rows", "3"], ["--all"], ["--model", "m"], ["--seed", "1"]):
        code, _, err = cli("actstore", "verify", url, *words)
        assert (code, f"{words[0]} goes with --deep" in err) == (1, True)


def test_each_option_changes_what_is_looked_at(tmp_path: Path, cli: Cli) -> None:
    url = actstore.harvest({**SPEC, "tokens": 32 * 60}, tmp_path / "s").url

    def deep(*words: str) -> tuple[int, dict[str, object]]:
        code, out, _ = cli("actstore", "verify", url, "--deep", "--json", *words)
        return code, json.loads(out)["deep"] if out else {}

    _, plain = deep()
    assert (plain["units"], plain["model_rows"]) == (8, 1919)
    assert deep("--rows", "1")[1]["model_rows"] == 32
    assert deep("--rows", "0")[1]["model_rows"] == 0
    assert deep("--all", "--rows", "0")[1]["units"] == 15
    assert deep("--seed", "1", "--rows", "1") != deep("--seed", "2", "--rows", "1")
    _, other = deep("--model", "builtin:tiny", "--rows", "1")
    assert other == {}  # its sites have other widths, or its tokens are others
    assert deep("--device", "nosuch") == (1, {})
    assert deep("--trust-remote-code") == (1, {})


def test_json_holds_a_value_that_is_not_finite(tmp_path: Path, cli: Cli) -> None:
    forger = Forger(actstore.harvest(SPEC, tmp_path / "good"))

    def change(x: Any) -> Any:
        x[3, 1] = np.inf
        return x

    forger.values(FIRST, UNIT, change)
    url = forger.write(tmp_path / "s").url
    code, out, _ = cli("actstore", "verify", url, "--deep", "--json", "--rows", "9999")

    def no_number(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    told = json.loads(out, parse_constant=no_number)
    assert code == 1
    assert told["deep"]["worst"][FIRST] == "Infinity"


def test_what_bytes_tell_is_told_before_a_model_fails(tmp_path: Path, cli: Cli) -> None:
    url = actstore.harvest(SPEC, tmp_path / "s").url
    key = f"norm/{FIRST}/c/{UNIT}"
    (tmp_path / "s" / key).unlink()
    words = ["--deep", "--model", str(tmp_path / "none")]
    code, out, err = cli("actstore", "verify", url, *words)
    assert code == 1
    assert key in out
    assert ": 1 bad\n" in out
    assert err.startswith("error: ")


def test_storage_options_hold(
    tmp_path: Path, cli: Cli, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actstore.harvest(SPEC, f"{s3_url}/s")
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "key": "k"}
    options["secret"] = "s"
    # Nobody listens there: only the option can say where to go.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    words = ["--deep", "--rows", "64", "--storage-options", json.dumps(options)]
    code, out, err = cli("actstore", "verify", f"{s3_url}/s", *words)
    assert (code, err) == (0, "")
    assert "64 rows with the model: 0 wrong" in out
