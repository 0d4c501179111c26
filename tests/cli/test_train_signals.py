"""`trainer train` in processes of its own: signalled, killed, resumed; the weights are
those of an undisturbed run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from actstore.format.storage import Storage
from tests.cli import process
from tests.cli.conftest import Cli
from tests.support import make_store
from tests.trainer.training.test_stopping import journal
from trainer.training import checkpoint
from trainer.training.resume_hint import resuming
from trainer.training.train import train

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 245, 64


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 245 steps with the usual checkpoints, of which it has one: that of its
    last step.
    """
    folder = tmp_path_factory.mktemp("signals")
    raw = {
        "store": make_store(folder / "store", n_units=24).url,
        "sae": {"kind": "topk", "k": 3, "expansion": 16},
        "stream": {"batch": BATCH, "rescale": "log"},
        "optimiser": {"lr": 1e-3},
        "dead_rows": 20 * BATCH,
        "rows": STEPS * BATCH,
        "log_every": 5,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(raw))
    return folder / "spec.yaml"


@pytest.fixture(scope="module")
def whole(spec: Path) -> Path:
    """An undisturbed run."""
    out = spec.parent / "whole"
    train(str(spec), str(out))
    return out


def command(spec: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "trainer",
        "train",
        "--spec",
        str(spec),
        "--out",
        str(out),
        *more,
    ]


def same(run: Path, whole: Path) -> None:
    for name in (
        "sae.safetensors",
        f"checkpoints/step-{STEPS:08d}/optimiser.safetensors",
    ):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (
        json.loads((folder / "sae.json").read_text()) for folder in (run, whole)
    )
    # from where the run lies
    assert {**one, "store_path": None} == {**other, "store_path": None}
    assert journal(run) == journal(whole)


def half_way(run: Path, alive: Callable[[], bool]) -> None:
    """Until a run has logged some steps, and is in the middle."""
    deadline = time.monotonic() + 60
    while alive() and time.monotonic() < deadline:
        if (run / "journal.jsonl").exists() and (
            run / "journal.jsonl"
        ).read_bytes().count(b"\n") >= 8:
            return
        time.sleep(0.002)
    raise AssertionError("it has not come so far")


def test_sigterm_saves_and_the_printed_command_goes_on(
    spec: Path, whole: Path, tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "a run"
    words = command(spec, run)
    started = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    half_way(run, lambda: started.poll() is None)
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=180)
    assert started.returncode == 143, err
    assert "Traceback" not in err
    assert out == ""
    [step] = [
        int(found)
        for found in re.findall(
            r"stopped and saved at step (\d+) of 245; go on with", err
        )
    ]
    assert checkpoint.steps(Storage(str(run))) == [step]
    assert 40 <= step < STEPS
    assert not (run / "sae.json").exists()
    printed = shlex.split(err.splitlines()[-1])
    assert printed == [*words, "--resume"]
    assert len(re.findall(r"training: step ", err)) >= 2, (
        "a line at the start and at the end"
    )
    assert cli("trainer", *printed[3:])[0] == 0
    same(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_ends_with_the_same_bytes(
    spec: Path, whole: Path, tmp_path: Path, cli: Cli, number: signal.Signals
) -> None:
    """SIGKILL leaves no checkpoint here, and perhaps half a line of the journal: it
    begins again.
    """
    run, texts = tmp_path / "run", (tmp_path / "out", tmp_path / "err")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.cli.process",
            "trainer.training.train_group",
            "trainer.training.final_summary",
        ]
    )
    words = ["trainer", *command(spec, run)[3:]]
    one = context.Process(target=process.run, args=(words, *texts), daemon=True)
    one.start()
    half_way(run, one.is_alive)
    os.kill(one.pid or 0, number)
    one.join(60)
    err = texts[1].read_text()
    killed = number == signal.SIGKILL
    assert one.exitcode == (-9 if killed else 130), err
    assert bool(checkpoint.steps(Storage(str(run)))) == (not killed)
    if killed:
        with (run / "journal.jsonl").open("ab") as file:
            file.write(b'{"step": 9')
    code, _, err = cli(*words)
    assert (code, "this run is already there; --resume goes on with it" in err) == (
        1,
        True,
    )
    code, out, err = cli(*words, "--resume")
    assert (code, out) == (0, f"run: {run}\n"), err
    same(run, whole)


def test_the_command_is_told_as_it_was_typed(tmp_path: Path) -> None:
    script = tmp_path / "bin/trainer"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    mine = [str(script), "train", "--out", "my runs/a"]
    assert (
        resuming(mine, ["python", *mine], {})
        == f"{script} train --out 'my runs/a' --resume"
    )
    module = ["/x/trainer/__main__.py", "train", "--resume", "--out", "b"]
    typed = ["python", "-m", "trainer", *module[1:]]
    assert resuming(module, typed, {}) == "python -m trainer train --resume --out b"
    recipe = ["/x/trainer/recipes/__main__.py", "multi_layer", "out"]
    typed_recipe = ["python", "-m", "trainer.recipes", *recipe[1:]]
    assert (
        resuming(recipe, typed_recipe, {})
        == "python -m trainer.recipes multi_layer out"
    )
    two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert (
        resuming(module, typed, two)
        == "torchrun --nproc-per-node=2 -m trainer train --resume --out b"
    )
    four = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert resuming(module, typed, four).startswith(
        "torchrun --nnodes=2 ... --nproc-per-node=2 -m trainer train"
    )


def test_the_script_on_the_path_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "trainer"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    mine = [str(script), "sweep", "s.yaml"]
    assert resuming(mine, ["python", *mine], {}) == "trainer sweep s.yaml --resume"
