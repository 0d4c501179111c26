"""Documents of every kind of source, packed exactly, and cursors that lead back to any
sequence.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import CorpusError, SpecError
from actstore.text import file_formats
from actstore.text.corpora import MemoryCorpus, open_corpus
from actstore.text.separators import BoundaryTokens, boundary_tokens
from actstore.text.sequences import END, DocumentSequencer, sequencer
from schemas.harvest import HarvestSpec
from schemas.source import CorpusSource, ModelSource

TEXTS = ["alpha beta", "", "gamma\ndelta", "e" * 23, "zeta"]


class Letters:
    """A tokenizer: a letter's code; BOS 1. `adds_bos` as Llama's does."""

    cls_token_id = None

    def __init__(self, adds_bos: bool = False, bos: int | None = 1) -> None:
        self.adds_bos, self.bos_token_id = adds_bos, bos

    def __call__(
        self, texts: Any, add_special_tokens: bool, **_: Any
    ) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self._ids(texts, add_special_tokens)}
        return {"input_ids": [self._ids(text, add_special_tokens) for text in texts]}

    def _ids(self, text: str, special: bool) -> list[int]:
        text.encode()  # as real tokenizers, refuse half a surrogate pair
        return [1] * (special and self.adds_bos) + [ord(c) for c in text]


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


def packed(
    documents: list[Any], context: int, boundaries: BoundaryTokens, pack: bool = True
) -> DocumentSequencer:
    return DocumentSequencer(
        MemoryCorpus(documents), Letters(), context, pack=pack, boundaries=boundaries
    )


def by_hand(documents: list[list[int]], context: int, every: bool) -> list[list[int]]:
    """The rule of `actstore/text/sequences.py`, spelled out one token at a time."""
    stream = [t for d in documents if d for t in ([("bos", 1), *(("t", x) for x in d)])]
    rows: list[list[int]] = []
    row: list[int] = []
    for kind, token in stream:
        if every and not row and kind != "bos":
            row = [1]
        row.append(token)
        if len(row) == context:
            rows.append(row)
            row = []
    return rows


documents = st.lists(st.lists(st.integers(2, 90), max_size=12), max_size=12)


@given(documents, st.integers(2, 9), st.booleans())
@settings(max_examples=150, deadline=None)
def test_packing_is_the_rule_by_hand(
    docs: list[list[int]], context: int, every: bool
) -> None:
    got = packed(docs, context, BoundaryTokens(1, every)).take(100)
    assert got.tokens.tolist() == by_hand(docs, context, every)
    assert got.ended
    assert got.cursor == END


@given(
    documents,
    st.integers(2, 9),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_any_cursor_leads_on_to_the_same_blocks(
    docs: list[list[int]], context: int, every: bool, pack: bool, sizes: list[int]
) -> None:
    whole = packed(docs, context, BoundaryTokens(1, every), pack)
    blocks = [whole.take(n) for n in sizes]
    for k in range(1, len(sizes)):
        other = packed(docs, context, BoundaryTokens(1, every), pack)
        other.seek(json.loads(json.dumps(blocks[k - 1].cursor)))
        for n, wanted in zip(sizes[k:], blocks[k:], strict=True):
            got = other.take(n)
            assert got.tokens.tolist() == wanted.tokens.tolist()
            assert (got.cursor, got.ended, got.skipped) == (
                wanted.cursor,
                wanted.ended,
                wanted.skipped,
            )


@given(documents, st.integers(2, 9), st.booleans(), st.booleans(), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_a_block_says_that_nothing_follows(
    docs: list[list[int]], context: int, every: bool, pack: bool, size: int
) -> None:
    source = packed(docs, context, BoundaryTokens(1, every), pack)
    while not (got := source.take(size)).ended:
        assert len(got.tokens) == size
    assert got.cursor == END
    assert len(got.tokens) > 0 or not len(
        packed(docs, context, BoundaryTokens(1, every), pack).take(1).tokens
    )


def test_without_packing_a_context_is_one_document() -> None:
    got = packed(TEXTS, 8, BoundaryTokens(1, False), pack=False).take(10)
    assert [row[row >= 0].tolist() for row in got.tokens] == [
        [1, *ids(text)][:8] for text in TEXTS if text
    ]
    assert (got.tokens[-1] == [1, *ids("zeta"), -1, -1, -1]).all()
    assert got.skipped == 1


def test_bos_follows_the_tokenizer() -> None:
    assert boundary_tokens(Letters(), None) == BoundaryTokens(1, every_context=False)
    assert boundary_tokens(Letters(adds_bos=True), None) == BoundaryTokens(
        1, every_context=True
    )
    assert boundary_tokens(Letters(), prepend_bos=True) == BoundaryTokens(
        1, every_context=True
    )
    assert boundary_tokens(Letters(adds_bos=True), prepend_bos=False) == BoundaryTokens(
        None, every_context=False
    )
    assert boundary_tokens(Letters(bos=None), None) == BoundaryTokens(
        None, every_context=False
    )
    assert boundary_tokens(None, None) == BoundaryTokens(None, every_context=False)
    with pytest.raises(SpecError, match="no BOS token"):
        boundary_tokens(Letters(bos=None), prepend_bos=True)


def test_documents_that_do_not_tokenise_are_left_out_and_counted() -> None:
    got = packed(["ab", "\ud800", None, "cd"], 6, BoundaryTokens(1, False)).take(1)
    assert got.tokens.tolist() == [[1, *ids("ab"), 1, *ids("cd")]]
    assert got.skipped == 2


def read(source: CorpusSource, cursor: dict[str, Any] | None = None) -> list[Any]:
    return [piece.content for piece in open_corpus(source).pieces(cursor)]


def write(kind: str, folder: Path) -> str:
    """TEXTS (and their ids) as a corpus of a kind; its name."""
    rows = [{"text": text, "ids": ids(text), "other": 1} for text in TEXTS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "text":
        (folder / "deep").mkdir()
        for i, text in enumerate(TEXTS):
            (folder / ("deep" if i > 2 else ".") / f"{i}.txt").write_text(text)
        (folder / ".hidden").write_text("no")
        return str(folder)
    if kind == "glob":
        for i, text in enumerate(TEXTS):
            (folder / f"{i}.md").write_text(text)
        (folder / "x.bin").write_bytes(b"\xff")
        return f"{folder}/*.md"
    if kind == "jsonl":
        (folder / "a.jsonl").write_text(lines.replace("\n", "\n\n \n", 2))
        return str(folder / "a.jsonl")
    if kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        return str(folder)
    if kind == "memory":
        with fsspec.open("memory://corpus/a.jsonl", "wt") as file:
            file.write(lines)
        return "memory://corpus/a.jsonl"
    if kind == "parquet":
        pq.write_table(
            pa.Table.from_pylist(rows[:3]), folder / "0.parquet", row_group_size=2
        )
        pq.write_table(pa.Table.from_pylist(rows[3:]), folder / "1.parquet")
        return str(folder)
    import datasets

    data = datasets.Dataset.from_list(rows)
    if kind == "splits":
        data = datasets.DatasetDict(
            {"train": datasets.Dataset.from_list(rows[:1]), "test": data}
        )
    data.save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


KINDS = ("text", "glob", "jsonl", "jsonl.gz", "memory", "parquet", "dataset", "splits")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_kind_of_source_gives_its_documents_from_any_cursor(
    kind: str, tmp_path: Path
) -> None:
    source = CorpusSource(
        name=write(kind, tmp_path), split="test" if kind == "splits" else "train"
    )
    pieces = list(open_corpus(source).pieces(None))
    wanted = [text for text in TEXTS if text] if kind in {"text", "glob"} else TEXTS
    if kind == "text":
        wanted = [w for w in wanted if w not in {TEXTS[3], TEXTS[4]}] + TEXTS[3:]
    assert [piece.content for piece in pieces] == wanted
    for i, piece in enumerate(pieces):
        assert read(source, json.loads(json.dumps(piece.cursor))) == wanted[i:]
    assert open_corpus(source).digest() == open_corpus(source).digest()
    if kind not in {"text", "glob"}:
        columns = source.model_copy(update={"token_column": "ids"})
        assert [list(content) for content in read(columns)] == [
            ids(text) for text in TEXTS
        ]
        with pytest.raises(CorpusError, match=r"no column 'body'.*ids, other, text"):
            read(source.model_copy(update={"text_column": "body"}))


def test_long_text_files_come_in_pieces_of_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "PIECE_BYTES", 10)
    text = "".join(f"line {i} ä\n" for i in range(20))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("short")
    pieces = list(open_corpus(CorpusSource(name=str(tmp_path))).pieces(None))
    assert "".join(p.content for p in pieces) == text + "short"
    assert [p.first for p in pieces].count(True) == 2
    spec = make_spec(str(tmp_path), context=len(text) + 1)
    assert sequencer(spec, Letters())[0].take(1).tokens.tolist() == [[1, *ids(text)]]


def make_spec(corpus: str, **changes: Any) -> HarvestSpec:
    return HarvestSpec.model_validate(
        {
            "model": ModelSource(name="x"),
            "corpus": CorpusSource(name=corpus),
            "sites": ("x",),
            "tokens": 10,
            **changes,
        }
    )


def test_builtin_documents_and_cursor() -> None:
    source = CorpusSource(name="builtin:stdlib")
    pieces = open_corpus(source).pieces(None)
    first = [next(pieces) for _ in range(4)]
    assert next(open_corpus(source).pieces(first[3].cursor)) == first[3]
    with pytest.raises(CorpusError, match="builtin:stdlib"):
        open_corpus(CorpusSource(name="builtin:moon"))


def test_arrays_and_iterables_in_memory() -> None:
    spec = make_spec("memory", context=4)
    rows = np.arange(12).reshape(3, 4)
    source, corpus = sequencer(spec, None, rows)
    assert corpus is None
    assert source.take(2).tokens.tolist() == rows[:2].tolist()
    rest = source.take(2)
    assert rest.tokens.tolist() == rows[2:].tolist()
    assert rest.ended
    stream = sequencer(spec, Letters(), np.arange(2, 12))[0].take(9)
    assert stream.tokens.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    lists = sequencer(spec, Letters(), ([5, 6, 7] for _ in range(2)))[0].take(9)
    assert lists.tokens.tolist() == [[1, 5, 6, 7], [1, 5, 6, 7]]
    with pytest.raises(SpecError, match="do not fit context"):
        sequencer(spec, None, np.zeros((2, 5), np.int64))
    with pytest.raises(CorpusError, match="no tokenizer"):
        sequencer(spec, None, ["text"])[0].take(1)


def broken(kind: str, folder: Path) -> tuple[str, str]:
    """A bad corpus, and what its error must say."""
    if kind == "gone":
        return str(folder / "no" / "such" / "folder"), "no such file or folder"
    if kind == "binary":
        (folder / "a.txt").write_bytes(b"fine\n\xff\xfe")
        return str(folder), "a.txt: not UTF-8 text at byte 5"
    if kind == "json":
        (folder / "a.jsonl").write_text('{"text": "x"}\n{"text":\n')
        return str(folder), "line 2 (at byte 14): not JSON"
    if kind == "list":
        (folder / "a.jsonl").write_text("[1]\n")
        return str(folder), "wanted an object, got list"
    if kind == "gzip":
        (folder / "a.jsonl.gz").write_bytes(b"not gzip")
        return str(folder), "cannot read"
    if kind == "parquet":
        (folder / "a.parquet").write_bytes(b"PAR1 not parquet")
        return str(folder), "cannot read"
    if kind == "empty":
        return str(folder), "no file in it"
    return "gopher://x/y", "gopher"


@pytest.mark.parametrize(
    "kind", ["gone", "binary", "json", "list", "gzip", "parquet", "empty", "protocol"]
)
def test_bad_corpora_are_named(kind: str, tmp_path: Path) -> None:
    name, says = broken(kind, tmp_path)
    with pytest.raises(CorpusError) as caught:
        read(CorpusSource(name=name))
    assert says in str(caught.value)


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    name = write("splits", tmp_path)
    with pytest.raises(CorpusError, match="no split 'moon'; it has train, test"):
        read(CorpusSource(name=name, split="moon"))
