"""`actstore plan` against the harvest that it speaks of: rows, units, objects, bytes;
and its arithmetic of money.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import actstore
from actstore.format.storage import Storage
from actstore.harvesting.estimate import Prices, estimate
from tests.cli.test_bad_input import refused

Cli = Callable[..., tuple[int, str, str]]
SPEC = {
    "model": "builtin:tiny",
    "corpus": "builtin:stdlib",
    "sites": "blocks.{0,1}.hook_mlp_out",
    "tokens": "12k",
    "context": "64",
    "batch": "16",
}


def words(command: str, *more: str, **changes: str) -> list[str]:
    options = {**SPEC, **changes}
    return [
        "actstore",
        command,
        *(word for name, value in options.items() for word in (f"--{name}", value)),
        *more,
    ]


def planned(cli: Cli, *more: str, **changes: str) -> dict[str, Any]:
    code, out, err = cli(*words("plan", "--json", *more, **changes))
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--dtype", "int8", "--codec", "zstd", "--skip-first", "1"],
        [
            "--codec",
            "raw",
            "--unit-sequences",
            "20",
            "--chunk-rows",
            "1000",
            "--skip-first",
            "3",
        ],
        ["--dtype", "float32", "--exclude-special-tokens", "--chunk-rows", "128"],
    ],
    ids=["defaults", "int8", "raw", "float32"],
)
def test_the_plan_is_what_the_harvest_makes(
    more: list[str], cli: Cli, tmp_path: Path
) -> None:
    found = planned(cli, *more)
    assert cli(*words("harvest", *more, "--out", str(tmp_path / "store")))[0] == 0
    store = actstore.open(tmp_path / "store")
    m = store.manifest
    assert found["layout"] == m.layout.model_dump(mode="json")
    assert [site["name"] for site in found["sites"]] == list(store.sites)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert found["objects"] == len(files)
    if "--exclude-special-tokens" in more:
        assert found["rows"] == pytest.approx(m.n_rows, rel=0.01)
        assert m.n_rows < m.n_sequences * 64
    else:
        assert found["rows"] == m.n_rows
    chosen = found["codecs"][found["codec"]]
    assert found["codec"] == m.spec.codec
    assert chosen["bytes"] == pytest.approx(m.n_bytes, rel=0.03)
    per_row = sum(site.d for site in m.sites) * {"int8": 1, "float32": 4}.get(
        m.spec.dtype, 2
    )
    assert chosen["ratio"] == pytest.approx(m.n_bytes / (m.n_rows * per_row), rel=0.03)


def test_prices_change_the_money_as_arithmetic_says(cli: Cli) -> None:
    prices = [
        "--storage-price",
        "500",
        "--put-price",
        "3",
        "--get-price",
        "0.0001",
        "--egress-price",
        "7",
        "--device-price",
        "36",
    ]
    found = planned(cli, *prices, "--months", "4")
    layout = found["layout"]
    month = found["codecs"]["lz4"]["bytes"] / 1e9 * 500
    assert found["storage_per_month"] == pytest.approx(month)
    assert found["put_cost"] == pytest.approx(found["objects"] * 3 / 1000)
    gigabytes = found["codecs"]["lz4"]["bytes"] / 1e9
    assert found["egress_cost"] == pytest.approx(gigabytes * 7)
    # Two sites: every chunk of theirs, and an index for each shard.
    chunks = -(-found["rows"] // layout["chunk_rows"])
    gets = 2 * (chunks + layout["n_units"])
    assert found["get_cost"] == pytest.approx(gets * 0.0001 / 1000, rel=0.1)
    assert found["gets_per_gb"] * gigabytes == pytest.approx(gets, rel=0.1)
    assert found["puts_per_unit"] == 2 * 2 + 5
    saved = found["forward_s"] * 36 / 3600 - found["get_cost"]
    once = found["harvest_s"] * 36 / 3600 + 4 * month + found["put_cost"]
    assert saved > 0
    n = found["break_even_runs_cost"]
    assert once + n * found["get_cost"] < n * found["forward_s"] / 100
    assert once + (n - 1) * found["get_cost"] >= (n - 1) * found["forward_s"] / 100


def test_break_even_is_the_smallest_number_of_runs(cli: Cli) -> None:
    found = planned(cli)
    assert found["forward_s"] == pytest.approx(12_032 / found["forward_tokens_s"])
    assert found["harvest_s"] == pytest.approx(12_032 / found["harvest_tokens_s"])
    assert found["forward_s"] <= found["harvest_s"]
    n = found["break_even_runs"]
    assert n is not None
    assert found["harvest_s"] + n * found["read_s"] < n * found["forward_s"]
    assert (
        found["harvest_s"] + (n - 1) * found["read_s"] >= (n - 1) * found["forward_s"]
    )


def test_slow_storage_bounds_the_reading_and_may_never_pay(cli: Cli) -> None:
    found = planned(cli, "--bandwidth", "10kB")
    assert found["read_s"] == pytest.approx(found["codecs"]["lz4"]["bytes"] / 10_000)
    assert found["break_even_runs"] is None
    code, out, _ = cli(*words("plan", "--bandwidth", "10kB", "--get-price", "1e9"))
    assert code == 0
    assert out.count("never: reading takes no less than the model") == 2


def test_people_get_lines_and_nothing_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(*_: Any) -> None:
        raise AssertionError("plan wrote an object")

    monkeypatch.chdir(tmp_path)
    for name in ("put", "create", "delete"):
        monkeypatch.setattr(Storage, name, written)
    code, out, err = cli(*words("plan", "--skip-first", "16"))
    assert (code, err) == (0, "")
    names = [line.split("  ")[0].strip() for line in out.splitlines()]
    assert names == [
        *(
            "corpus",
            "tokens",
            "sites",
            "rows",
            "units",
            "bytes",
            "objects",
            "memory",
            "model alone",
            "harvest",
            "one reading",
            "requests",
            "cost",
        ),
        *("storage", "break-even"),
    ]
    assert "2: blocks.0.hook_mlp_out, blocks.1.hook_mlp_out" in out
    assert f"{12_032 * 48 // 64:,} per site (75.0 % of the tokens)" in out
    assert "lz4" in out
    assert "chosen" in out
    assert not list(tmp_path.iterdir())


def test_a_memory_budget_shrinks_units_and_never_sites(cli: Cli) -> None:
    plenty, tight = planned(cli), planned(cli, memory="150kB")
    assert tight["sites"] == plenty["sites"]
    assert tight["rows"] == plenty["rows"]
    assert 1 <= tight["layout"]["unit_sequences"] < plenty["layout"]["unit_sequences"]
    assert tight["memory"]["units"] <= 150_000 < plenty["memory"]["units"]


def test_mistakes_are_named_before_anything_is_run(cli: Cli, tmp_path: Path) -> None:
    refused(cli(*words("plan", sites="blocks.9.hook_mlp_out")), "blocks.9.hook_mlp_out")
    refused(cli(*words("plan", "--bandwidth", "fast")), "'fast' is not a size")
    refused(cli(*words("plan", corpus=str(tmp_path / "none"))), "none")
    (tmp_path / "short.txt").write_text("x")
    refused(
        cli(*words("plan", corpus=str(tmp_path / "short.txt"))),
        "holds no context of 64 tokens",
    )


def test_a_corpus_that_is_too_short_is_a_warning_and_planned_for(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("a line of words\n" * 300)
    code, out, err = cli(
        *words("plan", "--json", corpus=str(tmp_path / "short.txt"), tokens="2.5B")
    )
    assert code == 0
    found = json.loads(out)
    held = found["corpus"]
    assert (held["asked"], held["how"], held["short"]) == (
        2_500_000_000,
        "counted",
        True,
    )
    assert (
        held["tokens"] == found["rows"] == found["layout"]["n_sequences"] * 64 < 10_000
    )
    assert err.startswith("warning: corpus ")
    assert f"ends after {held['tokens']:,} tokens" in err
    assert f"`--tokens {held['tokens']}`" in err
    assert planned(cli)["corpus"]["how"] == "estimated"


class Two(nn.Module):
    """Two sites of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(30, 24), nn.Embedding(30, 8)

    def forward(self, tokens: Any) -> Any:
        self.a(tokens)
        return self.b(tokens)


def test_the_library_takes_a_module_and_tokens_in_memory() -> None:
    tokens = np.random.default_rng(0).integers(0, 30, (300, 40))
    tokens[::2, 30:] = -1
    spec = {"sites": ("a", "b"), "codec": "raw", "batch": 30, "memory": 200_000}
    found = estimate(spec, model=Two(), tokens=tokens, prices=Prices(storage=1e9))
    store = actstore.harvest(spec, "memory://planned", model=Two(), tokens=tokens)
    assert found.layout == store.layout
    assert found.rows == store.manifest.n_rows == (tokens >= 0).sum()
    assert found.objects == len(store.storage.list())
    assert found.codecs["raw"].bytes == pytest.approx(store.manifest.n_bytes, rel=0.03)
    assert found.storage_per_month == pytest.approx(found.codecs["raw"].bytes)
    assert found.memory.units == 3 * store.layout.unit_sequences * 40 * (
        32 * 2 + 2 * 4 + 8
    )
