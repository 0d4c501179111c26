"""A cluster that is lost: commands end soon, in words, and what they did is kept."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import actstore
import trainer
from actstore.engines import cluster_watch, local_ray
from actstore.engines.cluster_watch import ClusterWatch, Place
from actstore.errors import ClusterLostError
from tests.engines.lost_parts import PARTS, kill, start
from tests.engines.test_cluster import HARVEST, SWEEP, alone, objects, results
from tests.engines.test_local_ray import MARK, WORDS, mark, processes, short_folder

__all__ = ["alone", "mark", "short_folder"]

# A command ends within this time, of which finding out has two seconds.
END_S = 45.0
HARVEST_WORDS = ["actstore", "harvest", *WORDS]


def test_what_is_missing_for_long_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "LOOK_S", 0.0)
    monkeypatch.setattr(cluster_watch, "LOST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watch = ClusterWatch([Place("Ray's head", "127.0.0.1", port)])
        time.sleep(0.3)
        watch.check()
    watch.check()  # it may come back
    time.sleep(0.3)
    with pytest.raises(
        ClusterLostError, match=f"Ray's head .127.0.0.1:{port}. has giv"
    ):
        watch.check()
    assert watch.is_lost
    watch.check()


@pytest.mark.parametrize(
    "address",
    [
        "ray:127.0.0.1:1",
        pytest.param("ray:nosuch.invalid:6379", marks=pytest.mark.slow),
    ],
)
def test_an_address_where_nobody_listens(address: str, tmp_path: Path) -> None:
    """Ray would try for three minutes."""
    command = [sys.executable, "-m", "actstore", "harvest", *WORDS, "--out", "o"]
    command[command.index("ray")] = address
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 1
    assert "cannot be reached: nobody listens at" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_folders_of_killed_processes_are_removed(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_folder))
    left = short_folder / "ray-left"
    other = short_folder / "ray-other"  # not made by us
    for folder in (left, other):
        folder.mkdir()
    (left / local_ray.LOCK).touch()
    with local_ray._folder() as one:
        assert not left.exists()
        with local_ray._folder() as two:
            assert sorted(short_folder.iterdir()) == sorted([one, other, two])
    assert list(short_folder.iterdir()) == [other]


def told_at_the_end(process: subprocess.Popen[str]) -> str:
    """Wait for a command that has lost its cluster; return what it says of that.

    While a process registers with Ray, Ray may end it, with a line of its own.
    """
    _, told = process.communicate(timeout=END_S)
    assert process.returncode in {0, 1}, told
    assert "Traceback" not in told, told
    by_ray = "core_worker_process.cc" in told
    assert process.returncode == 0 or by_ray or "error: " in told, told
    return told


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def check_nothing_works(mark: str, short_folder: Path) -> None:
    """Check that no worker is left; agents of Ray's own end within a minute or two."""
    until = time.monotonic() + 10
    while works(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert works(mark) == []
    assert not list(short_folder.glob("ray-*"))


def works(mark: str) -> list[Path]:
    return [one for one in processes(mark) if "ray::RayWorker" in cmdline(one)]


def cmdline(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_text()
    except OSError:
        return ""


def test_a_harvest_whose_head_is_killed(
    alone: Path, tmp_path: Path, short_folder: Path, mark: str
) -> None:
    out = tmp_path / "store"
    process = start(
        [*HARVEST_WORDS, "--out", str(out)], {MARK: mark, "TMPDIR": str(short_folder)}
    )
    wait_until(lambda: list(out.glob("units/*.json")), process)
    # It hands out no more units, or it might come to its end.
    process.send_signal(signal.SIGSTOP)
    assert kill("gcs_server", processes(mark))
    time.sleep(3)  # so that it is lost at the first look
    process.send_signal(signal.SIGCONT)
    told = told_at_the_end(process)
    assert "Ray's head" in told
    assert "the same command goes on from there" in told
    check_nothing_works(mark, short_folder)
    actstore.harvest(HARVEST, out)
    assert objects(out) == objects(alone / "store")


def send(number: int, folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(folder.name), number)


def sweep_words(folder: Path, out: Path) -> list[str]:
    spec = folder / "sweep.json"
    spec.write_text(json.dumps(SWEEP))
    words = ["trainer", "sweep", str(spec), "--out", str(out)]
    return [*words, "--store", str(folder / "store"), "--engine", "ray"]


def test_a_sweep_whose_raylet_is_killed(
    alone: Path, short_folder: Path, mark: str
) -> None:
    """Without it Ray's workers end, and Ray says nothing."""
    out = alone / "raylet"
    process = start(
        [*sweep_words(alone, out), "--workers", "2"],
        {MARK: mark, "TMPDIR": str(short_folder)},
    )
    wait_until(lambda: list(out.glob("*/checkpoints/*")), process)
    there = processes(mark)
    send(signal.SIGSTOP, there)  # or the sweep might come to its end
    assert kill("raylet/raylet", there)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    send(signal.SIGCONT, there)
    told = told_at_the_end(process)
    assert process.returncode == 1
    assert "Ray's process on this machine" in told
    assert "--resume goes on from there" in told
    check_nothing_works(mark, short_folder)
    trainer.sweep(SWEEP, out, store=alone / "store", resume=True)
    assert results(out) == results(alone / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_part_killed_at_any_instant(
    alone: Path, tmp_path: Path, short_folder: Path, mark: str, seed: int
) -> None:
    """It may be killed while Ray starts, and when all is done, too."""
    part, is_sweep = PARTS[seed % 2], seed // 2 % 2 == 1
    out = alone / f"killed {seed}" if is_sweep else tmp_path / "store"
    words = sweep_words(alone, out) if is_sweep else HARVEST_WORDS
    if not is_sweep:
        words = [*words, "--out", str(out)]
    process = start(words, {MARK: mark, "TMPDIR": str(short_folder)})
    wait_until(lambda: processes(mark)[1:], process)
    while not any(part in cmdline(one) for one in processes(mark)):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.Random(seed).uniform(0, 12))
    kill(part, processes(mark))
    told = told_at_the_end(process)
    if "core_worker_process.cc" not in told:
        check_nothing_works(mark, short_folder)
    if is_sweep:
        trainer.sweep(SWEEP, out, store=alone / "store", resume=True)
        assert results(out) == results(alone / "runs")
    else:
        if process.returncode == 1:
            actstore.harvest(HARVEST, out)
        assert objects(out) == objects(alone / "store")


@pytest.mark.slow
def test_a_killed_command_leaves_no_worker_and_its_folder_goes_with_the_next(
    tmp_path: Path, short_folder: Path, mark: str
) -> None:
    out = tmp_path / "store"
    places = {MARK: mark, "TMPDIR": str(short_folder)}
    process = start([*HARVEST_WORDS, "--out", str(out)], places)
    wait_until(lambda: list(out.glob("units/*.json")), process)
    process.kill()
    process.communicate()
    until = time.monotonic() + 60
    while works(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert works(mark) == []
    assert len(list(short_folder.glob("ray-*"))) == 1
    process = start([*HARVEST_WORDS, "--out", str(out)], places)
    process.communicate(timeout=120)
    assert process.returncode == 0
    check_nothing_works(mark, short_folder)


@pytest.mark.slow
def test_the_variable_ray_address_does_not_take_the_place_of_a_local_ray(
    alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    command = [sys.executable, "-m", "actstore", "harvest", *WORDS, "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert objects(out) == objects(alone / "store")
