"""Metrics, CE, KL and the explorer on a GPU are those on a CPU; so are the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
import trainer
from tests.gpu import on_gpu
from tests.gpu.test_harvest_on_gpu import harvested
from trainer.explorer.explore import explore
from trainer.training.train import train

pytestmark = on_gpu


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    store = harvested(folder / "store", "cuda", unit_sequences=8)
    spec = {
        "store": store.url,
        "sae": {"kind": "batch_topk", "k": 8, "n_latents": 256},
        "rows": 100 * 512,
        "stream": {
            "batch": 512,
            "rescale": "linear",
            "sites": ["blocks.*.hook_mlp_out"],
        },
    }
    train(spec, folder / "run", device="cuda")
    return folder / "run"


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for key in sorted(value) for n in numbers(value[key])]
    if isinstance(value, list):
        return [n for each in value for n in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


def test_figures_are_those_of_a_cpu(run: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        record = trainer.evaluate(run, ce=True, sequences=8, device=device)
        found.append(numbers(json.loads(record.model_dump_json())))
    here, there = (np.array(each) for each in found)
    assert len(here) > 20
    np.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-4)


def test_a_trained_sae_moves_between_devices(run: Path) -> None:
    sae = trainer.load(run, device="cuda")
    x = torch.randn(50, sae.d)
    site = sae.sites[0]
    there = sae.reconstruct(x.cuda(), site).cpu()
    here = sae.to("cpu").reconstruct(x, site)
    assert torch.allclose(there, here, rtol=1e-3, atol=1e-3)


def test_thresholds_are_calibrated(run: Path) -> None:
    trainer.calibrate(run, l0=5, device="cuda")
    assert trainer.evaluate(run, device="cuda").pooled.l0 == pytest.approx(5, rel=0.02)


def test_the_explorer(run: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        explore(run, out=tmp_path / device, device=device)
    here = {p.name for p in (tmp_path / "cpu").rglob("*") if p.is_file()}
    there = {p.name for p in (tmp_path / "cuda").rglob("*") if p.is_file()}
    assert here == there


def test_doctor_finds_the_gpu() -> None:
    gpu = [check for check in actstore.examine() if check.name == "GPU"]
    assert gpu[0].status == "ok"
    assert torch.cuda.get_device_name(0) in gpu[0].text
