"""Tests of which files and rows are documents.

Splits, options, files that are left out, types, nested fields, odd paths.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it has

from actstore.errors import CorpusError, HarvestWarning, SpecError
from actstore.text.corpora import MemoryCorpus, check_options, open_corpus
from actstore.text.corpus_files import find_files, read_errors_named
from actstore.text.split_names import splits_of
from schemas.source import CorpusKind, CorpusSource

LAYOUTS = {
    "files": ("test.jsonl", "train-1.jsonl", "train-2.jsonl", "my_dev.jsonl"),
    "folders": ("test/a.jsonl", "train/a.jsonl", "train/b.jsonl", "en-valid/a.jsonl"),
    "shards": (
        *("data/test-00000-of-00001.jsonl", "data/train-00000-of-00002.jsonl"),
        *(
            "data/train-00001-of-00002.jsonl",
            "data/validation-00000-of-00001-ab12.jsonl",
        ),
    ),
}


def write(folder: Path, *names: str) -> str:
    """Files, each one document: its own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(
                json.dumps({"text": name}) + "\n"
                if path.suffix in {".json", ".jsonl"}
                else name
            )
    return str(folder)


def read(name: str | Path, **options: Any) -> list[Any]:
    return [
        piece.content
        for piece in open_corpus(CorpusSource(name=str(name), **options)).pieces(None)
    ]


def said(name: str | Path, **options: Any) -> tuple[list[Any], str]:
    """The documents, and what is told of them."""
    with pytest.warns(HarvestWarning) as caught:
        found = read(name, **options)
    return found, " | ".join(str(one.message) for one in caught)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "txt"])
def test_a_split_selects_files_by_their_names(
    layout: str, ending: str, tmp_path: Path
) -> None:
    names = [name.replace("jsonl", ending) for name in LAYOUTS[layout]]
    folder = write(tmp_path, *names)
    for split, wanted in (
        ("test", names[:1]),
        ("train", names[1:3]),
        ("validation", names[3:]),
        (None, names[1:3]),
    ):
        found, told = said(folder, split=split)
        assert found == wanted
        assert f"split {split or 'train'} is read, {len(wanted)} file" in told
        assert "split test" in told
    assert read(folder, split="all") == sorted(names)
    with pytest.raises(
        CorpusError,
        match=r"no split 'nosuch'; it has (train, validation, test|test, train, validation)",
    ):
        read(folder, split="nosuch")


def test_a_folder_without_splits_has_only_train(tmp_path: Path) -> None:
    folder = write(tmp_path, "a.jsonl", "contest.jsonl", "b/latest.jsonl")
    assert (
        read(folder)
        == read(folder, split="train")
        == ["a.jsonl", "b/latest.jsonl", "contest.jsonl"]
    )
    with pytest.raises(
        CorpusError,
        match="no split 'test': no folder or file in it is named after a split",
    ):
        read(folder, split="test")


def test_files_that_no_split_has(tmp_path: Path) -> None:
    """Tables without a split's name belong to none, texts to the training split;
    whatever is left out is told.
    """
    tables = write(tmp_path / "tables", "train.jsonl", "test.jsonl", "more.jsonl")
    found, told = said(tables)
    assert found == ["train.jsonl"]
    assert "1 of split test (test.jsonl); 1 of no split's name (more.jsonl)" in told
    for names in (
        ("training day.txt", "test.txt", "x.txt"),
        ("test.txt", "x.txt", "y.txt"),
    ):
        folder = write(tmp_path / names[-1], *names)
        found, told = said(folder)
        assert found == sorted(set(names) - {"test.txt"})
        assert "left out: 1 of split test (test.txt)" in told
    only = write(tmp_path / "only", "test.jsonl", "dev.jsonl")
    with pytest.raises(CorpusError, match="no split 'train'; it has validation, test"):
        read(only)


def test_a_text_file_has_no_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa\ufeffb".encode())
    assert read(tmp_path) == ["a\ufeffb"]


@pytest.mark.parametrize(
    "option", ["split", "text_column", "token_column", "revision", "config"]
)
def test_an_empty_name_is_refused(option: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(
        SpecError, match=f"{option} .*: wanted a name, got ''; leave it out"
    ):
        read(tmp_path, **{option: ""})


def test_a_pipe_is_no_file_of_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "b.txt")
    for path in (tmp_path, tmp_path / "b.txt"):
        with pytest.raises(CorpusError, match=r"b\.txt: not a regular file"):
            read(path)


def test_a_name_on_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise HTTPError("name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        CorpusError, match="cannot be opened: name or service not known"
    ):
        open_corpus(CorpusSource(name="no/such"))


def test_files_that_are_named_one_by_one(tmp_path: Path) -> None:
    folder = write(tmp_path, "test.jsonl", "train.jsonl", "other.jsonl")
    assert (
        read(f"{folder}/test.jsonl")
        == read(f"{folder}/test.jsonl", split="test")
        == ["test.jsonl"]
    )
    with pytest.raises(CorpusError, match="not of split 'train', its name says test"):
        read(f"{folder}/test.jsonl", split="train")
    with pytest.raises(
        CorpusError, match="not of split 'test', its name tells no split"
    ):
        read(f"{folder}/other.jsonl", split="test")
    found, told = said(f"{folder}/t*.jsonl")
    assert found == ["test.jsonl", "train.jsonl"]
    assert "files of several splits (train, test) are read as one" in told
    assert said(f"{folder}/t*.jsonl", split="test")[0] == ["test.jsonl"]


TREES = (
    ("a.txt", "b.md"),
    ("train.txt", "x/test.txt", "y"),
    ("train-test.txt", "contest.txt", "Test.txt"),
    (
        "data/train-00000-of-00001.parquet",
        "data/extra-00000-of-00001.parquet",
        "test/a.parquet",
    ),
    ("x/data/train-00000-of-00001.parquet", "b.parquet"),
    ("my train/a.txt", "dev9/b.txt", "eval.d/c/d.txt", "test.txt"),
    ("train", "test"),
    ("evaluation_7.txt", "b-test", "latest.txt"),
)


@pytest.mark.parametrize("names", TREES)
def test_splits_are_those_of_the_datasets_library(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    from datasets.data_files import get_data_patterns, resolve_pattern

    write(tmp_path, *names)
    theirs: dict[str, set[str]] = {}
    for split, patterns in get_data_patterns(str(tmp_path)).items():
        for pattern in patterns:
            try:
                found = resolve_pattern(pattern, str(tmp_path))
            except FileNotFoundError:
                continue
            theirs.setdefault(str(split), set()).update(
                str(Path(path).relative_to(tmp_path)) for path in found
            )
    ours = {split: set(those) for split, those in splits_of(sorted(names)).items()}
    assert (ours or {"train": set(names)}) == theirs


OPTIONS = {
    "revision": "abc",
    "config": "en",
    "split": "test",
    "text_column": "body",
    "token_column": "ids",
}
USED = {
    "text": {"split"},
    "jsonl": {"split", "text_column", "token_column"},
    "parquet": {"split", "text_column", "token_column"},
    "dataset": {"split", "text_column", "token_column"},
    "hub": set(OPTIONS),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "kind", [kind for kind in get_args(CorpusKind) if kind != "auto"]
)
def test_an_option_is_refused_where_it_would_do_nothing(kind: str, option: str) -> None:
    source = CorpusSource.model_validate({"name": "x", option: OPTIONS[option]})
    if option in USED.get(kind, ()):
        check_options(source, kind)
    else:
        with pytest.raises(
            SpecError,
            match=rf"of kind {kind}, but {option} \(--(corpus-)?{option.replace('_', '-')}\)",
        ):
            check_options(source, kind)


def test_options_are_refused_where_corpora_are_opened(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    for name, options in (
        (tmp_path, {"text_column": "body"}),
        (tmp_path, {"revision": "abc"}),
        ("builtin:stdlib", {"split": "test"}),
        ("builtin:stdlib", {"token_column": "ids"}),
    ):
        with pytest.raises(SpecError, match="leave it out"):
            read(name, **options)
    with pytest.raises(SpecError, match="wanted one of them, got both"):
        read(write(tmp_path / "b", "b.jsonl"), text_column="text", token_column="ids")


def test_the_split_of_a_single_data_set_is_its_own(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"text": "x"}])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(
        str(tmp_path / "both")
    )
    data.save_to_disk(str(tmp_path / "nameless"))
    data = datasets.Dataset.from_list([{"text": "x"}], split=datasets.Split.TEST)
    data.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one") == read(tmp_path / "one", split="test") == ["x"]
    assert (
        read(tmp_path / "nameless")
        == read(tmp_path / "nameless", split="train")
        == ["x"]
    )
    for name, split in (
        ("one", "train"),
        ("one", "nosuch"),
        ("nameless", "test"),
        ("both", "nosuch"),
    ):
        with pytest.raises(CorpusError, match=f"no split '{split}'"):
            read(tmp_path / name, split=split)
    with pytest.raises(SpecError, match="of kind dataset, but config"):
        read(tmp_path / "one", config="en")


def test_what_is_left_out_of_a_mixed_folder_is_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        "a.parquet",
        "b.jsonl",
        "c.txt",
        "README.md",
        "dataset_infos.json",
        "d.tar.gz",
    )
    found, told = said(folder)
    assert found == ["a.parquet"]
    assert "2 files left out, no documents: README.md, dataset_infos.json" in told
    assert (
        "3 files left out, not .parquet or .pq (the corpus is read as parquet): b.jsonl, c.txt, d.tar.gz"
        in told
    )
    found, told = said(folder, kind="jsonl")
    assert found == ["b.jsonl"]
    assert "a.parquet, c.txt, d.tar.gz" in told


@pytest.mark.parametrize(
    "metadata",
    [
        '{"description": "one line", "splits": {"train": 3}}',
        '{\n "description": "many lines",\n "n": 3\n}\n',
        '{"first": 1,\n "second": 2}',
        "{\n}",
    ],
)
def test_json_about_the_data_is_no_corpus(metadata: str, tmp_path: Path) -> None:
    write(tmp_path, "a.json", "b.jsonl")
    (tmp_path / "about.json").write_text(metadata)
    found, told = said(tmp_path)
    assert found == ["a.json", "b.jsonl"]
    assert "1 file left out, no documents: about.json" in told


def test_json_that_is_meant_as_a_corpus_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"body": "x"}')
    with pytest.raises(CorpusError, match="no column 'text'; it has body"):
        read(tmp_path)
    assert read(tmp_path, text_column="body") == ["x"]
    (tmp_path / "a.json").write_text('[\n{"text": "x"}]')
    with pytest.raises(CorpusError, match=r"a\.json, line 1 "):
        read(tmp_path)
    write(tmp_path / "b", "README.md", "dataset_info.json")
    with pytest.raises(
        CorpusError,
        match=r"no file with documents in it, only README\.md, dataset_info\.json",
    ):
        read(tmp_path / "b")


def archive(path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.txt", "one")
            file.writestr("b.txt", "two")
        return
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as file:
        info = tarfile.TarInfo("a.txt")
        info.size = 3
        file.addfile(info, io.BytesIO(b"one"))


@pytest.mark.parametrize(
    "name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip", "a.jsonl.zip", "A.TAR.GZ"]
)
def test_archives_are_refused_by_name(name: str, tmp_path: Path) -> None:
    archive(tmp_path / name)
    for where in (tmp_path / name, tmp_path):
        with pytest.raises(
            CorpusError,
            match=rf"{name}: an archive of several files is no corpus; unpack it",
        ):
            read(where)


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_a_binary_file_is_no_text(name: str, tmp_path: Path) -> None:
    archive(tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(
        CorpusError, match="not text but a binary file, with a NUL at byte 5;"
    ):
        read(tmp_path / name)


@pytest.mark.parametrize(("ending", "codec"), [("zst", "zstd"), ("lz4", "lz4")])
def test_compression_that_comes_with_arrow(
    ending: str, codec: str, tmp_path: Path
) -> None:
    lines = [
        json.dumps({"text": f"document {i} " + "x" * i}) + "\n" for i in range(2000)
    ]
    parts = [
        pa.compress("".join(half).encode(), codec, asbytes=True)
        for half in (lines[:900], lines[900:])
    ]
    file = tmp_path / f"a.jsonl.{ending}"
    file.write_bytes(
        b"".join(parts)
        if codec == "zstd"
        else pa.compress("".join(lines).encode(), codec, asbytes=True)
    )
    corpus = open_corpus(CorpusSource(name=str(tmp_path)))
    pieces = list(corpus.pieces(None))
    assert [piece.content for piece in pieces] == [
        json.loads(line)["text"] for line in lines
    ]
    assert next(corpus.pieces(pieces[1500].cursor)) == pieces[1500]
    file.write_bytes(parts[0][: len(parts[0]) // 2])
    with pytest.raises(CorpusError, match="cannot read"):
        read(tmp_path)


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
def test_compressed_files_that_are_damaged(ending: str, tmp_path: Path) -> None:
    import bz2
    import lzma

    pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[ending]
    data = bytearray(pack(b"".join(b"line %d\n" % (i * 7919) for i in range(5000))))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    (tmp_path / f"a.txt.{ending}").write_bytes(data)
    with pytest.raises(CorpusError, match=f"a.txt.{ending}"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_pointers_of_git_lfs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    )
    with pytest.raises(
        CorpusError, match=f"{name}: this is a git-LFS pointer.*git lfs pull"
    ):
        read(tmp_path)


def rows(kind: str, folder: Path, values: list[Any], column: str = "text") -> Path:
    """A file or data set of a kind with these values in a column."""
    if kind == "jsonl":
        (folder / "a.jsonl").write_text(
            "".join(json.dumps({column: value}) + "\n" for value in values)
        )
        return folder / "a.jsonl"
    if kind == "parquet":
        pq.write_table(
            pa.table({column: values}), folder / "a.parquet", row_group_size=1
        )
        return folder / "a.parquet"
    import datasets

    datasets.Dataset.from_dict({column: values}).save_to_disk(str(folder / "data"))
    return folder / "data"


PLACE = {
    "jsonl": r"a.jsonl, line 2 \(at byte \d+\)",
    "parquet": "a.parquet, row 1",
    "dataset": "row 1 of the data set",
}
KINDS = tuple(PLACE)
WRONG = [
    (5, r"5 \(int\)"),
    (True, r"True \(bool\)"),
    (float("nan"), r"nan \(float\)"),
    (2.5, r"2.5 \(float\)"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "shown"),
    [*WRONG, ([1, 2], r"\[1, 2\] \(list\); name token ids with --token-column")],
)
def test_a_document_is_text(kind: str, value: Any, shown: str, tmp_path: Path) -> None:
    where = rows(kind, tmp_path, [None, value, None])
    with pytest.raises(
        CorpusError, match=rf"{PLACE[kind]}, column 'text': wanted text, got {shown}"
    ):
        read(where)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_no_document(kind: str, tmp_path: Path) -> None:
    assert read(rows(kind, tmp_path, ["a", None, "", "b"])) == ["a", None, "", "b"]


BAD_IDS = [
    ([1.0, 2.0], r"item 0 is 1.0 \(float\)"),
    ([True, False], r"item 0 is True \(bool\)"),
    ([3, -1], r"item 1 is -1 \(int\)"),
    ([3, None], r"item 1 is None \(NoneType\)"),
    ("abc", r"got 'abc' \(str\)"),
    (7, r"got 7 \(int\)"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "shown"), BAD_IDS)
def test_token_ids_are_whole_numbers_from_0(
    kind: str, value: Any, shown: str, tmp_path: Path
) -> None:
    where = rows(kind, tmp_path, [None, value], "ids")
    with pytest.raises(
        CorpusError,
        match=rf"{PLACE[kind]}, column 'ids': wanted a list of token ids .*{shown}",
    ):
        read(where, token_column="ids")


def test_documents_in_memory_are_texts_or_lists() -> None:
    for value in (5, True, float("nan")):
        with pytest.raises(
            CorpusError, match="document 1: wanted a text or a list of token ids"
        ):
            list(MemoryCorpus(["a", value]).pieces(None))


@pytest.mark.parametrize("kind", KINDS)
def test_nested_fields(kind: str, tmp_path: Path) -> None:
    values = [
        {"text": "a", "ids": [1], "more": {"body": "x"}},
        None,
        {"text": None, "ids": [2], "more": None},
    ]
    where = rows(kind, tmp_path, values, "doc")
    assert read(where, text_column="doc.text") == ["a", None, None]
    assert read(where, text_column="doc.more.body") == ["x", None, None]
    assert read(where, token_column="doc.ids") == [[1], None, [2]]
    for gone in ("doc.none", "doc.text.x", "none.text"):
        with pytest.raises(CorpusError, match=f"no column '{gone}'; it has doc"):
            read(where, text_column=gone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_that_name_comes_before_a_nested_field(
    kind: str, tmp_path: Path
) -> None:
    table = [{"doc.text": "literal", "doc": {"text": "nested"}}]
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text(json.dumps(table[0]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    else:
        import datasets

        datasets.Dataset.from_list(table).save_to_disk(str(tmp_path))
    assert read(tmp_path, text_column="doc.text") == ["literal"]


ODD = ("a[1]", "a*b", "a?c", "p::q", "C:\\d", "s[1]/t[2]", "é [bold]")


@pytest.mark.parametrize("name", ODD)
def test_a_literal_path_comes_before_a_pattern(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        f"{name}/x[0].jsonl",
        "a1/no.jsonl",
        "axb/no.jsonl",
        "abc/no.jsonl",
        "s1/t2/no.jsonl",
    )
    monkeypatch.chdir(tmp_path)
    wanted = [f"{name}/x[0].jsonl"]
    for text in (
        name,
        f"{name}/x[0].jsonl",
        f"{name}/*.jsonl",
        f"{tmp_path}/{name}",
        f"{tmp_path}/{name}/x*",
    ):
        assert read(text) == wanted, text
    assert len(find_files("*/*.jsonl").paths) >= 3


def test_paths_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("C:\\data", "d:/data/a.jsonl"):
        with pytest.raises(
            CorpusError,
            match="a path with a drive letter, and this system has no drives",
        ):
            read(name)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "p::q", "a/*.jsonl", "x?"):
        with pytest.raises(
            CorpusError, match="there is no such file or folder, or no file in it"
        ):
            read(name)


def test_an_object_store_that_refuses_is_told() -> None:
    from botocore.exceptions import NoCredentialsError

    with (
        pytest.raises(
            CorpusError,
            match="cannot read s3://b/x: Unable to locate credentials; check the endpoint",
        ),
        read_errors_named("s3://b/x"),
    ):
        raise NoCredentialsError
