"""SAEs kept from training: written, evaluated one by one, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import actstore
import trainer
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.analysis.evidence import figures_of
from trainer.analysis.over_training import compute_over_training, plot_over_training
from trainer.cli import app
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.runs.kept_weights import kept_steps, load_kept, snapshot_steps
from trainer.training.train_group import train_group

STEPS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "store")


def spec(store: Store, **changes: Any) -> TrainSpec:
    raw = {
        "store": store.url,
        "sae": {"kind": "batch_topk", "k": 4, "n_latents": 32},
        "rows": 64 * STEPS,
        "stream": {"batch": 64, "rescale": "linear", "center": True},
        "optimiser": {"lr": 1e-2},
        "snapshots": 4,
    }
    return TrainSpec.model_validate({**raw, **changes})


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("runs") / "one")
    train_group(store, {url: spec(store)})
    trainer.evaluate_checkpoints(url)
    return url


def test_when_snapshots_are_written() -> None:
    assert snapshot_steps(4, 10) == {2, 5, 7, 10}
    assert snapshot_steps(3, 2) == {1, 2}
    assert snapshot_steps(0, 10) == set()
    assert snapshot_steps(1, 7) == {7}


def test_a_snapshot_is_what_a_run_of_so_many_steps_has(
    store: Store, tmp_path: Path
) -> None:
    """Training that is stopped there has the same weights: no schedule depends on when
    it ends."""
    constant = {"lr": 1e-2, "warmup": 0.0, "decay": 0.0, "sparsity_warmup": 0.0}
    sae = {"kind": "relu_l1", "l1": 0.1, "n_latents": 32}
    common = {"sae": sae, "optimiser": constant, "dead_rows": 10_000}
    long, short = str(tmp_path / "long"), str(tmp_path / "short")
    train_group(store, {long: spec(store, **common)})
    train_group(store, {short: spec(store, rows=64 * 3, **common)})
    kept = load_kept(long, 3)
    assert kept.rows == 64 * 3
    wanted = trainer.load(short)
    torch.testing.assert_close(kept.sae.decoder, wanted.decoder, rtol=0, atol=0)
    x = torch.from_numpy(store.read(store.sites[0], np.arange(8)))
    torch.testing.assert_close(
        kept.sae.reconstruct(x, 0), wanted.reconstruct(x, 0), rtol=0, atol=0
    )


@pytest.mark.parametrize("ema", [None, 0.9])
def test_checkpoints_give_the_same_sae_as_snapshots(
    ema: float | None, store: Store, tmp_path: Path
) -> None:
    url = str(tmp_path / "run")
    sae = {"kind": "relu_l1", "l1": 0.1, "n_latents": 32}
    train_group(store, {url: spec(store, ema=ema, sae=sae, checkpoint_every=6, keep=5)})
    assert kept_steps(Storage(url)) == [3, 6, 9, 12]
    of_snapshot = load_kept(url, 6)
    Path(url, "snapshots/step-00000006.safetensors").unlink()
    of_checkpoint = load_kept(url, 6)
    assert of_checkpoint.rows == of_snapshot.rows == 64 * 6
    ours, theirs = of_checkpoint.sae, of_snapshot.sae
    for name, tensor in theirs.sae.state_dict().items():
        torch.testing.assert_close(ours.sae.state_dict()[name], tensor)
    torch.testing.assert_close(ours.mean, theirs.mean)
    assert not torch.equal(ours.decoder, load_kept(url, 12).sae.decoder)


def test_each_sae_is_evaluated_as_by_hand(store: Store, run: str) -> None:
    lines = Path(run, "evals.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12]
    records = trainer.evaluate_checkpoints(run, rows=40)
    for record in records:
        kept = load_kept(run, record.step)
        wanted, _ = evaluate_rows(kept.sae, store, max_rows=40)
        assert record.evaluation == wanted
        assert record.rows == 64 * record.step
    assert len({record.evaluation.pooled.fvu for record in records}) == 4
    trainer.evaluate_checkpoints(run)


def test_a_run_that_kept_nothing(store: Store, tmp_path: Path) -> None:
    url = tmp_path / "run"
    train_group(store, {str(url): spec(store, snapshots=0)})
    for file in url.glob("checkpoints/*/state.json"):
        file.unlink()
    with pytest.raises(RunError, match=r"kept no SAE.*snapshots N"):
        trainer.evaluate_checkpoints(str(url))
    with pytest.raises(RunError, match=r"trainer eval .* --checkpoints"):
        compute_over_training([str(url)])
    with pytest.raises(RunError, match="one run or more"):
        compute_over_training([])


def test_a_resumed_run_writes_the_same_snapshots(store: Store, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    every = {"checkpoint_every": 5, "keep": 9}
    train_group(store, {str(whole): spec(store, **every)})
    train_group(store, {str(halves): spec(store, **every)})
    (halves / "sae.json").unlink()
    for step in (10, 12):
        (halves / f"checkpoints/step-{step:08d}/state.json").unlink()
    for step in (6, 9, 12):
        (halves / f"snapshots/step-{step:08d}.safetensors").unlink()
    train_group(store, {str(halves): spec(store, **every)}, resume=True)
    names = sorted(path.name for path in whole.glob("snapshots/*"))
    assert len(names) == 4
    for name in names:
        here = (halves / "snapshots" / name).read_bytes()
        assert here == (whole / "snapshots" / name).read_bytes()


def test_the_table_of_runs(store: Store, run: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    train_group(store, {other: spec(store, seed=3, name="the other")})
    trainer.evaluate_checkpoints(other)
    table = compute_over_training([run, other])
    n_sites = len(store.sites)
    assert len(table) == 2 * 4 * (n_sites + 1)
    assert list(dict.fromkeys(table["run"])) == ["one", "the other"]
    assert set(table["seed"]) == {0, 3}
    [last] = trainer.evaluate_checkpoints(run)[-1:]
    assert table["step"][4 * (n_sites + 1) - 1] == last.step
    assert table["fvu"][4 * (n_sites + 1) - 1] == last.evaluation.pooled.fvu
    assert table["dead"][4 * (n_sites + 1) - 1] == last.evaluation.dead
    assert np.isnan(table["kl"]).all()
    fvu, l0, suppression, dead = plot_over_training(table)
    assert [len(one.series) for one in (fvu, l0, suppression, dead)] == [2, 2, 2, 2]
    assert [one.name for one in fvu.series] == ["one", "the other"]
    assert list(fvu.series[0].x) == [64 * 3, 64 * 6, 64 * 9, 64 * 12]
    one_site = compute_over_training([run, other], [store.sites[1]])
    assert set(one_site["site"]) == {store.sites[1]}
    assert len(plot_over_training(one_site)[0].series) == 2
    two_sites = compute_over_training([run, other], store.sites[:2])
    assert len({one.name for one in plot_over_training(two_sites)[0].series}) == 4
    with pytest.raises(RunError, match=r"nowhere.*pooled"):
        compute_over_training([run], ["nowhere"])


def test_sites_of_one_run_are_lines(store: Store, run: str) -> None:
    fvu = figures_of(compute_over_training([run]))[0]
    names = [one.name for one in fvu.series]
    assert names == ["0 mlp_out", "1 mlp_out", "2 mlp_out", "pooled"]
    assert [one.shade for one in fvu.series] == [0.0, 0.5, 1.0, None]


def test_the_language_model_over_training(tmp_path: Path) -> None:
    what = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "tokens": 8_000,
        "context": 32,
        "sites": ["blocks.{1..2}.hook_mlp_out"],
    }
    store = actstore.harvest(what, str(tmp_path / "store"))
    url = str(tmp_path / "run")
    train_group(store, {url: spec(store, snapshots=2)})
    command = ["eval", url, "--checkpoints", "--ce", "--sequences", "2", "--rows", "64"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "rows seen" in done.output
    assert "768" in done.output
    assert not Path(url, "eval.json").exists()
    analyzed = CliRunner().invoke(app, ["analyze", "over-training", url, "--json"])
    assert analyzed.exit_code == 0, analyzed.output
    columns = {one["name"]: one for one in json.loads(analyzed.output)["columns"]}
    assert columns["rows"]["values"] == [384] * 3 + [768] * 3
    assert min(columns["kl"]["values"]) > 0
    assert None not in columns["recovered_zero"]["values"]


def test_the_records_of_a_run_have_them(run: str) -> None:
    from trainer.runs.run_data import read_run

    trainer.evaluate(run)
    data = read_run(run)
    assert [one.step for one in data.checkpoints] == [3, 6, 9, 12]
    Path(run, "evals.jsonl").rename(Path(run, "away"))
    assert list(read_run(run).checkpoints) == []
    Path(run, "away").rename(Path(run, "evals.jsonl"))
