"""Training, evaluation and use of SAEs on a small store, and against the language
model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

import actstore
import trainer
from actstore.errors import SpecError
from actstore.model.bridge import bridge_over_copy
from actstore.model.load_model import load_model
from actstore.store.store import Store
from actstore.stream.rescale import rescaling
from schemas.records import RunRecord
from schemas.sae import SaeSpec
from schemas.source import ModelSource
from schemas.stream import Rescale
from schemas.train import SweepSpec, TrainSpec
from tests.support import make_store
from trainer.errors import DivergedError, RunError, SaeError
from trainer.evaluation.cross_entropy_and_kl import (
    held_out_tokens,
    model_metrics,
    special_mask,
)
from trainer.evaluation.metric_definitions import layer_shares, log_density, spread
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.build import build
from trainer.training.row_scaling import layer_norms
from trainer.training.sweep import expand, groups
from trainer.training.train_group import train_group
from trainer.training.train_spec import load_spec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("stores") / "s", n_units=24, unit_sequences=8
    )


def spec(store: Store, **more: Any) -> TrainSpec:
    base = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 3, "expansion": 4},
        "stream": {"batch": 128},
    }
    return TrainSpec.model_validate({**base, "rows": 128 * 60, "log_every": 10, **more})


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("runs") / "log")
    train_group(
        store,
        {out: spec(store, stream={"batch": 128, "rescale": "log", "center": True})},
    )
    return out


def test_encode_decode_and_fold_take_original_units(store: Store, run: str) -> None:
    sae = trainer.load(run)
    for i, site in enumerate(store.sites):
        x = torch.from_numpy(store.read(site, store.rows("held_out")))
        latents = sae.encode(x, site)
        again = sae.decode(latents, site)
        assert torch.equal(latents, sae.encode(x, i))
        assert torch.allclose(
            latents, sae.encode(x, torch.full((len(x),), i)), atol=1e-6
        )
        scaled = (x - torch.from_numpy(store.mean(site)).float()) * sae.scale[i]
        assert torch.allclose(latents, sae.sae.encode(scaled), atol=1e-5)
        folded = sae.fold(site)
        assert torch.allclose(folded.encode(x), latents, atol=1e-4)
        assert torch.allclose(folded.decode(latents), again, atol=1e-4)
    with pytest.raises(SaeError, match="not trained on 'elsewhere'"):
        sae.encode(x, "elsewhere")


KINDS: dict[str, dict[str, Any]] = {
    "relu_l1": {"l1": 0.1, "penalty": "decoder_norm", "decoder_similarity": 0.1},
    "batch_topk": {"k": 3, "per_layer_bias": True, "per_layer_threshold": True},
    "matryoshka": {"k": 3},
    "nsae": {"alpha": 0.01},
    "gated": {"l1": 0.1, "per_layer_bias": True},
    "jumprelu": {"l0": 0.01, "per_layer_threshold": True},
    "mlp_encoder": {"l1": 0.1},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_trains_loads_and_folds(
    store: Store, tmp_path: Path, kind: str
) -> None:
    sae_spec = {"kind": kind, "expansion": 4, **KINDS[kind]}
    stream = {"batch": 128, "rescale": "linear", "center": kind != "nsae"}
    train_group(
        store,
        {
            str(tmp_path / "r"): spec(
                store, sae=sae_spec, stream=stream, optimiser={"lr": 5e-3}
            )
        },
    )
    sae = trainer.load(str(tmp_path / "r"))
    for i, site in enumerate(store.sites):
        x = torch.from_numpy(store.read(site, store.rows("held_out")))
        latents = sae.encode(x, site)
        assert torch.allclose(
            latents, sae.encode(x, torch.full((len(x),), i)), atol=1e-6
        )
        folded = sae.fold(site)
        near = (folded.encode(x) - latents).abs() < 1e-4 + 1e-4 * latents
        assert near.float().mean() > 0.9999, (
            "an entry on a threshold may fall on either side; no others"
        )
        assert torch.allclose(
            folded.decode(latents), sae.decode(latents, site), atol=1e-3
        )
    record, _ = evaluate_rows(sae, store)
    assert record.pooled.fvu < 0.75, "nothing was learned"
    with pytest.raises(SaeError, match="which layer"):
        sae.encode(x)


@pytest.mark.parametrize("rescale", ["none", "linear"])
@pytest.mark.parametrize("center", [False, True])
def test_the_norms_that_nsae_weighs_by_are_those_of_the_rows_it_sees(
    store: Store, rescale: Rescale, center: bool
) -> None:
    factors = rescaling(store, store.sites, rescale, center)
    norms = layer_norms(store, store.sites, factors)
    for i, site in enumerate(store.sites):
        x = store.read(site, store.rows("train")).astype(np.float64)
        seen = (x if factors.mean is None else x - factors.mean[i]) * factors.scale[i]
        plain = np.linalg.norm(seen, axis=1)
        wanted = np.sqrt(np.square(plain).mean()) if center else plain.mean()
        assert float(norms[i]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_kinds_that_need_aligned_rows_are_refused_by_a_mixed_stream(
    store: Store, tmp_path: Path, kind: str
) -> None:
    bad = spec(store, sae={"kind": kind, "inner": {"kind": "topk", "k": 3}})
    with pytest.raises(SaeError, match="same tokens at several sites"):
        train_group(store, {str(tmp_path / "r"): bad})
    aligned = spec(store, stream={"batch": 128, "mode": "aligned"})
    with pytest.raises(SaeError, match="trains on mixed rows"):
        train_group(store, {str(tmp_path / "r"): aligned})
    assert not (tmp_path / "r").exists()


def test_a_crosscoder_takes_rows_of_all_sites(store: Store) -> None:
    made = TypeAdapter(SaeSpec).validate_python(
        {"kind": "crosscoder", "inner": {"kind": "relu_l1", "n_latents": 20}}
    )
    record = RunRecord(
        sae=made, d=16, n_latents=20, sites=store.sites, rescale="linear", center=True, store=store.url,
        content_id="", model="", steps=0, rows=0, seed=0,
    )  # fmt: skip
    factors = rescaling(store, store.sites, "linear", True)
    scale, mean = (
        torch.from_numpy(factors.scale).float(),
        torch.from_numpy(factors.mean),
    )
    sae = TrainedSae(record, build(made, 16, 0, 3), scale, mean)
    x = torch.randn(5, 2, 3, 16)
    latents = sae.encode(x)
    assert latents.shape == (5, 2, 20)
    assert torch.allclose(
        latents[1, 1],
        sae.sae.encode((x[1, 1] - mean) * scale[:, None][None])[0],
        atol=1e-5,
    )
    wanted = sae.sae.decode(latents[1]) / scale[:, None] + mean
    assert torch.allclose(sae.decode(latents)[1], wanted, atol=1e-5)
    with pytest.raises(SaeError, match="nothing to fold"):
        sae.fold(store.sites[0])
    with pytest.raises(SaeError, match="all its sites"), sae.attach(None):
        pass


def test_evaluation_is_the_plain_formulas(store: Store, run: str) -> None:
    sae = trainer.load(run)
    record, firings = evaluate_rows(sae, store)
    ids = store.rows("held_out")
    errors, variances = [], []
    for layer, site in zip(record.layers, store.sites, strict=True):
        x = store.read(site, ids).astype(np.float64)
        latents = sae.encode(torch.from_numpy(x).float(), site)
        again = sae.decode(latents, site).double().numpy()
        errors.append(np.square(x - again).sum())
        variances.append(np.square(x - store.mean(site)).sum())
        assert layer.fvu == pytest.approx(errors[-1] / variances[-1], rel=1e-6)
        assert layer.mse == pytest.approx(errors[-1] / len(x), rel=1e-6)
        assert layer.l0 == pytest.approx(float((latents > 0).sum(1).double().mean()))
        scale = float(sae.scale[store.sites.index(site)])
        assert layer.l1 == pytest.approx(
            float(latents.double().sum(1).mean()) / scale, rel=1e-5
        )
        assert layer.l1 == pytest.approx(layer.l1_decoder, rel=1e-4)
        ratio = np.linalg.norm(again, axis=1) / np.linalg.norm(x, axis=1)
        assert layer.suppression == pytest.approx(ratio.mean(), rel=1e-6)
    assert record.pooled.fvu == pytest.approx(sum(errors) / sum(variances), rel=1e-6)
    assert record.dead == int((firings.sum(0) == 0).sum())
    assert record.pooled.fvu < 0.6, "nothing was learned"


def test_spread_and_density() -> None:
    firings = torch.tensor([[10, 30, 0, 0], [10, 0, 0, 5]])
    shares = layer_shares(firings, torch.tensor([100, 100]))
    assert spread(shares).tolist() == pytest.approx([2.0, 1.0, 0.0, 1.0])
    assert shares[:, 0].tolist() == [0.5, 0.5]
    assert log_density(torch.tensor([0.0, 0.01])).tolist() == pytest.approx(
        [-10.0, -2.0]
    )


def test_a_sweep_trains_each_as_if_it_were_alone(store: Store, tmp_path: Path) -> None:
    base = spec(store, rows=128 * 25).model_dump()
    sweep = SweepSpec(
        base=base, grid={"stream.rescale": ["none", "linear"], "seed": [0, 1]}
    )
    specs = {str(tmp_path / name): one for name, one in expand(sweep).items()}
    assert len(specs) == 4
    assert [len(group) for group in groups(specs)] == [4]
    train_group(store, specs)
    name, one = list(specs.items())[3]
    train_group(store, {str(tmp_path / "alone"): one})
    alone, together = (Path(p) / "sae.safetensors" for p in (tmp_path / "alone", name))
    assert alone.read_bytes() == together.read_bytes()
    weights = {trainer.load(url).decoder.sum().item() for url in specs}
    assert len(weights) == 4


def test_runs_lie_anywhere(store: Store, memory_url: str) -> None:
    train_group(store, {f"{memory_url}/run": spec(store, rows=128 * 12)})
    assert trainer.load(f"{memory_url}/run").n_latents == 64
    with pytest.raises(RunError, match="there is none"):
        trainer.load(f"{memory_url}/other")


def test_divergence_names_the_last_good_checkpoint(
    store: Store, tmp_path: Path
) -> None:
    bad = spec(
        store,
        optimiser={"lr": 1e30, "clip": None},
        checkpoint_every=1,
        log_every=50,
        init="random",
    )
    with pytest.raises(
        DivergedError, match=r"are not finite at step \d+; the last good"
    ) as found:
        train_group(store, {str(tmp_path / "r"): bad})
    assert not (tmp_path / "r" / "sae.json").exists()
    [step] = re.findall(r"last good checkpoint is step (\d+)", str(found.value))
    weights = load_file(
        tmp_path / "r" / "checkpoints" / f"step-{int(step):08d}" / "weights.safetensors"
    )
    assert all(value.isfinite().all() for value in weights.values())
    assert not (tmp_path / "r" / "checkpoints" / f"step-{int(step) + 1:08d}").exists()
    worse = bad.model_copy(update={"checkpoint_every": 1000, "log_every": 1})
    with pytest.raises(
        DivergedError,
        match=r"the loss is (nan|inf) at step \d+; there is no checkpoint yet",
    ):
        train_group(store, {str(tmp_path / "w"): worse})


def test_options_override_yaml_and_unknown_keys_are_named(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"store: {store.url}\nsae: {{kind: relu_l1, l1: 0.5}}\nrows: 100\n")
    made = load_spec(str(path), {"rows": 200, "optimiser.lr": 0.5})
    assert (made.rows, made.optimiser.lr, made.sae.kind) == (200, 0.5, "relu_l1")
    path.write_text(f"store: {store.url}\nstreem: {{batch: 5}}\n")
    with pytest.raises(SpecError, match=r"streem.*did you mean stream"):
        load_spec(str(path), {})


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Store:
    what = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "tokens": 40_000,
        "context": 64,
    }
    sites = ["blocks.{2..3}.hook_mlp_out", "blocks.{2..3}.hook_resid_mid"]
    return actstore.harvest(
        {**what, "sites": sites}, str(tmp_path_factory.mktemp("mini") / "store")
    )


def test_a_language_model_patched_by_an_sae(harvested: Store, tmp_path: Path) -> None:
    found = harvested
    stream = {"batch": 128, "sites": ["blocks.*.hook_mlp_out"], "rescale": "linear"}
    train_group(
        found,
        {
            str(tmp_path / "run"): spec(
                found, rows=128 * 300, optimiser={"lr": 5e-3}, stream=stream
            )
        },
    )
    sae = trainer.load(str(tmp_path / "run"))
    for one in model_metrics(sae, found, n_sequences=8):
        assert one.ce_clean < one.ce_zero
        assert one.ce_clean < one.ce_mean
        assert one.kl > 0
        assert one.ce_sae < one.ce_zero
        wanted = (one.ce_zero - one.ce_sae) / (one.ce_zero - one.ce_clean)
        assert one.recovered_zero == pytest.approx(wanted)
    bridge = bridge_over_copy(
        load_model(ModelSource(name="builtin:mini")).module
    ).bridge
    tokens = torch.from_numpy(found.tokens([0, 1]).astype(np.int64))
    site = sae.sites[1]
    _, before = bridge.run_with_cache(tokens, names_filter=[site], prepend_bos=False)
    seen = []
    with sae.attach(bridge, [site]):
        bridge.run_with_hooks(
            tokens,
            fwd_hooks=[(site, lambda value, hook: seen.append(value.detach().clone()))],
            prepend_bos=False,
        )
    assert torch.allclose(seen[0], sae.reconstruct(before[site], site), atol=1e-4)
    with (
        pytest.raises(SaeError, match="TransformerLens"),
        sae.attach(torch.nn.Linear(2, 2)),
    ):
        pass


IN, OUT = (
    tuple(f"blocks.{i}.hook_{kind}" for i in (2, 3))
    for kind in ("resid_mid", "mlp_out")
)


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_a_language_model_patched_by_what_reads_other_sites(
    kind: str, harvested: Store, tmp_path: Path
) -> None:
    """Against a plain computation from TransformerLens' own cache."""
    pairs = {"mode": "pairs", "sites": IN, "targets": OUT}
    stream = pairs if kind == "transcoder" else {"mode": "aligned", "sites": OUT}
    sae_spec = {"kind": kind, "inner": {"kind": "topk", "k": 8, "n_latents": 256}}
    raw = {
        "store": harvested.url,
        "sae": sae_spec,
        "stream": {"batch": 128, "rescale": "linear", **stream},
    }
    made = TrainSpec.model_validate(
        {**raw, "rows": 128 * 300, "optimiser": {"lr": 5e-3}}
    )
    train_group(harvested, {str(tmp_path / kind): made})
    sae = trainer.load(str(tmp_path / kind))
    bridge = bridge_over_copy(
        load_model(ModelSource(name="builtin:mini")).module
    ).bridge
    tokens = torch.from_numpy(held_out_tokens(harvested, 4))
    special = special_mask(tokens, harvested)
    _, cache = bridge.run_with_cache(tokens, prepend_bos=False)
    for i, one in enumerate(model_metrics(sae, harvested, n_sequences=4)):
        if kind == "transcoder":
            new = sae.reconstruct(cache[IN[i]], IN[i])
        else:
            new = sae.decode(
                sae.encode(torch.stack([cache[site] for site in OUT], dim=2))
            )[:, :, i]
        new = torch.where(special[..., None], cache[OUT[i]], new)
        ce = [
            _cross_entropy(bridge, tokens, OUT[i], value, special)
            for value in (
                cache[OUT[i]],
                new,
                torch.where(special[..., None], cache[OUT[i]], 0.0),
            )
        ]
        assert one.site == sae.sites[i]
        assert (one.ce_clean, one.ce_sae, one.ce_zero) == pytest.approx(ce, abs=1e-4)
        assert abs(ce[1] - ce[0]) < ce[2] - ce[0]
        assert one.kl > 0


@torch.no_grad()
def _cross_entropy(
    bridge: Any,
    tokens: torch.Tensor,
    site: str,
    value: torch.Tensor,
    special: torch.Tensor,
) -> float:
    logits = bridge.run_with_hooks(
        tokens, fwd_hooks=[(site, lambda _, hook: value)], prepend_bos=False
    )
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].mT.double(), tokens[:, 1:], reduction="none"
    )
    return float(loss[~special[:, :-1]].mean())
