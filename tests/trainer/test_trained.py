"""Training, evaluation and use of SAEs on a small store, and against the language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
import trainer
from actstore.errors import SpecError
from actstore.harvesting.models import load_model
from actstore.store import Store
from schemas.source import ModelSource
from schemas.train import SweepSpec, TrainSpec
from tests.support import make_store
from trainer.errors import DivergedError, RunError, SaeError
from trainer.evaluate.metrics import layer_shares, log_density, spread
from trainer.evaluate.model import bridge_of, model_metrics
from trainer.evaluate.rows import evaluate
from trainer.training.command import load_spec
from trainer.training.loop import train_group
from trainer.training.sweep import expand, groups


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", n_units=24, unit_sequences=8)


def spec(store: Store, **more: Any) -> TrainSpec:
    base = {"store": store.url, "sae": {"kind": "topk", "k": 3, "expansion": 4}, "stream": {"batch": 128}}
    return TrainSpec.model_validate({**base, "rows": 128 * 60, "log_every": 10, **more})


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("runs") / "log")
    train_group(store, {out: spec(store, stream={"batch": 128, "rescale": "log", "center": True})})
    return out


def test_encode_decode_and_fold_take_original_units(store: Store, run: str) -> None:
    sae = trainer.load(run)
    for i, site in enumerate(store.sites):
        x = torch.from_numpy(store.read(site, store.rows("held_out")))
        latents = sae.encode(x, site)
        again = sae.decode(latents, site)
        assert torch.equal(latents, sae.encode(x, i))
        assert torch.allclose(latents, sae.encode(x, torch.full((len(x),), i)), atol=1e-6)
        scaled = (x - torch.from_numpy(store.mean(site)).float()) * sae.scale[i]
        assert torch.allclose(latents, sae.sae.encode(scaled), atol=1e-5)
        folded = sae.fold(site)
        assert torch.allclose(folded.encode(x), latents, atol=1e-4)
        assert torch.allclose(folded.decode(latents), again, atol=1e-4)
    with pytest.raises(SaeError, match="not trained on 'elsewhere'"):
        sae.encode(x, "elsewhere")


def test_evaluation_is_the_plain_formulas(store: Store, run: str) -> None:
    sae = trainer.load(run)
    record, firings = evaluate(sae, store)
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
        assert layer.l1 == pytest.approx(float(latents.double().sum(1).mean()) / scale, rel=1e-5)
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
    assert log_density(torch.tensor([0.0, 0.01])).tolist() == pytest.approx([-10.0, -2.0])


def test_a_sweep_trains_each_as_if_it_were_alone(store: Store, tmp_path: Path) -> None:
    base = spec(store, rows=128 * 25).model_dump()
    sweep = SweepSpec(base=base, grid={"stream.rescale": ["none", "linear"], "seed": [0, 1]})
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
    with pytest.raises(RunError, match="not a run"):
        trainer.load(f"{memory_url}/other")


def test_divergence_names_the_last_good_checkpoint(store: Store, tmp_path: Path) -> None:
    bad = spec(store, optimiser={"lr": 1e30, "clip": None}, checkpoint_every=1, init="random")
    with pytest.raises(DivergedError, match=r"loss is .*checkpoint"):
        train_group(store, {str(tmp_path / "r"): bad})
    assert not (tmp_path / "r" / "sae.json").exists()


def test_options_override_yaml_and_unknown_keys_are_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"store: {store.url}\nsae: {{kind: relu_l1, l1: 0.5}}\nrows: 100\n")
    made = load_spec(str(path), {"rows": 200, "optimiser.lr": 0.5})
    assert (made.rows, made.optimiser.lr, made.sae.kind) == (200, 0.5, "relu_l1")
    path.write_text(f"store: {store.url}\nstreem: {{batch: 5}}\n")
    with pytest.raises(SpecError, match=r"streem.*did you mean stream"):
        load_spec(str(path), {})


def test_a_language_model_patched_by_an_sae(tmp_path: Path) -> None:
    found = actstore.harvest(
        {
            "model": "builtin:mini",
            "corpus": "builtin:stdlib",
            "sites": "blocks.{2..3}.hook_mlp_out",
            "tokens": 40_000,
            "context": 64,
        },
        str(tmp_path / "store"),
    )
    train_group(found, {str(tmp_path / "run"): spec(found, rows=128 * 300, optimiser={"lr": 5e-3})})
    sae = trainer.load(str(tmp_path / "run"))
    for one in model_metrics(sae, found, n_sequences=8):
        assert one.ce_clean < one.ce_zero
        assert one.ce_clean < one.ce_mean
        assert one.kl > 0
        assert one.ce_sae < one.ce_zero
        wanted = (one.ce_zero - one.ce_sae) / (one.ce_zero - one.ce_clean)
        assert one.recovered_zero == pytest.approx(wanted)
    bridge = bridge_of(load_model(ModelSource(name="builtin:mini")))
    tokens = torch.from_numpy(found.tokens([0, 1]).astype(np.int64))
    site = sae.sites[1]
    _, before = bridge.run_with_cache(tokens, names_filter=[site], prepend_bos=False)
    seen = []
    with sae.attach(bridge, [site]):
        bridge.run_with_hooks(
            tokens, fwd_hooks=[(site, lambda value, hook: seen.append(value.detach().clone()))], prepend_bos=False
        )
    assert torch.allclose(seen[0], sae.reconstruct(before[site], site), atol=1e-4)
    with pytest.raises(SaeError, match="TransformerLens"), sae.attach(torch.nn.Linear(2, 2)):
        pass
