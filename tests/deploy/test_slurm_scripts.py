"""The scripts for sbatch: options of sbatch that exist, command lines that ours take, and
a real run of the harvest's, interrupted as Slurm does it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import actstore
from actstore.errors import UnfinishedError
from tests.deploy.support import (
    DEPLOY,
    calls,
    check_command,
    clean_environment,
    under_torchrun,
)

HARVEST = DEPLOY / "slurm-harvest.sh"
TRAIN = DEPLOY / "slurm-torchrun.sh"
# Options of sbatch that the scripts may have, and what their values look like.
OPTIONS = {
    "job-name": r"[a-z-]+",
    "array": r"\d+-\d+(%\d+)?",
    "nodes": r"\d+",
    "ntasks-per-node": r"1",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"\d+",
    "mem": r"0|\d+G",
    "time": r"\d\d:\d\d:\d\d",
    "requeue": r"",
    "open-mode": r"append",
    "output": r"[\w%-]+\.log",
    "signal": r"B:USR1@\d+",
    "partition": r"\w+",
    "account": r"\w+",
}


def directives(text: str) -> dict[str, str]:
    pairs = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?(.*)$", text, re.MULTILINE)
    assert all(rest == "" for _, _, rest in pairs)
    return {name: value for name, value, _ in pairs}


def check_directives(text: str) -> None:
    assert text.startswith("#!/usr/bin/env bash\n")
    found = directives(text)
    assert len(found) == text.count("#SBATCH")
    for name, value in found.items():
        assert re.fullmatch(OPTIONS[name], value), name
    # sbatch reads no directive after the first command.
    first = re.search(r"^[^#\n]", text, re.MULTILINE)
    assert first
    assert first.start() > text.rindex("#SBATCH")
    assert {"requeue", "signal", "time"} <= set(found)


@pytest.mark.parametrize("script", [HARVEST, TRAIN], ids=lambda path: path.name)
def test_sbatchs_options_are_right(script: Path) -> None:
    text = script.read_text()
    check_directives(text)
    for old, new in (
        ("--requeue", "--requeued"),
        ("B:USR1", "B:USR9"),
        ("--time=", "--time="),
    ):
        wrong = text.replace(old, new) if old != new else text + "#SBATCH --nice\n"
        with pytest.raises((AssertionError, KeyError)):
            check_directives(wrong)


def test_the_harvests_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    (words,) = calls(["bash", str(HARVEST)], tmp_path, array)
    assert directives(HARVEST.read_text())["array"] == "1-8"
    spec, out, named = check_command(words, monkeypatch).what
    assert named["worker"] == "3/8"


def test_trainings_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    (words,) = calls(["bash", str(TRAIN)], tmp_path, told)
    assert "node-1:29500" in words
    spec, out, settings = check_command(under_torchrun(words), monkeypatch).what
    assert settings.resume
    found = directives(TRAIN.read_text())
    n_processes = int(found["nodes"]) * int(found["gpus-per-node"])
    assert spec.stream.lanes % n_processes == 0
    assert words[words.index("--nproc-per-node") + 1] == found["gpus-per-node"]


@pytest.mark.slow
def test_a_harvest_whose_time_is_up_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    environment = clean_environment()
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    (programs / "scontrol").chmod(0o755)
    out = tmp_path / "store"
    environment |= {
        "ACTSTORE_ENVIRONMENT": str(tmp_path / "environment"),
        "MODEL": "builtin:mini",
        "CORPUS": "builtin:stdlib",
        "SITES": "blocks.0.hook_mlp_out",
        "TOKENS": "100k",
        "OUT": str(out),
        "DEVICE": "cpu",
        "SLURM_ARRAY_JOB_ID": "41",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_TASK_COUNT": "1",
    }
    script = ["bash", str(HARVEST)]
    with subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL) as job:
        while not (out / "units").exists() or not list((out / "units").iterdir()):
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 41_1\n"
    with pytest.raises(UnfinishedError):
        actstore.open(out)
    subprocess.run(script, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert actstore.open(out).manifest.n_rows == 100_096
