"""Names of stores and runs where either is taken, and names without `catalog:`."""

from __future__ import annotations

from pathlib import Path

import pytest

import actstore
import trainer
from actstore.catalog.name_hint import name_hint
from actstore.errors import CatalogError, NotAStoreError
from actstore.format.storage import Storage
from tests.cli.conftest import Cli
from trainer.errors import RunError


def test_copies_of_runs_by_name(
    team: str, store: str, trained: str, tmp_path: Path, s3_url: str, cli: Cli
) -> None:
    actstore.publish(trained, "sae")
    actstore.publish(store, "rows")
    for words in (
        ["cp", "catalog:sae", str(tmp_path / "a")],
        ["pull", "catalog:sae", str(tmp_path / "b")],
        ["push", "catalog:sae:latest", f"{s3_url}/c"],
    ):
        code, _, err = cli("actstore", *words)
        assert code == 0, err
        copy = Storage(words[-1])
        assert {key: copy.read(key) for key in copy.list()} == {
            key: Storage(trained).read(key) for key in Storage(trained).list()
        }
    code, _, err = cli("actstore", "pull", "catalog:sae:v7", str(tmp_path / "d"))
    assert code == 1
    assert "catalog:sae has no v7" in err
    # what has changed since it was published is not copied for it
    actstore.publish(tmp_path / "a", "copied")
    record = tmp_path / "a" / "sae.json"
    record.write_text(record.read_text() + "\n")
    with pytest.raises(CatalogError, match="was changed since it was published"):
        actstore.copy("catalog:copied", tmp_path / "e")


def test_a_name_of_both_is_told(
    team: str, store: str, trained: str, tmp_path: Path
) -> None:
    actstore.publish(trained, "both")
    actstore.publish(store, "both")
    for take in (
        lambda: actstore.copy("catalog:both", tmp_path / "c"),
        lambda: actstore.publish("catalog:both", "both:stable"),
    ):
        with pytest.raises(CatalogError) as told:
            take()
        assert store in str(told.value)
        assert trained in str(told.value)
    # a content id is of one of them
    content_id = trainer_content_id()
    published = actstore.publish(f"catalog:both:{content_id}", "both:stable")
    assert published.record.kind == "run"


def trainer_content_id() -> str:
    (run,) = actstore.published("run")
    return run.record.content_id


def test_stores_by_name_in_commands(team: str, store: str, cli: Cli) -> None:
    actstore.publish(store, "rows")
    for words in (["du"], ["gc"], ["info"], ["verify"], ["norms"]):
        code, _, err = cli("actstore", *words, "catalog:rows")
        assert code == 0, err
    assert actstore.usage("catalog:rows") == actstore.usage(store)


def test_extending_by_name(team: str, tmp_path: Path) -> None:
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": 1024,
    }
    actstore.harvest(spec, tmp_path / "grown")
    actstore.publish(tmp_path / "grown", "rows")
    actstore.extend("catalog:rows", tokens=512)
    assert len(actstore.open("catalog:rows").manifest.generations) == 2


def test_a_name_without_its_beginning_is_hinted_at(
    team: str,
    store: str,
    trained: str,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    actstore.publish(store, "rows")
    actstore.publish(trained, "sae")
    for words in (
        ["rm", "rows", "--yes"],
        ["info", "rows"],
        ["verify", "rows"],
        ["cp", "rows", "copy"],
        ["publish", "rows", "other"],
    ):
        code, _, err = cli("actstore", *words)
        assert code == 1
        assert "catalog:rows is what the catalog" in err
    with pytest.raises(RunError, match="catalog:sae is what the catalog"):
        trainer.load("sae")
    with pytest.raises(NotAStoreError) as told:
        actstore.open("none")
    assert "catalog:" not in str(told.value)
    # a folder of that name is what was meant
    (tmp_path / "rows").mkdir()
    assert name_hint("rows") is None
    monkeypatch.delenv("ACTSTORE_CATALOG")
    assert name_hint("sae") is None
