"""Sparsity that is steered to an L0: the rule against its formula, and short runs of
each kind that has a penalty.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

import trainer
from actstore.store.store import Store
from actstore.stream.rescale import Rescaling
from schemas.sae import DEFAULT_L0
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.saes.build import build, every_kind, named
from trainer.training.learner import Learner
from trainer.training.sparsity_steering import (
    DIRECT,
    GAIN,
    MEMORY,
    PROPORTIONAL,
    RANGE,
    Steering,
)
from trainer.training.train_group import Progress, train_group
from trainer.training.warmup_and_decay import sparsity

D, M, SITES, BATCH = 8, 24, 3, 60
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "relu_l1": {"kind": "relu_l1"},
    "tied": {"kind": "relu_l1", "tied": True},
    "decoder_norm": {"kind": "relu_l1", "penalty": "decoder_norm"},
    "gated": {"kind": "gated"},
    "jumprelu": {"kind": "jumprelu"},
    "jumprelu_layers": {
        "kind": "jumprelu",
        "per_layer_threshold": True,
        "per_layer_bias": True,
    },
    "nsae": {"kind": "nsae", "noise": 0.05},
    "mlp_encoder": {"kind": "mlp_encoder"},
}
GIVEN = {
    "relu_l1": "l1",
    "gated": "l1",
    "jumprelu": "l0",
    "nsae": "alpha",
    "mlp_encoder": "l1",
}
PENALISED = sorted(kind.name for kind in every_kind() if kind.starting_penalty)
l0s = st.lists(st.floats(0, 1e6, width=32), max_size=60)


def steering(kind: str, target: float) -> Steering:
    start = named(kind).starting_penalty
    assert start is not None
    return Steering(start, target, CPU)


def steered(
    values: list[float], kind: str = "gated", target: float = 8.0, share: float = 1.0
) -> list[float]:
    one = steering(kind, target)
    out = []
    for value in values:
        rise = one.update(torch.tensor(value), share)
        out += [float(one.weight), float(rise)]
    return out


@given(
    l0s,
    st.sampled_from(PENALISED),
    st.sampled_from([0.5, 8.0, 300.0]),
    st.floats(0, 1),
)
def test_the_weight_and_the_thresholds_are_those_of_the_formula(
    values: list[float], kind: str, target: float, share: float
) -> None:
    found = steered(values, kind, target, share)
    total = recent = 0.0
    for i, value in enumerate(values):
        error = min(1.0, max(-1.0, math.log(max(value, 1e-3) / target)))
        total = min(RANGE, max(-RANGE, total + GAIN * share * error))
        recent = MEMORY * recent + (1 - MEMORY) * error
        first = named(kind).starting_penalty * DEFAULT_L0 / target
        assert found[2 * i] == pytest.approx(
            first * math.exp(total + PROPORTIONAL * recent), rel=1e-5
        )
        assert found[2 * i + 1] == pytest.approx(DIRECT * error, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("l0", [0.0, 1e9])
def test_the_weight_stays_in_bounds_and_comes_back(l0: float) -> None:
    """However long nothing fires, or everything: and then it takes no longer to come
    back than it took to go.
    """
    one = steering("relu_l1", 8.0)
    first = float(one.weight)
    for _ in range(1000):
        assert abs(float(one.update(torch.tensor(l0), 1.0))) <= DIRECT + 1e-6
    most = math.exp(RANGE + PROPORTIONAL)
    assert first / most / 1.01 < float(one.weight) < first * most * 1.01
    assert (float(one.weight) > first) == (l0 > 8)
    for _ in range(round(RANGE / GAIN) + 1):
        one.update(torch.tensor(1e9 - l0), 1.0)
    assert (float(one.weight) > first) == (l0 < 8)


@given(l0s, l0s)
def test_it_is_a_function_of_the_batches_and_goes_on_from_its_state(
    before: list[float], after: list[float]
) -> None:
    assert steered(before + after) == steered(before + after)
    one, again = steering("gated", 8.0), steering("gated", 8.0)
    for value in before:
        one.update(torch.tensor(value), 1.0)
    again.state.copy_(one.state)
    for value in after:
        assert torch.equal(
            one.update(torch.tensor(value), 1.0), again.update(torch.tensor(value), 1.0)
        )
        assert torch.equal(one.weight, again.weight)


def test_a_weight_and_a_target_exclude_each_other() -> None:
    for kind, weight in GIVEN.items():
        raw = {"kind": kind, weight: 0.1, "target_l0": 8}
        with pytest.raises(
            ValidationError, match=f"{weight} and target_l0 exclude each other"
        ):
            TrainSpec.model_validate({"store": "", "sae": raw})


def learner(sae: dict[str, Any], **more: Any) -> Learner:
    raw = {
        "store": "",
        "sae": {"n_latents": M, **sae},
        "stream": {"batch": BATCH},
        "dead_rows": 100,
        **more,
    }
    spec = TrainSpec.model_validate(raw)
    norms = torch.tensor([1.0, 2.0, 0.5])
    return Learner(
        spec,
        build(spec.sae, D, 1, SITES),
        Rescaling(np.ones(SITES), None),
        norms,
        100,
        CPU,
        norms,
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, D, generator=g), torch.randint(
        0, SITES, (BATCH,), generator=g
    )


@pytest.mark.parametrize("kind", sorted(GIVEN))
def test_a_weight_that_is_given_is_warmed_up_and_moves_no_threshold(kind: str) -> None:
    one = learner({"kind": kind, GIVEN[kind]: 0.3}, optimiser={"sparsity_warmup": 0.2})
    assert one.steering is None
    for step in range(3):
        assert one._penalty() == pytest.approx(
            0.3 * sparsity(one.spec.optimiser, step, 100)
        )
        one.update(*batch(step))
    assert one.penalty == 0.3
    assert "penalty" not in one.interval().parts


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_update_moves_the_weight_and_the_thresholds_as_the_rule_says(
    kind: str,
) -> None:
    """With a learning rate of about 0 steering alone moves what fires; what it used is
    logged.
    """
    one = learner(
        {**KINDS[kind], "target_l0": 3},
        optimiser={"lr": 1e-30, "warmup": 0},
        revive=False,
    )
    one.sae.eval()  # without the noise of nsae
    rows, wanted, used = one.rows(*batch(0)), steering(KINDS[kind]["kind"], 3), []
    for _ in range(4):
        before = one.sae.margins(rows.x, rows.layer).detach()
        l0, weight = (before > 0).sum(1).double().mean(), one._penalty()
        assert torch.equal(torch.as_tensor(weight), wanted.weight)
        used.append(float(wanted.weight))
        one.update(*batch(0))
        rise = float(wanted.update(l0.float(), 1.0)) * one.sae.margin_std
        after = one.sae.margins(rows.x, rows.layer).detach()
        finite = before.isfinite()
        assert torch.allclose(after[finite], before[finite] - rise, atol=1e-5)
    assert one.penalty == pytest.approx(float(wanted.weight))
    assert one.interval().parts["penalty"] == pytest.approx(
        float(np.mean(used)), rel=1e-5
    )


REVIVED = {
    "relu_l1": {"kind": "relu_l1", "l1": 0.01},
    "gated": {"kind": "gated", "l1": 0.01},
    "jumprelu": {"kind": "jumprelu", "l0": 0.01, "threshold": 0.05, "bandwidth": 0.01},
    "nsae": {"kind": "nsae", "alpha": 0.01, "noise": 0},
    "mlp_encoder": {"kind": "mlp_encoder", "l1": 0.01},
    "topk": {"kind": "topk", "k": 3},
    "batch_topk": {"kind": "batch_topk", "k": 3},
}


@pytest.mark.parametrize("kind", sorted(REVIVED))
@pytest.mark.parametrize("revive", [True, False])
def test_the_bias_of_a_dead_latent_rises_by_the_peak_rate_until_it_fires(
    kind: str, revive: bool
) -> None:
    """Latent 5 is deaf, so only its bias can make it fire, and it gets no gradient
    before it does.
    """
    one = learner(REVIVED[kind], optimiser={"lr": 0.1, "warmup": 0.1}, revive=revive)
    with torch.no_grad():
        one.sae.W_enc[:, 5] = 0
        one.sae.firing_bias[5] = -0.35
        if kind == "gated":
            one.sae.b_mag[5] = -0.25  # its magnitude would be 0, too
    rates: list[float] = []
    alive = False
    for step in range(60):
        before, silent = float(one.sae.firing_bias.detach()[5]), int(one.silent_rows[5])
        one.update(*batch(step))
        after, rate = float(one.sae.firing_bias.detach()[5]), one.lr
        alive = int(one.silent_rows[5]) == 0
        if alive:
            break
        dead = silent + BATCH > 100
        assert after - before == pytest.approx(
            rate if dead and revive else 0.0, abs=1e-6
        )
        rates.append(after - before)
    assert alive == revive
    assert rates[0] == 0, "not dead yet"
    assert (max(rates) > 0) == revive


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("steering") / "s", n_units=24, unit_sequences=8
    )


def spec_of(
    store: Store, kind: str, target: float, steps: int, **more: Any
) -> TrainSpec:
    raw = {
        "store": store.url,
        "sae": {**KINDS[kind], "n_latents": 64, "target_l0": target},
        "stream": {"batch": 512, "rescale": "linear", "seed": 2},
        "rows": 512 * steps,
        "optimiser": {"lr": 2e-3},
        "log_every": 10,
    }
    return TrainSpec.model_validate({**raw, **more})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_runs_hold_the_l0_and_hand_it_on(
    store: Store, tmp_path: Path, kind: str
) -> None:
    """In the second half, when directions are found, in means of ten batches; and on
    held-out rows at the end.
    """
    targets = (2.0, 5.0, 12.0)
    runs = {
        str(tmp_path / f"{kind}-{target}"): spec_of(store, kind, target, 200)
        for target in targets
    }
    train_group(store, runs)
    for url, target in zip(runs, targets, strict=True):
        lines = [
            json.loads(line)
            for line in (Path(url) / "journal.jsonl").read_text().splitlines()
        ]
        l0 = [one["l0"] for one in lines[len(lines) // 2 :]]
        # tied latents cannot shrink, so at 12 in 16 dimensions their penalty still
        # falls after 200 updates
        assert np.mean(l0) == pytest.approx(
            target, rel=0.06 if kind == "tied" else 0.03
        ), l0
        assert max(abs(math.log(one / target)) for one in l0) < 0.15, l0
        assert lines[-1]["fvu"] < lines[0]["fvu"] < 1.2
        sae = trainer.load(url)
        rows = store.rows("held_out")
        fired = [
            float(
                (sae.encode(torch.from_numpy(store.read(site, rows)), site) > 0)
                .sum(1)
                .double()
                .mean()
            )
            for site in store.sites
        ]
        assert np.mean(fired) == pytest.approx(target, rel=0.01)
        assert sae.record.penalty is not None
        assert 0 < sae.record.penalty < 100


class StoppedError(Exception):
    """Stands for the end of a process between two steps."""


@pytest.mark.parametrize("kind", ["relu_l1", "jumprelu_layers", "nsae", "gated"])
def test_a_steered_run_goes_on_bit_by_bit(
    store: Store, tmp_path: Path, kind: str
) -> None:
    one = spec_of(
        store, kind, 4, 40, checkpoint_every=9, ema=0.9, accumulate=2, dead_rows=1024
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def stop(now: Progress) -> None:
        if now.step == 23:
            raise StoppedError

    train_group(store, {str(whole): one})
    with pytest.raises(StoppedError):
        train_group(store, {str(cut): one}, report=stop)
    state = load_file(cut / "checkpoints/step-00000018/latents.safetensors")["steering"]
    assert state.abs().min() > 0, "it had nothing to go on from"
    train_group(store, {str(cut): one}, resume=True)
    for name in (
        "sae.safetensors",
        "sae.json",
        "checkpoints/step-00000040/optimiser.safetensors",
    ):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    lines = [(run / "journal.jsonl").read_text().splitlines() for run in (whole, cut)]
    assert [json.loads(line)["parts"] for line in lines[0]] == [
        json.loads(line)["parts"] for line in lines[1]
    ]
