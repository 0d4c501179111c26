"""The command `diff`: exit codes 0, 1 and 2, lines for people, JSON for scripts."""

from __future__ import annotations

import json
from pathlib import Path

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
