"""Tests of the tokens between documents, by the tokenizer and as asked for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import actstore
from actstore.errors import HarvestWarning, SpecError
from actstore.harvesting.harvest_spec import resolve_spec
from actstore.text import file_formats
from actstore.text.separators import BoundaryTokens, boundary_tokens
from actstore.text.sequences import DocumentSequencer, sequencer
from schemas.harvest import HarvestSpec, Plan

BOS, EOS, CLS, SEP = 1, 2, 3, 4
FAMILIES = {
    "gpt2": {"bos": EOS, "eos": EOS},
    "llama": {"bos": BOS, "eos": EOS},
    "qwen": {"eos": EOS},
    "bert": {"cls": CLS, "sep": SEP},
    "roberta": {"bos": BOS, "eos": EOS, "cls": BOS, "sep": EOS},
    "esm": {"cls": CLS, "eos": EOS},
    "bare": {},
}
# what the tokenizer itself puts before a text
FRONT = {"llama": BOS, "bert": CLS, "roberta": BOS, "esm": CLS}


class Tokenizer:
    """A letter's code; the special tokens of a family."""

    def __init__(self, family: str) -> None:
        for name in ("bos", "eos", "cls", "sep"):
            setattr(self, f"{name}_token_id", FAMILIES[family].get(name))
        self._front = [FRONT[family]] if family in FRONT else []

    def __call__(
        self, texts: Any, add_special_tokens: bool, **_: Any
    ) -> dict[str, Any]:
        front = self._front if add_special_tokens else []
        if isinstance(texts, str):
            return {"input_ids": [*front, *map(ord, texts)]}
        return {"input_ids": [[*front, *map(ord, text)] for text in texts]}

    def save_pretrained(self, _: str) -> None: ...


def spec_of(corpus: Any = "memory", **more: Any) -> HarvestSpec:
    return resolve_spec(
        {
            "model": "m",
            "corpus": corpus,
            "sites": "x",
            "tokens": 10,
            "context": 4,
            **more,
        }
    )


def contexts(family: str, documents: list[Any], **more: Any) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HarvestWarning)
        source, _ = sequencer(spec_of(**more), Tokenizer(family), documents)
    return source.take(100).tokens.tolist()


A, B, C, D, E, F = map(ord, "abcdef")


@pytest.mark.parametrize(
    ("family", "options", "wanted"),
    [
        ("gpt2", {}, [[EOS, A, B, C], [EOS, D, EOS, E]]),
        ("llama", {}, [[BOS, A, B, C], [BOS, D, BOS, E]]),
        ("roberta", {}, [[BOS, A, B, C], [BOS, D, BOS, E]]),
        ("qwen", {}, [[A, B, C, EOS], [D, EOS, E, F]]),
        ("bert", {}, [[CLS, A, B, C], [CLS, SEP, CLS, D], [CLS, SEP, CLS, E]]),
        ("bare", {}, [[A, B, C, D]]),
        ("llama", {"separator": "bos"}, [[BOS, A, B, C], [BOS, D, BOS, E]]),
        (
            "llama",
            {"separator": "eos"},
            [[BOS, A, B, C], [BOS, EOS, D, EOS], [BOS, E, F, EOS]],
        ),
        (
            "llama",
            {"separator": "eos", "prepend_bos": False},
            [[A, B, C, EOS], [D, EOS, E, F]],
        ),
        ("llama", {"separator": "none"}, [[BOS, A, B, C], [BOS, D, E, F]]),
        ("llama", {"prepend_bos": False}, [[A, B, C, D]]),
        ("llama", {"separator": 9}, [[BOS, A, B, C], [BOS, 9, D, 9], [BOS, E, F, 9]]),
        ("bare", {"separator": 9}, [[A, B, C, 9], [D, 9, E, F]]),
        ("qwen", {"separator": "none"}, [[A, B, C, D]]),
        ("qwen", {"separator": "bos_if_any"}, [[A, B, C, D]]),
        ("bert", {"separator": "bos_if_any"}, [[CLS, A, B, C], [CLS, D, CLS, E]]),
        (
            "bert",
            {"separator": "sep"},
            [[CLS, A, B, C], [CLS, SEP, D, SEP], [CLS, E, F, SEP]],
        ),
        ("qwen", {"pack": False}, [[A, B, C, EOS], [D, EOS, -1, -1], [E, F, EOS, -1]]),
        (
            "bert",
            {"pack": False},
            [[CLS, A, B, C], [CLS, D, SEP, -1], [CLS, E, F, SEP]],
        ),
        (
            "llama",
            {"pack": False, "separator": "none"},
            [[BOS, A, B, C], [BOS, D, -1, -1], [BOS, E, F, -1]],
        ),
    ],
)
def test_what_contexts_hold(
    family: str, options: dict[str, Any], wanted: list[list[int]]
) -> None:
    assert contexts(family, ["abc", "d", "", "ef"], **options) == wanted


def test_documents_of_token_ids_do_not_get_an_end_twice() -> None:
    assert contexts("qwen", [[A, EOS], [B], [C, D]]) == [[A, EOS, B, EOS]]


def test_a_separator_that_cannot_be_is_refused() -> None:
    for family, separator, says in (
        ("qwen", "bos", "no BOS token"),
        ("qwen", "sep", "no SEP token"),
        ("bert", "eos", "no EOS token"),
    ):
        with pytest.raises(SpecError, match=says):
            boundary_tokens(Tokenizer(family), None, separator)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="prepend_bos is false"):
        boundary_tokens(Tokenizer("llama"), prepend_bos=False, separator="bos")
    with pytest.raises(SpecError, match="no tokenizer"):
        boundary_tokens(None, None, "eos")
    assert boundary_tokens(None, None) == BoundaryTokens(None, every_context=False)
    for wrong in ("moon", -1, True, 1.5):
        with pytest.raises(SpecError, match="separator"):
            spec_of(separator=wrong)


def test_arrays_have_no_documents() -> None:
    whole = np.zeros((2, 4), np.int64)
    for options in (
        {"separator": "eos"},
        {"prepend_bos": True},
        {"prepend_bos": False},
        {"pack": False},
    ):
        with pytest.raises(
            SpecError, match=rf"{next(iter(options))}: the tokens are whole sequences"
        ):
            sequencer(spec_of(**options), Tokenizer("llama"), whole)
    with pytest.raises(SpecError, match="one stream without documents"):
        sequencer(spec_of(separator="eos"), Tokenizer("llama"), np.zeros(9, np.int64))
    with pytest.raises(SpecError, match="of kind memory, but split"):
        sequencer(spec_of({"name": "x", "split": "test"}), Tokenizer("llama"), ["a"])


def test_a_long_document_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces are read one by one; any cursor leads on to the same contexts."""
    monkeypatch.setattr(file_formats, "PIECE_BYTES", 10)
    texts = ["".join(f"line {i}\n" for i in range(20)), "short", "0123456789\n"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    with pytest.warns(
        HarvestWarning,
        match=r"no BOS: each document ends with its EOS \(token 2\); separator",
    ):
        source, _ = sequencer(spec_of(str(tmp_path)), Tokenizer("qwen"))
    stream = [token for text in texts for token in (*map(ord, text), EOS)]
    n = len(stream) // 4
    assert (
        source.take(n + 1).tokens.tolist()
        == np.array(stream[: n * 4]).reshape(n, 4).tolist()
    )
    for k in range(1, n):
        source.seek(None)
        cursor = source.take(k).cursor
        source.seek(json.loads(json.dumps(cursor)))
        assert source.take(n + 1).tokens.ravel().tolist() == stream[k * 4 : n * 4]


@pytest.mark.parametrize(
    ("family", "says"),
    [
        (
            "bert",
            r"ends with its SEP \(token 4\) and begins with its CLS \(token 3\); separator",
        ),
        ("bare", "no EOS or SEP, so nothing stands between documents; separator ID"),
    ],
)
def test_what_nobody_asked_for_is_said(family: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with pytest.warns(HarvestWarning, match=f"no BOS: .*{says}"):
        sequencer(spec_of(str(tmp_path)), Tokenizer(family))
    for options in ({"separator": "none"}, {"separator": 9}):
        assert isinstance(
            sequencer(spec_of(str(tmp_path), **options), Tokenizer(family))[0],
            DocumentSequencer,
        )
    sequencer(spec_of(str(tmp_path)), Tokenizer("llama"))  # no warning


class Wide(nn.Module):
    """Token ids as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Embedding(128, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.x(tokens)


def test_the_plan_records_what_was_used(tmp_path: Path) -> None:
    for family, token in (("qwen", EOS), ("llama", None)):
        out = tmp_path / family
        spec = {
            "model": "m",
            "corpus": "memory",
            "sites": "x",
            "tokens": 8,
            "context": 4,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HarvestWarning)
            actstore.harvest(
                spec,
                str(out),
                model=Wide(),
                tokens=["abc", "def"],
                tokenizer=Tokenizer(family),
            )
        written = json.loads((out / "plan.json").read_text())
        assert written["spec"]["separator"] == "auto"
        assert written.get("separator_token") == token
        assert ("separator_token" in written) == (token is not None)


def test_plans_from_before_mean_what_they_did(tmp_path: Path) -> None:
    spec = {"model": "m", "corpus": "memory", "sites": "x", "tokens": 8, "context": 4}
    actstore.harvest(
        spec,
        str(tmp_path / "s"),
        model=Wide(),
        tokens=["abc", "def"],
        tokenizer=Tokenizer("llama"),
    )
    plan = json.loads((tmp_path / "s" / "plan.json").read_text())
    new = Plan.model_validate(
        {**plan, "spec": {**plan["spec"], "separator": "bos_if_any"}}
    )
    del plan["spec"]["separator"]
    plan["spec"]["corpus"] |= {"split": "train", "text_column": "text"}
    assert Plan.model_validate(plan) == new
    plan["model"]["bos_token"] = None
    assert Plan.model_validate(plan).spec.separator == "bos_if_any"
    plan["spec"]["corpus"] |= {"split": "test", "text_column": "body"}
    found = Plan.model_validate(plan).spec.corpus
    assert (found.split, found.text_column) == ("test", "body")
