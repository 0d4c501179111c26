"""Two processes never write one run: the second one is told, and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.errors import RunError
from trainer.runs.run_lock import RunLock
from trainer.training.train_group import Progress, train_group


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", n_units=24)


def spec(store: Store) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "store": store.url,
            "sae": {"kind": "topk", "k": 3, "expansion": 4},
            "stream": {"batch": 128},
            "rows": 128 * 12,
            "log_every": 2,
            "checkpoint_every": 4,
        }
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_process_that_resumes_is_refused_and_changes_nothing(
    store: Store, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    train_group(store, {str(alone): spec(store)})
    run = tmp_path / "run"
    refused: list[str] = []

    def meanwhile(progress: Progress) -> None:
        # After the first checkpoint, so that there is something to go on from.
        if progress.step != 6:
            return
        before = contents(run)
        words = ["trainer", "train", "--spec", f"{run}/spec.json", "--out", str(run)]
        done = subprocess.run(
            [sys.executable, "-m", *words, "--resume"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert contents(run) == before
        refused.append(done.stderr)

    train_group(store, {str(run): spec(store)}, report=meanwhile)
    assert len(refused) == 1
    assert f"error: {run}: another process is training this run" in refused[0]
    weights = "sae.safetensors"
    assert (run / weights).read_bytes() == (alone / weights).read_bytes()
    # The run's own process has freed it.
    train_group(store, {str(run): spec(store)}, resume=True)


def test_a_lock_is_one_and_can_be_freed(tmp_path: Path) -> None:
    first = RunLock(Storage(tmp_path))
    second = RunLock(Storage(tmp_path))
    first.take()
    first.take()  # by the one that has it
    with pytest.raises(RunError, match="another process is training this run"):
        second.take()
    first.free()
    second.take()
    second.free()
    second.free()


def test_places_without_locks_are_left_alone() -> None:
    first = RunLock(Storage("memory://runs/a"))
    second = RunLock(Storage("memory://runs/a"))
    first.take()
    second.take()
    first.free()
    second.free()
