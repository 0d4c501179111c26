"""Sweeps: what shares a pass, how much memory that takes, and how each SAE goes on by
itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainer
from actstore.store.store import Store
from actstore.stream.stream import Stream
from schemas.train import SweepSpec, TrainSpec
from tests.cli.conftest import Cli, cli  # noqa: F401 (a fixture)
from tests.support import make_store
from trainer.saes.encoder_init import FIT_ROWS
from trainer.training.memory_estimate import (
    Memory,
    estimate,
    fitting,
    state_bytes,
    usable_memory,
)
from trainer.training.run_stream import n_steps, shared_stream
from trainer.training.sweep import expand, groups
from trainer.training.train_group import Progress, train_group

ROOT = Path(__file__).parents[3]
BATCH = 64


class StoppedError(Exception):
    """Stands for the end of a process between two steps."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("sweep") / "s", n_units=24, unit_sequences=4
    )


def base(store: Store, **more: Any) -> dict[str, Any]:
    sae = {"kind": "topk", "k": 2, "n_latents": 64}
    return {
        "store": store.url,
        "sae": sae,
        "stream": {"batch": BATCH},
        "rows": 30 * BATCH,
        "log_every": 10,
        **more,
    }


def specs_of(
    store: Store, grid: dict[str, list[Any]], **more: Any
) -> dict[str, TrainSpec]:
    return expand(SweepSpec(base=base(store, **more), grid=grid))


def test_any_field_varies_and_names_are_those_of_folders(store: Store) -> None:
    kinds = [
        {"kind": "topk", "k": 4, "n_latents": 32},
        {"kind": "relu_l1", "l1": 0.5, "expansion": 2},
    ]
    sites = [["blocks.0.hook_mlp_out"], ["blocks.{1..2}.hook_mlp_out"]]
    made = specs_of(
        store,
        {
            "sae": kinds,
            "stream.sites": sites,
            "optimiser.lr": [1e-3],
            "stream.filter": [None],
        },
    )
    assert list(made) == [
        f"sae={sae},sites={site},lr=0.001,filter=None"
        for sae in ("kind-topk+k-4+n_latents-32", "kind-relu_l1+l1-0.5+expansion-2")
        for site in ("blocks.0.hook_mlp_out", "blocks.{1..2}.hook_mlp_out")
    ]
    one = list(made.values())[3]
    assert one.sae.model_dump()["l1"] == 0.5
    assert one.stream.sites == ("blocks.{1..2}.hook_mlp_out",)
    assert one.stream.batch == BATCH


def test_runs_share_a_pass_only_where_they_see_the_same_rows(store: Store) -> None:
    free: dict[str, list[Any]] = {
        "seed": [0, 1],
        "stream.rescale": ["none", "log"],
        "stream.center": [True, False],
        "rows": [100, 5000],
    }
    assert [len(group) for group in groups(specs_of(store, free))] == [16]
    matters: dict[str, list[Any]] = {
        "stream.seed": [0, 1],
        "stream.batch": [32, 64],
        "stream.sites": [["blocks.0.*"], ["blocks.1.*"]],
        "stream.split": ["train", "held_out"],
        "stream.weights": [None, {"blocks.0.*": 2}],
        "stream.filter": [None, {"positions": [1, 20]}],
        "stream.skip_rows": [0, 100],
        "stream.mode": ["mixed", "aligned"],
        "stream.follow": [False, True],
        "checkpoint_every": [5, 10],
    }
    for name, values in matters.items():
        parts = groups(specs_of(store, {name: values, "sae.k": [2, 3]}))
        assert [len(group) for group in parts] == [2, 2], name


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [
        ({}, None, "epoch"),
        ({}, 1000, 16),
        ({"limit_rows": 640}, None, 10),
        ({"limit_rows": 640}, 100_000, 10),
        ({"skip_rows": 100, "limit_rows": 640}, None, 11),
        ({"epochs": 3}, None, "3 epochs"),
        ({"epochs": None}, None, "epoch"),
        ({"skip_rows": 128}, None, "epoch without 2"),
    ],
)
def test_steps_are_those_that_the_stream_has(
    store: Store, changes: dict[str, Any], rows: int | None, steps: Any
) -> None:
    spec = TrainSpec.model_validate(
        base(store, stream={"batch": BATCH, **changes}, rows=rows)
    )
    with Stream(store, shared_stream(spec)) as stream:
        epoch = stream.batches_per_epoch
        wanted = {
            "epoch": epoch,
            "3 epochs": 3 * epoch,
            "epoch without 2": epoch - 2,
        }.get(steps, steps)
        assert n_steps(spec, stream) == wanted
    own = spec.stream.model_copy(update={"epochs": spec.stream.epochs or 1})
    if rows is None:
        with Stream(store, own) as stream:
            assert len(list(stream)) == wanted, (
                "as many as the run's own stream delivers"
            )


def test_weights_filters_and_skipped_rows_train_through_the_spec(
    store: Store, tmp_path: Path
) -> None:
    stream = {
        "batch": BATCH,
        "weights": {"blocks.0.*": 3},
        "filter": {"positions": [2, 30], "norms": [{"high": 0.9}]},
        "skip_rows": 150,
    }
    spec = TrainSpec.model_validate(base(store, stream=stream, checkpoint_every=10))
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    train_group(store, {whole: spec})
    stop_at(store, {cut: spec}, 17)
    train_group(store, {cut: spec}, resume=True)
    assert (Path(whole) / "sae.safetensors").read_bytes() == (
        Path(cut) / "sae.safetensors"
    ).read_bytes()
    assert trainer.load(whole).record.steps == 30


def stop_at(store: Store, specs: dict[str, TrainSpec], step: int) -> None:
    def stop(now: Progress) -> None:
        if now.step == step:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_group(store, specs, report=stop, resume=True)


def test_each_sae_goes_on_from_its_own_last_checkpoint(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has ended, one is ahead, one behind, one has not begun: the last three share
    a pass.
    """
    made = specs_of(store, {"seed": [0, 1, 2, 3]}, checkpoint_every=5)
    whole = {str(tmp_path / f"whole{i}"): spec for i, spec in enumerate(made.values())}
    train_group(store, whole)
    mine = {str(tmp_path / f"mine{i}"): spec for i, spec in enumerate(made.values())}
    urls = list(mine)
    train_group(store, {urls[0]: mine[urls[0]]})
    stop_at(store, {urls[1]: mine[urls[1]]}, 22)
    stop_at(store, {urls[2]: mine[urls[2]]}, 8)
    ended = (Path(urls[0]) / "sae.safetensors").stat().st_mtime_ns
    delivered: list[int] = []
    plain = Stream.__next__

    def counted(self: Stream) -> Any:
        delivered.append(1)
        return plain(self)

    monkeypatch.setattr(Stream, "__next__", counted)
    train_group(store, mine, resume=True)
    first = -(-(64 + FIT_ROWS) // BATCH)
    assert len(delivered) == 30 + first, "one pass, and what the new one begins from"
    for a, b in zip(whole, mine, strict=True):
        for name in (
            "sae.safetensors",
            "checkpoints/step-00000030/optimiser.safetensors",
        ):
            assert (Path(a) / name).read_bytes() == (Path(b) / name).read_bytes(), (
                b,
                name,
            )
        steps = [
            [
                json.loads(line)["step"]
                for line in (Path(url) / "journal.jsonl").read_text().splitlines()
            ]
            for url in (a, b)
        ]
        assert steps[0] == steps[1] == [10, 20, 30]
    assert (Path(urls[0]) / "sae.safetensors").stat().st_mtime_ns == ended


def test_groups_are_formed_to_fit(store: Store) -> None:
    made = list(specs_of(store, {"sae.n_latents": [64, 256, 128]}, ema=0.9).values())
    specs = {f"r{i}": spec for i, spec in enumerate([*made, made[0], *made, made[2]])}
    with Stream(store, shared_stream(specs["r0"])) as stream:
        exact = {name: state_bytes(spec, stream) for name, spec in specs.items()}
        n = 64
        assert exact["r0"] == 4 * 5 * (2 * 16 * n + n + 16)
        everything = estimate(list(specs.values()), stream, "cpu")
    for limit in (1, everything.total // 3, everything.total - 1, everything.total):
        parts = fitting(store, specs, limit, "cpu")
        assert [name for part in parts for name in part.specs] == list(specs)
        for part in parts:
            assert part.memory.total <= limit or len(part.specs) == 1
            assert part.memory.states == sum(exact[name] for name in part.specs)
    assert len(fitting(store, specs, everything.total, "cpu")) == 1
    assert len(fitting(store, specs, everything.total - 1, "cpu")) == 2
    assert len(fitting(store, specs, 1, "cpu")) == len(specs)
    assert usable_memory("cpu") > 1 << 20
    assert (
        str(Memory(4 * 10**9, 10**9, 10**8))
        == "5.1 GB (weights and optimisers 4, a step 1, rows 0.1)"
    )


def test_the_command_prints_its_plan_and_resumes_what_is_left(
    store: Store,
    tmp_path: Path,
    cli: Cli,  # noqa: F811
) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "runs"
    file.write_text(
        yaml.safe_dump(
            {"base": base(store), "grid": {"sae.k": [1, 2, 3], "stream.seed": [0, 1]}}
        )
    )
    words = ["trainer", "sweep", str(file), "--out", str(out)]
    code, _, err = cli(*words, "--memory", "1GB")
    assert code == 0, err
    assert "6 SAEs in 2 passes over the data; 1 GB may be taken" in err
    assert "pass 1: 3 SAEs, about " in err
    assert min(path.name for path in out.iterdir()) == "k=1,seed=0"
    code, _, err = cli(*words)
    assert (code, "already there" in err) == (1, True)
    (out / "k=2,seed=1" / "sae.json").unlink()
    code, _, err = cli(*words, "--resume", "--memory", "1kB")
    assert code == 0, err
    assert "1 SAEs in 1 pass over the data, 5 more have ended" in err
    assert "more than may be taken" in err
    code, _, err = cli(*words, "--resume")
    assert (code, "0 SAEs in 0 passes" in err) == (0, True)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="needs Linux' peak of resident memory",
)
@pytest.mark.parametrize("kind", ["relu_l1", "topk"])
def test_the_estimate_is_near_what_is_taken(tmp_path: Path, kind: str) -> None:
    """Growth of resident memory in a process of its own, that has trained small SAEs of
    the kind before.
    """
    words = [
        sys.executable,
        "-m",
        "tests.trainer.training.memory_use",
        str(tmp_path),
        kind,
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["states"] > 30e6
    assert found["step"] > 50e6
    assert found["windows"] > 10e6
    assert 0.65 * found["total"] < found["grown"] < 1.4 * found["total"], found
