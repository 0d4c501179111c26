"""The SkyPilot and dstack tasks: keys that their schemas have, as written down here from
their sources, and command lines that ours take.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.support import (
    DEPLOY,
    calls,
    check_command,
    template,
    unnoticed,
    wrong,
)

SKYPILOT = template("skypilot.yaml")
DSTACK = template("harvest.dstack.yml")
WORKERS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


def matching(pattern: str) -> Any:
    return lambda value: re.fullmatch(pattern, str(value)) is not None


# skypilot's sky/utils/schemas.py, get_task_schema and get_resources_schema (0.11).
VARIABLES = {"*": (str, type(None))}
SKYPILOT_KEYS: dict[str, Any] = {
    "name": str,
    "workdir": (str, dict),
    "num_nodes": int,
    "resources": {
        "infra": str,
        "cpus": matching(r"\d+\+?"),
        "memory": matching(r"\d+\+?"),
        "accelerators": (str, list, dict),
        "instance_type": str,
        "use_spot": bool,
        "job_recovery": {
            "strategy": str,
            "max_restarts_on_errors": int,
            "recover_on_exit_codes": (int, list),
        },
        "disk_size": (int, str),
        "disk_tier": str,
        "network_tier": str,
        "ports": (int, str, list),
        "labels": {"*": str},
        "image_id": (str, dict),
        "autostop": (bool, int, str, dict),
        "any_of": list,
        "ordered": list,
    },
    "file_mounts": dict,
    "volumes": dict,
    "setup": str,
    "run": str,
    "envs": VARIABLES,
    "secrets": VARIABLES,
    "config": dict,
    "service": dict,
}
# dstack's src/dstack/_internal/core/models, configurations.py and profiles.py (0.21).
DURATION = matching(r"\d+[smhdw]")
RANGE = matching(r"[\dGMT]*B?(\.\.)?[\dGMT]*B?")
DSTACK_KEYS: dict[str, Any] = {
    "type!": {"task"},
    "name": matching("[a-z][a-z0-9-]{1,40}"),
    "nodes": int,
    "groups": list,
    "image": str,
    "user": str,
    "python": {"3.10", "3.11", "3.12", "3.13", "3.14"},
    "nvcc": bool,
    "privileged": bool,
    "entrypoint": str,
    "working_dir": str,
    "registry_auth": dict,
    "env": (list, dict),
    "shell": str,
    "commands": [str],
    "ports": list,
    "resources": {
        "cpu": RANGE,
        "memory": RANGE,
        "gpu": matching(r"[\w.]+(:\d+(\.\.\d*)?)?"),
        "disk": RANGE,
        "shm_size": RANGE,
    },
    "volumes": list,
    "docker": bool,
    "repos": [
        {"local_path": str, "url": str, "branch": str, "hash": str, "path": str}
        | {"if_exists": {"error", "skip"}}
    ],
    "files": list,
    "priority": int,
    "backends": list,
    "regions": list,
    "instance_types": list,
    "spot_policy": {"spot", "on-demand", "auto"},
    "retry": {
        "on_events": [{"no-capacity", "interruption", "error"}],
        "duration": DURATION,
    },
    "max_duration": DURATION,
    "stop_duration": DURATION,
    "max_price": (int, float),
    "idle_duration": DURATION,
    "utilization_policy": dict,
    "startup_order": {"any", "master-first", "workers-first"},
    "stop_criteria": {"all-done", "master-done"},
    "fleets": list,
    "tags": dict,
}


def check_skypilot(task: dict[str, Any]) -> None:
    assert wrong(task, SKYPILOT_KEYS) == []
    # What is secret has no value in a file.
    assert task["secrets"]
    assert set(task["secrets"].values()) == {None}
    assert not [name for name in task["envs"] if "KEY" in name]
    assert task["resources"]["use_spot"]
    assert "max_restarts_on_errors" in task["resources"]["job_recovery"]
    for key in ("name", "num_nodes", "workdir", "setup", "run"):
        assert key in task
    for key in ("accelerators", "cpus", "memory", "disk_size"):
        assert key in task["resources"]


def check_dstack(task: dict[str, Any]) -> None:
    assert wrong(task, DSTACK_KEYS) == []
    # `image` would bring a Python of its own.
    assert ("python" in task) != ("image" in task)
    secret = [name for name in task["env"] if "KEY" in name]
    assert secret
    assert all("=" not in name for name in secret)
    (repo,) = task["repos"]
    assert (DEPLOY / repo["local_path"]).resolve() == DEPLOY.parent
    assert repo["path"] in task["commands"][0]


def test_the_tasks_are_right() -> None:
    check_skypilot(SKYPILOT)
    check_dstack(DSTACK)


@pytest.mark.parametrize(
    ("check", "task", "free"),
    [(check_skypilot, SKYPILOT, ("envs", "secrets")), (check_dstack, DSTACK, ())],
)
def test_each_misspelt_key_is_found(check: Any, task: Any, free: Any) -> None:
    assert unnoticed(check, task, free, least=15) == []


@pytest.mark.parametrize(
    ("check", "task", "change"),
    [
        (check_skypilot, SKYPILOT, {"num_nodes": "8"}),
        (check_skypilot, SKYPILOT, {"secrets": {"AWS_ACCESS_KEY_ID": "AKIA"}}),
        (check_skypilot, SKYPILOT, {"resources": {"use_spot": "yes"}}),
        (check_dstack, DSTACK, {"type": "job"}),
        (check_dstack, DSTACK, {"spot_policy": "cheap"}),
        (check_dstack, DSTACK, {"max_duration": "2 days"}),
        (check_dstack, DSTACK, {"env": ["AWS_SECRET_ACCESS_KEY=abc"]}),
        (check_dstack, DSTACK, {"retry": {"on_events": ["preemption"]}}),
    ],
)
def test_wrong_values_are_found(check: Any, task: Any, change: Any) -> None:
    with pytest.raises(AssertionError):
        check({**task, **change})


def scripts() -> list[str]:
    return [SKYPILOT["setup"], SKYPILOT["run"], *DSTACK["commands"]]


def test_shellcheck_finds_nothing_in_them() -> None:
    for script in scripts():
        done = subprocess.run(
            [Path(sys.executable).parent / "shellcheck", "--shell=bash", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), script


def test_skypilots_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"SKYPILOT_NODE_RANK": "7", "SKYPILOT_NUM_NODES": "8"}
    environment = {**WORKERS, **SKYPILOT["envs"], **ranks}
    (install,) = calls(["bash", "-c", SKYPILOT["setup"]], tmp_path, environment)
    assert install == ["pip", "install", "--constraint", "constraints.txt", "."]
    (words,) = calls(["bash", "-c", SKYPILOT["run"]], tmp_path, environment)
    spec, out, named = check_command(words, monkeypatch).what
    assert (named["worker"], out) == ("8/8", SKYPILOT["envs"]["OUT"])
    assert SKYPILOT["num_nodes"] == 8


def test_dstacks_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"DSTACK_NODE_RANK": "0", "DSTACK_NODES_NUM": "8"}
    told = dict(entry.split("=", 1) for entry in DSTACK["env"] if "=" in entry)
    environment = {**WORKERS, **told, **ranks}
    script = "\n".join(DSTACK["commands"])
    install, words = calls(["bash", "-c", script], tmp_path, environment)
    assert install[:2] == ["pip", "install"]
    spec, out, named = check_command(words, monkeypatch).what
    assert (named["worker"], out) == ("1/8", told["OUT"])
