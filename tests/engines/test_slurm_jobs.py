"""What is submitted to Slurm, what is made of its answers, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import actstore
import trainer
from actstore.engines import slurm_job
from actstore.engines.engine_option import Engine, EngineOptions
from actstore.engines.slurm_folder import JobFolder, folder_beside
from actstore.engines.slurm_queue import main_ids, queued
from actstore.engines.slurm_submit import submit
from actstore.errors import EngineError, ExistsError, SpecError
from actstore.format.storage import Storage
from actstore.harvesting import harvest_job, harvest_on_slurm
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.harvesting.progress import Progress
from actstore.machine.stop_signals import Stop
from schemas.harvest import HarvestSpec
from schemas.slurm import JobOutcome, JobWork, SubmittedJobs
from schemas.train import TrainSpec
from tests.cli.conftest import cli  # noqa: F401 - a fixture
from tests.engines import fake_slurm
from trainer.training.learner import Interval
from trainer.training.spread_passes import cost, spread
from trainer.training.step_loop import Progress as Training
from trainer.training.sweep_on_slurm import combined

HARVEST = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.{0..1}.hook_mlp_out",
    "tokens": 4096,
    "unit_sequences": 8,
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's commands, which are on PATH."""
    folder = tmp_path / "slurm"
    programs = fake_slurm.install(folder)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return folder


def some_jobs(n: int) -> SubmittedJobs:
    works = tuple(JobWork(name=f"worker {i}", text="{}") for i in range(n))
    return SubmittedJobs(
        what="w", job_name="actstore-x-1", function="actstore.nosuch:f", works=works
    )


def submitted(slurm: Path, tmp_path: Path, n: int, *rest: Any) -> dict[str, str]:
    """The options of sbatch that n jobs were submitted with."""
    folder = JobFolder(tmp_path / "folder")
    folder.make()
    assert submit(some_jobs(n), folder, *rest) == "100"
    lines = (slurm / "script").read_text().splitlines()
    options = [
        line.removeprefix("#SBATCH --")
        for line in lines
        if line.startswith("#SBATCH --")
    ]
    assert any(line.startswith("srun ") for line in lines)
    return {key: value for key, _, value in (one.partition("=") for one in options)}


def test_what_is_submitted(slurm: Path, tmp_path: Path) -> None:
    asked = {"partition": "gpu", "time": "8:00:00", "account": "interp"}
    options = submitted(slurm, tmp_path, 4, asked, True, 2)
    logs = options.pop("output")
    assert logs.endswith("/folder/%A_%a_0_log.out")
    assert options == {
        "array": "0-3%2",
        "job-name": "actstore-x-1",
        "partition": "gpu",
        "time": "8:00:00",
        "account": "interp",
        "nodes": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "4",
        "open-mode": "append",
        "requeue": "",
        "signal": "USR2@120",
    }


def test_what_is_not_asked_for_is_left_to_slurm(slurm: Path, tmp_path: Path) -> None:
    options = submitted(slurm, tmp_path, 1, {}, False, None)
    assert not {"time", "partition", "account", "gpus-per-node", "array"} & set(options)


def test_pickles_have_names_and_numbers_only(slurm: Path, tmp_path: Path) -> None:
    submitted(slurm, tmp_path, 2, {}, False, None)
    import pickletools

    pickles = list((tmp_path / "folder").glob("*.pkl"))
    assert pickles
    for path in pickles:
        strings = [
            str(value)
            for code, value, _ in pickletools.genops(path.read_bytes())
            if isinstance(value, str)
        ]
        ours = [text for text in strings if text.startswith(("actstore", "trainer"))]
        assert ours == ["actstore.engines.slurm_job"]
    assert (tmp_path / "folder").stat().st_mode & 0o077 == 0


def test_slurms_refusal_is_told(slurm: Path, tmp_path: Path) -> None:
    (slurm / "refuses").touch()
    with pytest.raises(EngineError, match="invalid partition specified: nosuch"):
        submitted(slurm, tmp_path, 2, {}, False, None)
    assert not (tmp_path / "folder").exists()


def test_where_slurm_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="slurm:local"):
        actstore.harvest(HARVEST, tmp_path / "s", engine="slurm", workers=2)
    assert not list(tmp_path.iterdir())


def test_without_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(EngineError, match=r"pip install 'actstore\[slurm\]'"):
        actstore.harvest(HARVEST, tmp_path / "s", engine="slurm:local", workers=2)
    assert not list(tmp_path.iterdir())


def test_what_a_harvest_refuses(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="how many jobs"):
        actstore.harvest(HARVEST, tmp_path / "s", engine="slurm:debug")
    with pytest.raises(SpecError, match="ACTSTORE_STORAGE_OPTIONS"):
        harvest_on_slurm.harvest_on_slurm(
            resolve_spec(HARVEST, None, None),
            "s3://b/s",
            EngineOptions(Engine("slurm", "debug"), 1, {}),
            device="cpu",
            options={"key": "k"},
            report=lambda _: None,
        )


def answering(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "squeue"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_squeue_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, "echo 12_0; echo 12_31; echo; echo odd", monkeypatch)
    assert queued("n") == {0: "12_0", 31: "12_31"}
    assert main_ids({0: "12_0", 31: "12_31", 1: "9"}) == "12 9"
    answering(tmp_path, "echo 7", monkeypatch)
    assert queued("n") == {0: "7"}
    answering(tmp_path, "true", monkeypatch)
    assert queued("n") == {}
    # Slurm's controller is busy: that says nothing of the jobs.
    answering(tmp_path, "echo slurm_load_jobs error >&2; exit 1", monkeypatch)
    assert queued("n") is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert queued("n") is None


def test_where_the_folder_lies(tmp_path: Path) -> None:
    assert folder_beside(tmp_path / "a" / "s", "n") == tmp_path / "a" / ".s.slurm"
    assert folder_beside(None, "n") == Path.home() / ".actstore" / "slurm" / "n"


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "f")
    folder.make()
    folder.make()
    folder.path.chmod(0o770)
    with pytest.raises(EngineError, match="only you may"):
        folder.make()
    folder.path.rmdir()
    folder.path.symlink_to(tmp_path)
    with pytest.raises(EngineError, match="only you may"):
        folder.make()


def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "f")
    folder.make()
    assert folder.submitted() is None
    assert folder.outcome(0) is None
    assert folder.progress(0) is None
    folder.write_submitted(some_jobs(2))
    folder.write_outcome(0, JobOutcome(job="1"))
    folder.write_progress(1, "x")
    assert folder.submitted() == some_jobs(2)
    assert folder.outcome(0) == JobOutcome(job="1")
    assert folder.progress(1) == "x"
    (folder.path / "7_0_log.out").write_text("log")
    folder.keep_logs()
    assert [path.name for path in folder.path.iterdir()] == ["7_0_log.out"]
    (folder.path / "jobs.json").write_text("{")
    with pytest.raises(EngineError, match=r"jobs\.json"):
        folder.submitted()


def test_only_functions_of_ours_are_called() -> None:
    found: object = slurm_job.function("actstore.engines.slurm_queue:queued")
    assert found is queued
    for name in ("os:system", "actstore_evil:f", "tests.support:make_store"):
        with pytest.raises(EngineError, match="not a function"):
            slurm_job.function(name)


def test_progress_of_workers_is_added_up() -> None:
    spec = HarvestSpec.model_validate(
        {"model": {"name": "m"}, "corpus": {"name": "c"}, "sites": ["a"], "tokens": 100}
    )
    told: list[str | None] = [None, None]
    assert harvest_on_slurm.combined(told, spec).n_tokens == 0
    told[1] = json.dumps(Progress("loading the model"))
    assert harvest_on_slurm.combined(told, spec).stage == "loading the model"
    told[0] = json.dumps(Progress("harvesting", 10, 60, 1, 6, 2, 5, 1000))
    one = harvest_on_slurm.combined(told, spec)
    assert (one.tokens, one.n_tokens) == (10, 100)
    told[1] = json.dumps(Progress("harvesting", 20, 40, 2, 4, 1, 0, 2000))
    both = harvest_on_slurm.combined(told, spec)
    assert both[1:] == (30, 100, 3, 10, 3, 5, 3000)
    assert "2 of 2" in both.stage


def test_progress_of_passes_is_added_up() -> None:
    interval = Interval(10, 1.0, 1.0, 4.0, 0.5, 0, [], {})
    one = Training(5, 10, 100.0, 0.2, {"a": interval})
    other = Training(1, 20, 50.0, 0.0, {"b": interval})
    assert combined([one, None]).steps == 20
    both = combined([one, other])
    assert (both.step, both.steps, both.rows_per_s, both.stall) == (6, 30, 150.0, 0.1)
    assert set(both.last) == {"a", "b"}


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(1, 20))
def test_passes_are_spread_over_places(sizes: list[int], n_places: int) -> None:
    spec = TrainSpec.model_validate({"store": "s", "sae": {"kind": "topk", "k": 4}})
    passes = [{f"{i}/{j}": spec for j in range(size)} for i, size in enumerate(sizes)]
    found = spread(passes, n_places)
    # Each run is in one pass.
    urls = [url for one in passes for url in one]
    assert sorted(url for one in found for url in one) == sorted(urls)
    assert all(found)
    assert len(found) >= min(n_places, len(urls))
    assert len(found) == max(len(passes), min(n_places, len(urls)))
    # No pass has runs of two.
    assert all(len({url.split("/")[0] for url in one}) == 1 for one in found)


@given(st.lists(st.integers(1, 64), min_size=2, max_size=12))
def test_a_pass_is_divided_by_what_its_runs_cost(sizes: list[int]) -> None:
    specs = {}
    for i, size in enumerate(sizes):
        sae = {"kind": "topk", "k": 1, "n_latents": size}
        specs[str(i)] = TrainSpec.model_validate({"store": "s", "sae": sae})
    a, b = (cost(half.values()) for half in spread([specs], 2))
    # Whoever took the last run was the lighter one before.
    assert abs(a - b) <= max(cost([spec]) for spec in specs.values())


def objects(folder: Path) -> dict[str, bytes]:
    """All files of a store; claims name processes and times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "store"
    actstore.harvest(HARVEST, folder)
    return folder


def test_a_harvest_in_this_process_is_the_same(store: Path, tmp_path: Path) -> None:
    two = actstore.harvest(HARVEST, tmp_path / "two", engine="slurm:debug", workers=2)
    assert two.manifest.n_rows == 4096
    assert objects(store) == objects(tmp_path / "two")
    assert {path.name for path in tmp_path.iterdir()} == {"two"}


def test_a_users_mistake_is_told_with_the_log(
    cli: Callable[..., tuple[int, str, str]],  # noqa: F811
    tmp_path: Path,
) -> None:
    words = [f"--{key.replace('_', '-')}={value}" for key, value in HARVEST.items()]
    code, _, err = cli(
        "actstore", "harvest", *words, "--sites=nosuch", f"--out={tmp_path}/s",
        "--engine=slurm:debug", "--workers=2",
    )  # fmt: skip
    assert code == 1
    assert "Traceback" not in err
    assert "nosuch" in err
    assert "worker 1/2, job DEBUG_" in err
    assert "2 of 2 jobs failed" in err
    # Logs stay, where the message says, and nothing else does.
    (left,) = [path for path in tmp_path.iterdir() if "slurm" in path.name]
    assert str(left) in err.replace("\n", "")
    assert not [path for path in left.iterdir() if "log" not in path.name]


def test_a_sweep_in_this_process_is_the_same(store: Path, tmp_path: Path) -> None:
    base = {
        "store": str(store),
        "sae": {"kind": "topk", "n_latents": 32},
        "rows": 10_000,
    }
    sweep = {"base": base, "grid": {"sae.k": [2, 4], "seed": [0, 1]}}
    runs = trainer.sweep(sweep, tmp_path / "one")
    others = trainer.sweep(sweep, tmp_path / "two", engine="slurm:debug", workers=3)
    assert set(runs) == set(others)
    for name in runs:
        weights = [
            (Path(folder) / "sae.safetensors").read_bytes()
            for folder in (runs[name], others[name])
        ]
        assert weights[0] == weights[1]
    assert not [path for path in tmp_path.iterdir() if "slurm" in path.name]


def test_a_store_that_another_job_finishes_meanwhile(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one had found it unfinished, and then loaded its model."""
    looks = iter([False, True])
    monkeypatch.setattr(Storage, "exists", lambda *_: next(looks))
    work = harvest_on_slurm._works(resolve_spec(HARVEST), str(store), 2, "cpu")[0]

    def finished(*_: object, **__: object) -> None:
        raise ExistsError("a finished store is already there")

    monkeypatch.setattr(harvest_job, "harvest", finished)
    harvest_job.harvest_share(work.text, Stop(), print)
    assert next(looks, None) is None
