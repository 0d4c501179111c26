"""The examples in docstrings of the trainer's functions run, each in a few seconds, in a
folder with a small store and two trained SAEs.
"""

from __future__ import annotations

import doctest
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import actstore
import trainer

ROOT = Path(__file__).parents[2]
FUNCTIONS = (
    "train",
    "sweep",
    "evaluate",
    "evaluate_checkpoints",
    "calibrate",
    "report",
    "export",
    "import_sae",
    "load",
)
SITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of the examples: `store`, `runs/topk` and `runs/batch_topk`."""
    path = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        spec = {
            "model": "builtin:mini",
            "corpus": "builtin:stdlib",
            "sites": SITES,
            "tokens": 60_000,
            "context": 64,
            "unit_sequences": 32,
        }
        actstore.harvest(spec, "store")
        kinds = {"topk": trainer.TopK, "batch_topk": trainer.BatchTopK}
        for name, kind in kinds.items():
            sae = kind(k=8, n_latents=64)
            run = trainer.TrainSpec(store="store", sae=sae, rows=60_000)
            trainer.train(run, f"runs/{name}")
        yield path


def examples(module: ModuleType, name: str) -> list[doctest.DocTest]:
    """The examples of a function, or of a class and its methods."""
    found = doctest.DocTestFinder().find(getattr(module, name), name, module, globs={})
    return [one for one in found if one.examples]


@pytest.mark.parametrize("name", [*FUNCTIONS, "TrainedSae"])
def test_examples_run(name: str, folder: Path) -> None:
    assert name in trainer.__all__
    module = import_module(trainer._WHERE[name])
    tests = examples(module, name)
    assert tests, f"{name} has no example"
    began = time.monotonic()
    for one in tests:
        results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(one)
        assert results.failed == 0
    assert time.monotonic() - began < 10 or sys.gettrace() is not None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_have_their_sections(name: str) -> None:
    text = getattr(trainer, name).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Examples:"):
        assert f"\n    {section}\n" in text, (name, section)


def test_every_name_is_there() -> None:
    for name in trainer.__all__:
        assert getattr(trainer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainer.nothing  # noqa: B018


@pytest.mark.parametrize(
    "words", [["-c", "import trainer; trainer.TrainSpec"], ["-m", "trainer", "--help"]]
)
def test_names_of_specs_and_help_load_no_torch(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "trainer" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "zarr", "jinja2"})
