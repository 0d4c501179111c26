"""CE of the next token where it is defined, and nowhere else; patching models by the
names of their modules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import actstore
import trainer
from actstore.model.load_model import wrap_module
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.model.test_classes import module, outputs
from trainer.cli import app
from trainer.errors import RunError
from trainer.evaluation.cross_entropy_and_kl import model_metrics
from trainer.evaluation.patched_language_model import Subject, check_predicts_next
from trainer.training.train_group import train_group

SITE = {
    "GPT2LMHeadModel": "transformer.h.1.mlp",
    "OPTForCausalLM": "model.decoder.layers.1.fc2",
}
SITE |= {"BertForMaskedLM": "blocks.1.hook_mlp_out"}


@pytest.mark.parametrize(
    "kind",
    ["GPT2LMHeadModel", "OPTForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM"],
)
def test_causal_language_models_are_taken(kind: str) -> None:
    check_predicts_next(wrap_module(module(kind)))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("BertForMaskedLM", "it is not causal"),
        ("BertLMHeadModel", "it is not causal"),  # named as one, and sees what follows
        ("XLNetLMHeadModel", "it is not causal"),
        ("BertModel", "no logits"),
        ("GPT2Model", "no logits"),
        ("LlamaForSequenceClassification", "no logits"),
        ("BertForTokenClassification", "no logits"),
        ("T5ForConditionalGeneration", "encoder–decoder"),
        ("BartForConditionalGeneration", "encoder–decoder"),
    ],
)
def test_others_are_refused(kind: str, says: str) -> None:
    with pytest.raises(
        RunError,
        match=f"{kind}: the cross-entropy of the next token is not defined.*{says}",
    ):
        check_predicts_next(wrap_module(module(kind)))


def trained(kind: str, folder: Path) -> tuple[Store, str, Any]:
    """A harvest of padded sequences from a model saved to a folder, and a small SAE's
    run.
    """
    model = module(kind)
    model.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 97, (160, 16)).astype(np.int32)
    tokens[::2, 11:] = -1
    np.save(folder / "tokens.npy", tokens)
    spec = {
        "model": str(folder / "model"),
        "sites": [SITE[kind]],
        "tokens": tokens.size,
        "context": 16,
    }
    store = actstore.harvest(spec, str(folder / "store"), tokens=tokens)
    run = str(folder / "run")
    raw = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 4, "n_latents": 64},
        "rows": 64 * 20,
        "stream": {"batch": 64},
    }
    train_group(store, {run: TrainSpec.model_validate(raw)})
    return store, run, model


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "OPTForCausalLM"])
def test_ce_at_modules_by_name(kind: str, tmp_path: Path) -> None:
    store, run, model = trained(kind, tmp_path)
    sae, site = trainer.load(run), SITE[kind]
    [one] = model_metrics(sae, store, n_sequences=6)
    tokens = torch.from_numpy(store.tokens(store_sequences(store, 6)).astype(np.int64))
    valid = (tokens >= 0)[:, 1:]

    def ce(replaced: torch.Tensor | None = None) -> float:
        def hook(_m: Any, _i: Any, output: torch.Tensor) -> torch.Tensor:
            there = (tokens >= 0)[..., None]
            new = torch.where(
                there,
                replaced.reshape(*tokens.shape, -1),
                output.reshape(*tokens.shape, -1),
            )
            return new.reshape(output.shape)

        handle = (
            model.get_submodule(site).register_forward_hook(hook)
            if replaced is not None
            else None
        )
        with torch.no_grad():
            logits = model.eval()(
                tokens.clamp_min(0), attention_mask=(tokens >= 0).long()
            ).logits
        if handle is not None:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].mT, tokens[:, 1:].clamp_min(0), reduction="none"
        )
        return float(loss[valid].double().mean())

    assert one.tokens == int(valid.sum())
    assert one.ce_clean == pytest.approx(ce(), abs=1e-4)
    assert one.ce_zero == pytest.approx(ce(torch.zeros(*tokens.shape, 32)), abs=1e-4)
    assert one.ce_zero != pytest.approx(one.ce_clean, abs=1e-3)
    before = outputs(model, site, input_ids=tokens.clamp_min(0))
    with sae.attach(model):
        after = outputs(model, site, input_ids=tokens.clamp_min(0))
    torch.testing.assert_close(
        after, sae.reconstruct(before, site), rtol=1e-4, atol=1e-4
    )


def store_sequences(store: Store, n: int) -> Any:
    size = store.layout.unit_sequences
    held = [
        s
        for unit in store.units("held_out") or store.units()
        for s in range(unit * size, (unit + 1) * size)
    ]
    return np.array([s for s in held if s < store.manifest.n_sequences][:n])


def test_eval_refuses_before_a_row_is_evaluated(tmp_path: Path) -> None:
    _, run, _ = trained("BertForMaskedLM", tmp_path)
    done = CliRunner().invoke(app, ["eval", run, "--ce"])
    assert isinstance(done.exception, RunError)
    assert "not causal" in str(done.exception)
    assert not (tmp_path / "run" / "eval.json").exists()
    assert CliRunner().invoke(app, ["eval", run, "--json"]).exit_code == 0
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["model"] == []


def test_sites_of_both_kinds_are_refused() -> None:
    model = wrap_module(module("GPT2LMHeadModel"))
    with pytest.raises(RunError, match="sites of one kind"):
        Subject(model, ["blocks.0.hook_mlp_out", "transformer.h.0.mlp"])
