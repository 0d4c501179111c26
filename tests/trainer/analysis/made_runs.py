"""Runs made of records alone, with figures that a test chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from schemas.records import EvalRecord, LayerMetrics, RunRecord, StepRecord
from trainer.runs.run_data import RunData

SITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
Figures = Mapping[str, float]


def layer(site: str, figures: Figures) -> LayerMetrics:
    """Metrics of a layer: those given, the others 1."""
    names = ("fvu", "mse", "mse_per_element", "l0", "l1", "l1_decoder", "suppression")
    values = {name: figures.get(name, 1.0) for name in names}
    return LayerMetrics(site=site, rows=100, **values)


def made_run(
    name: str,
    layers: Mapping[str, Figures],
    *,
    sae: Mapping[str, Any] | None = None,
    seed: int = 0,
    rescale: Any = "none",
    lr: float | None = 1e-3,
    rows: int = 1000,
    steps: list[StepRecord] | None = None,
    firings: Any = None,
) -> RunData:
    """A run without a folder; pooled figures are means over its layers."""
    spec = sae or {"kind": "topk", "k": 4}
    made = [layer(site, figures) for site, figures in layers.items()]
    every = {key for figures in layers.values() for key in figures}
    pooled = {
        key: sum(figures.get(key, 1.0) for figures in layers.values()) / len(layers)
        for key in every
    }
    m = 4
    counts = torch.ones(len(made), m, dtype=torch.int64) if firings is None else firings
    record = RunRecord.model_validate(
        {
            "sae": spec,
            "d": 8,
            "n_latents": counts.shape[1],
            "sites": tuple(layers),
            "rescale": rescale,
            "center": False,
            "store": "memory://nowhere",
            "content_id": "0",
            "model": "synthetic",
            "name": name,
            "steps": 10,
            "rows": rows,
            "seed": seed,
            "lr": lr,
        }
    )
    evaluation = EvalRecord(
        run=name,
        store="memory://nowhere",
        content_id="0",
        split="held_out",
        rows=100 * len(made),
        pooled=layer("pooled", pooled),
        fvu_layer_mean=math.nan,
        layers=tuple(made),
        dead=1,
        dead_rows=100,
        alive_share=0.75,
    )
    rows_of_layers = torch.full((len(made),), 100)
    url = f"memory://made/{name}"
    return RunData(name, url, record, steps or [], evaluation, counts, rows_of_layers)


def made_step(step: int, **figures: Any) -> StepRecord:
    """A line of a journal of 100 rows a step."""
    values: dict[str, Any] = {
        "step": step,
        "rows": 100 * step,
        "loss": 1.0,
        "mse": 1.0,
        "l0": 4.0,
        "fvu": 0.5,
        "dead": 0,
        "lr": 1e-3,
        "rows_per_s": 1.0,
        "stall": 0.0,
    }
    return StepRecord(**(values | figures))
