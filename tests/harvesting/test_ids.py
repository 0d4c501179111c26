"""The door for token ids: what is refused, and that padding on either side changes no
value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import nn

import actstore
from actstore.console.token_file import read_tokens
from actstore.errors import CorpusError, SpecError
from actstore.format.token_ids import moved_left
from actstore.harvesting.estimate import estimate
from actstore.harvesting.extend import extend
from actstore.harvesting.harvest_plan import corpus_digest
from actstore.harvesting.worker_share import parse_worker
from actstore.text.sequences import sequencer
from schemas.harvest import HarvestSpec
from schemas.source import CorpusSource
from schemas.stream import StreamSpec
from tests.harvesting.test_harvest import Scaled
from tests.support import make_plan, make_store
from tests.text.test_tokens import Letters, make_spec

VOCABULARY = 100
ROWS = np.arange(12).reshape(3, 4)


def taken(source: Any, context: int = 4) -> Any:
    return sequencer(
        make_spec("memory", context=context), Letters(), source, VOCABULARY
    )[0].take(99)


def with_pad(*places: tuple[int, int], value: int = -1) -> np.ndarray:
    rows = ROWS.copy()
    rows[tuple(zip(*places, strict=True))] = value
    return rows


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ("a text", SpecError, r"got str; put a text into a list: \[text\]"),
    (b"bytes", SpecError, "got bytes; put a text into a list"),
    ({"input_ids": ROWS}, SpecError, "got dict; give its token ids alone"),
    (7, SpecError, "got int"),
    (np.array(7), SpecError, r"shape \[\]: wanted \[n, context\]"),
    (ROWS[None], SpecError, r"shape \[1, 3, 4\]"),
    (ROWS.astype(float), SpecError, "float64 are not token ids"),
    (ROWS.astype(bool), SpecError, "bool are not token ids"),
    (np.array(["a", "b"]), SpecError, "come in a list"),
    (np.array([[1], [2, 3]], dtype=object), SpecError, "object are not token ids.*in a list"),
    (np.ma.masked_equal(ROWS, 3), SpecError, r"mask would be ignored; put padding.*filled\(-1\)"),
    (torch.from_numpy(ROWS).to_sparse(), SpecError, "sparse, nested or without data; give a dense one"),
    (torch.empty(3, 4, dtype=torch.long, device="meta"), SpecError, "sparse, nested or without data"),
    (pd.DataFrame({"text": ["a"]}), SpecError, "got DataFrame; give one column"),
    (list(torch.arange(3)), CorpusError, "document 0: wanted a text or a list of token ids"),
    ([np.array(3)], CorpusError, "document 0: wanted a text or a list of token ids"),
    (torch.ones(3, 4), SpecError, "float32 are not token ids"),
    (torch.ones(3, 4, dtype=torch.bfloat16), SpecError, "bfloat16 are not token ids"),
    (torch.ones(3, 4, dtype=torch.bool), SpecError, "bool are not token ids"),
    ([1, 2.0, 3], SpecError, "float are not token ids"),
    ([True, 2], SpecError, "bool are not token ids"),
    (ROWS + 2**32, CorpusError, "token id 4294967307: the model's vocabulary has 100"),
    ((ROWS + 2**32).astype(np.uint64), CorpusError, "token id 4294967307"),
    (np.full((3, 4), 2**64 - 1, np.uint64), CorpusError, f"token id {2**64 - 1}"),
    (torch.from_numpy(ROWS + 2**32), CorpusError, "token id 4294967307"),
    (np.arange(20) + 2**32, CorpusError, "token id 4294967315"),
    ([5, 2**40], CorpusError, "token id 1099511627776"),
    ([5, 2**70], SpecError, "not token ids"),
    (np.full((3, 4), 100), CorpusError, "token id 100: the model's vocabulary has 100 tokens"),
    (with_pad((0, 3), value=-100), CorpusError, "-100 is not a token id; padding is -1, so replace -100"),
    (np.array([3, 4, -100]), CorpusError, "-100 is not a token id; padding is -1, so replace -100"),
    ([3, 4, -1], CorpusError, r"-1 is padding, which only an array \[n, context\] may hold"),
    (with_pad((1, 2)), CorpusError, r"row 1 has padding \(-1\) among its tokens"),
    (with_pad((2, 0), (2, 2)), CorpusError, r"row 2 has padding \(-1\) among its tokens"),
    (with_pad(*((1, i) for i in range(4))), CorpusError, r"row 1 is padding \(-1\) alone"),
    ([[1, 2], [3, -1]], CorpusError, r"document {'document': 1}: -1 is padding"),
    ([[1, 2], [3, -100]], CorpusError, "-100 is not a token id"),
    ([[1, 100]], CorpusError, "token id 100"),
    ([[1, 2**32 + 7]], CorpusError, "token id 4294967303"),
    ([np.array([1.0])], CorpusError, "float64 are not token ids"),
    ([[[1, 2]]], CorpusError, "list are not token ids"),
    ([[1, None]], CorpusError, "NoneType are not token ids"),
    ([["a"]], CorpusError, "str are not token ids"),
    ([{"a": 1}], CorpusError, "got dict"),
    ([b"ab"], CorpusError, "got bytes"),
    (["text", 5], CorpusError, r"got 5 \(int\)"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "error", "says"), REFUSED)
def test_what_are_no_token_ids_is_refused_before_any_cast(
    source: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        taken(source)


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4"],
)
def test_every_integer_dtype_gives_the_same_ids_and_digest(dtype: str) -> None:
    for source in (
        ROWS,
        ROWS.reshape(-1),
        np.arange(2 * 12).reshape(3, 8)[:, ::2] // 2,
    ):
        given = source.astype(dtype)
        assert taken(given).tokens.tolist() == ROWS.tolist()
        assert corpus_digest(None, given) == corpus_digest(None, source)
        if "u" not in dtype and ">" not in dtype:
            assert corpus_digest(None, torch.from_numpy(given)) == corpus_digest(
                None, source
            )
    assert corpus_digest(None, ROWS) != corpus_digest(None, ROWS[::-1].copy())
    assert corpus_digest(None, ["a"]) is None


def test_padding_before_a_rows_tokens_is_moved_after_them() -> None:
    rows = np.array(
        [[-1, -1, 3, 4], [1, 2, 3, 4], [-1, 6, 7, -1], [8, -1, -1, -1], [-1, -1, -1, 9]]
    )
    moved = [
        [3, 4, -1, -1],
        [1, 2, 3, 4],
        [6, 7, -1, -1],
        [8, -1, -1, -1],
        [9, -1, -1, -1],
    ]
    assert taken(rows).tokens.tolist() == moved
    assert moved_left(np.array(moved, np.int32)).tolist() == moved
    assert taken(rows.astype(np.int8)).tokens.tolist() == moved


def test_lists_of_numbers_are_a_stream_and_lists_of_lists_documents() -> None:
    assert taken(list(range(2, 12))).tokens.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert taken([np.int64(5)] * 4).tokens.tolist() == [[5, 5, 5, 5]]
    assert taken([(5, 6, 7), torch.tensor([8, 9, 9])]).tokens.tolist() == [
        [1, 5, 6, 7],
        [1, 8, 9, 9],
    ]


@pytest.mark.parametrize(
    "ids",
    [
        "[1, 2.5]",
        "[true]",
        '["a"]',
        "[[1]]",
        "[-100]",
        "[100]",
        "[4294967303]",
        "7",
        '"text"',
    ],
)
def test_token_columns_of_files_go_through_the_same_door(
    ids: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"ids": [1, 2, 3, 4]}}\n{{"ids": {ids}}}\n')
    source = CorpusSource(name=str(tmp_path), token_column="ids")
    spec = make_spec("x", context=4).model_copy(update={"corpus": source})
    with pytest.raises(CorpusError, match="token id"):
        sequencer(spec, Letters(), None, VOCABULARY)[0].take(9)


def test_a_text_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    spec = {"model": "no/such/model", "sites": "x", "tokens": 100}
    for call in (
        lambda: actstore.harvest(spec, str(tmp_path / "s"), tokens="abc"),
        lambda: estimate(spec, tokens="a"),
    ):
        with pytest.raises(SpecError, match="put a text into a list"):
            call()
    store = make_store(tmp_path / "t", n_units=2)
    with pytest.raises(SpecError, match="put a text into a list"):
        extend(store.url, tokens=100, source="abc")
    with pytest.raises(SpecError, match="source: more sites"):
        extend(store.url, sites="x", source=ROWS)


def test_ids_beyond_the_embedding_of_a_module_without_a_vocabulary(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        CorpusError, match="up to 100 are too large for the model's embedding"
    ):
        actstore.harvest(
            {"sites": "embed"},
            str(tmp_path / "s"),
            model=Scaled(1),
            tokens=np.full((4, 4), 100),
        )


def test_tokens_that_no_row_can_have_select_nothing_and_are_refused(
    tmp_path: Path,
) -> None:
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": 100,
    }
    for wrong in (4096, -1):
        with pytest.raises(
            SpecError, match=f"exclude_tokens: there is no token {wrong}"
        ):
            actstore.harvest(
                {**spec, "exclude_tokens": (0, wrong)}, str(tmp_path / "s")
            )
        with pytest.raises(
            SpecError, match=f"exclude_tokens: there is no token {wrong}"
        ):
            estimate({**spec, "exclude_tokens": (wrong,)}, batches=1)
    with pytest.raises(SpecError, match="skip_first 128 leaves nothing"):
        actstore.harvest({**spec, "skip_first": 128}, str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
    store = make_store(tmp_path / "t", n_units=3)
    for rule in ({"tokens": [100]}, {"exclude_tokens": [-1]}, {"tokens": [1, 2**40]}):
        with pytest.raises(
            SpecError, match=r"filter\.(exclude_)?tokens: there is no token"
        ):
            store.stream(StreamSpec(batch=8, filter=rule))
    with store.stream(StreamSpec(batch=8, filter={"exclude_tokens": [99]})) as stream:
        assert 99 not in store.provenance(next(stream).row.numpy()).token


def test_digits_of_other_scripts_are_no_numbers(tmp_path: Path) -> None:
    for text in ("²", "٣", "1" * 5000):
        (tmp_path / "ids").write_text(f"1\n{text}\n")
        with pytest.raises(SpecError, match="line 2: wanted a token id"):
            read_tokens(str(tmp_path / "ids"))
        with pytest.raises(SpecError, match="wanted i/n"):
            parse_worker(f"{text}/3")
    assert parse_worker("3/8").units(make_plan(n_units=20)) == range(2, 20, 8)


class Plain(nn.Module):
    """A Hugging Face model whose sites are its modules."""

    def __init__(self, kind: str, config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = getattr(transformers, kind)(config)
        self.config = config

    def forward(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Any:
        return self.model(tokens, attention_mask=attention_mask)


SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
OPT = {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
MODELS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32
        ),
        *("GPT2Model", "model.h.1"),
    ),
    "roberta": (
        lambda: transformers.RobertaConfig(**SIZES, max_position_embeddings=34),
        *("RobertaModel", "model.encoder.layer.1"),
    ),
    "opt": (
        lambda: transformers.OPTConfig(**OPT),
        "OPTModel",
        "model.decoder.layers.1",
    ),
    "bert": (
        lambda: transformers.BertConfig(**SIZES, max_position_embeddings=32),
        *("BertModel", "model.encoder.layer.1"),
    ),
    "llama": (
        lambda: transformers.LlamaConfig(
            **SIZES, num_key_value_heads=2, max_position_embeddings=32
        ),
        *("LlamaModel", "model.layers.1"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_either_side_changes_no_value(name: str, memory_url: str) -> None:
    """Rows of mixed lengths, padded left, right or on both sides, against each sequence
    alone.
    """
    config, kind, site = MODELS[name]
    module = Plain(kind, config())
    rng = np.random.default_rng(0)
    rows, alone = np.full((9, 12), -1), []
    for i in range(9):
        n = int(rng.integers(3, 13))
        start = (0, 12 - n, (12 - n) // 2)[i % 3]
        alone.append(rng.integers(3, 50, n))
        rows[i, start : start + n] = alone[-1]
    spec = {"sites": site, "dtype": "float32", "batch": 4, "unit_sequences": 5}
    store = actstore.harvest(spec, memory_url, model=module, tokens=rows)
    ids = store.rows()
    where, got = store.provenance(ids), store.read(site, ids)
    assert store.manifest.n_rows == sum(map(len, alone))
    seen: list[torch.Tensor] = []
    hook = module.get_submodule(site).register_forward_hook(
        lambda _m, _a, out: seen.append(
            out if isinstance(out, torch.Tensor) else out[0]
        )
    )
    for i, tokens in enumerate(alone):
        with torch.no_grad():
            module(torch.from_numpy(tokens)[None])
        mine = np.flatnonzero(where.sequence == i)
        mine = mine[np.argsort(where.position[mine])]
        assert where.position[mine].tolist() == list(range(len(tokens)))
        assert where.token[mine].tolist() == tokens.tolist()
        np.testing.assert_allclose(got[mine], seen[-1][0].numpy(), atol=1e-5)
    hook.remove()
    assert store.norms[site].special.count == 9
    skipped = actstore.harvest(
        {**spec, "skip_first": 2}, f"{memory_url}-skip", model=module, tokens=rows
    )
    assert sorted(set(skipped.provenance().position.tolist())) == list(
        range(2, max(map(len, alone)))
    )


def test_padding_is_given_the_models_own_token(memory_url: str) -> None:
    module = Scaled(1)
    module.config = type("Config", (), {"vocab_size": 100, "pad_token_id": 7})()
    seen: list[list[int]] = []
    module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0].tolist()))
    actstore.harvest(
        {"sites": "embed"}, memory_url, model=module, tokens=np.array([[-1, 3, 4]])
    )
    assert seen[-1] == [3, 4, 7]


def test_a_plan_of_the_same_ids_is_the_same_plan(memory_url: str) -> None:
    for dtype in ("int64", "int32", "uint16"):
        url = f"{memory_url}-{dtype}"
        actstore.harvest(
            {"sites": "embed"}, url, model=Scaled(1), tokens=ROWS.astype(dtype)
        )
    plans = [
        actstore.open(f"{memory_url}-{d}").storage.read("plan.json")
        for d in ("int64", "int32", "uint16")
    ]
    assert plans[0] == plans[1] == plans[2]
    assert HarvestSpec.model_validate(json.loads(plans[0])["spec"]).tokens == 12
