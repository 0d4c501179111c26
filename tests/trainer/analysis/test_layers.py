"""Features across layers: trajectories of latents, and matches of adjacent layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from actstore.errors import SpecError
from actstore.store.store import Store
from tests.cli.conftest import Cli
from tests.cli.conftest import cli as cli  # noqa: PLC0414 (a fixture)
from tests.support import make_store
from tests.trainer.analysis.planted_runs import plant, train_small
from trainer.analysis.layer_matches import (
    LayerMatches,
    compute_layer_chains,
    compute_layer_matches,
    lifetimes,
    match_layers,
    matched_pairs,
    plot_layer_chains,
    plot_layer_matches,
)
from trainer.analysis.trajectories import compute_trajectories, plot_trajectories
from trainer.errors import RunError
from trainer.evaluation.evaluate import evaluate
from trainer.runs.trained_sae import load

LAYERS = ("blocks.2.hook_mlp_out", "blocks.9.hook_mlp_out", "blocks.10.hook_mlp_out")
SAE = {"kind": "topk", "k": 2, "n_latents": 6}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    return make_store(folder / "store", dict.fromkeys(LAYERS, 6), n_units=24)


@pytest.fixture(scope="module")
def mixed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mixed")
    (run,) = train_small(store, {folder / "run": {"sae": SAE}})
    evaluate(run)
    return run


@pytest.fixture(scope="module")
def by_layer(store: Store, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One run of each layer; latent 0 lives in three layers, latent 1 in two."""
    folder = tmp_path_factory.mktemp("layers")
    made = []
    for i, site in enumerate(LAYERS):
        made += train_small(
            store, {folder / f"{i}": {"sae": SAE, "stream": {"sites": [site]}}}
        )
    axes = torch.eye(6)
    plant(made[0], axes[[0, 1, 2, 2, 2, 2]])
    plant(made[1], 3 * axes[[5, 1, 0, 5, 5, 5]])
    plant(made[2], torch.cat([axes[:1], axes[[3, 3, 3, 3]], torch.zeros(1, 6)]))
    return made


def test_trajectories_are_those_of_the_same_tokens(store: Store, mixed: str) -> None:
    table = compute_trajectories(mixed, latents=[4, 1], rows=90)
    sae = load(mixed)
    ids = store.rows("held_out")[:90]
    values = np.stack(
        [
            sae.encode(torch.from_numpy(store.read(site, ids)), site).numpy()
            / float(sae.scale[i])
            for i, site in enumerate(sae.sites)
        ]
    )
    assert table["latent"].tolist() == [4] * 3 + [1] * 3
    assert table["site"] == list(LAYERS) * 2
    for latent, rows in ((4, slice(0, 3)), (1, slice(3, 6))):
        mine = values[:, :, latent]
        mine = mine[:, (mine > 0).any(axis=0)]
        assert table["tokens"][rows].tolist() == [mine.shape[1]] * 3
        assert table["mean"][rows] == pytest.approx(mine.mean(axis=1), rel=1e-5)
        assert table["q90"][rows] == pytest.approx(
            np.quantile(mine, 0.9, axis=1), rel=1e-5
        )
        assert table["fires"][rows] == pytest.approx((mine > 0).mean(axis=1))
        single = table["token_1"][rows]
        assert np.abs(mine - single[:, None]).max(axis=0).min() < 1e-5
    assert compute_trajectories(mixed, latents=[4, 1], rows=90).to_json() == (
        table.to_json()
    )
    figures = plot_trajectories(table)
    assert [one.name for one in figures] == ["trajectories-1", "trajectories-4"]
    assert figures[0].x.categories == ("2 mlp_out", "9 mlp_out", "10 mlp_out")


def test_a_latent_that_never_fires_has_no_trajectory(
    store: Store, tmp_path: Path
) -> None:
    sae = {"kind": "relu_l1", "l1": 0.1, "n_latents": 4}
    (run,) = train_small(store, {tmp_path / "run": {"sae": sae}})
    from safetensors.torch import load_file, save_file

    path = tmp_path / "run" / "sae.safetensors"
    tensors = load_file(path)
    tensors["b_enc"][2] = -1e9
    save_file(tensors, path)
    table = compute_trajectories(run, latents=[2], rows=50)
    assert table["tokens"].tolist() == [0, 0, 0]
    assert np.isnan(table["mean"]).all()
    assert len(plot_trajectories(table)) == 1


def test_the_widest_latents_are_taken_where_none_is_named(mixed: str) -> None:
    table = compute_trajectories(mixed, n_latents=2)
    assert len(np.unique(table["latent"])) == 2


def test_what_has_no_trajectory_is_refused(
    store: Store, by_layer: list[str], mixed: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="of several layers"):
        compute_trajectories(by_layer[0], latents=[0])
    with pytest.raises(RunError, match="no latent 6; they are 0 to 5"):
        compute_trajectories(mixed, latents=[6])
    crosscoder = {"kind": "crosscoder", "inner": SAE}
    (run,) = train_small(
        store, {tmp_path / "x": {"sae": crosscoder, "stream": {"mode": "aligned"}}}
    )
    with pytest.raises(RunError, match="crosscoder"):
        compute_trajectories(run, latents=[0])


def test_lifetimes_of_chains() -> None:
    axes = torch.eye(4)
    # 0-1 and 1-2 of one latent, and none of another, in three layers of two latents
    layers = [axes[[0, 1]], axes[[2, 0]], axes[[0, 3]]]
    pairs = matched_pairs(layers, 0.7)
    assert [pair.match.tolist() for pair in pairs] == [[1, -1], [-1, 0]]
    assert sorted(lifetimes(pairs, (2, 2, 2)).tolist()) == [1, 1, 1, 3]


def test_matches_are_mutual_and_above_the_threshold() -> None:
    one = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    other = torch.tensor([[1.0, 0.0]])
    (pair,) = matched_pairs([one, other], 0.7)
    # both are nearest to it, but only the first is what it is nearest to
    assert pair.match.tolist() == [0, -1]
    assert pair.cosine.tolist() == pytest.approx([1.0, 0.8])
    (pair,) = matched_pairs([one[1:], other], 0.9)
    assert pair.match.tolist() == [-1]


def test_latents_of_norm_0_match_none_and_are_counted_apart() -> None:
    one = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    other = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    pairs = matched_pairs([one, other], 0.7)
    assert pairs[0].match.tolist() == [-1, 1]
    found = LayerMatches(("a", "b"), (2, 2), 0.7, pairs, pairs, (0.5,))
    table = compute_layer_matches(found)
    assert table["without_direction"].tolist() == [1]
    assert table["cosine"].tolist() == pytest.approx([1.0])
    assert table["median"].tolist() == pytest.approx([1.0])
    assert table["floor"].tolist() == [0.5]


def test_planted_chains_are_found_in_the_order_of_layers(by_layer: list[str]) -> None:
    first, second, third = by_layer
    found = match_layers([third, first, second])
    assert found.sites == LAYERS  # 10 comes after 9
    matches = compute_layer_matches(found)
    assert matches["layer"] == ["2 mlp_out", "9 mlp_out"]
    assert matches["matched"].tolist() == pytest.approx([2 / 6, 1 / 6])
    assert matches["cosine"].tolist() == pytest.approx([2 / 6, 1 / 6])
    assert (matches["floor"] > 0.1).all()  # random directions in six dimensions
    chains = compute_layer_chains(found)
    assert chains["lifetime"].tolist() == [1, 2, 3]
    assert chains["chains"].tolist() == [13, 1, 1]
    assert chains["share"].sum() == pytest.approx(1)
    assert chains["share_random"].sum() == pytest.approx(1)
    assert chains.facts["mean lifetime of a chain (layers)"] == pytest.approx(18 / 15)
    (figure,) = plot_layer_matches(matches)
    assert figure.x.categories == ("2 mlp_out → 9 mlp_out", "9 mlp_out → 10 mlp_out")
    (figure,) = plot_layer_chains(chains)
    assert [one.mark for one in figure.series] == ["bars", "points"]


def test_runs_that_are_not_one_for_each_layer_are_refused(
    by_layer: list[str], mixed: str
) -> None:
    with pytest.raises(RunError, match="one layer each"):
        match_layers([by_layer[0], mixed])
    with pytest.raises(RunError, match="at least two layers"):
        match_layers([by_layer[0], by_layer[0]])
    with pytest.raises(RunError, match="at least two layers"):
        match_layers(by_layer[:1])
    with pytest.raises(RunError, match="threshold"):
        match_layers(by_layer, threshold=1.5)
    with pytest.raises(SpecError):
        match_layers(3)  # type: ignore[arg-type]


def test_on_the_command_line(cli: Cli, by_layer: list[str], mixed: str) -> None:
    code, out, _ = cli("trainer", "analyze", "layers", *by_layer, "--json")
    assert code == 0
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert names == ["layer_matches", "layer_chains"]
    code, out, _ = cli(
        "trainer", "analyze", "trajectories", mixed, "--latents", "3,1", "--json"
    )
    assert code == 0
    assert json.loads(out)["columns"][0]["values"] == [3] * 3 + [1] * 3
    code, _, err = cli("trainer", "analyze", "trajectories", mixed, "--latents", "x")
    assert code == 1
    assert "wanted whole numbers" in err
