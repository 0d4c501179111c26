"""Tests that what documents and code refer to exists: files, headings, modules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("schemas", "actstore", "trainer")
FOLDERS = (*PACKAGES, "tests", "docs", "examples", "deploy")
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.rglob("*.md")),
)

# `docs/metrics.md#fvu` in any text of the repository, at the end of a sentence too.
PAGE = re.compile(r"\bdocs/[A-Za-z0-9_./-]*?\.md(?:#[a-z0-9-]+)?")
# "methods, section 2" and "methods, sections 2 and 3" in docstrings and messages.
SECTIONS = re.compile(r"\bmethods,\s+sections?\s+(\d+)(?:\s+and\s+(\d+))?")
# "metrics: `mse`"
METRIC = re.compile(r"\bmetrics:\s+`([^`]+)`")
# [text](target) in Markdown, but not of an image elsewhere.
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What stands in backticks, and in it a path that begins with one of our folders.
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[A-Za-z0-9_./*-]*)")
# The name of a file of ours, or a folder, without what lies above it: `shard.py`.
SHORT = re.compile(r"[A-Za-z0-9_./-]+(?:\.py|\.yaml|\.md|/)")
# Files and folders of stores and runs that have names such as ours have.
OF_STORES = {"README.md", "tokenizer/"}
# Sentences that begin with these are riddles.
RIDDLE = re.compile(r"(?:^|[.:?!]\)?\s+)Of\s(?!course)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


class Reference(NamedTuple):
    """A place of the repository that a file refers to.

    Attributes:
        where: The file that refers, and what it says.
        path: The file that it refers to.
        heading: The anchor of a heading in it; empty for the file as a whole.
    """

    where: str
    path: Path
    heading: str = ""


def anchor(heading: str) -> str:
    """The anchor that both GitHub and the site give a heading: lower case, no signs,
    hyphens between words.

    Example: "1. Multi-layer SAE" has the anchor "1-multi-layer-sae".
    """
    text = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a document's headings."""
    text = FENCE.sub("", page.read_text())
    return frozenset(
        anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    )


def section(number: str) -> str:
    """The anchor of a numbered section of docs/methods.md."""
    for name in anchors(DOCS / "methods.md"):
        if name.startswith(f"{number}-"):
            return name
    return f"(no section {number})"


def sources() -> Iterator[Path]:
    """The files that may refer to documents: code, tests and recipes."""
    for folder in (*PACKAGES, "tests", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".yaml"} and path != Path(__file__):
                yield path


def in_source(text: str, name: str) -> Iterator[Reference]:
    """What the text of a file of code refers to in the documents."""
    # A reference may be broken over lines of a comment or a docstring.
    text = re.sub(r"\s*\n\s*(?:# ?)?", " ", text)
    for found in PAGE.finditer(text):
        page, _, heading = found.group().partition("#")
        yield Reference(f"{name}: {found.group()}", ROOT / page, heading)
    for found in SECTIONS.finditer(text):
        for number in filter(None, found.groups()):
            where = f"{name}: {found.group()}"
            yield Reference(where, DOCS / "methods.md", section(number))
    for found in METRIC.finditer(text):
        heading = anchor(found.group(1))
        yield Reference(f"{name}: {found.group()}", DOCS / "metrics.md", heading)


def in_page(page: Path) -> Iterator[Reference]:
    """What a document refers to: by links, and by paths in backticks."""
    text = FENCE.sub("", page.read_text())
    name = str(page.relative_to(ROOT))
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, heading = target.partition("#")
        linked = page if not path else (page.parent / path).resolve()
        yield Reference(f"{name}: {target}", linked, heading)
    for code in CODE.findall(text):
        for path in PATH.findall(code):
            yield Reference(f"{name}: {path}", ROOT / path)


@cache
def our_paths() -> tuple[str, ...]:
    """The files and folders that documents may speak of, from the root on."""
    found = [path for path in ROOT.glob("*") if path.is_file()]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*")
    return tuple(
        f"{path.relative_to(ROOT)}{'/' * path.is_dir()}"
        for path in found
        if "__pycache__" not in path.parts
    )


def short_paths(text: str) -> list[str]:
    """The paths in backticks that leave out a folder above the file or the folder.

    Example: `format/shard.py` and `shard.py` are short for `actstore/format/shard.py`.
    """
    return [
        path
        for path in CODE.findall(FENCE.sub("", text))
        if SHORT.fullmatch(path)
        and path not in OF_STORES
        and not (ROOT / path).exists()
        and any(whole.endswith(f"/{path}") for whole in our_paths())
    ]


def riddles(text: str) -> list[str]:
    """The sentences of a document that begin with "Of"."""
    text = FENCE.sub("", text)
    # A list's item and a table's cell begin as a paragraph does.
    text = re.sub(r"^\s*(?:[-*]|\d+\.) |\|", "\n\n", text, flags=re.MULTILINE)
    plain = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [
        one[found.start() :][:60] for one in plain for found in RIDDLE.finditer(one)
    ]


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; `*` stands for any name."""
    if "*" in path.name:
        return any(path.parent.glob(path.name))
    return path.exists()


def check(references: Iterator[Reference]) -> None:
    for reference in references:
        assert exists(reference.path), f"{reference.where} is not there"
        if reference.heading:
            headings = anchors(reference.path)
            assert reference.heading in headings, f"{reference.where}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_document_refers_to_is_there(page: Path) -> None:
    check(in_page(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_document_gives_whole_paths(page: Path) -> None:
    assert short_paths(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_begins_with_of(page: Path) -> None:
    assert riddles(page.read_text()) == []


def test_short_paths_and_riddles_are_seen() -> None:
    text = "`format/shard.py`, `shard.py` and `fuzz/`, not `actstore/format/shard.py`,"
    assert short_paths(f"{text} `manifest.json`, `a/b.py`") == [
        "format/shard.py",
        "shard.py",
        "fuzz/",
    ]
    dead = "`python -m pytest tests/nowhere/test_none.py`"
    found = [path for code in CODE.findall(dead) for path in PATH.findall(code)]
    assert found == ["tests/nowhere/test_none.py"]
    text = "Of these. One of\nthem.\nOf two: of three.\n\n- Of a list\n\n| Of a cell |"
    assert [one.strip(" .")[:8] for one in riddles(text)] == [
        "Of these",
        "Of two: ",
        "Of a lis",
        "Of a cel",
    ]


def test_what_the_code_says_of_the_documents_is_there() -> None:
    references = [
        found
        for path in sources()
        for found in in_source(path.read_text(), str(path.relative_to(ROOT)))
    ]
    check(iter(references))
    named = {reference.path.name for reference in references}
    assert named >= {"methods.md", "metrics.md", "FORMAT.md"}
    assert sum(reference.path.name == "methods.md" for reference in references) > 5


def test_each_heading_of_a_document_has_an_anchor_of_its_own() -> None:
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        made = [anchor(line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
        if page.name != "CHANGELOG.md":  # every version has the same kinds of changes
            assert len(made) == len(set(made)), page.name


def test_the_readme_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    architecture = (DOCS / "architecture.md").read_text()
    for package in ("actstore", "trainer"):
        for folder in (ROOT / package).iterdir():
            if (folder / "__init__.py").exists():
                room = f"`{package}/{folder.name}/`"
                assert room in readme, f"README.md does not name {room}"
                assert room in architecture, f"architecture.md does not name {room}"


def test_dead_references_are_seen() -> None:
    text = '"""As in (methods,\n    sections 2 and 99); metrics: `nothing`."""'
    found = list(in_source(text, "code.py"))
    headings = [reference.heading for reference in found]
    assert headings == ["2-normalized-sae", "(no section 99)", "nothing"]
    check(iter(found[:1]))
    for dead in found[1:]:
        with pytest.raises(AssertionError, match="no such heading"):
            check(iter([dead]))
    with pytest.raises(AssertionError, match="is not there"):
        check(in_source("see docs/none.md#at-all.", "code.py"))
