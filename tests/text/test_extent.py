"""Tests of the size of a corpus that `actstore plan` estimates.

It is compared with the corpus read to its end; the estimate must leave most unread.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

import actstore
from actstore.errors import CorpusError
from actstore.harvesting.estimate import estimate
from actstore.text import file_formats
from actstore.text.corpora import MemoryCorpus, open_corpus
from actstore.text.corpus_files import find_files
from actstore.text.corpus_size import corpus_estimate, describe_estimate
from actstore.text.documents import DocumentColumn
from actstore.text.file_formats import FileCorpus
from actstore.text.separators import boundary_tokens
from actstore.text.sequences import sequencer
from schemas.harvest import HarvestSpec
from schemas.records import CorpusEstimate, HarvestEstimate
from schemas.source import CorpusSource

# of an estimate from 64 of 900 documents, whose lengths' deviation is half their mean:
# 0.5 / 8 = 0.06
TOLERANCE = 0.1
N_DOCUMENTS = 900
KINDS = ("text", "jsonl", "parquet", "arrow", "memory")


class Letters:
    """A tokenizer of one token per character; with `adds_bos` each context begins with
    BOS.
    """

    cls_token_id, bos_token_id = None, 1

    def __init__(self, adds_bos: bool = False) -> None:
        self.adds_bos = adds_bos

    def __call__(
        self, texts: Any, add_special_tokens: bool, **_: Any
    ) -> dict[str, Any]:
        begin = [1] * (add_special_tokens and self.adds_bos)
        if isinstance(texts, str):
            return {"input_ids": begin + [ord(c) for c in texts]}
        return {"input_ids": [begin + [ord(c) for c in text] for text in texts]}


def documents(n: int = N_DOCUMENTS) -> list[str]:
    """Texts of 50 to 1,500 characters, some of them empty, some of two bytes a
    character.
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 1500, n) * (rng.random(n) > 0.05)
    return [("é" if rng.random() < 0.3 else "e") * int(length) for length in lengths]


def write(kind: str, folder: Path, texts: list[str]) -> str:
    if kind == "text":
        for i, text in enumerate(texts):
            (folder / f"{i:04}.txt").write_text(text)
        return str(folder)
    if kind == "jsonl":
        lines = [
            json.dumps({"text": text, "n": i}, ensure_ascii=False) + "\n"
            for i, text in enumerate(texts)
        ]
        (folder / "a.jsonl").write_text("".join(lines[:300]))
        (folder / "b.jsonl").write_text("".join(lines[300:]))
        return str(folder)
    if kind == "parquet":
        for i in range(3):
            pq.write_table(
                pa.table({"text": texts[i::3]}),
                folder / f"{i}.parquet",
                row_group_size=100,
            )
        return str(folder)
    import datasets

    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder / "data")
    return str(folder / "data")


def spec_of(name: str, **more: Any) -> HarvestSpec:
    values = {
        "model": {"name": "m"},
        "corpus": {"name": name},
        "sites": ("a",),
        "tokens": 10**9,
        "context": 32,
    }
    return HarvestSpec.model_validate(values | more)


def looked_at(
    spec: HarvestSpec, source: Any = None, adds_bos: bool = False, n: int = 8
) -> CorpusEstimate:
    reader, corpus = sequencer(spec, Letters(adds_bos), source)
    reader.seek(None)
    return corpus_estimate(spec, reader, corpus, reader.take(n))


def counted(spec: HarvestSpec, source: Any = None, adds_bos: bool = False) -> int:
    """The truth: positions of all contexts."""
    reader, _ = sequencer(spec, Letters(adds_bos), source)
    return len(reader.take(60_000).tokens) * spec.context


@pytest.mark.parametrize("adds_bos", [False, True], ids=["", "bos"])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "one each"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_the_count_within_the_tolerance(
    kind: str, pack: bool, adds_bos: bool, tmp_path: Path
) -> None:
    texts = documents()
    memory = texts if kind == "memory" else None
    spec = spec_of("memory" if memory else write(kind, tmp_path, texts), pack=pack)
    found = looked_at(spec, memory, adds_bos)
    assert found.how == "estimated"
    assert found.documents <= 128 < N_DOCUMENTS
    assert found.tokens == pytest.approx(counted(spec, memory, adds_bos), rel=TOLERANCE)
    assert found.short
    said = describe_estimate(found, spec.corpus.name)
    assert f"holds about {found.tokens:,} tokens" in said
    assert "fewer than the 1,000,000,000 asked" in said


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_that_calibration_reads_to_its_end_is_counted(
    kind: str, pack: bool, tmp_path: Path
) -> None:
    texts = documents(40)
    memory = texts if kind == "memory" else None
    spec = spec_of("memory" if memory else write(kind, tmp_path, texts), pack=pack)
    for n in (8, 10_000):  # what was read ahead, and what was taken
        found = looked_at(spec, memory, n=n)
        assert (found.how, found.short) == ("counted", True)
        assert found.tokens == counted(spec, memory)
        assert found.documents == sum(map(bool, texts))
    assert "ends after" in describe_estimate(found, "c")


def test_one_long_text_is_estimated_from_its_first_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "PIECE_BYTES", 10_000)
    monkeypatch.setattr("actstore.text.sequences._BATCH_CHARACTERS", 20_000)
    (tmp_path / "a.txt").write_text("some words in a line\n" * 20_000)
    spec = spec_of(str(tmp_path / "a.txt"))
    found = looked_at(spec)
    assert (found.how, found.documents) == ("estimated", 1)
    assert found.tokens == pytest.approx(counted(spec), rel=0.001)


def test_enough_is_no_warning_and_arrays_are_counted() -> None:
    assert not looked_at(spec_of("memory", tokens=100_000), documents()).short
    array = np.arange(50 * 32).reshape(50, 32)
    assert looked_at(spec_of("memory"), array).tokens == 50 * 32
    assert looked_at(spec_of("memory", tokens=50 * 32), array).short is False
    flat = looked_at(spec_of("memory"), array.reshape(-1))
    assert (flat.how, flat.tokens) == ("counted", 50 * 32)


@pytest.mark.parametrize("kind", ["gzip", "iterator"])
def test_a_size_that_is_not_known_is_said_to_be_unknown(
    kind: str, tmp_path: Path
) -> None:
    texts = documents()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    source: Iterator[str] | None = iter(texts) if kind == "iterator" else None
    found = looked_at(spec_of(str(tmp_path) if source is None else "memory"), source)
    assert (found.how, found.tokens, found.short) == ("unknown", None, False)
    assert "is not known" in describe_estimate(found, "c")


def test_rows_of_many_parquet_files_follow_from_some_footers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "FOOTERS", 5)
    for i in range(23):
        pq.write_table(
            pa.table({"text": [f"document {j}" for j in range(100)]}),
            tmp_path / f"{i:02}.parquet",
        )
    corpus = open_corpus(CorpusSource(name=str(tmp_path)))
    assert isinstance(corpus, FileCorpus)
    assert corpus.size() == pytest.approx(2300, rel=0.01)
    (tmp_path / "00.parquet").write_bytes(b"PAR1 not parquet")
    with pytest.raises(CorpusError, match=r"00\.parquet"):
        corpus.size()


def test_a_streamed_data_set_has_the_rows_of_its_card() -> None:
    import datasets

    from actstore.text.hf_datasets import DatasetCorpus

    data = datasets.Dataset.from_dict({"text": ["a"] * 7}).to_iterable_dataset()
    assert DatasetCorpus(data, DocumentColumn("text"), None).size() is None
    info = datasets.DatasetInfo()
    info.splits = {"train": datasets.SplitInfo(name="train", num_examples=1234)}
    for split, rows in (("train", 1234), ("train[:10%]", None)):
        told = datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset()
        told._info, told._split = info, split
        assert DatasetCorpus(told, DocumentColumn("text"), None).size() == rows


def test_sizes_are_the_sum_of_the_pieces(tmp_path: Path) -> None:
    for kind in KINDS[:-1]:
        folder = tmp_path / kind
        folder.mkdir()
        corpus = open_corpus(CorpusSource(name=write(kind, folder, documents(30))))
        assert corpus.size() == sum(piece.size for piece in corpus.pieces(None)), kind
    assert MemoryCorpus(["a", "b"]).size() == 2
    files = find_files(str(tmp_path / "text"))
    assert files.size() == sum(Path(path).stat().st_size for path in files.paths)
    assert boundary_tokens(Letters(), None).bos == 1


class One(nn.Module):
    """A site of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding(300, 8)

    def forward(self, tokens: Any) -> Any:
        return self.a(tokens)


def test_the_figures_of_a_short_corpus_are_those_of_the_store_it_makes(
    memory_url: str,
) -> None:
    stream = np.random.default_rng(0).integers(0, 300, 3000)
    spec = {
        "sites": ("a",),
        "batch": 4,
        "context": 32,
        "tokens": 100_000,
        "codec": "raw",
    }
    found: HarvestEstimate = estimate(spec, model=One(), tokens=stream)
    with pytest.warns(UserWarning, match="ended early"):
        store = actstore.harvest(
            spec, f"{memory_url}/store", model=One(), tokens=stream
        )
    assert found.corpus.tokens == 3000 // 32 * 32 == store.manifest.n_rows == found.rows
    assert found.layout.unit_sequences == store.layout.unit_sequences
    assert (found.layout.n_units, found.layout.n_sequences) == (
        store.manifest.n_units,
        store.manifest.n_sequences,
    )
    assert found.objects == len(store.storage.list())
    assert found.codecs["raw"].bytes == pytest.approx(store.manifest.n_bytes, rel=0.03)
