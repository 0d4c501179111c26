"""Harvests into object stores that fail now and then, or list late: the store has the
bytes of an undisturbed one, and what was tried again is told.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import actstore
from actstore.errors import StorageError
from actstore.format import retries
from actstore.format.storage import Storage
from actstore.machine.command_values import STORAGE_OPTIONS
from tests.cli.conftest import Cli
from tests.cli.conftest import cli as cli  # noqa: PLC0414 (a fixture)
from tests.s3_server.faulty_proxy import at_random, faulty

SPEC = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.{0..1}.hook_mlp_out",
    "tokens": 2048,
    "context": 32,
    "unit_sequences": 8,
}
WORDS = [
    "--model",
    "builtin:mini",
    "--corpus",
    "builtin:stdlib",
    "--sites",
    "blocks.{0..1}.hook_mlp_out",
    "--tokens",
    "2048",
    "--context",
    "32",
    "--unit-sequences",
    "8",
]


def objects(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read(key) for key in storage.list()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    actstore.harvest(SPEC, out)
    return objects(Storage(out))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_harvest_and_train_get_over_faults_and_say_so(
    seed: int,
    s3_url: str,
    s3_server: str,
    undisturbed: dict[str, bytes],
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with faulty(s3_server, at_random(0.05, seed)) as proxy:
        options = {"endpoint_url": proxy.url, "config_kwargs": {"read_timeout": 1}}
        text = json.dumps(options)
        url = f"{s3_url}/store"
        code, _, err = cli(
            "actstore", "harvest", *WORDS, "--out", url, "--storage-options", text
        )
        assert code == 0, err
        told = re.search(
            r"^note: (\d+) requests? w\w+ tried again: (.+)$", err, re.MULTILINE
        )
        assert told, err
        # On a busy machine a second may be too short for an answer that was on its way.
        reasons = re.findall(r"(\d+) ([^,]+)", told[2])
        others = sum(int(n) for n, why in reasons if why != "timeouts")
        assert 1 <= int(told[1]) == sum(int(n) for n, _ in reasons)
        assert others <= proxy.faults.total()
        assert objects(Storage(url)) == undisturbed
        harvested = proxy.requests
        out = str(tmp_path / "run")
        words = f"--store {url} --sae topk --k 3 --expansion 2 --batch 128 --rows 2048"
        code, _, err = cli(
            "trainer", "train", *words.split(), "--out", out, "--storage-options", text
        )
        assert code == 0, err
        assert proxy.requests > harvested
        assert "Traceback" not in err


def test_a_stream_has_the_same_batches_behind_faults(
    s3_url: str, s3_server: str, undisturbed: dict[str, bytes]
) -> None:
    url = f"{s3_url}/store"
    for key, data in undisturbed.items():
        Storage(url).put(key, data)

    def batches(options: dict[str, Any] | None) -> list[torch.Tensor]:
        with actstore.open(url, options).stream({"batch": 128, "seed": 3}) as stream:
            return [next(stream).x.clone() for _ in range(20)]

    with faulty(s3_server, at_random(0.3, 7)) as proxy:
        options = {"endpoint_url": proxy.url, "config_kwargs": {"read_timeout": 1}}
        pairs = zip(batches(options), batches(None), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert proxy.faults.total() > 3


@pytest.mark.parametrize("lag", [1, 5, 1000])
def test_a_listing_that_lags_changes_nothing(
    lag: int, s3_url: str, s3_server: str, undisturbed: dict[str, bytes]
) -> None:
    url = f"{s3_url}/store"
    with faulty(s3_server) as proxy:
        proxy.lag = lag
        options = {"endpoint_url": proxy.url}
        actstore.harvest(SPEC, url, options=options)
        assert Storage(url, options).list() != Storage(url).list()
    assert objects(Storage(url)) == undisturbed


def test_a_resumed_harvest_with_a_lagging_listing(
    s3_url: str, s3_server: str, undisturbed: dict[str, bytes]
) -> None:
    """What earlier calls wrote is not listed either."""
    url = f"{s3_url}/store"
    with faulty(s3_server) as proxy:
        proxy.lag = 1000
        options = {"endpoint_url": proxy.url}
        proxy.rule = lambda request: (
            "denied" if request.method == "PUT" and "units" in request.path else None
        )
        with pytest.raises(StorageError, match="AccessDenied"):
            actstore.harvest(SPEC, url, options=options)
        proxy.rule = lambda _: None
        actstore.harvest(SPEC, url, options=options)
    assert objects(Storage(url)) == undisturbed


def test_workers_are_refused_where_no_create_is_exclusive(
    s3_url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = lambda request: "no condition" if request.is_create else None  # noqa: E731
    with faulty(s3_server, rule) as proxy:
        options = {"endpoint_url": proxy.url}
        with pytest.raises(StorageError, match="without worker, one process"):
            actstore.harvest(SPEC, f"{s3_url}/a", worker="1/2", options=options)
        assert Storage(f"{s3_url}/a").is_empty()
        actstore.harvest(SPEC, f"{s3_url}/a", options=options)


def test_the_summary_comes_where_the_command_fails_too(
    cli: Cli, s3_url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(s3_server, lambda _: "SlowDown") as proxy:
        monkeypatch.setenv(STORAGE_OPTIONS, json.dumps({"endpoint_url": proxy.url}))
        code, _, err = cli("actstore", "info", f"{s3_url}/s")
    assert code == 1
    assert "error: " in err
    assert "Traceback" not in err
    assert re.search(r"note: \d+ requests were tried again: \d+ SlowDown", err)
