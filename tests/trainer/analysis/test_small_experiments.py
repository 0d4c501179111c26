"""The two small experiments: homogeneity of a response, and which layer decides."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from actstore.figures.table import Table
from tests.cli.conftest import Cli
from tests.cli.conftest import cli as cli  # noqa: PLC0414 (a fixture)
from trainer.analysis import deciding_layers, homogeneity
from trainer.analysis.capacity import (
    active_features,
    compute_capacity,
    orthogonal_features,
)
from trainer.analysis.decided_by_layer import (
    compute_decided_by_layer,
    compute_loss_trajectories,
    plot_decided_by_layer,
    plot_loss_trajectories,
)
from trainer.analysis.deciding_layers import DecidingSpec, ResidualMlps, memorise_all
from trainer.analysis.homogeneity import (
    HomogeneitySpec,
    compute_interference,
    gelu,
    non_homogeneity,
    spread_features,
)
from trainer.analysis.response_curves import (
    compute_response_curves,
    plot_capacity,
    plot_interference,
    plot_response_curves,
)
from trainer.errors import TrainerError


def test_a_line_is_homogeneous_and_a_parabola_is_not() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 2000)
    is_test = np.arange(2000) < 400
    assert non_homogeneity(x, 3 * x + 1, is_test) == pytest.approx(0, abs=1e-9)
    assert non_homogeneity(x, x**2, is_test) == pytest.approx(1, abs=0.01)
    assert non_homogeneity(x, np.ones(2000), is_test) == 0


def test_a_feature_alone_has_the_curve_of_one_neuron() -> None:
    """GELU over [-1, 1], whatever the number of neurons it is spread over."""
    spec = HomogeneitySpec(neurons=30, spreads=(1, 30), others=(0,), seeds=1)
    u = np.linspace(-1, 1, 20_001)
    wanted = non_homogeneity(u, gelu(u), np.arange(len(u)) % 5 == 0)
    found = compute_interference(spec)["non_homogeneity"]
    assert found == pytest.approx([wanted, wanted], abs=0.01)
    assert wanted > 0.1


def test_others_drown_a_response_the_sooner_the_more_it_is_spread() -> None:
    spec = HomogeneitySpec(
        neurons=40, spreads=(1, 40), others=(0, 16), points=400, seeds=1, draws=8
    )
    aligned_alone, aligned, spread_alone, spread = compute_interference(spec)[
        "non_homogeneity"
    ]
    assert spread < 0.3 * spread_alone
    assert aligned > spread
    assert aligned_alone == pytest.approx(spread_alone, abs=0.03)


def test_features_are_unit_vectors_over_so_many_neurons() -> None:
    rng = np.random.default_rng(0)
    for signed in (False, True):
        found = spread_features(rng, 50, 12, 5, signed=signed)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1)
        assert ((found != 0).sum(axis=1) == 5).all()
        assert (found < 0).any() == signed


def test_how_many_can_be_active() -> None:
    assert active_features([0, 2, 4], np.array([0.4, 0.3, 0.05])) == pytest.approx(3.6)
    assert active_features([0, 2], np.array([0.05, 0.01])) == 0
    assert math.isnan(active_features([0, 2], np.array([0.5, 0.4])))


def test_how_many_are_nearly_orthogonal() -> None:
    rng = np.random.default_rng(0)
    # all the same vector: the second one has the cosine 1
    assert orthogonal_features(rng, 10, 10, signed=False) == 1
    # single neurons of 100: MMCS is 1 - 0.99^others, above 0.3 from 36 others on
    found = orthogonal_features(rng, 100, 1, signed=False)
    assert found == pytest.approx(36, abs=9)
    # with signs over all neurons cosines spread by 0.1, and 3 of these are rare
    assert orthogonal_features(rng, 100, 100, signed=True) > 200
    assert orthogonal_features(rng, 100, 100, signed=True, most=20) == 20


def test_curves_of_aligned_and_spread_features() -> None:
    table = compute_response_curves(25)
    rows = list(table.rows())
    x: dict[Any, list[Any]] = {}
    y: dict[Any, list[Any]] = {}
    for source, target, scaled, strength, out in rows:
        key = (source, target, scaled)
        x.setdefault(key, []).append(strength)
        y.setdefault(key, []).append(out)
    assert len(y) == 10
    neuron = gelu(np.array(x["aligned", "aligned", 0]))
    assert y["aligned", "aligned", 0] == pytest.approx(neuron)
    assert y["aligned", "spread", 0] == pytest.approx(neuron / 5)
    # sqrt(n) times as strong, a spread feature has the neuron's curve times sqrt(n)
    assert y["spread", "spread", 1] == pytest.approx(5 * neuron)
    assert y["spread", "aligned", 1] == pytest.approx(neuron)
    # with one sign more than the other among 25, balanced but for one neuron
    even = compute_response_curves(16)
    mine = [one == "balanced signs" for one in even["input"]]
    assert even["y"][mine] == pytest.approx(even["x"][mine] / 2)
    assert len(plot_response_curves(table)) == 10


def test_tables_of_homogeneity() -> None:
    spec = homogeneity.QUICK
    interference = compute_interference(spec)
    capacity = compute_capacity(interference, spec)
    assert len(capacity) == spec.seeds * len(spec.spreads)
    again = compute_capacity(compute_interference(spec), spec)
    assert again.to_json() == capacity.to_json()
    other = compute_interference(spec._replace(seed=9))
    assert other["seed"].tolist()[0] == 9
    assert len(plot_interference(interference)[0].series) == len(spec.spreads)
    (figure,) = plot_capacity(Table.from_json(capacity.to_json()))
    assert len(figure.series) == 3
    with pytest.raises(TrainerError, match="1 to 4"):
        compute_interference(HomogeneitySpec(neurons=4, spreads=(5,)))
    with pytest.raises(TrainerError, match="ascend from 0"):
        compute_interference(HomogeneitySpec(others=(1, 2)))


SMALL = DecidingSpec(
    width=10, layers=3, datapoints=(6, 20), steps=500, gradients=4, seeds=2
)


@pytest.fixture(scope="module")
def trained() -> list[deciding_layers.Memorised]:
    return memorise_all(SMALL)


def test_networks_memorise_all_datapoints(
    trained: list[deciding_layers.Memorised],
) -> None:
    assert [(one.datapoints, one.seed) for one in trained] == [
        (6, 0), (6, 1), (20, 0), (20, 1),
    ]  # fmt: skip
    for one in trained:
        assert one.loss.shape == (4, one.datapoints)
        assert float(one.loss[-1].max()) <= SMALL.learned
        assert one.steps < SMALL.steps
        assert one.gradient.shape == (3, 4)
        assert torch.allclose(one.gradient.sum(dim=0), torch.ones(4))
    again = deciding_layers.memorise(SMALL, 6, 0)
    assert torch.equal(again.loss, trained[0].loss)


def test_streams_and_gradients_by_hand() -> None:
    network = ResidualMlps(4, 2, np.random.default_rng(0))
    pairs = torch.tensor([[1, 2]])
    streams = network(pairs)
    stream = network.embedding[1] + network.embedding[4 + 2]
    assert torch.equal(streams[0][0], stream)
    for layer in (0, 1):
        hidden = torch.nn.functional.gelu(
            stream @ network.first[layer] + network.bias[layer]
        )
        stream = stream + hidden @ network.second[layer]
        assert torch.allclose(streams[layer + 1][0], stream, atol=1e-6)
    # what the last layer writes on the correct output is linear in `second`, whose
    # gradient is the hidden units; a layer that does nothing has no part in it
    with torch.no_grad():
        network.first[0].zero_()
        network.second[0].zero_()
        network.bias[0].zero_()
    shares = deciding_layers.gradient_shares(network, pairs, torch.tensor([3]))
    assert shares[:, 0].tolist() == pytest.approx([0, 1])


def test_tables_of_deciding_layers(trained: list[deciding_layers.Memorised]) -> None:
    table = compute_decided_by_layer(trained)
    assert len(table) == 4 * 4
    ends = table["layer"] == 3
    assert (table["decided"][ends] == 1).all()
    first = trained[0]
    assert table["loss"][0] == pytest.approx(float(first.loss[0].mean()))
    assert table["decided"][1] == pytest.approx(
        float((first.loss[1] < 0.1).float().mean())
    )
    assert np.isnan(table["gradient"][table["layer"] == 0]).all()
    figures = plot_decided_by_layer(table)
    assert [one.name.partition("-")[2] for one in figures] == [
        "loss",
        "decided",
        "gradient",
    ]
    assert [one.name for one in figures[0].series] == ["6 datapoints", "20 datapoints"]
    shown = compute_loss_trajectories(trained)
    assert shown.facts["seed"] == 0
    six = shown["datapoints"] == 6
    assert pytest.approx(first.loss.numpy()) == shown["loss"][six].reshape(6, 4).T
    assert len(plot_loss_trajectories(shown)) == 2


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TrainerError, match="16 pairs"):
        memorise_all(DecidingSpec(width=4, datapoints=(17,)))
    with pytest.raises(TrainerError, match="at least one layer"):
        memorise_all(DecidingSpec(layers=0))


def test_on_the_command_line(cli: Cli) -> None:
    code, out, _ = cli("trainer", "analyze", "homogeneity", "--quick", "--json")
    assert code == 0
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert names == ["response_curves", "interference", "capacity"]
    words = ("--quick", "--seeds", "1", "--datapoints", "5", "--layers", "2", "--json")
    code, out, _ = cli("trainer", "analyze", "deciding-layers", *words)
    assert code == 0
    decided, shown = (Table.from_json(line) for line in out.splitlines())
    assert decided["layer"].tolist() == [0, 1, 2]
    assert set(shown["point"].tolist()) == set(range(5))
    code, _, err = cli("trainer", "analyze", "deciding-layers", "--datapoints", "9999")
    assert code == 1
    assert "pairs" in err
