"""MMCS, its random floor, and what runs are held against."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actstore.figures.figure import Figure, HeatMap
from actstore.figures.table import Table
from actstore.format.storage import Storage
from actstore.importing.toy_store import make_toy_store
from actstore.store.store import Store
from actstore.store.true_features import read_true_features
from tests.cli.conftest import Cli
from tests.cli.conftest import cli as cli  # noqa: PLC0414 (a fixture)
from tests.support import make_store
from tests.trainer.analysis.planted_runs import plant, train_small
from trainer.analysis.compare_mmcs import compute_mmcs, plot_mmcs
from trainer.analysis.mmcs import mmcs
from trainer.analysis.random_directions import random_floor
from trainer.analysis.recovery_over_steps import (
    compute_recovery_over_steps,
    plot_recovery_over_steps,
)
from trainer.analysis.size_and_sparsity import (
    compute_size_and_sparsity,
    plot_size_and_sparsity,
)
from trainer.errors import RunError
from trainer.evaluation.evaluate import evaluate
from trainer.runs.kept_weights import kept_steps, load_kept
from trainer.runs.trained_sae import load

D, G = 8, 16


def test_a_dictionary_that_is_the_features_has_all() -> None:
    features = torch.eye(5)
    found = mmcs(features, 3 * features[[4, 2, 0, 1, 3]])
    assert found == (1.0, 1.0, 1.0, 0)


def test_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # cosines with the features: (0.6, 0.8) and (1, 0); the third has no direction
    dictionary = torch.tensor([[3.0, 4.0], [2.0, 0.0], [0.0, 0.0]])
    found = mmcs(features, dictionary)
    assert found.mmcs == pytest.approx((1 + 0.8) / 2)
    assert found.found == 0.5
    assert found.uniqueness == 1.0
    assert found.without_direction == 1
    assert mmcs(features, dictionary[[1, 1]]).uniqueness == 0.5
    assert mmcs(features, -features).mmcs == 0.0


def test_what_has_no_direction_is_refused() -> None:
    with pytest.raises(RunError, match="d 3 and a dictionary of d 2"):
        mmcs(torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(RunError, match="all of norm 0"):
        mmcs(torch.ones(2, 3), torch.zeros(2, 3))
    with pytest.raises(RunError, match="NaN"):
        mmcs(torch.full((2, 3), math.nan), torch.ones(2, 3))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("toy")
    spec = {"d": D, "n_features": G, "l0": 2.0, "n_topics": 2}
    return make_toy_store(folder / "store", spec, rows=1200, unit_sequences=60)


@pytest.fixture(scope="module")
def runs(toy: Store, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sizes 8 and 16, k 1 and 2: four runs that are evaluated, with checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    made = train_small(
        toy,
        {
            folder / f"m{m}k{k}": {"sae": {"kind": "topk", "k": k, "n_latents": m}}
            for m in (8, 16)
            for k in (1, 2)
        },
        checkpoint_every=1,
        keep=10,
    )
    for run in made:
        evaluate(run)
    return made


def features_of(store: Store) -> torch.Tensor:
    found = read_true_features(store)
    assert found is not None
    return torch.from_numpy(found.directions)


def test_runs_on_toy_data_are_held_against_its_features(
    toy: Store, tmp_path: Path
) -> None:
    sae = {"kind": "topk", "k": 2, "n_latents": G}
    run, half = train_small(
        toy, {tmp_path / "a": {"sae": sae}, tmp_path / "b": {"sae": sae}}
    )
    features = features_of(toy)
    plant(run, features.flip(0) * 2)
    plant(half, torch.cat([features[:8], features[:8]]))
    table = compute_mmcs([run, half])
    assert table["against"] == ["true features", "true features"]
    assert table["mmcs"][0] == pytest.approx(1, abs=1e-6)
    assert table["found"].tolist()[0] == 1
    assert table["uniqueness"].tolist() == [1, 0.5]
    rest = (features[8:] @ features[:8].T).max(dim=1).values
    assert table["mmcs"][1] == pytest.approx(0.5 + float(rest.mean()) / 2, abs=1e-5)
    assert table["floor"].tolist() == [random_floor(G, D)] * 2
    (figure,) = plot_mmcs(table)
    assert [rule.at for rule in figure.rules] == [random_floor(G, D)]
    assert {series.name for series in figure.series} == {"k 2"}


def test_elsewhere_the_next_larger_run_takes_the_place_of_the_truth(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path / "store", {"a": 6}, n_units=24)
    sizes = {"small": 4, "middle": 6, "large": 9}
    made = train_small(
        store,
        {
            tmp_path / name: {"sae": {"kind": "topk", "k": 2, "n_latents": m}}
            for name, m in sizes.items()
        },
    )
    plant(made[0], torch.eye(6)[:4])
    plant(made[1], torch.eye(6))
    table = compute_mmcs([made[2], made[0], made[1]])
    assert table["against"] == ["no larger run", "middle", "large"]
    assert table["mmcs"][1] == pytest.approx(1)
    assert math.isnan(table["mmcs"][0])
    assert math.isnan(table["floor"][0])
    # chance is that of the larger run's size, in which features are looked for
    assert table["floor"][1] == random_floor(6, 6)
    (figure,) = plot_mmcs(table)
    assert len(figure.rules) == 2
    assert figure.series[0].name == "random directions"
    with pytest.raises(RunError, match="nothing to compare"):
        compute_mmcs([made[0]])
    with pytest.raises(RunError, match="wanted a store of toy data"):
        compute_mmcs([made[0]], truth=store.url)


def test_a_crosscoder_has_no_single_direction(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"a": 6, "b": 6}, n_units=24)
    inner = {"kind": "topk", "k": 2, "n_latents": 8}
    sae = {"kind": "crosscoder", "inner": inner}
    stream = {"mode": "aligned"}
    (run,) = train_small(store, {tmp_path / "x": {"sae": sae, "stream": stream}})
    with pytest.raises(RunError, match="crosscoder"):
        compute_mmcs([run])


def test_heat_maps_of_both_groups_have_the_same_axes_and_limits(
    runs: list[str], tmp_path: Path
) -> None:
    store = make_store(tmp_path / "store", {"a": 4}, n_units=24)
    model = train_small(
        store,
        {
            tmp_path / f"m{m}": {"sae": {"kind": "topk", "k": 3, "n_latents": m}}
            for m in (8, 16)
        },
    )
    for run in model:
        evaluate(run)
    table = compute_size_and_sparsity(runs, model)
    drawings = plot_size_and_sparsity(table)
    maps = {one.name: one for one in drawings if isinstance(one, HeatMap)}
    assert len(maps) == 8
    for name in ("mmcs", "dead", "fvu", "l0"):
        one = maps[f"size_and_sparsity-{name}-toy"]
        other = maps[f"size_and_sparsity-{name}-model"]
        assert (one.x, one.y, one.limits) == (other.x, other.y, other.limits)
        assert one.x.categories == ("1", "2", "4")
        assert one.y.categories == ("k 1", "k 2", "k 3")
        assert np.isnan(one.values[2]).all()
        assert np.isnan(other.values[:2]).all()
    fvu = evaluate(runs[0]).pooled.fvu
    assert maps["size_and_sparsity-fvu-toy"].values[0, 0] == fvu
    dead = table["dead"][0]
    assert dead == pytest.approx(1 - evaluate(runs[0]).alive_share)
    # the larger of the model's runs has none above it
    mmcs_of_model = maps["size_and_sparsity-mmcs-model"].values[2]
    assert np.isnan(mmcs_of_model).tolist() == [True, False, True]
    by_size = drawings[-1]
    assert isinstance(by_size, Figure)
    assert by_size.rules
    again = Table.from_json(table.to_json())
    assert [one.name for one in plot_size_and_sparsity(again)] == [
        one.name for one in drawings
    ]
    with pytest.raises(RunError, match="wanted runs of toy data"):
        compute_size_and_sparsity()


def test_seeds_of_a_cell_are_averaged(toy: Store, tmp_path: Path) -> None:
    sae = {"kind": "topk", "k": 2, "n_latents": G}
    made = train_small(
        toy, {tmp_path / f"{s}": {"sae": sae, "seed": s} for s in (0, 1)}
    )
    for run in made:
        evaluate(run)
    table = compute_size_and_sparsity(made)
    cell = plot_size_and_sparsity(table)[0]
    assert isinstance(cell, HeatMap)
    assert cell.values.tolist() == [[pytest.approx(np.mean(table["mmcs"]))]]
    assert table.facts["seeds on toy data"] == 2


def test_checkpoints_show_recovery_over_steps(runs: list[str], toy: Store) -> None:
    table = compute_recovery_over_steps(runs[:2])
    assert kept_steps(Storage(runs[0])) == [1, 2, 3, 4]
    assert table["step"].tolist() == [1, 2, 3, 4] * 2
    assert table["rows"].tolist() == [64, 128, 192, 256] * 2
    assert set(table["init"]) == {"data"}
    # the last checkpoint is the run as it ended
    sae = load(runs[0])
    assert torch.equal(load_kept(runs[0], 4).sae.decoder, sae.decoder)
    last = mmcs(features_of(toy), sae.decoder).mmcs
    assert table["mmcs"][3] == pytest.approx(last)
    (figure,) = plot_recovery_over_steps(table)
    assert [one.mark for one in figure.series] == ["band", "line and points"]
    means = (table["mmcs"][:4] + table["mmcs"][4:]) / 2
    assert np.asarray(figure.series[1].y) == pytest.approx(means)
    assert [rule.at for rule in figure.rules] == [random_floor(8, D)]


def test_the_running_mean_of_weights_is_what_its_checkpoints_hold(
    toy: Store, tmp_path: Path
) -> None:
    sae = {"kind": "topk", "k": 2, "n_latents": 8}
    (run,) = train_small(toy, {tmp_path / "run": {"sae": sae}}, ema=0.5)
    trained = load(run)
    assert torch.allclose(load_kept(run, 4).sae.decoder, trained.decoder, atol=1e-5)


def test_runs_without_a_truth_have_no_recovery(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"a": 6}, n_units=24)
    sae = {"kind": "topk", "k": 2, "n_latents": 8}
    (run,) = train_small(store, {tmp_path / "run": {"sae": sae}})
    with pytest.raises(RunError, match="actstore toy"):
        compute_recovery_over_steps([run])


def test_on_the_command_line(cli: Cli, runs: list[str]) -> None:
    code, out, _ = cli("trainer", "analyze", "mmcs", *runs, "--json")
    assert code == 0
    assert Table.from_json(out)["mmcs"].shape == (4,)
    code, out, _ = cli("trainer", "analyze", "recovery", runs[0], "--json")
    assert code == 0
    assert json.loads(out)["name"] == "recovery_over_steps"
    words = [word for run in runs for word in ("--toy", run)]
    code, out, _ = cli("trainer", "analyze", "size-and-sparsity", *words, "--json")
    assert code == 0
    assert json.loads(out)["facts"]["runs on toy data"] == 4
    code, _, err = cli("trainer", "analyze", "mmcs", "nowhere")
    assert code == 1
    assert "nowhere" in err


def test_seeds_are_those_of_runs_that_are_else_the_same(
    toy: Store, tmp_path: Path
) -> None:
    sae = {"kind": "topk", "k": 2, "n_latents": G}
    other = {"kind": "batch_topk", "k": 2, "n_latents": G}
    made = []
    for seed in (0, 1):
        specs = {
            tmp_path / f"{kind['kind']}-{seed}": {"sae": kind} for kind in (sae, other)
        }
        made += train_small(toy, specs, seed=seed)
    facts = compute_mmcs(made).facts
    # runs of one size and k, but of two kinds
    shown = [name for name in facts if name.startswith("MMCS")]
    assert shown == ["MMCS, topk", "MMCS, batch_topk"]
    assert all("2 seeds" in str(facts[name]) for name in shown)
