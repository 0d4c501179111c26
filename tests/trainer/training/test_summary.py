"""Tests of the summary at the end of training.

For one run, for a sweep, and if the SAE cannot be evaluated.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import actstore
import trainer
from actstore.format.storage import Storage
from actstore.store.store import Store
from tests.cli.conftest import Cli, cli  # noqa: F401 (a fixture)
from tests.support import make_store
from trainer.evaluation import metrics_of_rows
from trainer.evaluation.metric_definitions import layer_sums
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.runs.journal import read
from trainer.training import final_summary

BATCH = 128
BASE: dict[str, Any] = {
    "sae": {"kind": "topk", "k": 3, "expansion": 4},
    "stream": {"batch": BATCH, "rescale": "log"},
    "optimiser": {"lr": 2e-3},
    "dead_rows": 4 * BATCH,
    "rows": 40 * BATCH,
    "log_every": 10,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("summary") / "s", n_units=24)


def spec_file(folder: Path, store: str, **more: Any) -> str:
    (folder / "spec.yaml").write_text(yaml.safe_dump({**BASE, "store": store, **more}))
    return str(folder / "spec.yaml")


def lines_fit(err: str) -> None:
    """But for commands and places, which may be copied."""
    for line in err.splitlines():
        assert len(line) <= 80 or line.startswith(
            ("  trainer ", "they lie", "it lies", "note: ", "training: ", "pass ")
        ), line


def test_a_run_ends_with_its_figures_by_layer_and_what_to_do_next(
    store: Store, tmp_path: Path, cli: Cli  # noqa: F811
) -> None:  # fmt: skip
    out = str(tmp_path / "my run")
    code, told, err = cli(
        "trainer", "train", "--spec", spec_file(tmp_path, store.url), "--out", out
    )
    assert (code, told) == (0, f"run: {out}\n"), err
    lines_fit(err)
    sae = trainer.load(out)
    record, firings = evaluate_rows(
        sae, actstore.open(store.url), max_rows=final_summary.LEAST_ROWS // 3
    )
    assert f"{record.rows:,} held-out rows" in err
    for i, layer in enumerate(record.layers):
        never = int((firings[i] == 0).sum())
        wanted = rf"{i} mlp_out +{layer.fvu:.4g} +{layer.l0:.4g} +{never}\b"
        assert re.search(wanted, err), (wanted, err)
    assert re.search(
        rf"all +{record.pooled.fvu:.4g} +{record.pooled.l0:.4g} +{record.dead}\b", err
    )
    assert f"dead at the last step: {read(Storage(out))[-1].dead} of 64 latents" in err
    assert re.search(
        r"5,120 rows in \d+:\d\d \(training: [\d,]+ rows/s, \d+\.\d% of it waiting for rows\)",
        err,
    )
    commands = [
        shlex.split(line) for line in err.splitlines() if line.startswith("  trainer ")
    ]
    assert commands == [["trainer", "eval", out], ["trainer", "report", out]]
    assert cli(*commands[0])[0] == 0
    code, _, err = cli(
        "trainer",
        "train",
        "--spec",
        spec_file(tmp_path, store.url),
        "--out",
        out,
        "--resume",
    )
    assert code == 0
    assert "it had ended before" in err
    assert f"{record.rows:,} held-out rows" in err


def test_a_sweep_ends_with_a_line_for_each_run(
    store: Store,
    tmp_path: Path,
    cli: Cli,  # noqa: F811
) -> None:
    sweep, out = tmp_path / "sweep.yaml", str(tmp_path / "runs")
    grid = {"sae.k": [2, 4], "stream.rescale": ["none", "sqrt"], "stream.seed": [1, 2]}
    sweep.write_text(
        yaml.safe_dump({"base": {**BASE, "store": store.url}, "grid": grid})
    )
    code, _, err = cli("trainer", "sweep", str(sweep), "--out", out)
    assert code == 0, err
    lines_fit(err)
    names = sorted(path.name for path in Path(out).iterdir())
    assert len(names) == 8
    for name in names:
        record, _ = evaluate_rows(
            trainer.load(f"{out}/{name}"), store, max_rows=final_summary.LEAST_ROWS // 3
        )
        pooled = record.pooled
        assert re.search(
            rf"{re.escape(name)} +{pooled.fvu:.4g} +{pooled.l0:.4g} +{record.dead} +\d+ +64\b",
            err,
        ), err
    assert len(re.findall(r"rows in \d+:\d\d \(training:", err)) == 2, (
        "a line for each pass over the data"
    )
    assert f"  trainer eval {out}/*" in err.splitlines()


def test_a_store_without_rows_held_out_is_told(tmp_path: Path, cli: Cli) -> None:  # noqa: F811
    store = make_store(tmp_path / "s", n_units=4)
    spec = spec_file(tmp_path, store.url, rows=10 * BATCH)
    code, _, err = cli("trainer", "train", "--spec", spec, "--out", str(tmp_path / "r"))
    assert code == 0
    assert " train rows" in err
    assert (
        "the store holds no rows out that it could see: these are rows of training"
        in err
    )
    store = make_store(tmp_path / "few", n_units=24, unit_sequences=4)
    code, _, err = cli(
        "trainer",
        "train",
        "--spec",
        spec_file(tmp_path, store.url),
        "--out",
        str(tmp_path / "few-run"),
    )
    assert code == 0
    n = 3 * len(store.rows("held_out"))
    assert 0 < n < final_summary.FEW
    assert f"figures of {n:,} rows mean little" in err


def test_an_l0_that_is_not_the_one_asked_for_is_told(
    store: Store, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """A given penalty leads to what it leads to; here the L0 that was wanted is
    pretended to be another.
    """
    monkeypatch.setattr("trainer.evaluation.move_thresholds.asked_l0", lambda _: 6.0)
    code, _, err = cli(
        "trainer",
        "train",
        "--spec",
        spec_file(tmp_path, store.url),
        "--out",
        str(tmp_path / "r"),
    )
    assert code == 0
    assert "L0 is 3.0, 50% off the 6 that it is set for" in err


@pytest.mark.parametrize("how", ["gone", "no room"])
def test_a_run_that_cannot_be_evaluated_has_ended_all_the_same(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, how: str  # noqa: F811
) -> None:  # fmt: skip
    store = make_store(tmp_path / "s", n_units=24)
    first = store.rows("held_out")[0] // store.layout.capacity
    if how == "gone":
        for path in (tmp_path / "s/acts").glob(f"*/c/{first}/0"):
            path.unlink()

    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    if how == "no room":
        monkeypatch.setattr(metrics_of_rows, "layer_sums", full)
    spec = spec_file(tmp_path, store.url, rows=10 * BATCH)
    code, out, err = cli(
        "trainer", "train", "--spec", spec, "--out", str(tmp_path / "r")
    )
    assert (code, out) == (0, f"run: {tmp_path / 'r'}\n"), err
    assert "note: " in err
    assert ("out of memory" if how == "no room" else "no such object") in err
    assert f"  trainer eval {tmp_path / 'r'}" in err.splitlines()


def test_what_a_table_of_figures_does_not_cry_out_is_told(
    store: Store, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """Layers that are no better than their mean, latents that never fire, rows that
    were centred without being asked.
    """
    monkeypatch.setattr(final_summary, "ENOUGH", 0.1)
    spec = spec_file(tmp_path, store.url, optimiser={"lr": 1e3}, revive=False)
    code, _, err = cli(
        "trainer", "train", "--spec", spec, "--out", str(tmp_path / "wild")
    )
    assert code == 0
    assert re.search(r"an FVU of 1 or more, .* at .*hook_mlp_out", err)
    few = {"kind": "topk", "k": 1, "expansion": 40}
    spec = spec_file(tmp_path, store.url, sae=few, revive=False, rows=2 * BATCH)
    code, _, err = cli(
        "trainer", "train", "--spec", spec, "--out", str(tmp_path / "many")
    )
    assert re.search(r"\d+ of 640 latents never fired here", err), err
    for given in (None, True):
        monkeypatch.setattr("trainer.training.row_scaling._FAR_APART", -1.0)
        spec = spec_file(
            tmp_path, store.url, stream={**BASE["stream"], "center": given}
        )
        code, _, err = cli(
            "trainer",
            "train",
            "--spec",
            spec,
            "--out",
            str(tmp_path / f"center {given}"),
        )
        assert ("--no-center leaves them" in err) == (given is None)


def test_many_latents_are_evaluated_in_small_blocks(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli  # noqa: F811
) -> None:  # fmt: skip
    out = str(tmp_path / "r")
    assert (
        cli("trainer", "train", "--spec", spec_file(tmp_path, store.url), "--out", out)[
            0
        ]
        == 0
    )
    sae = trainer.load(out)
    sizes = []
    whole, _ = evaluate_rows(sae, store)

    def sums(x: Any, *more: Any) -> Any:
        sizes.append(len(x))
        return layer_sums(x, *more)

    monkeypatch.setattr(metrics_of_rows, "layer_sums", sums)
    monkeypatch.setattr(metrics_of_rows, "BLOCK_LATENTS", 10 * 64)
    small, _ = evaluate_rows(sae, store)
    assert max(sizes) == 10
    assert small.pooled.fvu == pytest.approx(whole.pooled.fvu, rel=1e-6)
    assert small.dead == whole.dead
