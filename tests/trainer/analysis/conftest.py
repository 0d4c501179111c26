"""A store and trained runs of several kinds, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.evaluation.metrics_of_rows import evaluate_rows, write_evaluation
from trainer.runs.run_data import RunData, read_run
from trainer.runs.trained_sae import load
from trainer.training.train_group import train_group


class Trained(NamedTuple):
    """A store, and evaluated runs from it by name."""

    store: Store
    runs: dict[str, RunData]


SPECS: dict[str, dict[str, Any]] = {
    "plain": {"sae": {"kind": "relu_l1", "target_l0": 4, "expansion": 2}},
    "plain-1": {"sae": {"kind": "relu_l1", "target_l0": 4, "expansion": 2}, "seed": 1},
    "nsae": {"sae": {"kind": "nsae", "target_l0": 4, "expansion": 2}},
    "nsae-1": {"sae": {"kind": "nsae", "target_l0": 4, "expansion": 2}, "seed": 1},
    "on": {
        "sae": {"kind": "relu_l1", "target_l0": 4, "expansion": 2},
        "resample": {"every": 512, "times": 1, "candidates": 128},
    },
    "crosscoder": {
        "sae": {"kind": "crosscoder", "inner": {"kind": "topk", "k": 3}},
        "stream": {"batch": 128, "mode": "aligned"},
    },
    "transcoder": {
        "sae": {"kind": "transcoder", "inner": {"kind": "topk", "k": 3}},
        "stream": {
            "batch": 128,
            "mode": "pairs",
            "sites": ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"],
            "targets": ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"],
        },
    },
    "centred": {
        "sae": {"kind": "topk", "k": 3, "expansion": 2},
        "stream": {"batch": 128, "rescale": "sqrt", "center": True},
    },
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder: Path = tmp_path_factory.mktemp("trained")
    store = make_store(folder / "store", n_units=24)
    runs = {}
    for name, fields in SPECS.items():
        base = {"store": store.url, "stream": {"batch": 128}, "rows": 128 * 10}
        spec = TrainSpec.model_validate(base | {"log_every": 2} | fields)
        url = str(folder / name)
        train_group(store, {url: spec})
        record, firings = evaluate_rows(load(url), store)
        write_evaluation(url, record, firings)
        runs[name] = read_run(url)
    return Trained(store, runs)
