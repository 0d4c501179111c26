"""The sliding window in which training counts firings, and the figures of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from actstore.figures.figure import HeatMap
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import StepRecord
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.analysis.density_over_training import (
    compute_density_over_training,
    plot_density_over_training,
)
from trainer.cli import app
from trainer.distributed.learner_protocol import Totals
from trainer.distributed.single_process import SINGLE_PROCESS
from trainer.errors import RunError
from trainer.evaluation.metric_definitions import DENSITY_BINS, density_bins
from trainer.runs.journal import read
from trainer.training.density_window import DensityWindow, window_steps
from trainer.training.train_group import train_group

CPU = torch.device("cpu")
BATCH = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "store")


def spec(store: str = "s", **changes: Any) -> TrainSpec:
    raw = {
        "store": store,
        "sae": {"kind": "topk", "k": 3, "n_latents": 24},
        "rows": BATCH * 40,
        "stream": {"batch": BATCH, "rescale": "linear"},
        "log_every": 4,
    }
    return TrainSpec.model_validate({**raw, **changes})


def totals(fired: torch.Tensor, rows: int = BATCH) -> Totals:
    return Totals(rows, fired, {}, torch.zeros(2, 1))


def test_the_size_of_a_window() -> None:
    assert window_steps(spec(), 400) == 40
    assert window_steps(spec(), 40) == 8
    assert window_steps(spec(density_rows=1000), 400) == 16
    assert window_steps(spec(density_rows=1), 400) == 1
    assert window_steps(spec(stream={"batch": 4096}), 10**6) == 10**7 // 4096


@settings(max_examples=50, deadline=None)
@given(
    window=st.integers(1, 40),
    steps=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_window_counts_the_last_rows(window: int, steps: int, seed: int) -> None:
    """Against counts of every batch that are kept."""
    rng = np.random.default_rng(seed)
    counted = DensityWindow(spec(density_rows=window * BATCH), 5, steps, CPU)
    fired = rng.integers(0, BATCH + 1, (steps, 5))
    for step in range(steps):
        counted.add(totals(torch.from_numpy(fired[step])), step)
    part = -(-window // 8)
    parts = -(-window // part)
    assert window <= part * parts < window + part
    first = max(0, ((steps - 1) // part - parts + 1) * part)
    state = counted.state()
    assert int(state["density_rows"].sum()) == (steps - first) * BATCH
    assert state["density_firings"].sum(0).tolist() == fired[first:].sum(0).tolist()
    if steps >= part * parts:
        assert steps - first > part * (parts - 1)
        assert steps - first <= part * parts
    histogram = counted.histogram(SINGLE_PROCESS)
    assert histogram.rows == (steps - first) * BATCH
    assert sum(histogram.counts) == 5
    share = fired[first:].sum(0) / histogram.rows
    logs = np.log10(np.maximum(share, 1e-10))
    wanted, _ = np.histogram(logs, np.linspace(-10.25, 0.25, 43))
    assert list(histogram.counts) == wanted.tolist()


def test_bins_by_hand() -> None:
    density = torch.tensor([0.0, 1.0, 0.011, 0.02, 0.5], dtype=torch.float64)
    counts = density_bins(density)
    assert len(counts) == DENSITY_BINS
    # -10.25 + 33 / 4 = -2 holds 0.011 (-1.96), the next 0.02 (-1.70)
    found = {i: int(n) for i, n in enumerate(counts) if n}
    assert found == {1: 1, 33: 1, 34: 1, 39: 1, 41: 1}


def test_a_histogram_is_due_once_for_each_part() -> None:
    window = DensityWindow(spec(density_rows=8 * 10 * BATCH), 2, 100, CPU)
    logged = range(4, 101, 4)
    due = [step for step in logged if window.is_due(step)]
    assert due == [12, 20, 32, 40, 52, 60, 72, 80, 92, 100]
    assert window.is_due(100)


def test_training_writes_what_fired(store: Store, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    train_group(store, {url: spec(store.url)})
    records = read(Storage(url))
    windows = [record.density for record in records]
    assert all(window is not None for window in windows)
    last = windows[-1]
    assert last is not None
    assert last.rows == 8 * BATCH
    assert sum(last.counts) == 24
    # k of each row fire: the densities sum to k, and bins tell them to a quarter
    low = sum(n * 10 ** (-10.25 + i / 4) for i, n in enumerate(last.counts))
    assert low <= 3 <= low * 10**0.25 + 24 * 1e-9


def test_a_resumed_run_counts_on(store: Store, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    every = {"checkpoint_every": 15, "keep": 9, "density_rows": 16 * BATCH}
    for url in (whole, halves):
        train_group(store, {str(url): spec(store.url, **every)})
    cut(halves, 15)
    train_group(store, {str(halves): spec(store.url, **every)}, resume=True)
    densities = [
        [record.density for record in read(Storage(str(url)))]
        for url in (whole, halves)
    ]
    assert densities[0] == densities[1]


def test_a_checkpoint_of_an_earlier_version(store: Store, tmp_path: Path) -> None:
    url = tmp_path / "run"
    every = {"checkpoint_every": 15, "keep": 9}
    train_group(store, {str(url): spec(store.url, **every)})
    cut(url, 15)
    path = url / "checkpoints/step-00000015/latents.safetensors"
    tensors = load_file(path)
    assert tensors["density_firings"].shape == (8, 24)
    del tensors["density_firings"], tensors["density_rows"]
    save_file(tensors, path)
    train_group(store, {str(url): spec(store.url, **every)}, resume=True)
    last = read(Storage(str(url)))[-1].density
    assert last is not None
    assert last.rows == 8 * BATCH


def cut(url: Path, step: int) -> None:
    """Take a run back to a checkpoint."""
    (url / "sae.json").unlink()
    for state in url.glob("checkpoints/*/state.json"):
        if int(state.parent.name.removeprefix("step-")) > step:
            state.unlink()


def test_a_record_without_one_looks_as_before() -> None:
    values = {"step": 1, "rows": 2, "loss": 0.5, "mse": 0.5, "l0": 1.0, "fvu": 0.1}
    values |= {"dead": 0, "lr": 0.1, "rows_per_s": 1.0, "stall": 0.0}
    record = StepRecord.model_validate(values)
    assert "density" not in json.loads(record.model_dump_json())


def test_the_table_and_figures(store: Store, tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    train_group(
        store, {one: spec(store.url), other: spec(store.url, seed=1, name="second")}
    )
    table = compute_density_over_training([one])
    for rows in np.unique(table["rows"]):
        assert table["latents"][table["rows"] == rows].sum() == 24
    heat, last = plot_density_over_training(table)
    assert isinstance(heat, HeatMap)
    assert heat.x.categories[-1] == f"{BATCH * 40:,}"
    assert np.nansum(10**heat.values) == pytest.approx(24 * len(heat.x.categories))
    assert heat.values.shape == (len(heat.y.categories), len(heat.x.categories))
    silent = next(value for key, value in table.facts.items() if "silent" in key)
    assert sum(last.series[0].y) + silent == 24
    both = compute_density_over_training([one, other])
    [last] = plot_density_over_training(both)
    assert [line.name for line in last.series] == ["one", "second"]
    done = CliRunner().invoke(app, ["analyze", "density", one, other, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["name"] == "density_over_training"


def test_runs_without_densities(store: Store, tmp_path: Path) -> None:
    url = tmp_path / "run"
    train_group(store, {str(url): spec(store.url)})
    lines = [
        json.loads(line) for line in (url / "journal.jsonl").read_text().splitlines()
    ]
    bad = {**lines[-1], "density": {"rows": 3, "counts": [1, 2]}}
    (url / "journal.jsonl").write_text(json.dumps(bad) + "\n")
    with pytest.raises(RunError, match="2 bins, wanted 42"):
        compute_density_over_training([str(url)])
    del bad["density"]
    (url / "journal.jsonl").write_text(json.dumps(bad) + "\n")
    with pytest.raises(RunError, match="no densities"):
        compute_density_over_training([str(url)])
    with pytest.raises(RunError, match="finished run"):
        compute_density_over_training([str(tmp_path / "nothing")])
    with pytest.raises(RunError, match="one run or more"):
        compute_density_over_training([])
