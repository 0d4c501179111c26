"""A harvest's peak memory, in a process of its own, against the bound that the plan
prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.records import MemoryEstimate

UNIT_SEQUENCES, N_UNITS = 350, 3
ROOT = Path(__file__).parents[2]


def ran(what: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    (tmp_path / "changes.json").write_text(
        json.dumps({"sequences": UNIT_SEQUENCES * N_UNITS, **changes})
    )
    words = [
        "-m",
        "tests.harvesting.memory_use",
        what,
        str(tmp_path / "store"),
        str(tmp_path / "changes.json"),
    ]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ran(
        "plan",
        tmp_path_factory.mktemp("plan"),
        unit_sequences=UNIT_SEQUENCES,
        codec="raw",
    )


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="needs Linux' peak of resident memory",
)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_peak_keeps_to_the_bound_of_the_plan(
    dtype: str, plans: dict[str, Any], tmp_path: Path
) -> None:
    """Units of 92 MB (int8: 184 MB, for it is quantised from float32), three of them in
    flight.
    """
    memory = MemoryEstimate.model_validate(plans[dtype])
    found = ran(
        "harvest", tmp_path, unit_sequences=UNIT_SEQUENCES, codec="raw", dtype=dtype
    )
    assert found["units"] == N_UNITS
    wide = 4 if dtype == "int8" else 2
    rows = UNIT_SEQUENCES * 64
    assert memory.units == 3 * rows * (2 * 1024 * wide + 2 * 4 + 8)
    # Below: where the disk is quick, the third buffer is not needed.
    bound = memory.total - memory.process
    assert 0.5 * bound < found["peak"] - found["before"] < 1.1 * bound
    assert found["peak"] < 1.1 * memory.total
