"""Tests of running the language model of a store.

Custom code runs only when told again, and only with every weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from typer.testing import CliRunner

import actstore
import trainer
from actstore.errors import CorruptError, HarvestWarning, ModelError, SpecError
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.model.checkpoints import gpt2, saved, with_own_code
from trainer.cli import app
from trainer.evaluation.cross_entropy_and_kl import model_metrics, subject_of
from trainer.reports.report import report
from trainer.training.train_group import train_group

SITE = "blocks.0.hook_mlp_out"
TOKENS = np.random.default_rng(0).integers(0, 50, (24, 16))


def trained(folder: Path, out: Path, **model: object) -> tuple[Store, str]:
    """A store of a model, and a short run on it."""
    source = {"name": str(folder), **model}
    store = actstore.harvest(
        {"model": source, "sites": SITE, "unit_sequences": 1},
        str(out / "store"),
        tokens=TOKENS,
    )
    spec = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 3, "n_latents": 32},
        "stream": {"batch": 64},
        "rows": 640,
    }
    train_group(store, {str(out / "run"): TrainSpec.model_validate(spec)})
    return store, str(out / "run")


def said(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    return str(result.exception)


@pytest.mark.usefixtures("no_question")
def test_a_store_does_not_make_code_run(tmp_path: Path) -> None:
    # a name that TransformerLens knows
    folder, name = tmp_path / tmp_path.name, "GPT2LMHeadModel"
    store, run = trained(
        with_own_code(folder, tmp_path / "ran", name), tmp_path, trust_remote_code=True
    )
    assert (tmp_path / "ran").exists()
    says = said("eval", run, "--ce")
    assert store.url in says
    assert "say so again with --trust-remote-code" in says
    assert "--trust-remote-code" in said("eval", run, "--model", str(folder))
    assert "no model is run" in said("eval", run, "--trust-remote-code")
    for words in (("--ce",), ("--model", str(folder))):
        result = CliRunner().invoke(
            app, ["eval", run, *words, "--trust-remote-code"], catch_exceptions=False
        )
        assert result.exit_code == 0
        assert "CE clean" in result.stdout
    result = CliRunner().invoke(
        app, ["report", run, "--out", str(tmp_path / "r.html"), "--trust-remote-code"]
    )
    assert result.exit_code == 0, result.output


def test_trust_that_a_store_does_not_need_is_refused(tmp_path: Path) -> None:
    store, run = trained(saved(gpt2(), tmp_path / "model"), tmp_path)
    with pytest.raises(SpecError, match="was harvested without custom code"):
        subject_of(trainer.load(run), store, trust_remote_code=True)
    with pytest.raises(SpecError, match="was harvested without custom code"):
        report([run], str(tmp_path / "r.html"), trust_remote_code=True)
    assert len(model_metrics(trainer.load(run), store, n_sequences=2)) == 1


def test_a_head_that_was_not_loaded(tmp_path: Path) -> None:
    """The sites do not depend on it; the cross-entropy would be that of random logits."""
    body = gpt2(transformers.GPT2Model, tie_word_embeddings=False)
    folder = saved(body, tmp_path / "model", architectures=["GPT2LMHeadModel"])
    with pytest.warns(
        HarvestWarning, match="it lacks lm_head.weight, which no site depends on"
    ):
        store, run = trained(folder, tmp_path)
    with pytest.raises(
        ModelError, match=r"lacks 1 weight that the whole model needs.*: lm_head.weight"
    ):
        model_metrics(trainer.load(run), store, n_sequences=2)


def test_a_report_on_a_store_whose_tokenizer_is_broken(tmp_path: Path) -> None:
    store, run = trained(Path(actstore.__file__).parent / "builtin" / "mini", tmp_path)
    store.storage.put("tokenizer/tokenizer.json", b"{")
    with pytest.raises(
        CorruptError,
        match=r"tokenizer/tokenizer.json: its bytes are not those recorded",
    ):
        report([run], str(tmp_path / "r.html"), latents=2, title="title")
    assert not (tmp_path / "r.html").exists()
