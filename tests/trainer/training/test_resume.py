"""A killed run goes on bit by bit: real processes, real SIGKILL, at random instants of
their lives.

Processes are forked from a server that has imported the trainer and done nothing with
it, so that most of a life is training rather than imports; the uncut run and the last
resumption are the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import trainer
from tests.support import make_store
from trainer.training import journal_sinks, train_group
from trainer.training.train import train
from trainer.training.train_spec import load_spec

PRELOADED = (train_group, journal_sinks)  # the command imports them when it runs
ROOT = Path(__file__).parents[3]
STEPS, BATCH, KILLS = 300, 128, 10
SPECS: dict[str, dict[str, Any]] = {
    "topk": {
        "sae": {"kind": "topk", "k": 1, "expansion": 8},
        "resample": {"every": 48 * BATCH, "times": 5, "silent_rows": BATCH},
        "ema": 0.98,
        "dead_rows": 16 * BATCH,
        "accumulate": 2,
    },
    "jumprelu": {"sae": {"kind": "jumprelu", "l0": 0.05, "per_layer_threshold": True}},
}


def write_spec(path: Path, store: str, kind: str) -> None:
    common: dict[str, Any] = {
        "store": store,
        "stream": {"batch": BATCH, "rescale": "log"},
        "rows": STEPS * BATCH,
        "checkpoint_every": 7,
        "log_every": 5,
    }
    made = {**common, **SPECS[kind]}
    made["sae"] = {"expansion": 4, **made["sae"]}
    path.write_text(yaml.safe_dump(made))


def command(spec: Path, out: Path, *more: str) -> None:
    code = (
        "import torch; torch.set_num_threads(1); from trainer.cli import main; main()"
    )
    words = [
        sys.executable,
        "-c",
        code,
        "train",
        "--spec",
        str(spec),
        "--out",
        str(out),
        *more,
    ]
    subprocess.run(
        words,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def resume(spec: str, out: str) -> None:
    """In a process of its own, to be killed."""
    torch.set_num_threads(1)
    train(spec, out, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SPECS))
def test_killed_at_any_moment_the_final_weights_are_the_same_bytes(
    tmp_path: Path, kind: str
) -> None:
    spec, whole, cut = tmp_path / "spec.yaml", tmp_path / "whole", tmp_path / "cut"
    write_spec(
        spec, make_store(tmp_path / "store", n_units=24, unit_sequences=8).url, kind
    )
    command(spec, whole)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.training.test_resume"])
    rng, before = random.Random(kind), set()
    for i in range(KILLS):
        process = context.Process(target=resume, args=(str(spec), str(cut)))
        process.start()
        if i % 3:  # else: anywhere, the start included
            wait_for_new_checkpoint(cut, process)
        time.sleep(rng.random() * 0.08)
        process.kill()
        process.join()
        assert process.exitcode == -9, "it ended before it could be killed"
        before.add(
            max(
                (path.parent.name for path in cut.glob("checkpoints/*/state.json")),
                default="",
            )
        )
    assert len(before) > KILLS / 2, "the kills were not spread over the run"
    command(spec, cut, "--resume")
    names = [
        "sae.safetensors",
        "sae.json",
        f"checkpoints/step-{STEPS // 7 * 7:08d}/weights.safetensors",
    ]
    if kind == "topk":
        names.append(f"checkpoints/step-{STEPS:08d}/average.safetensors")
    for name in (*names, f"checkpoints/step-{STEPS:08d}/optimiser.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def wait_for_new_checkpoint(run: Path, process: ForkServerProcess) -> None:
    """Until the process has written a checkpoint that was not there before (or has
    ended).
    """
    before = set(run.glob("checkpoints/*/state.json"))
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if set(run.glob("checkpoints/*/state.json")) - before:
            return
        time.sleep(0.002)


def test_an_averaged_and_resampled_run_hands_on_the_average(tmp_path: Path) -> None:
    spec, run, other = tmp_path / "spec.yaml", tmp_path / "run", tmp_path / "other"
    write_spec(
        spec, make_store(tmp_path / "store", n_units=24, unit_sequences=8).url, "topk"
    )
    train(load_spec(str(spec), {"rows": 70 * BATCH}), str(run))
    sae, last = trainer.load(str(run)), run / "checkpoints/step-00000070"
    average, weights = (
        load_file(last / "average.safetensors"),
        load_file(last / "weights.safetensors"),
    )
    assert sae.record.ema == 0.98
    assert torch.equal(sae.sae.b_dec, average["b_dec"])
    assert not torch.equal(sae.sae.b_dec, weights["b_dec"])
    unit = average["W_dec"] / average["W_dec"].norm(dim=1, keepdim=True)
    assert torch.allclose(sae.decoder, unit, atol=1e-6)
    made = load_spec(str(spec), {"rows": 70 * BATCH}).model_copy(
        update={"resample": None}
    )
    train(made, str(other))
    again = load_file(other / "checkpoints/step-00000070/weights.safetensors")
    assert not torch.equal(again["W_dec"], weights["W_dec"]), "nothing was resampled"
