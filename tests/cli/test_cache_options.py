"""`--cache` and `--cache-size` of the commands that read rows of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from actstore.cache import shared_caches
from tests.cli.conftest import Cli
from tests.support import make_store

TRAIN = ("--sae", "topk", "--k", "3", "--expansion", "2", "--batch", "128")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield f"memory://{tmp_path.name}/store"
    shared_caches.close_all()
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_training_fills_a_cache(cli: Cli, url: str, tmp_path: Path) -> None:
    make_store(url)
    folder = tmp_path / "cache"
    out = str(tmp_path / "run")
    words = ["trainer", "train", "--store", url, "--out", out, *TRAIN, "--rows", "1k"]
    code, _, err = cli(*words, "--cache", str(folder), "--cache-size", "70MB")
    assert (code, "error" in err) == (0, False)
    assert "ACTSTORE_CACHE" not in os.environ
    cache = shared_caches.shared_cache(str(folder))
    assert cache is not None
    assert cache.size == 70_000_000
    assert cache.status().files > 0
    # what the run is evaluated on is read through it as well
    hits = cache.counts.hits
    code, _, _ = cli("trainer", "eval", out, "--cache", str(folder))
    assert code == 0
    assert cache.counts.hits > hits


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--cache-size", "1GB"), "there is no cache; give its folder (--cache)"),
        (
            ("--cache", "c", "--cache-size", "much"),
            "--cache-size: 'much' is not a size",
        ),
        (("--cache", "c", "--cache-size", "1MB"), "wanted at least 16,777,216 bytes"),
        (("--cache", "s3://b/c"), "--cache: wanted a folder of this machine"),
    ],
)
def test_what_cannot_be_used_is_refused(
    cli: Cli, url: str, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    make_store(url)
    run = str(tmp_path / "run")
    code, _, err = cli("trainer", "train", "--store", url, "--out", run, *TRAIN, *words)
    assert code == 1
    assert says in err
    assert not Path(run).exists()


def test_for_a_store_on_this_machine_it_is_refused(cli: Cli, tmp_path: Path) -> None:
    make_store(str(tmp_path / "s"))
    words = ["--store", str(tmp_path / "s"), "--out", str(tmp_path / "run"), *TRAIN]
    code, _, err = cli("trainer", "train", *words, "--cache", str(tmp_path / "cache"))
    assert code == 1
    assert "--cache does nothing for folders of this machine" in err
    assert not (tmp_path / "cache").exists()
