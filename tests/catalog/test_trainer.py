"""The trainer takes names: of the store to train from, and of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import actstore
import trainer
from actstore.errors import CatalogError, CorruptError
from tests.cli.conftest import Cli
from tests.support import make_store
from trainer.errors import RunError
from trainer.training.train_group import train_group

SPEC = {
    "store": "catalog:mini",
    "sae": {"kind": "topk", "k": 2, "n_latents": 16},
    "rows": 256,
    "stream": {"batch": 64},
}


def read(run: str, file: str) -> dict[str, object]:
    values: dict[str, object] = json.loads((Path(run) / file).read_text())
    return values


@pytest.fixture
def named(team: str, tmp_path: Path) -> str:
    """A store with held-out units, published as `mini`."""
    url = str(tmp_path / "store")
    make_store(url)
    actstore.publish(url, "mini")
    return url


def test_a_run_keeps_the_name_and_where_it_led_to(named: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trainer.train(SPEC, run)
    assert read(run, "spec.json")["store"] == "catalog:mini"
    assert read(run, "store.json")["store"] == named
    assert read(run, "sae.json")["store"] == named
    assert trainer.evaluate(run).store == named


def test_a_tag_that_has_moved_does_not_change_a_run(named: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trainer.train(SPEC, run)
    (Path(run) / "sae.json").unlink()  # as if it had not ended
    other = str(tmp_path / "other")
    make_store(other, n_units=26)
    actstore.publish(other, "mini")
    with pytest.raises(RunError, match="this run is of the store of content id"):
        trainer.train(SPEC, run, resume=True)
    with pytest.raises(RunError, match="this run is of the store of content id"):
        trainer.sweep({"base": SPEC, "grid": {"sae.k": [2]}}, run_of(run), resume=True)
    # by its content id the name is as good as the URL
    content_id = actstore.open(named).manifest.content_id
    trainer.train({**SPEC, "store": f"catalog:mini:{content_id}"}, run, resume=True)
    assert read(run, "sae.json")["store"] == named


def run_of(run: str) -> str:
    """A sweep's folder whose only run is a copy of this one."""
    folder = Path(run).parent / "sweep"
    folder.mkdir()
    shutil.copytree(run, folder / "k=2")
    return str(folder)


def test_a_sweep_is_of_one_store(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(tmp_path / "other")
    make_store(other, n_units=26)

    def then_moved(*args: object, **options: object) -> object:
        result = train_group(*args, **options)  # type: ignore[arg-type]
        actstore.publish(other, "mini")
        return result

    monkeypatch.setattr("trainer.training.train.train_group", then_moved)
    # other batches: two passes over the data
    spec = {"base": SPEC, "grid": {"stream.batch": [64, 32]}}
    runs = trainer.sweep(spec, str(tmp_path / "sweep"))
    assert [read(run, "sae.json")["store"] for run in runs.values()] == [named] * 2


def test_everything_takes_the_name_of_a_run(
    named: str, tmp_path: Path, cli: Cli
) -> None:
    run = str(tmp_path / "run")
    words = ["--store", "catalog:mini", "--out", run, "--k", "2", "--rows", "256"]
    assert cli("trainer", "train", *words, "--batch", "64")[0] == 0
    assert cli("actstore", "publish", run, "sae")[0] == 0
    assert trainer.load("catalog:sae").url == run
    page = str(tmp_path / "page.html")
    for line in (
        ["eval", "catalog:sae", "--store", "catalog:mini"],
        ["report", "catalog:sae", "--out", page],
        ["export", "catalog:sae", str(tmp_path / "exported")],
        ["explore", "catalog:sae", "--page", str(tmp_path / "l.html"), "--no-logits"],
        ["analyze", "table", "catalog:sae"],
        ["analyze", "norms", "catalog:mini"],
        ["stitch", "compare", "catalog:sae", "catalog:sae"],
    ):
        code, _, err = cli("trainer", *line)
        assert code == 0, (line, err)
    assert (Path(run) / "eval.json").exists()
    assert (Path(run) / "explorer").is_dir()


@pytest.mark.parametrize("end", [0, 4, 100, -1])
def test_a_run_whose_weights_are_cut_is_not_published(
    end: int, named: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    trainer.train(SPEC, run)
    weights = Path(run) / "sae.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:end])
    with pytest.raises(CorruptError, match=r"sae\.safetensors"):
        actstore.publish(run, "sae")
    weights.write_bytes(whole)
    actstore.publish(run, "sae")


def test_a_run_that_was_changed_is_told(named: str, tmp_path: Path, cli: Cli) -> None:
    run = str(tmp_path / "run")
    trainer.train(SPEC, run)
    actstore.publish(run, "sae")
    weights = Path(run) / "sae.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(CatalogError, match="was changed since it was published"):
        trainer.load("catalog:sae")
    weights.unlink()
    code, _, err = cli("trainer", "eval", "catalog:sae")
    assert code == 1
    assert "the run that was published is gone" in err
