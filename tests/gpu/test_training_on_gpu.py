"""Training on a GPU: what a CPU gives, the same bits again, and no waiting."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.gpu import noting_waits, on_gpu
from tests.support import make_store
from tests.trainer.training.test_waits import BATCH_WIDE, KINDS, made
from trainer.runs import journal
from trainer.training.train import train
from trainer.training.train_group import train_group

pytestmark = on_gpu
ROOT = Path(__file__).parents[2]
D, M, BATCH, STEPS = 64, 512, 512, 200
SAES: dict[str, dict[str, Any]] = {
    "relu_l1": {"kind": "relu_l1"},
    "topk": {"kind": "topk", "k": 8, "aux_k": 16, "aux_coefficient": 1 / 32},
    "batch_topk": {"kind": "batch_topk", "k": 8},
    "jumprelu": {"kind": "jumprelu"},
    "gated": {"kind": "gated"},
    "matryoshka": {"kind": "matryoshka", "k": 8},
    "per_layer": {"kind": "relu_l1", "per_layer_bias": True},
    "nsae": {"kind": "nsae"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    sites = {f"blocks.{i}.hook_mlp_out": D for i in range(3)}
    return make_store(
        tmp_path_factory.mktemp("gpu") / "store",
        sites,
        n_units=24,
        unit_sequences=32,
        context=64,
        chunk_rows=256,
    )


def spec(store: Store, kind: str, **more: Any) -> dict[str, Any]:
    sae = {"n_latents": M, **SAES[kind]}
    if "target_l0" not in sae and "k" not in sae:
        sae["target_l0"] = 8
    return {
        "store": store.url,
        "sae": sae,
        "rows": STEPS * BATCH,
        "stream": {"batch": BATCH, "rescale": "log"},
        "log_every": 20,
        "seed": 3,
        **more,
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = trainer.load(run).sae.state_dict()
    return state


def losses(run: Path) -> np.ndarray:
    return np.array([line.loss for line in journal.read(Storage(str(run)))])


@pytest.mark.parametrize("kind", list(SAES))
def test_losses_are_those_of_a_cpu(kind: str, store: Store, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        train(spec(store, kind), tmp_path / device, device=device)
    here, there = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    np.testing.assert_allclose(there[:2], here[:2], rtol=2e-3)
    # rounding grows over steps: it decides which latents are kept
    np.testing.assert_allclose(there, here, rtol=3e-2)


@pytest.mark.parametrize("kind", list(SAES))
def test_the_same_bits_again(kind: str, store: Store, tmp_path: Path) -> None:
    for name in ("one", "other"):
        train(spec(store, kind), tmp_path / name, device="cuda")
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (losses(tmp_path / "one") == losses(tmp_path / "other")).all()


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "nsae"])
def test_a_run_goes_on_bit_by_bit(kind: str, store: Store, tmp_path: Path) -> None:
    """Stopped by a signal after its 50th step, in a process of its own."""
    raw = spec(store, kind, checkpoint_every=50)
    train(raw, tmp_path / "whole", device="cuda")
    code = f"""
import os, signal
from trainer.training import checkpoint
from trainer.training.train import train
save = checkpoint.save
def saved(storage, learner, *more):
    save(storage, learner, *more)
    if learner.step == 50:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = saved
train({raw!r}, {str(tmp_path / "cut")!r}, device="cuda")
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert ended.returncode < 0
    train(raw, tmp_path / "cut", device="cuda", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "matryoshka"])
def test_kernels_make_no_difference(kind: str, store: Store, tmp_path: Path) -> None:
    for kernels in ("eager", "triton"):
        train(spec(store, kind, kernels=kernels), tmp_path / kernels, device="cuda")
    np.testing.assert_allclose(
        losses(tmp_path / "triton"), losses(tmp_path / "eager"), rtol=2e-2
    )


@pytest.mark.parametrize("kind", ["relu_l1", "jumprelu", "gated"])
def test_compiled_steps_make_no_difference(
    kind: str, store: Store, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch's own compiler
        for compiled in (False, True):
            run = tmp_path / str(compiled)
            train(spec(store, kind, compile=compiled), run, device="cuda")
    np.testing.assert_allclose(
        losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=2e-2
    )


@pytest.mark.parametrize("kind", ["relu_l1", "topk", "jumprelu"])
def test_bfloat16_is_near_float32(kind: str, store: Store, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        raw = spec(store, kind, precision=precision)
        train(raw, tmp_path / precision, device="cuda")
    exact, short = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert (exact != short).any(), "autocast had no effect"
    np.testing.assert_allclose(short, exact, rtol=0.1)


def test_a_sweep_trains_as_each_alone(store: Store, tmp_path: Path) -> None:
    raw = {kind: spec(store, kind) for kind in ("topk", "relu_l1")}
    specs = {
        str(tmp_path / "sweep" / kind): TrainSpec.model_validate(one)
        for kind, one in raw.items()
    }
    train_group(store, specs, device="cuda")
    for kind, one in raw.items():
        train(one, tmp_path / kind, device="cuda")
        wanted, ours = weights(tmp_path / kind), weights(tmp_path / "sweep" / kind)
        assert all(torch.equal(wanted[name], ours[name]) for name in wanted)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_update_does_not_wait_for_the_gpu(kind: str) -> None:
    """But once for a selection over a whole batch; counted by torch itself."""
    one, batch = made(kind, "cuda")
    one.listed = torch.arange(9, device="cuda")
    for _ in range(3):  # the first ones make Adam's moments
        one.step = 1  # a step that does not look for the dead
        one.update(*batch)
    one.step = 1
    with noting_waits() as waits:
        one.update(*batch)
    assert len(waits) == (kind in BATCH_WIDE), waits


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "relu_l1"])
@pytest.mark.parametrize("shard_dictionary", [False, True])
def test_exchanges_by_nccl_with_one_process(
    kind: str, shard_dictionary: bool, store: Store, tmp_path: Path
) -> None:
    """Every exchange is made, though there is nobody to exchange with."""
    train(spec(store, kind), tmp_path / "alone", device="cuda")
    code = f"""
import warnings
warnings.simplefilter("ignore")
import actstore
from schemas.train import TrainSpec
from trainer.distributed.processes import started
from trainer.training.train_group import train_group
spec = TrainSpec.model_validate({spec(store, kind)!r})
names = {{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}}
with started("cuda", names) as world:
    train_group(
        actstore.open({store.url!r}),
        {{{str(tmp_path / "nccl")!r}: spec}},
        world=world,
        shard_dictionary={shard_dictionary},
    )
"""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(
        losses(tmp_path / "nccl"), losses(tmp_path / "alone"), rtol=2e-2
    )


def port() -> int:
    """A port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
