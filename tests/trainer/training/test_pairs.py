"""Transcoders from pairs of sites and crosscoders from aligned rows: training,
resuming, evaluation, export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import actstore
import trainer
from actstore.harvesting.extend import extend
from actstore.store.store import Store
from actstore.stream.rescale import rescaling
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.errors import SaeError
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.exports.export import export
from trainer.reports.report import report
from trainer.training.train_group import Progress, train_group

IN, OUT = (
    ("blocks.0.hook_mlp_in", "blocks.1.hook_mlp_in"),
    ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"),
)
BATCH, STEPS = 128, 80
RESCALED = {"rescale": "linear", "center": True}
STREAMS: dict[str, dict[str, Any]] = {
    "transcoder": {"mode": "pairs", "sites": IN, "targets": OUT, **RESCALED},
    "crosscoder": {"mode": "aligned", "sites": IN, **RESCALED},
}
INNER: dict[str, dict[str, Any]] = {"relu_l1": {"l1": 0.05}, "topk": {"k": 3}}


class StoppedError(Exception):
    """Stands for the end of a process between two steps."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Inputs of width 16, outputs of width 24, both from the same sparse codes."""
    sites = dict.fromkeys(IN, 16) | dict.fromkeys(OUT, 24)
    return make_store(
        tmp_path_factory.mktemp("pairs") / "s",
        sites,
        values,
        n_units=24,
        unit_sequences=8,
    )


def values(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng([int(sequence[0]), 5])
    codes = (rng.random((len(sequence), 30)) < 0.1) * (
        1 + rng.random((len(sequence), 30))
    )
    d, layer = 16 if site in IN else 24, int(site.split(".")[1])
    directions = np.random.default_rng([d, layer]).standard_normal((30, d)) / np.sqrt(d)
    return (3 if site in IN else 9) * (1 + layer) * (codes @ directions) + 1


def spec(store: Store, kind: str, inner: str = "topk", **more: Any) -> TrainSpec:
    base = {
        "store": store.url,
        "sae": {
            "kind": kind,
            "inner": {"kind": inner, "n_latents": 96, **INNER[inner]},
        },
        "stream": {"batch": BATCH, **STREAMS[kind]},
        "rows": BATCH * STEPS,
        "log_every": 10,
        "optimiser": {"lr": 5e-3},
    }
    return TrainSpec.model_validate({**base, **more})


@pytest.fixture(scope="module")
def runs(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], str]:
    folder = tmp_path_factory.mktemp("runs")
    made = {
        (kind, inner): str(folder / f"{kind}-{inner}")
        for kind in STREAMS
        for inner in INNER
    }
    for kind in STREAMS:  # two SAEs that share a stream
        train_group(
            store, {made[kind, inner]: spec(store, kind, inner) for inner in INNER}
        )
    return made


@pytest.mark.parametrize("inner", sorted(INNER))
def test_a_transcoder_is_evaluated_from_inputs_to_outputs(
    store: Store, runs: dict[tuple[str, str], str], inner: str
) -> None:
    sae = trainer.load(runs["transcoder", inner])
    assert (sae.sites, sae.record.targets, sae.record.d, sae.record.d_out) == (
        IN,
        OUT,
        16,
        24,
    )
    for sites, scale, mean in (
        (IN, sae.scale, sae.mean),
        (OUT, sae.scale_out, sae.mean_out),
    ):
        factors = rescaling(store, sites, "linear", True)
        total = np.mean(
            [store.variance(site).sum() for site in sites] * factors.scale**2
        )
        assert torch.allclose(
            scale, torch.from_numpy(factors.scale / np.sqrt(total)).float()
        )
        assert mean is not None
        assert torch.equal(mean, torch.from_numpy(factors.mean))
    record, firings = evaluate_rows(sae, store)
    errors, variances = [], []
    for i, layer in enumerate(record.layers):
        x, y = (
            torch.from_numpy(store.read(sites[i], store.rows("held_out")))
            for sites in (IN, OUT)
        )
        again = sae.reconstruct(x, IN[i]).double()
        errors.append(float((again - y.double()).square().sum()))
        variances.append(
            float((y.double() - torch.from_numpy(store.mean(OUT[i]))).square().sum())
        )
        assert layer.site == IN[i]
        assert layer.fvu == pytest.approx(errors[i] / variances[i], rel=1e-5)
        assert layer.mse_per_element == pytest.approx(errors[i] / len(x) / 24, rel=1e-5)
        latents = sae.encode(x, i)
        assert torch.equal(firings[i], (latents > 0).sum(0))
        assert layer.l1 == pytest.approx(
            float(latents.double().sum(1).mean() / sae.scale_out[i]), rel=1e-4
        )
    assert record.pooled.fvu == pytest.approx(sum(errors) / sum(variances), rel=1e-5)
    assert record.pooled.fvu < 0.7, "nothing was learned"
    seen = [
        json.loads(line)
        for line in (Path(sae.url) / "journal.jsonl").read_text().splitlines()
    ]
    assert seen[-1]["fvu"] == pytest.approx(record.pooled.fvu, rel=0.2), (
        "training counts in original units too"
    )
    assert seen[-1]["mse"] == pytest.approx(record.pooled.mse, rel=0.3)


@pytest.mark.parametrize("inner", sorted(INNER))
def test_a_crosscoder_is_evaluated_per_site(
    store: Store, runs: dict[tuple[str, str], str], inner: str
) -> None:
    sae = trainer.load(runs["crosscoder", inner])
    record, firings = evaluate_rows(sae, store)
    x = torch.stack(
        [torch.from_numpy(store.read(site, store.rows("held_out"))) for site in IN],
        dim=1,
    )
    latents = sae.encode(x)
    again = sae.decode(latents).double()
    for i, (layer, site) in enumerate(zip(record.layers, IN, strict=True)):
        error = float((again[:, i] - x[:, i].double()).square().sum())
        variance = float(
            (x[:, i].double() - torch.from_numpy(store.mean(site))).square().sum()
        )
        assert layer.fvu == pytest.approx(error / variance, rel=1e-5)
        norms = sae.decoder[:, i].norm(dim=1)
        assert layer.l1_decoder == pytest.approx(
            float((latents * norms).sum(1).mean() / sae.scale[i]), rel=1e-4
        )
        assert torch.equal(firings[i], (latents > 0).sum(0))
    assert record.pooled.fvu < 0.7, "nothing was learned"
    seen = [
        json.loads(line)
        for line in (Path(sae.url) / "journal.jsonl").read_text().splitlines()
    ]
    assert seen[-1]["fvu"] == pytest.approx(record.pooled.fvu, rel=0.2)


def cut(store: Store, specs: dict[str, TrainSpec], after: int, **more: Any) -> None:
    """Train, and stop behind a step."""

    def stop(now: Progress) -> None:
        if now.step == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_group(store, specs, report=stop, **more)


@pytest.mark.parametrize("kind", sorted(STREAMS))
def test_it_goes_on_bit_by_bit(store: Store, tmp_path: Path, kind: str) -> None:
    resample = {"every": 20 * BATCH, "times": 3, "silent_rows": BATCH}
    one = spec(
        store,
        kind,
        checkpoint_every=9,
        rows=40 * BATCH,
        resample=resample,
        accumulate=2,
        ema=0.9,
    )
    train_group(store, {str(tmp_path / "whole"): one})
    cut(store, {str(tmp_path / "cut"): one}, 23)
    train_group(store, {str(tmp_path / "cut"): one}, resume=True)
    for name in ("sae.safetensors", "checkpoints/step-00000040/optimiser.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()


def test_decoders_start_from_whitened_data_rows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C^(-1/2) x at norm 1, with the covariance C of the rows that are read first: here
    an epoch.
    """
    ids = store.rows("train")
    monkeypatch.setattr("trainer.training.init_from_data.FIT_ROWS", 2 * len(ids) - 96)
    one = spec(store, "transcoder", rows=BATCH, optimiser={"lr": 1e-30})
    train_group(store, {str(tmp_path / "t"): one})
    sae = trainer.load(str(tmp_path / "t"))
    y = torch.cat([torch.from_numpy(store.read(site, ids)) for site in OUT])
    where = torch.arange(2).repeat_interleave(len(ids))
    assert sae.mean_out is not None
    scaled = (
        (y - sae.mean_out[where]) * sae.scale_out[where][:, None]
        - sae.sae.b_dec.detach()
    ).double()
    values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    white = (
        scaled
        @ vectors
        @ torch.diag(values.clamp_min(1e-4 * float(values[-1])) ** -0.5)
        @ vectors.T
    )
    unit = (white / white.norm(dim=1, keepdim=True)).float()
    assert (sae.decoder @ unit.T).max(dim=1).values.min() > 0.9999
    train_group(store, {str(tmp_path / "r"): one.model_copy(update={"init": "random"})})
    random = trainer.load(str(tmp_path / "r")).decoder
    assert (random @ unit.T).max(dim=1).values.min() < 0.99


def test_a_transcoder_is_exported_with_both_sites(
    store: Store, runs: dict[tuple[str, str], str], tmp_path: Path
) -> None:
    run = runs["transcoder", "relu_l1"]
    export(run, str(tmp_path / "out"), "saelens")
    sae = trainer.load(run)
    for site, target in zip(IN, OUT, strict=True):
        folder = tmp_path / "out" / f"{site}--{target}"
        config, w = (
            json.loads((folder / "cfg.json").read_text()),
            load_file(folder / "sae_weights.safetensors"),
        )
        assert (
            config["metadata"]["hook_name"],
            config["metadata"]["hook_name_out"],
        ) == (site, target)
        x = torch.from_numpy(store.read(site, store.rows("held_out")))
        plain = (x @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
        assert torch.allclose(plain, sae.reconstruct(x, site), atol=1e-3)


def test_the_report_shows_both_kinds(
    runs: dict[tuple[str, str], str], tmp_path: Path
) -> None:
    for kind in STREAMS:
        report([runs[kind, "topk"]], str(tmp_path / f"{kind}.html"), latents=3)
        assert "latent-card" in (tmp_path / f"{kind}.html").read_text()


@pytest.mark.parametrize(
    ("kind", "stream", "message"),
    [
        ("transcoder", {"mode": "aligned"}, "set `stream.mode: pairs`"),
        ("crosscoder", {"mode": "mixed", "sites": IN}, "set `stream.mode: aligned`"),
        (
            "crosscoder",
            {"mode": "pairs", "sites": IN, "targets": OUT},
            "set `stream.mode: aligned`",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    store: Store, tmp_path: Path, kind: str, stream: dict[str, Any], message: str
) -> None:
    bad = spec(store, kind).model_dump() | {
        "stream": {"batch": BATCH, "sites": IN, **stream}
    }
    with pytest.raises(SaeError, match=message):
        train_group(store, {str(tmp_path / "r"): TrainSpec.model_validate(bad)})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("kind", ["topk", "transcoder"])
def test_a_run_goes_on_with_the_store_as_it_was_before_it_was_extended(
    tmp_path: Path, kind: str
) -> None:
    url = str(tmp_path / "store")
    harvested = {
        "sites": "blocks.{1..2}.hook_mlp_out",
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
    }
    actstore.harvest(
        {
            **harvested,
            "context": 32,
            "tokens": 24 * 64,
            "unit_sequences": 2,
            "batch": 2,
        },
        url,
    )
    sae = {"kind": "topk", "k": 3, "expansion": 4}
    raw: dict[str, Any] = {
        "store": url,
        "sae": sae,
        "stream": {"batch": 64, "rescale": "log1p", "center": True},
    }
    if kind == "transcoder":
        raw["sae"] = {"kind": kind, "inner": sae}
        raw["stream"] |= {
            "mode": "pairs",
            "sites": ("blocks.1.*",),
            "targets": ("blocks.2.*",),
        }
    one = TrainSpec.model_validate(
        {**raw, "rows": 60 * 64, "checkpoint_every": 10, "log_every": 20}
    )
    fresh = one.model_copy(update={"seed": 1})
    whole, half, last = (str(tmp_path / name) for name in ("whole", "half", "last"))
    train_group(actstore.open(url), {whole: one})
    cut(actstore.open(url), {half: one}, 25)
    before = actstore.open(url).manifest.content_id
    extend(url, tokens=8 * 64)
    extend(url, sites="blocks.3.hook_mlp_out")
    grown = actstore.open(url)
    train_group(grown, {half: one, last: fresh}, resume=True)
    for name in (
        "sae.safetensors",
        "sae.json",
        "checkpoints/step-00000060/optimiser.safetensors",
    ):
        assert (Path(half) / name).read_bytes() == (Path(whole) / name).read_bytes(), (
            name
        )
    assert trainer.load(half).record.content_id == before
    assert trainer.load(last).record.content_id == grown.manifest.content_id
    mean_before, mean_now = (trainer.load(run).mean_out for run in (half, last))
    assert mean_before is not None
    assert mean_now is not None
    assert not torch.equal(mean_before, mean_now)
