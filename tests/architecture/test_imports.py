"""Imports go schemas <- actstore <- trainer, and light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "schemas": {"schemas"},
    "actstore": {"schemas", "actstore"},
    "trainer": {"schemas", "actstore", "trainer"},
}
READ_TENSORS = {
    ROOT / "trainer/imports/from_dictionary_learning.py",
    ROOT / "actstore/importing/tensor_files.py",
}
HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "datasets",
    "zarr",
    "jinja2",
    "pandas",
    "pyarrow",
    "h5py",
)


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for path in modules:
        ours = imported(path) & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


def test_schemas_import_pydantic_only() -> None:
    standard = set(sys.stdlib_module_names)
    for path in (ROOT / "schemas").rglob("*.py"):
        assert imported(path) - standard <= {"pydantic", "schemas"}, path


def test_nothing_is_pickled() -> None:
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            assert imported(path).isdisjoint(
                {"pickle", "dill", "cloudpickle", "joblib"}
            ), path
            text = path.read_text()
            if path in READ_TENSORS:  # third parties' files; they build tensors only
                assert text.count("torch.load(") == 1
                assert "weights_only=True)" in text
            else:
                assert "torch.load(" not in text, path
            assert "torch.save(" not in path.read_text(), path


@pytest.mark.parametrize(
    ("what", "code", "banned"),
    [
        ("the store", "import actstore, actstore.store", HEAVY),
        (
            "the writer",
            "import actstore.harvesting.store_writer",
            ("torch", "transformers"),
        ),
        ("actstore --help", "import actstore.cli", HEAVY),
        ("trainer --help", "import trainer.cli", HEAVY),
        (
            "the reader",
            "import actstore.store.chunk_reader, actstore.stream.order, actstore.stream.window_feed",
            HEAVY,
        ),
        (
            "info",
            "import actstore.cli, actstore.inspect.store_info, actstore.inspect.list_stores, actstore.inspect.verify",
            HEAVY,
        ),
    ],
)
def test_light_things_load_nothing_heavy(
    what: str, code: str, banned: tuple[str, ...]
) -> None:
    script = f"{code}\nimport sys\nprint(' '.join(sorted(set({banned!r}) & set(sys.modules))))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert found.stdout.strip() == "", f"{what} loads {found.stdout}"


def test_what_the_packages_offer_is_listed_before_it_is_loaded() -> None:
    import actstore
    import trainer

    assert set(actstore.__all__) <= set(dir(actstore))
    assert set(trainer.__all__) <= set(dir(trainer))
