"""SAELens (6 and later) takes our stream as its data provider, in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support import make_store

PYTHON = os.environ.get("ACTSTORE_SAELENS_PYTHON")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    PYTHON is None, reason="ACTSTORE_SAELENS_PYTHON names no Python that has sae-lens"
)
@pytest.mark.timeout(180)
def test_saelens_trains_an_sae_from_our_stream(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=60, unit_sequences=16)
    command = [
        str(PYTHON),
        str(Path(__file__).with_name("saelens_provider.py")),
        store.url,
        sysconfig.get_path("purelib"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["batches"] >= 299
    assert seen["after"] < 0.5 * seen["before"]
    assert seen["after"] < 0.5
