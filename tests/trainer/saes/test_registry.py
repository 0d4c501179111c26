"""Another architecture is one file: a toy one, here, is trained, saved, resumed,
evaluated and exported, and messages and help name it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from actstore.console.cli_options import choices
from actstore.errors import SpecError
from actstore.store.store import Store
from actstore.validation import json_schema
from schemas import sae as sae_schemas
from schemas.sae import FlatKind
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.errors import ExchangeError, SaeError
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.exports.export import export
from trainer.runs.trained_sae import load
from trainer.saes import registry
from trainer.saes.build import build, every_kind, named
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import Kind, StepMemory
from trainer.saes.scaled_rows import Layer, ScaledRows, of_layer
from trainer.saes.shape import Shape, first_encoder
from trainer.saes.step import Penalty, Step, firings, squared_error
from trainer.training.inert_fields import check_acts
from trainer.training.memory_estimate import fitting
from trainer.training.run_stream import check_rows_fit
from trainer.training.train_group import train_group
from trainer.training.train_options import SCHEMA
from trainer.training.train_spec import load_spec

BATCH, STEPS = 64, 12


class Softplus(FlatKind):
    """f = log(1 + exp((x - b_dec) W_enc + b_enc)) - log 2 where that is above 0."""

    kind: Literal["softplus"] = "softplus"
    weight: float = 0.01
    per_layer_bias: bool = False


class SoftplusSae(FlatSae):
    """As `relu_l1`, with another activation function."""

    def __init__(self, spec: Softplus, shape: Shape) -> None:
        super().__init__(spec, shape)
        self.W_enc = nn.Parameter(first_encoder(self.W_dec, shape))
        self.b_enc = self.zeros()
        self.b_dec = self.decoder_bias()

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:
        zero = torch.zeros_like(pre)
        soft = nn.functional.softplus
        return (soft(pre) - soft(zero)).relu()

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,
        parts: Parts = ONE_PART,
    ) -> Step:
        latents = self.encode(rows.x, rows.layer)
        reconstruction = parts.summed(latents @ self.W_dec) + of_layer(
            self.b_dec, rows.layer
        )
        mse = squared_error(rows.wanted, reconstruction)
        l1 = parts.summed(latents.sum(dim=-1).mean())
        fired = firings(latents)
        l0 = parts.count(fired.sum()) / len(rows.x)
        loss = mse + self.spec.weight * l1
        return Step(loss, reconstruction, fired, l0, {"mse": mse, "l1": l1})

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        _, fit = self.begin_at(rows, centre, from_data)
        self.lengthen_encoder(self.fitted(self.activate, fit))


@pytest.fixture
def toy() -> Iterator[None]:
    """The toy kind, as long as a test lasts."""
    registry.register(
        Kind(
            Softplus,
            SoftplusSae,
            learning_rate=5e-3,
            step_memory=lambda _: StepMemory(4.0),
        )
    )
    forget_schemas()
    yield
    del registry._kinds["softplus"]
    del sae_schemas._more_specs["softplus"]
    forget_schemas()


def forget_schemas() -> None:
    """Let JSON schemas be made anew: a process makes each once, with all kinds there."""
    json_schema.cache_clear()
    choices.cache_clear()


def spec_of(store: Store, **more: Any) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "store": store.url,
            "sae": {"kind": "softplus", "n_latents": 48},
            "stream": {"batch": BATCH},
            "rows": STEPS * BATCH,
            "checkpoint_every": STEPS // 2,
            "keep": 9,
            **more,
        }
    )


@pytest.mark.usefixtures("toy")
def test_another_kind_is_trained_saved_resumed_and_evaluated(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=24, unit_sequences=8)
    spec = spec_of(store)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_group(store, {str(whole): spec}, threads=1)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / f"checkpoints/step-{STEPS:08d}")
    for name in ("sae.safetensors", "sae.json"):
        (resumed / name).unlink()
    train_group(store, {str(resumed): spec}, threads=1, resume=True)
    weights = [load_file(run / "sae.safetensors") for run in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    trained = load(str(whole))
    assert isinstance(trained.sae, SoftplusSae)
    record, _ = evaluate_rows(trained, store)
    assert 0 < record.pooled.fvu < 1
    [group] = fitting(store, {str(whole): spec}, 1 << 40, "cpu")
    assert group.memory.step > 0
    x = torch.randn(3, trained.d)
    latents = trained.encode(x, 0)
    assert torch.equal(trained.reconstruct(x, 0), trained.decode(latents, 0))
    assert torch.allclose(trained.fold(0).encode(x), latents, atol=1e-4)
    with pytest.raises(
        ExchangeError,
        match="a softplus SAE cannot be written for SAELens: no counterpart is known;",
    ):
        export(str(whole), str(tmp_path / "saelens"))
    assert not (tmp_path / "saelens").exists()
    export(str(whole), str(tmp_path / "own"), to="safetensors")
    assert isinstance(load(str(tmp_path / "own")).sae, SoftplusSae)
    assert "softplus" in (tmp_path / "own" / "README.md").read_text()


@pytest.mark.usefixtures("toy")
def test_help_and_messages_name_another_kind() -> None:
    assert choices(SCHEMA, "sae.kind")[-1] == "softplus"
    base = {"store": "s"}
    given = {"sae.kind": "softplus", "sae.expansion": 2.0}
    assert (
        load_spec(base, given).sae.model_dump() == Softplus(expansion=2.0).model_dump()
    )
    for wrong, message in (
        ({"sae.kind": "softpus"}, r"did you mean softplus\?"),
        ({"sae.kind": "none"}, "there are batch_topk, .*, softplus, topk, transcoder"),
        ({**given, "sae.k": 3}, "softplus has no k; batch_topk, matryoshka, topk have"),
        ({**given, "sae.weight": "much"}, "sae.weight: wanted a number, got 'much'"),
    ):
        with pytest.raises(SpecError, match=message):
            load_spec(base, wrong)
    aligned = load_spec(base, {**given, "stream.mode": "aligned"})
    with pytest.raises(SaeError, match="a softplus SAE trains on mixed rows"):
        check_rows_fit(aligned)
    on_kernels = load_spec(base, {**given, "kernels": "triton"})
    with pytest.raises(SaeError, match="and matryoshka, and softplus uses none"):
        check_acts(on_kernels, n_sites=1, steps=100)


def test_a_kind_that_is_not_registered_is_refused() -> None:
    with pytest.raises(ValueError, match="'softplus' found using 'kind'"):
        TrainSpec.model_validate({"store": "", "sae": {"kind": "softplus"}})


@pytest.mark.parametrize("kind", [kind.name for kind in every_kind()])
def test_what_is_registered_is_complete(kind: str) -> None:
    found = named(kind)
    assert found.name == kind
    others = found.stream_mode != "mixed"
    assert bool(found.wanted_rows) == bool(found.mode_advice) == others
    assert (found.not_attachable is not None) == found.has_inner == others
    assert found.saelens or found.no_saelens_because != "no counterpart is known"
    if others:
        return
    made = build(found.spec(n_latents=48), 16)
    assert type(made) is found.sae
    assert found.learning_rate
    assert (found.step_memory is None) == found.sparse
    parameters = dict(made.named_parameters())
    assert set(found.sae.latent_axis) <= {*parameters}
    for name, parameter in parameters.items():
        axis = found.sae.latent_axis.get(name)
        assert axis is None or parameter.shape[axis] == 48
