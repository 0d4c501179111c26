"""Commands have torch's threads wait briefly, unless the user has said how."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOWN = """
import os, sys
import trainer.cli, actstore.cli, trainer.demo, trainer.recipes.__main__
assert "torch" not in sys.modules, "it would have read its environment by now"
from actstore.console import cli_errors
cli_errors.run(lambda: print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")))
"""


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "2000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_how(
    given: dict[str, str], seen: str
) -> None:
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    }
    command = [sys.executable, "-c", SHOWN]
    out = subprocess.run(
        command, env={**plain, **given}, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == seen
