"""An SAE that was trained on some of the rows is evaluated and calibrated on such rows,
unless all are asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from typer.testing import CliRunner

import actstore
import trainer
from actstore.store.store import Store
from actstore.stream.row_filter import kept_ids
from schemas.stream import RowFilter
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.cli import app
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.training import final_summary
from trainer.training.train_group import train_group

FIRST = {"positions": [0, 16]}
NORMS = {"norms": [{"high": 0.5}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("filtered") / "store", n_units=24, unit_sequences=8
    )


def trained(store: Store, out: Path, rule: dict[str, Any] | None, **more: Any) -> str:
    spec = {
        "store": store.url,
        "sae": {"kind": "batch_topk", "k": 3, "n_latents": 64},
        "rows": 30 * 256,
        **more,
        "stream": {"batch": 256, "filter": rule, **more.get("stream", {})},
    }
    train_group(store, {str(out): TrainSpec.model_validate(spec)})
    return str(out)


def said(*command: str) -> str:
    result = CliRunner().invoke(app, list(command), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def kept(store: Store, split: str, rule: dict[str, Any]) -> np.ndarray:
    """By their definition."""
    ids = store.rows(split)
    if rule is FIRST:
        return ids[store.provenance(ids).position < 16]
    spec: dict[str, Any] = {"split": split, "epochs": 1, "batch": 256, "filter": NORMS}
    with store.stream(threads=1, **spec) as stream:
        return np.unique(np.concatenate([batch.row.numpy() for batch in stream]))


@pytest.mark.parametrize("rule", [FIRST, NORMS])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_rows_kept_are_those_of_a_stream(
    store: Store, rule: dict[str, Any], split: str
) -> None:
    found = kept_ids(store, RowFilter.model_validate(rule), split, store.sites)
    assert 0 < len(found) < len(store.rows(split))
    assert np.array_equal(found, kept(store, split, rule))


def test_eval_takes_rows_of_the_filter_and_says_so(
    store: Store, tmp_path: Path
) -> None:
    run = trained(store, tmp_path / "run", FIRST)
    here, every = kept(store, "held_out", FIRST), store.rows("held_out")
    record = json.loads(said("eval", run, "--json"))
    assert record["rows"] == len(here) * len(store.sites)
    assert record["filter"]["positions"] == [0, 16]
    sae = trainer.load(run)
    active = [
        (sae.encode(torch.from_numpy(store.read(site, here)), site) > 0).sum(1)
        for site in store.sites
    ]
    assert record["pooled"]["l0"] == pytest.approx(
        float(torch.cat(active).double().mean()), rel=1e-4
    )
    assert record["pooled"]["l0"] == pytest.approx(3, rel=0.005)
    assert "rows that its filter keeps" in " ".join(said("eval", run).split())
    for site, layer in zip(store.sites, record["layers"], strict=True):
        x = torch.from_numpy(store.read(site, here)).double()
        error = (sae.reconstruct(x.float(), site) - x).square().sum()
        assert layer["fvu"] == pytest.approx(
            float(error / (x - x.mean(0)).square().sum()), rel=1e-4
        ), "their own mean"
    record = json.loads(said("eval", run, "--json", "--all-rows"))
    assert record["rows"] == len(every) * len(store.sites)
    assert record["filter"] is None
    few, _ = evaluate_rows(sae, store, max_rows=10)
    assert few.rows == 10 * len(store.sites)


def test_calibration_leaves_what_training_set_and_all_rows_moves_it(
    store: Store, tmp_path: Path
) -> None:
    run = trained(store, tmp_path / "run", NORMS)
    file = Path(run) / "sae.safetensors"
    before = load_file(file)["threshold"]
    said("calibrate", run)
    assert load_file(file)["threshold"] == pytest.approx(before, rel=1e-4)
    said("calibrate", run, "--all-rows")
    assert load_file(file)["threshold"] > 1.02 * before, "long rows have larger latents"
    assert json.loads(said("eval", run, "--json", "--all-rows"))["pooled"][
        "l0"
    ] == pytest.approx(3, rel=0.005)


def test_a_filter_that_leaves_no_row_held_out_ends_well(
    store: Store, tmp_path: Path
) -> None:
    in_train, in_held_out = (
        np.unique(store.provenance(store.rows(split)).token)
        for split in ("train", "held_out")
    )
    only = np.setdiff1d(in_train, in_held_out)
    run = trained(store, tmp_path / "run", {"tokens": only.tolist()})
    sae = trainer.load(run)
    one = final_summary.ended(run, store.url, "cpu", None, 1.0, evaluate=True)
    assert one.record is not None
    assert one.record.split == "train"
    assert one.record.pooled.l0 == pytest.approx(3, rel=0.2)
    with pytest.raises(
        RunError, match=r"the filter leaves no held-out row.*--all-rows"
    ):
        evaluate_rows(sae, store)
    assert evaluate_rows(sae, store, all_rows=True)[0].rows == len(
        store.rows("held_out")
    ) * len(store.sites)
    assert "no rows out that it could see" in one.note
    said("eval", run, "--split", "train")
    said("calibrate", run)
    said("calibrate", run, "--all-rows")
    assert json.loads(said("eval", run, "--json", "--all-rows"))["pooled"][
        "l0"
    ] == pytest.approx(3, rel=0.005)


@pytest.mark.parametrize("rule", [{"positions": [0, 1]}, FIRST, NORMS])
def test_rows_that_a_filter_keeps_have_a_mean_square_of_one(
    store: Store, tmp_path: Path, rule: dict[str, Any]
) -> None:
    sae = trainer.load(trained(store, tmp_path / "run", rule))
    ids = kept_ids(store, RowFilter.model_validate(rule), "train", store.sites)
    rows = [
        sae.scaled(torch.from_numpy(store.read(site, ids)), i)
        for i, site in enumerate(store.sites)
    ]
    squares = [float(x.double().var(dim=0, unbiased=False).sum()) for x in rows]
    assert np.mean(squares) == pytest.approx(1, rel=0.1)


def test_a_transcoders_rows_are_kept_by_its_inputs(
    store: Store, tmp_path: Path
) -> None:
    sites = list(store.sites)
    run = trained(
        store,
        tmp_path / "run",
        NORMS,
        sae={
            "kind": "transcoder",
            "inner": {"kind": "batch_topk", "k": 3, "n_latents": 64},
        },
        stream={"mode": "pairs", "sites": sites[:1], "targets": sites[1:2]},
    )
    record, _ = evaluate_rows(trainer.load(run), store)
    assert record.pooled.l0 == pytest.approx(3, rel=0.005)


def test_runs_of_a_sweep_that_see_other_rows_or_fewer_are_told_apart(
    store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    base = {
        "sae": {"kind": "topk", "k": 3, "n_latents": 64},
        "stream": {"batch": 256},
        "rows": 2560,
    }
    runs = [{}, {"rows": 1024}, {"stream.filter": FIRST}]
    file.write_text(json.dumps({"base": {"store": store.url, **base}, "runs": runs}))
    result = CliRunner().invoke(
        app,
        ["sweep", str(file), "--out", str(tmp_path / "runs")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "each on rows of its own" in " ".join(result.output.split())
    assert "had ended before" not in result.output
    assert {run.parent.name for run in (tmp_path / "runs").glob("*/sae.json")} >= {
        "base",
        "rows=1024",
    }
    for run in sorted((tmp_path / "runs").glob("*/sae.json")):
        assert (run.parent / "journal.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"optimiser": {"betas": [0.9, 1.0]}}, "betas"),
        ({"optimiser": {"betas": [-1, 0.5]}}, "betas"),
        ({"optimiser": {"lr": "inf"}}, "lr"),
        ({"stream": {"filter": {"positions": [10, 5]}}}, "positions are"),
        ({"stream": {"filter": {"positions": [-5, 3]}}}, "positions are"),
        (
            {"stream": {"filter": {"norms": [{"low": 0.9, "high": 0.1}]}}},
            "wanted low below high",
        ),
        ({"stream": {"filter": {"tokens": []}}}, "tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(
    spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainSpec.model_validate({"store": "s", "sae": {"kind": "topk"}, **spec})


def test_a_store_that_does_not_know_tokens_refuses(
    store: Store, tmp_path: Path
) -> None:
    values = {site: store.read(site, store.rows("held_out")) for site in store.sites}
    url = actstore.import_activations(values, str(tmp_path / "imported")).url
    run = trained(store, tmp_path / "run", FIRST)
    with pytest.raises(RunError, match=r"position.*--all-rows"):
        evaluate_rows(trainer.load(run), actstore.open(url), "train")
    said("calibrate", run, "--store", url, "--all-rows")
