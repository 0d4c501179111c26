"""Tests that options without an effect are refused by name.

In a training run, a stream and a harvest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
from actstore.errors import SpecError
from actstore.harvesting.estimate import estimate
from actstore.model.load_model import load_model
from actstore.store.store import Store
from schemas.source import ModelSource
from schemas.train import SweepSpec, TrainSpec
from tests.support import make_store
from trainer.errors import ExchangeError, SaeError
from trainer.exports.export import export
from trainer.training.train_group import train_group
from trainer.training.train_spec import load_spec

SITE = "blocks.0.hook_mlp_out"
TOPK: dict[str, Any] = {"kind": "topk", "k": 3, "expansion": 2}
RELU: dict[str, Any] = {"kind": "relu_l1", "l1": 0.1, "expansion": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("inert") / "store", n_units=21)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"sae": {**TOPK, "n_latents": 40}}, r"expansion does nothing where n_latents \(40\) is given"),
        ({"sae": {**TOPK, "aux_k": 4}}, "aux_k does nothing without aux_coefficient"),
        ({"sae": {**RELU, "similar_above": 0.2}}, "similar_above does nothing without decoder_similarity"),
        ({"sae": {**TOPK, "per_layer_bias": True}, "stream": {"sites": SITE}}, "per_layer_bias .* there is one site"),
        (
            {"sae": {"kind": "jumprelu", "target_l0": 3, "per_layer_threshold": True}, "stream": {"sites": SITE}},
            "per_layer_threshold .* there is one site",
        ),
        ({"stream": {"dtype": "bfloat16"}}, "stream.dtype bfloat16 does nothing in training"),
        ({"stream": {"epochs": 2}}, r"stream.epochs \(2\) does nothing where rows is given"),
        ({"stream": {"epochs": None}, "rows": None}, "stream.epochs: null is for ever"),
        ({"optimiser": {"sparsity_warmup": 0.5}}, "sparsity_warmup is of a penalty, and topk has none"),
        ({"optimiser": {"sparsity_decay": 0.5}}, "sparsity_decay is of a penalty, and topk has none"),
        ({"sae": RELU, "kernels": "triton"}, "kernels: triton is of topk, batch_topk and matryoshka"),
        ({"resample": {"every": 512}}, "resample.every is 512 rows, and the run has 512"),
        ({"sae": {"kind": "transcoder", "inner": {**TOPK, "aux_k": 4}},
          "stream": {"mode": "pairs", "sites": SITE, "targets": "blocks.1.*"}}, "aux_k does nothing"),
    ],
)  # fmt: skip
def test_in_training(
    store: Store, tmp_path: Path, spec: dict[str, Any], message: str
) -> None:
    values = {
        "store": store.url,
        "sae": TOPK,
        "rows": 512,
        **spec,
        "stream": {"batch": 128, **spec.get("stream", {})},
    }
    with pytest.raises(SaeError, match=message):
        train_group(store, {str(tmp_path / "run"): TrainSpec.model_validate(values)})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"window_chunks": 8, "memory": 1 << 26},
            "`memory` plans the windows, and `window_chunks` gives",
        ),
        (
            {"weights": {SITE: 2, "blocks.*.hook_mlp_out": 1}},
            f"weights: '{SITE}' does nothing",
        ),
        ({"filter": {}}, "it is empty"),
        ({"filter": {"norms": [{"sites": SITE}]}}, "an entry of norms has no bound"),
        (
            {"filter": {"positions": (0, 32)}},
            r"positions \[0, 32\] are all of a context of 32",
        ),
        (
            {"filter": {"exclude_tokens": [100]}},
            "filter.exclude_tokens: there is no token 100",
        ),
        (
            {"filter": {"tokens": [3, 4], "exclude_tokens": [5]}},
            "exclude_tokens has none of tokens",
        ),
    ],
)
def test_in_a_stream(store: Store, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        store.stream(batch=64, **fields)


HARVEST: dict[str, Any] = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": SITE,
    "tokens": 512,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"unit_sequences": 2, "memory": 1 << 26},
            "memory plans the size of units, and unit_sequences gives it",
        ),
        ({"autocast": "float32"}, "autocast float32 is no autocast"),
        ({"exclude_tokens": (10**6,)}, "exclude_tokens: there is no token 1000000"),
        (
            {"skip_first": 128},
            "skip_first 128 leaves nothing of contexts of 128 tokens",
        ),
    ],
)
def test_in_a_harvest_and_in_its_plan(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        actstore.harvest({**HARVEST, **fields}, str(tmp_path / "store"))
    with pytest.raises(SpecError, match=message):
        estimate({**HARVEST, **fields})
    assert not (tmp_path / "store").exists()


def test_of_a_model_and_tokens_in_memory(tmp_path: Path) -> None:
    module, tokens = (
        load_model(ModelSource(name="builtin:mini")).module,
        np.ones((4, 16), np.int64),
    )
    what = {"sites": SITE}
    for fields, message in (
        (
            {"exclude_special_tokens": True},
            "exclude_special_tokens: the model has no tokenizer",
        ),
        (
            {"pack": False},
            r"pack: the tokens are whole sequences \[n, context\], taken as they are",
        ),
        ({"prepend_bos": True}, "prepend_bos: the tokens are whole sequences"),
        (
            {"model": {"name": "mine", "dtype": "bfloat16"}},
            "the module given is in float32",
        ),
        (
            {"model": {"name": "mine", "revision": "main"}},
            "model.revision is of a model on the hub",
        ),
    ):
        with pytest.raises(SpecError, match=message):
            actstore.harvest(
                {**what, **fields}, str(tmp_path / "store"), model=module, tokens=tokens
            )
    half = module.to(torch.bfloat16)
    of = {"name": "mine", "dtype": "bfloat16"}
    found = actstore.harvest(
        {**what, "model": of}, str(tmp_path / "store"), model=half, tokens=tokens
    )
    assert found.manifest.n_rows == 64


def test_a_revision_of_what_is_not_on_the_hub(tmp_path: Path) -> None:
    for name in ("builtin:mini", str(tmp_path)):
        with pytest.raises(
            SpecError, match=r"revision \(--revision\) belongs to a model on the hub"
        ):
            load_model(ModelSource(name=name, revision="main"))


def test_a_sweep_without_runs() -> None:
    with pytest.raises(ValueError, match=r"grid: sae\.k has no values"):
        SweepSpec(base={}, grid={"sae.k": [], "seed": [1]})


def test_an_expansion_given_replaces_the_files_size(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("store: s\nsae: {kind: topk, n_latents: 64}\n")
    assert load_spec(str(path), {"sae.expansion": 2.0}).sae.size(16) == 32
    assert load_spec(str(path), {}).sae.size(16) == 64


def test_a_private_export_that_is_not_to_the_hub(tmp_path: Path) -> None:
    with pytest.raises(
        ExchangeError, match="private is for a new repository on the hub"
    ):
        export(str(tmp_path / "run"), str(tmp_path / "out"), "saelens", private=True)
