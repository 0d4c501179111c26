"""A catalog, and the command lines in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

import trainer
from tests.cli.conftest import cli
from tests.support import make_store

__all__ = ["cli"]


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The catalog that the environment names; nothing is published in it."""
    url = str(tmp_path / "team")
    monkeypatch.setenv("ACTSTORE_CATALOG", url)
    return url


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A small store."""
    url = str(tmp_path / "store")
    make_store(url, n_units=2)
    return url


@pytest.fixture
def trained(store: str, tmp_path: Path) -> str:
    """A run that was trained on the store, and not evaluated."""
    url = str(tmp_path / "run")
    spec = {
        "store": store,
        "sae": {"k": 2, "n_latents": 16},
        "rows": 256,
        "stream": {"batch": 64},
    }
    trainer.train(spec, url)
    return url
