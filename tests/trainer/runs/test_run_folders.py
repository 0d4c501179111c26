"""Tests that whatever a user may write for a run's folder is one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trainer
from actstore.errors import SpecError
from tests.support import make_store


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = make_store(tmp_path_factory.mktemp("folders") / "store", n_units=4)
    return {
        "store": store.url,
        "sae": {"kind": "topk", "k": 2, "n_latents": 16},
        "rows": 64,
    }


@pytest.mark.parametrize("form", [lambda path: f"{path}/", lambda path: path, str])
def test_a_slash_or_a_path_is_the_same_folder(
    spec: dict[str, Any], tmp_path: Path, form: Any
) -> None:
    sae = trainer.train(spec, form(tmp_path / "run"))
    assert sae.url == str(tmp_path / "run")
    assert (tmp_path / "run" / "sae.json").is_file()


def test_a_sweep_below_a_folder_with_a_slash(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    runs = trainer.sweep(
        {"base": spec, "grid": {"sae.k": [1, 2]}}, f"{tmp_path}/sweep/"
    )
    assert list(runs.values()) == [f"{tmp_path}/sweep/k=1", f"{tmp_path}/sweep/k=2"]
    assert all((Path(url) / "sae.json").is_file() for url in runs.values())


def test_what_is_no_folder(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="out: wanted a path or a URL, got 7"):
        trainer.train(spec, 7)  # type: ignore[arg-type]
