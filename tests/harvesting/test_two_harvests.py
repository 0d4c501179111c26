"""Two harvests of one store from two processes, against a real S3 server: the store is
byte-identical to one that was harvested alone. One of them is killed, too.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

import actstore
from actstore.format.storage import Storage
from tests.s3_server.faulty_proxy import at_random, faulty

pytestmark = pytest.mark.real_s3

SPEC = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.{0..1}.hook_mlp_out",
    "tokens": 16384,
    "context": 32,
    "unit_sequences": 8,
}
WORDS = [
    "harvest",
    "--model",
    "builtin:mini",
    "--corpus",
    "builtin:stdlib",
    "--sites",
    "blocks.{0..1}.hook_mlp_out",
    "--tokens",
    "16384",
    "--context",
    "32",
    "--unit-sequences",
    "8",
    "--out",
]


def objects(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read(key) for key in storage.list()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "store"
    actstore.harvest(SPEC, out)
    return objects(Storage(out))


def start(url: str, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "actstore", *WORDS, url, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def end(harvest: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, err = harvest.communicate(timeout=200)
    return harvest.returncode, err.decode()


@pytest.mark.parametrize("shared", [False, True])
def test_two_at_once(shared: bool, real_s3_url: str, alone: dict[str, bytes]) -> None:
    """Both do everything, or each its share."""
    workers = [["--worker", f"{i}/2"] if shared else [] for i in (1, 2)]
    ended = [end(one) for one in [start(real_s3_url, *more) for more in workers]]
    for code, err in ended:
        # who comes when the other has finished is told so; a worker may end first
        assert code == 0 or "already there" in err or "other workers" in err, err
    assert any(code == 0 for code, _ in ended)
    assert objects(Storage(real_s3_url)) == alone


def test_one_of_two_is_killed_and_started_again(
    real_s3_url: str, alone: dict[str, bytes]
) -> None:
    rng = random.Random(3)
    storage = Storage(real_s3_url)
    kills = 0
    harvests = [start(real_s3_url, "--worker", f"{i}/2") for i in (1, 2)]
    began = time.monotonic()
    while not storage.exists("manifest.json"):
        assert time.monotonic() - began < 240
        time.sleep(rng.uniform(0.5, 4))
        victim = rng.randrange(2)
        if harvests[victim].poll() is None and kills < 4:
            harvests[victim].kill()
            kills += 1
        for i in (0, 1):
            if i == victim or harvests[i].poll() is not None:
                harvests[i].communicate()
                harvests[i] = start(real_s3_url, "--worker", f"{i + 1}/2")
    for one in harvests:
        one.kill()
        one.communicate()
    assert kills > 0
    assert objects(storage) == alone


@pytest.mark.slow
def test_a_harvest_behind_faults(
    real_s3_url: str,
    real_s3_server: dict[str, str],
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signed requests, real errors, and a proxy that breaks one of twenty."""
    rule = at_random(0.05, 1)
    with faulty(real_s3_server["AWS_ENDPOINT_URL"], rule) as proxy:
        options = {"endpoint_url": proxy.url, "config_kwargs": {"read_timeout": 1}}
        actstore.harvest(SPEC, real_s3_url, options=options)
        assert proxy.faults.total() > 5
    assert objects(Storage(real_s3_url)) == alone
    with faulty(real_s3_server["AWS_ENDPOINT_URL"], rule) as proxy:
        store = actstore.open(real_s3_url, {**options, "endpoint_url": proxy.url})
        with store.stream({"batch": 256}) as stream:
            assert sum(len(next(stream).row) for _ in range(40)) == 40 * 256
