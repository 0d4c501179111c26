"""A Ray of this machine's own: what it listens on, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import actstore
import trainer
from tests.engines.test_cluster import HARVEST, SWEEP, objects, results

WORDS = [
    *("--model", "builtin:mini", "--corpus", "builtin:stdlib"),
    *("--sites", "blocks.*.hook_mlp_out", "--tokens", str(HARVEST["tokens"])),
    *("--context", "32", "--unit-sequences", "16", "--batch", "4"),
    *("--engine", "ray", "--workers", "1"),
]
MARK = "ACTSTORE_TEST_MARK"


def processes(mark: str) -> list[Path]:
    """Those whose environment has a mark, as folders of /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(path.parent)
    return found


def listeners(folders: list[Path]) -> list[str]:
    """Addresses that some processes listen on, as /proc has them: hexadecimal."""
    inodes = set()
    for folder in folders:
        for descriptor in folder.glob("fd/*"):
            try:
                inodes.add(str(descriptor.readlink()))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            is_listening = columns[3] == "0A"
            if is_listening and f"socket:[{columns[9]}]" in inodes:
                found.append(columns[1].partition(":")[0])
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """Tells processes of this test; those that are left are killed."""
    mark = uuid.uuid4().hex
    yield mark
    for folder in processes(mark):
        os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for Ray, whose sockets' paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


# 127.0.0.1, and the same in IPv6's form, as /proc writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def test_ctrl_c_leaves_nothing_and_the_harvest_goes_on_without_ray(
    tmp_path: Path, short_folder: Path, mark: str
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, MARK: mark, "TMPDIR": str(short_folder)}
    command = [sys.executable, "-m", "actstore", "harvest", *WORDS, "--out", str(out)]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0
    )
    while not list(out.glob("units/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    # While it is looked at, it hands out nothing, or it might come to its end.
    process.send_signal(signal.SIGSTOP)
    there = processes(mark)
    (folder,) = short_folder.glob("ray-*")
    assert folder.stat().st_mode & 0o77 == 0
    addresses = listeners(there)
    assert addresses
    assert set(addresses) <= LOOPBACK
    token = secret_of(there)
    arguments = b" ".join((folder / "cmdline").read_bytes() for folder in there)
    assert token not in arguments
    # As a terminal does it: every process of the group is sent it.
    os.killpg(process.pid, signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again" in told
    assert "Traceback" not in told
    until = time.monotonic() + 30
    while processes(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(mark) == []
    assert not list(short_folder.glob("ray-*"))
    units = list(out.glob("units/*.json"))
    assert 0 < len(units) < HARVEST["tokens"] // (16 * 32)
    actstore.harvest(HARVEST, out)
    actstore.harvest(HARVEST, tmp_path / "alone")
    assert objects(out) == objects(tmp_path / "alone")


def secret_of(folders: list[Path]) -> bytes:
    """The token that Ray's processes have."""
    for folder in folders:
        for one in (folder / "environ").read_bytes().split(b"\0"):
            if one.startswith(b"RAY_AUTH_TOKEN="):
                return one.partition(b"=")[2]
    raise AssertionError("no token")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_is_saved_and_goes_on(
    tmp_path: Path, mark: str, number: signal.Signals
) -> None:
    actstore.harvest(HARVEST, tmp_path / "store")
    spec = tmp_path / "sweep.json"
    keys = {**SWEEP["base"], "checkpoint_every": 100_000, "rows": 100_000}
    spec.write_text(json.dumps({**SWEEP, "base": keys}))
    runs = tmp_path / "runs"
    words = ["sweep", str(spec), "--out", str(runs), "--store", str(tmp_path / "store")]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *words, "--engine", "ray", "--workers", "2"],
        env={**os.environ, MARK: mark},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    while len(list(runs.glob("*/journal.jsonl"))) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the others are saved; go on with" in told
    assert "--resume" in told
    assert "Traceback" not in told
    assert len(list(runs.glob("*/checkpoints/*"))) == 4
    trainer.sweep(spec, runs, store=tmp_path / "store", resume=True)
    trainer.sweep(spec, tmp_path / "alone", store=tmp_path / "store")
    assert results(runs) == results(tmp_path / "alone")
