"""The models that ship with the package, the corpus they were trained on, and the
script that made them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import actstore.builtin
from actstore.builtin import stdlib_corpus, train_language_models

BUILTIN = Path(actstore.builtin.__file__).parent
SHAPE = {"tiny": (6, 128, 512), "mini": (6, 16, 64)}


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_weights_are_float16_and_of_the_stated_shape(name: str) -> None:
    config = json.loads((BUILTIN / name / "config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["n_inner"]) == SHAPE[name]
    with safe_open(BUILTIN / name / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {  # noqa: SIM118
            torch.float16
        }


def test_the_package_stays_small() -> None:
    assert (
        sum(
            path.stat().st_size
            for path in BUILTIN.rglob("*")
            if path.suffix in {".safetensors", ".json"}
        )
        < 5e6
    )


def test_tiny_is_trained() -> None:
    """On held-out documents of the running interpreter it is far below the unigram
    entropy its card states.
    """
    card = json.loads((BUILTIN / "tiny" / "card.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN / "tiny")
    model = AutoModelForCausalLM.from_pretrained(
        BUILTIN / "tiny", dtype=torch.float32
    ).eval()
    texts = [
        text[:20_000]
        for path, text in stdlib_corpus.documents()
        if stdlib_corpus.is_held_out(path)
    ][:40]
    ids = [
        torch.tensor([0, *tokenizer.backend_tokenizer.encode(text).ids])
        for text in texts
    ]
    loss = train_language_models.mean_loss(model, torch.cat(ids), n_tokens=65_536)
    assert loss < card["unigram_loss_nats"] - 3
    assert abs(loss - card["held_out_loss_nats"]) < 0.7


def test_corpus_order_and_split_depend_on_paths_alone(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"m{i}.py").write_text(f"x = {i}\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("no\n")
    before = [path for path, _ in stdlib_corpus.documents(tmp_path)]
    assert sorted(before) == sorted(f"m{i}.py" for i in range(60))
    assert before != sorted(before)
    (tmp_path / "m7.py").unlink()
    assert [path for path, _ in stdlib_corpus.documents(tmp_path)] == [
        path for path in before if path != "m7.py"
    ]
    assert 0 < sum(map(stdlib_corpus.is_held_out, before)) < 15


@pytest.mark.slow
def test_the_script_trains_and_writes_a_model_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [
        (f"d{i}.py", f"def f_{i}(x):\n    return x + {i}\n" * 200) for i in range(40)
    ]
    documents += [
        (path, text[:2000])
        for path, text in stdlib_corpus.documents()
        if stdlib_corpus.is_held_out(path)
    ][:5]
    tokenizer = train_language_models.train_tokenizer([text for _, text in documents])
    data = train_language_models.token_streams(tokenizer, documents)
    model = train_language_models.fit("mini", data, steps=12, seed=0)
    train_language_models.save(model, tokenizer, data, tmp_path, 12, 60.0)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (
        card["tokens_seen"]
        == 12 * train_language_models.BATCH * train_language_models.CONTEXT
    )
    assert card["train_loss_nats"] < 8.3  # log 4,096 is 8.32: it has learned something
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    loss = train_language_models.mean_loss(again.eval(), data.train)
    assert loss == pytest.approx(card["train_loss_nats"], abs=2e-3)
    capsys.readouterr()
