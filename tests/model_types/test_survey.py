"""The committed table of architectures is what this version does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import transformers

from tests.model_types.__main__ import PAGE
from tests.model_types.small import language_models
from tests.model_types.survey import Line, surveyed

FEW = (
    "bert",
    "deberta",
    "fnet",
    "gpt2",
    "llama",
    "marian",
    "mixtral",
    "opt",
    "qwen3_next",
    "roberta",
    "t5",
    "vit",
    "xlnet",
)
VERSION = f"transformers {transformers.__version__} "


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Warnings of transformers about small configurations are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def committed() -> dict[str, str]:
    return {
        line.split(" | ")[0][2:]: line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line[:2] == "| "
    }


def test_the_table_has_every_model_type() -> None:
    lines = committed()
    assert (
        sum(
            " | not built: " not in line and " | refused: " not in line
            for line in lines.values()
        )
        > 200
    )
    if VERSION in PAGE.read_text(encoding="utf-8"):
        assert set(language_models()) == set(lines) - {"model type"}


@pytest.mark.parametrize("model_type", FEW)
def test_lines_of_the_table(model_type: str) -> None:
    """Those that other versions of transformers cannot change: whether it works, and
    which padding it takes.
    """
    line, was = (
        surveyed(model_type, language_models()[model_type]),
        committed()[model_type],
    )
    if VERSION in PAGE.read_text(encoding="utf-8"):
        assert line.markdown() == was
    else:
        assert (line.verdict == "works") == (" | refused: " not in was)
        assert f" | {line.padding} | " in was


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_architecture() -> None:
    """No error but the project's own, and the table as committed; prints it."""
    lines: list[Line] = []
    for model_type, name in language_models().items():
        lines.append(surveyed(model_type, name))
        print(lines[-1].markdown())
    assert sum(line.verdict == "works" for line in lines) > 200
    if VERSION in PAGE.read_text(encoding="utf-8"):
        assert {line.model_type: line.markdown() for line in lines} == {
            one: line for one, line in committed().items() if one != "model type"
        }
