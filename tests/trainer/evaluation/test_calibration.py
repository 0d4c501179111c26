"""Tests that thresholds are set at the end of training, for the wanted L0.

Held-out rows must have that L0, whatever the run was like.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import trainer
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.evaluation.thresholds_for_l0 import Levels
from trainer.saes.build import build
from trainer.saes.scaled_rows import ScaledRows
from trainer.training import calibrate_group
from trainer.training.run_stream import next_batch
from trainer.training.train_group import Progress, train_group

BATCH, STEPS, M = 256, 50, 64
BATCH_TOPK = {"kind": "batch_topk", "k": 3}
PAIRS = {"mode": "pairs", "sites": ["*.0.*", "*.1.*"], "targets": ["*.1.*", "*.2.*"]}
RESAMPLE = {
    "every": 12 * BATCH,
    "silent_rows": BATCH,
    "times": 3,
    "candidates": 4 * BATCH,
}
RUNS: dict[str, dict[str, Any]] = {
    "batch_topk": {"sae": BATCH_TOPK},
    "matryoshka": {"sae": {"kind": "matryoshka", "k": 3}},
    "layers": {
        "sae": {**BATCH_TOPK, "per_layer_threshold": True, "per_layer_bias": True}
    },
    "averaged": {"sae": BATCH_TOPK, "ema": 0.95},
    "averaged_layers": {
        "sae": {**BATCH_TOPK, "per_layer_threshold": True},
        "ema": 0.95,
    },
    "resampled": {"sae": BATCH_TOPK, "resample": RESAMPLE},
    "bfloat16": {"sae": BATCH_TOPK, "precision": "bfloat16"},
    "one_step": {"sae": BATCH_TOPK, "rows": BATCH},
    "decayed": {"sae": {**BATCH_TOPK, "threshold_decay": 0.0}},
    "wide": {"sae": {**BATCH_TOPK, "k": 40}},
    "filtered": {"sae": BATCH_TOPK, "stream": {"filter": {"positions": [0, 16]}}},
    "unscaled": {
        "sae": {**BATCH_TOPK, "per_layer_threshold": True},
        "stream": {"rescale": "none"},
    },
    "steered": {"sae": {"kind": "gated", "target_l0": 3}},
}
INNER: dict[str, dict[str, Any]] = {
    "batch_topk": BATCH_TOPK,
    "matryoshka": {"kind": "matryoshka", "k": 3},
    "relu_l1": {"kind": "relu_l1", "target_l0": 3},
    "gated": {"kind": "gated", "target_l0": 3},
    "jumprelu": {"kind": "jumprelu", "target_l0": 3},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("calibration") / "s", n_units=24, unit_sequences=8
    )


def spec_of(store: Store, run: dict[str, Any]) -> TrainSpec:
    raw = {"store": store.url, "rows": STEPS * BATCH, "optimiser": {"lr": 5e-3}, **run}
    raw["stream"] = {"batch": BATCH, "rescale": "linear", **run.get("stream", {})}
    if "inner" not in raw["sae"]:
        raw["sae"] = {"n_latents": M, **raw["sae"]}
    return TrainSpec.model_validate(raw)


def held_out_l0(store: Store, run: str) -> list[float]:
    """Mean active latents of the held-out rows of each site."""
    sae, rows = trainer.load(run), store.rows("held_out")
    if sae.spec.kind == "crosscoder":
        x = torch.stack(
            [torch.from_numpy(store.read(site, rows)) for site in sae.sites], dim=1
        )
        return [float((sae.encode(x) > 0).sum(1).double().mean())]
    inputs = [torch.from_numpy(store.read(site, rows)) for site in sae.sites]
    return [
        float((sae.encode(x, site) > 0).sum(1).double().mean())
        for x, site in zip(inputs, sae.sites, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_held_out_rows_have_the_wanted_l0(
    store: Store, tmp_path: Path, name: str
) -> None:
    spec = spec_of(store, RUNS[name])
    train_group(store, {str(tmp_path): spec})
    wanted = RUNS[name]["sae"].get("k", 3)
    if name == "filtered":
        kept = spec.stream.model_copy(
            update={"split": "held_out", "epochs": 1, "rescale": "none"}
        )
        sae = trainer.load(str(tmp_path))
        with store.stream(kept, threads=1) as stream:
            counts = [(sae.encode(one.x, one.layer) > 0).sum(1) for one in stream]
        found = [float(torch.cat(counts).double().mean())]
    else:
        found = held_out_l0(store, str(tmp_path))
    # the weights are float32, so are the margins
    tolerance = 0.02 if name == "bfloat16" else 0.005
    assert np.mean(found) == pytest.approx(wanted, rel=tolerance)
    if RUNS[name]["sae"].get("per_layer_threshold"):
        assert len(found) == 3
        assert found == pytest.approx([wanted] * 3, rel=tolerance)
        assert len(load_file(tmp_path / "sae.safetensors")["threshold"].unique()) > 1


@pytest.mark.parametrize("inner", sorted(INNER))
@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_of_transcoders_and_crosscoders_too(
    store: Store, tmp_path: Path, kind: str, inner: str
) -> None:
    if kind == "crosscoder" and inner in {"gated", "jumprelu"}:
        pytest.skip("a crosscoder has no such inner kind")
    stream = PAIRS if kind == "transcoder" else {"mode": "aligned"}
    sae = {"kind": kind, "inner": {"n_latents": M, **INNER[inner]}}
    train_group(
        store,
        {str(tmp_path): spec_of(store, {"sae": sae, "stream": stream, "ema": 0.9})},
    )
    assert np.mean(held_out_l0(store, str(tmp_path))) == pytest.approx(3, rel=0.005)


def test_a_weight_that_is_given_and_topk_are_left_alone(
    store: Store, tmp_path: Path
) -> None:
    for i, sae in enumerate(({"kind": "relu_l1", "l1": 0.1}, {"kind": "topk", "k": 3})):
        out = tmp_path / str(i)
        train_group(store, {str(out): spec_of(store, {"sae": sae})})
        last = load_file(out / f"checkpoints/step-{STEPS:08d}/weights.safetensors")
        made = load_file(out / "sae.safetensors")
        assert all(torch.equal(made[name], value) for name, value in last.items())


class StoppedError(Exception):
    """Stands for the end of a process between two steps."""


@pytest.mark.parametrize("name", ["layers", "averaged", "resampled"])
def test_a_resumed_run_is_calibrated_alike(
    store: Store, tmp_path: Path, name: str
) -> None:
    """Also one that had taken all its steps and was cut before its result was written;
    checkpoints stay as they were.
    """
    spec = spec_of(store, {**RUNS[name], "checkpoint_every": 10})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_group(store, {str(whole): spec})

    def stop(now: Progress) -> None:
        if now.step == 33:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_group(store, {str(cut): spec}, report=stop)
    train_group(store, {str(cut): spec}, resume=True)
    wanted = (whole / "sae.safetensors").read_bytes()
    assert (cut / "sae.safetensors").read_bytes() == wanted
    for file in ("sae.safetensors", "sae.json"):
        (cut / file).unlink()
    train_group(store, {str(cut): spec}, resume=True)
    assert (cut / "sae.safetensors").read_bytes() == wanted
    running = load_file(whole / f"checkpoints/step-{STEPS:08d}/weights.safetensors")[
        "threshold"
    ]
    found = load_file(whole / "sae.safetensors")["threshold"]
    assert not torch.equal(found, running)
    assert torch.allclose(found, running, rtol=0.3), "the running mean was near it"


def test_without_held_out_rows_those_of_the_stream_are_taken(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=6, unit_sequences=8)
    assert not len(store.rows("held_out"))
    train_group(store, {str(tmp_path / "run"): spec_of(store, {"sae": BATCH_TOPK})})
    sae, rows = trainer.load(str(tmp_path / "run")), store.rows("train")
    found = [
        (sae.encode(torch.from_numpy(store.read(site, rows)), site) > 0).sum(1)
        for site in store.sites
    ]
    assert float(torch.cat(found).double().mean()) == pytest.approx(3, rel=0.005)


@settings(deadline=None, max_examples=60)
@example(parts=[33], l0=1.1, spread=0.0, layered=True, seed=1)
@given(
    parts=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    l0=st.floats(0.05, 20),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    layered=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_levels_are_those_of_a_plain_sort(
    parts: list[int], l0: float, spread: float, layered: bool, seed: int
) -> None:
    """Whatever the first rows were like: it says when too few margins were kept, and
    all are then kept of more.
    """
    g = torch.Generator().manual_seed(seed)
    sae = build(
        TrainSpec.model_validate(
            {
                "store": "",
                "sae": {
                    "kind": "batch_topk",
                    "k": 3,
                    "n_latents": 24,
                    "per_layer_threshold": layered,
                },
            }
        ).sae,
        8,
        1,
        2,
    ).requires_grad_(False)
    sae.threshold.add_(0.1)
    x = [
        torch.randn(n, 8, generator=g) * torch.exp(spread * torch.randn(1, generator=g))
        for n in parts
    ]
    layer = [torch.randint(0, 2, (n,), generator=g) for n in parts]
    for spare in (1.5, 6.0, 1e9):
        levels = Levels(sae, l0, spare)
        for one, of in zip(x, layer, strict=True):
            levels.add(ScaledRows(one, of), levels.counts(ScaledRows(one, of)))
        assert levels.seen == sum(parts)
        if levels.enough():
            break
    assert levels.enough()
    margins, of = sae.margins(torch.cat(x), torch.cat(layer)), torch.cat(layer)
    found = levels.found()
    for i, value in enumerate(found):
        own = margins[of == i].flatten() if layered else margins.flatten()
        if len(own):
            exact, values = l0 * len(own) / 24, own.sort(descending=True).values
            # a half may be rounded either way
            halves = {max(1, round(exact - 1e-9)), max(1, round(exact + 1e-9))}
            wanted = [
                pytest.approx(float(values[n - 1]), rel=1e-5, abs=1e-5) for n in halves
            ]
            assert float(value) in wanted, "but for the last bits of products"
    sae.raise_thresholds(found)
    active = (sae.encode(torch.cat(x), of) > 0).sum()
    if not layered and (sae.threshold > 0).all():
        assert abs(int(active) - round(l0 * len(of))) <= 2


def test_runs_of_a_group_share_one_pass_over_rows_held_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as their margins fit into memory; each gets the thresholds that it gets
    alone.
    """
    names = ("batch_topk", "layers", "wide", "steered", "matryoshka")
    specs = {name: spec_of(store, RUNS[name]) for name in names}
    for name, spec in specs.items():
        train_group(store, {str(tmp_path / "alone" / name): spec})
    read = []

    def counted(*given: Any) -> Any:
        read.append(next_batch(*given))
        return read[-1]

    monkeypatch.setattr(calibrate_group, "next_batch", counted)
    rows = len(store.rows("held_out")) * len(store.sites)
    for limit, most in ((1 << 30, 1), (3 << 20, 4)):
        read.clear()
        monkeypatch.setattr(calibrate_group, "MARGINS", limit)
        train_group(
            store,
            {str(tmp_path / f"{limit}" / name): spec for name, spec in specs.items()},
        )
        passes = sum(len(batch.x) for batch in read if batch is not None) / rows
        again = 1  # of `wide`, whose margins are more than the first pass keeps
        assert most <= passes <= most + again
        for name in names:
            one, other = tmp_path / "alone" / name, tmp_path / f"{limit}" / name
            assert (one / "sae.safetensors").read_bytes() == (
                other / "sae.safetensors"
            ).read_bytes()
