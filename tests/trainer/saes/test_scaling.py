"""Tests of the scale and the centre of rows, against plain formulas.

Some are on layers whose means lie far apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer
from actstore.errors import SpecError
from actstore.importing.import_activations import import_activations
from actstore.store.store import Store
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from trainer.errors import SaeError
from trainer.training.row_scaling import scaling, spread_of_means, unit_mixture
from trainer.training.train_group import train_group

D, N, LAYERS = 16, 3072, 3
BIAS = torch.nn.Parameter(torch.zeros(D))
TOPK = {"kind": "topk", "k": 4, "n_latents": 64}
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4, "prefixes": (0.5, 1.0)},
    "relu_l1": {"target_l0": 4},
    "gated": {"target_l0": 4},
    "jumprelu": {"target_l0": 4},
    "nsae": {"target_l0": 4},
    "mlp_encoder": {"target_l0": 4},
}


def store_of(
    path: Path, apart: float, common: float = 0.0, layers: int = LAYERS
) -> Store:
    """Sparse rows with a mean square of about 1; layers' means `apart` from the mean of
    all, that `common` from 0.
    """
    rng = np.random.default_rng(5)
    directions = rng.standard_normal((48, D))
    means = rng.standard_normal((layers, D))
    means = apart * means / np.linalg.norm(means, axis=1, keepdims=True)
    middle = common * np.ones(D) / np.sqrt(D)
    sites = {}
    for i in range(layers):
        codes = (rng.random((N, 48)) < 0.06) * (1 + rng.random((N, 48)))
        x = codes @ directions
        x = (x - x.mean(0)) / np.sqrt(np.square(x - x.mean(0)).sum(1).mean())
        sites[f"layer{i}"] = (x + means[i] + middle).astype(np.float32)
    return import_activations(sites, str(path), dtype="float32")


def run(
    store: Store, out: Path, sae: dict[str, Any], **stream: Any
) -> tuple[trainer.TrainedSae, float]:
    """The SAE, and the FVU of its first step."""
    spec = {
        "store": store.url,
        "rows": 20 * 256,
        "log_every": 1,
        "sae": sae,
        "stream": {"batch": 256, "epochs": None, **stream},
    }
    train_group(store, {str(out): TrainSpec.model_validate(spec)})
    steps = [
        json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()
    ]
    return trainer.load(str(out)), next(step["fvu"] for step in steps if "fvu" in step)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("far") / "store", 4.0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_layers_that_lie_far_apart_begin_below_an_fvu_of_one(
    kind: str, far: Store, tmp_path: Path
) -> None:
    """FVU of a step is against each layer's own mean; what is centred is said in the
    record, and undone in outputs.
    """
    sae, first = run(
        far, tmp_path / "run", {"kind": kind, "n_latents": 64, **KINDS[kind]}
    )
    assert sae.record.center
    assert first < 1
    assert sae.mean is not None
    for i, site in enumerate(far.sites):
        np.testing.assert_allclose(sae.mean[i], far.mean(site), rtol=1e-5, atol=1e-6)
        x = torch.from_numpy(far.read(site, far.rows("held_out")))
        error = (sae.decode(sae.encode(x, site), site) - x).square().sum()
        assert float(error / x.var(0, correction=0).sum() / len(x)) < 1


def test_what_is_asked_for_is_done(far: Store, tmp_path: Path) -> None:
    """Also where it is not good."""
    sae, _ = run(far, tmp_path / "no", TOPK, center=False)
    assert sae.mean is None
    assert not sae.record.center
    near = store_of(tmp_path / "store", 0.3)
    for given, there in ((None, False), (True, True)):
        sae, _ = run(near, tmp_path / f"{given}", TOPK, center=given)
        assert (sae.mean is not None) == there == sae.record.center


def test_biases_that_hold_the_means_need_no_centring(
    far: Store, tmp_path: Path
) -> None:
    """One for each layer, or a crosscoder's; nsae has none at all, so that it is
    centred by what is common, too.
    """
    sae, first = run(far, tmp_path / "own", {**TOPK, "per_layer_bias": True})
    assert sae.mean is None
    assert first < 1
    sae, first = run(
        far, tmp_path / "cross", {"kind": "crosscoder", "inner": TOPK}, mode="aligned"
    )
    assert sae.mean is None
    assert first < 1
    common = store_of(tmp_path / "store", 0.0, common=6.0, layers=1)
    for kind, centred in (("nsae", True), ("relu_l1", False)):
        sae, first = run(
            common, tmp_path / kind, {"kind": kind, "target_l0": 4, "n_latents": 64}
        )
        assert (sae.mean is not None) == centred
        assert first < 1


def test_a_transcoder_is_centred_for_its_inputs_or_its_targets(
    far: Store, tmp_path: Path
) -> None:
    sae, first = run(
        far,
        tmp_path / "run",
        {"kind": "transcoder", "inner": TOPK},
        mode="pairs",
        sites=["layer0", "layer1"],
        targets=["layer1", "layer2"],
    )
    assert sae.mean is not None
    assert sae.mean_out is not None
    assert first < 1.2  # targets have nothing to do with inputs here


@pytest.mark.parametrize("kind", ["none", "linear", "sqrt"])
def test_the_spread_is_that_of_the_plain_formula(kind: Any, far: Store) -> None:
    spec = StreamSpec(batch=64, epochs=None, weights={"layer0": 2.0})
    with far.stream(spec) as stream:
        shares = np.array([2, 1, 1]) / 4
        factors = scaling(stream, spec.model_copy(update={"rescale": kind}), BIAS)[
            0
        ].scale
        x = [far.read(site, far.rows("train")).astype(np.float64) for site in far.sites]
        means = np.stack([s * one.mean(0) for s, one in zip(factors, x, strict=True)])
        within = shares @ [
            np.square(s * (one - one.mean(0))).sum(1).mean()
            for s, one in zip(factors, x, strict=True)
        ]
        assert within == pytest.approx(1, rel=1e-3)
        for biased, middle in ((True, shares @ means), (False, 0)):
            wanted = shares @ np.square(means - middle).sum(1) / within
            assert spread_of_means(stream, stream.sites, kind, biased) == pytest.approx(
                wanted, rel=1e-3
            )


def test_a_transcoders_inputs_are_centred_by_what_they_have_in_common(
    tmp_path: Path,
) -> None:
    """No bias is taken off them, not even of one pair, nor where the targets have a
    bias for each layer.
    """
    rng = np.random.default_rng(2)
    codes = (rng.random((N, 48)) < 0.06) * (1 + rng.random((N, 48)))
    x = codes @ rng.standard_normal((48, D))
    out = np.maximum(x @ rng.standard_normal((D, D)), 0)
    sites = {"near": x, "far": x + 30, "out": out, "farther": x + 60, "out2": 2 * out}
    store = import_activations(
        {name: x.astype(np.float32) for name, x in sites.items()},
        str(tmp_path / "store"),
    )
    for inputs, targets, inner, centred in (
        (["near"], ["out"], TOPK, False),
        (["far"], ["out"], TOPK, True),
        (["far", "farther"], ["out", "out2"], {**TOPK, "per_layer_bias": True}, True),
    ):
        spec = {"kind": "transcoder", "inner": inner}
        sae, first = run(
            store,
            tmp_path / "+".join(inputs),
            spec,
            sites=inputs,
            targets=targets,
            mode="pairs",
        )
        assert (sae.mean is not None) == centred
        assert first < 1


def test_first_tokens_do_not_centre_all_others(tmp_path: Path) -> None:
    """They may be 300 times as long, and move the means far from where other rows are."""
    rng = np.random.default_rng(4)
    directions, far = (
        rng.standard_normal((48, D)),
        300 * rng.standard_normal((LAYERS, D)),
    )

    def sites(first: float, apart: float) -> dict[str, np.ndarray]:
        out = {}
        for i in range(LAYERS):
            codes = (rng.random((96, 32, 48)) < 0.06) * (1 + rng.random((96, 32, 48)))
            x = codes @ directions + apart * far[i] / 300
            x[:, 0] += first * far[i]
            out[f"layer{i}"] = x.astype(np.float32)
        return out

    for name, apart, first, centred in (
        ("sinks", 0.0, 1.0, False),
        ("apart", 4.0, 0.01, True),
    ):
        store = import_activations(sites(first, apart), str(tmp_path / name))
        with store.stream(StreamSpec(batch=64, epochs=None)) as stream:
            assert (scaling(stream, stream.spec, BIAS)[0].mean is not None) == centred


def test_a_site_that_does_not_vary_is_not_centred_by_itself(tmp_path: Path) -> None:
    """`unit` would divide by its variance of 0."""
    rng = np.random.default_rng(4)
    sites = {"varies": rng.standard_normal((N, D)), "constant": np.full((N, D), 3.0)}
    store = import_activations(
        {name: x.astype(np.float32) for name, x in sites.items()},
        str(tmp_path / "store"),
    )
    sae, _ = run(store, tmp_path / "run", TOPK, rescale="unit")
    assert sae.mean is None
    with pytest.raises(SpecError, match="'unit': constant does not vary"):
        run(store, tmp_path / "asked", TOPK, rescale="unit", center=True)


def test_weights_that_leave_no_whole_batch_are_told(far: Store, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=r"no whole batch of 256 rows.*stream.weights"):
        run(far, tmp_path / "run", TOPK, weights={"layer0": 200.0})


def test_one_factor_makes_the_mixtures_mean_square_one(far: Store) -> None:
    """The layers' norms keep their ratios; first tokens that are far larger than others
    do not count.
    """
    from actstore.stream.rescale import rescaling

    with far.stream(StreamSpec(batch=64, epochs=None)) as stream:
        plain = rescaling(far, stream.sites, "linear")
        made = unit_mixture(stream, stream.sites, plain)
        ratio = made.scale / plain.scale
        np.testing.assert_allclose(ratio, ratio[0])
        squares = [far.variance(site).sum() for site in stream.sites]
        assert np.mean(made.scale**2 * squares) == pytest.approx(1)
