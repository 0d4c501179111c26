"""The examples in the docstrings of public functions run, and give what they show.

They run in a folder with two stores, `stores/small` and `int8`.
"""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path
from typing import Any

import pytest

import actstore

PUBLIC = [getattr(actstore, name) for name in sorted(actstore.__all__)]
FUNCTIONS = [one for one in PUBLIC if callable(one) and not isinstance(one, type)]


SPEC = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.*.hook_mlp_out",
    "tokens": 1024,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    actstore.harvest(SPEC, folder / "stores" / "small")
    actstore.harvest({**SPEC, "dtype": "int8"}, folder / "int8")
    return folder


def test_every_public_function_has_an_example() -> None:
    for function in FUNCTIONS:
        assert ">>>" in (function.__doc__ or ""), function.__name__


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)
def test_examples_run(
    function: Any, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Examples write into the current folder.
    shutil.copytree(stores, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(recurse=False).find(
        function, function.__name__, globs={}
    ):
        runner.run(example)
    results = runner.summarize(verbose=False)
    assert results.attempted > 0
    assert results.failed == 0
