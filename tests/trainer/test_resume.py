"""A killed run goes on bit by bit: real processes, real SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import make_store

ROOT = Path(__file__).parents[2]
STEPS = 120


def command(store: str, out: Path, kind: str, *more: str) -> list[str]:
    words = [sys.executable, "-c", "from trainer.cli import main; main()", "train", "--store", store, "--out", str(out)]
    words += ["--sae", kind, "--expansion", "4", "--rescale", "log", "--batch", "128", "--rows", str(128 * STEPS)]
    words += ["--checkpoint-every", "7", "--log-every", "5", *(["--k", "4"] if kind == "topk" else [])]
    return [*words, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("kind", ["topk", "relu_l1"])
def test_killed_at_any_moment_the_final_weights_are_the_same_bytes(tmp_path: Path, kind: str) -> None:
    store = make_store(tmp_path / "store", n_units=24, unit_sequences=8).url
    subprocess.run(command(store, tmp_path / "whole", kind), check=True, env=environment(), cwd=ROOT)
    rng, kills = random.Random(kind), 0
    for _ in range(6):
        process = subprocess.Popen(
            command(store, tmp_path / "cut", kind, "--resume"), env=environment(), cwd=ROOT, stderr=subprocess.PIPE
        )
        wait_for_new_checkpoint(tmp_path / "cut", process)
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, err.decode()
            break
    assert kills, "the run ended before it could be killed once"
    subprocess.run(command(store, tmp_path / "cut", kind, "--resume"), check=True, env=environment(), cwd=ROOT)
    for name in ("sae.safetensors", "sae.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def wait_for_new_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the process has written a checkpoint that was not there before (or has ended)."""
    before = set(run.glob("checkpoints/*/state.json"))
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if set(run.glob("checkpoints/*/state.json")) - before:
            return
        time.sleep(0.005)
