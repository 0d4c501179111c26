"""Updates do not wait for their device, counted without one; what is done so on a
device has the same result.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actstore.format.storage import Storage
from actstore.stream.rescale import Rescaling
from schemas.stream import StreamState
from schemas.train import TrainSpec
from tests.trainer.training.waits import Waits
from trainer.kernels import devices, topk_select
from trainer.kernels.nonzeros import Pattern
from trainer.saes.build import build
from trainer.saes.sparse_codes import prefix_decoded
from trainer.training import checkpoint
from trainer.training import learner as learner_module
from trainer.training.learner import Learner

D, M, SITES, BATCH = 8, 48, 3, 40
AUX = {"aux_k": 4, "aux_coefficient": 1 / 32, "n_latents": M}
KINDS: dict[str, dict[str, Any]] = {
    "relu_l1": {"kind": "relu_l1", "l1": 0.1},
    "decoder_norm": {"kind": "relu_l1", "l1": 0.1, "penalty": "decoder_norm"},
    "per_layer_bias": {"kind": "relu_l1", "l1": 0.1, "per_layer_bias": True},
    "topk": {"kind": "topk", "k": 3, **AUX},
    "gated": {"kind": "gated", "l1": 0.1},
    "jumprelu": {"kind": "jumprelu", "l0": 0.1, "per_layer_threshold": True},
    "mlp_encoder": {"kind": "mlp_encoder", "l1": 0.1},
    "nsae": {"kind": "nsae", "alpha": 0.05, "noise": 0.3},
    "transcoder": {"kind": "transcoder", "inner": {"kind": "topk", "k": 3, **AUX}},
    "crosscoder": {"kind": "crosscoder", "inner": {"kind": "topk", "k": 3, **AUX}},
    "batch_topk": {"kind": "batch_topk", "k": 3, "per_layer_threshold": True, **AUX},
    "matryoshka": {"kind": "matryoshka", "k": 3, **AUX},
    "crosscoder_batch": {
        "kind": "crosscoder",
        "inner": {"kind": "batch_topk", "k": 3, **AUX},
    },
}
BATCH_WIDE = {"batch_topk", "matryoshka", "crosscoder_batch"}


def made(kind: str, on: str) -> tuple[Learner, tuple[Tensor, ...]]:
    """A learner with an average, and a batch for it."""
    raw = KINDS[kind] if "inner" in KINDS[kind] else {"n_latents": M, **KINDS[kind]}
    spec = TrainSpec.model_validate(
        {
            "store": "none",
            "sae": raw,
            "dead_rows": 100,
            "ema": 0.9,
            "optimiser": {"lr": 1e-3},
        }
    )
    pair = kind == "transcoder"
    sae = build(spec.sae, D, 1, SITES, D if pair else None)
    rescale = Rescaling(
        np.array([1.0, 0.5, 2.0]), np.ones((SITES, D), dtype=np.float32)
    )
    one = Learner(
        spec,
        sae,
        rescale,
        torch.ones(SITES),
        100,
        torch.device(on),
        torch.ones(SITES),
        rescale,
    )
    shape = (BATCH, SITES, D) if kind.startswith("crosscoder") else (BATCH, D)
    x, layer = torch.randn(shape).to(on), torch.randint(0, SITES, (BATCH,)).to(on)
    return one, (x, layer, torch.randn(BATCH, D).to(on)) if pair else (x, layer)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch has for a GPU and not for the meta device: autocast, fused Adam,
    generators.
    """
    monkeypatch.setattr("torch.autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr("torch.optim.AdamW", _plain_adam)
    monkeypatch.setattr("trainer.saes.step_noise.Draws.generator", lambda *_: None)


_AdamW = torch.optim.AdamW


def _plain_adam(*args: Any, fused: bool, **more: Any) -> torch.optim.AdamW:
    assert fused
    return _AdamW(*args, foreach=False, **more)


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("n_dead", [0, 9])
def test_an_update_waits_for_nothing_or_once_where_it_selects_over_a_batch(
    kind: str, n_dead: int
) -> None:
    one, batch = made(kind, "meta")
    one.step = 1  # a step that does not look for the dead
    one.listed = torch.zeros(n_dead, dtype=torch.int64, device="meta")
    for _ in range(2):
        with Waits("meta") as seen:
            one.update(*batch)
        assert seen.found == (["_local_scalar_dense"] if kind in BATCH_WIDE else [])
    assert one.step == 3


@pytest.mark.usefixtures("on_meta")
def test_the_dead_are_looked_for_every_so_many_updates_whatever_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner_module, "DEAD_EVERY", 4)
    for kind, wanted in (("topk", [0, 4, 8]), ("relu_l1", [])):
        one, batch = made(kind, "meta")
        looked = []
        for step in range(10):
            with Waits("meta") as seen:
                one.update(*batch)
            looked += [step] if "nonzero" in seen.found else []
        assert looked == wanted


def test_a_resumed_run_has_the_dead_that_were_listed(tmp_path: Path) -> None:
    """Not those of the moment: between two looks the sizes stay, and so do the bits."""
    (one, batch), (again, _) = made("topk", "cpu"), made("topk", "cpu")
    one.silent_rows[4:16] = 1000
    for _ in range(3):
        one.update(*batch)
        one.silent_rows[2:9] = 1000
    assert one.listed.tolist() == list(range(4, 16))
    storage = Storage(str(tmp_path))
    checkpoint.save(storage, one, StreamState(store="", spec="", epoch=0, batch=3), 1)
    checkpoint.restore(storage, again, 3)
    assert torch.equal(again.listed, one.listed)
    for each in (one, again):
        each.update(*batch)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.sae.parameters(), again.sae.parameters(), strict=True)
    )


def test_what_waits_is_seen() -> None:
    x = torch.zeros(4, device="meta")
    asked = {
        "_local_scalar_dense": lambda: bool(x.any()),
        "nonzero": x.nonzero,
        "index.Tensor": lambda: x[x > 0],
        "index_put_": lambda: x.__setitem__(x > 0, x[:1]),
        "bincount": lambda: torch.bincount(x.long()),
        "masked_select": lambda: x.masked_select(x > 0),
        "copy: _to_copy": x.cpu,
        "copy: copy_": lambda: x.copy_(torch.ones(4)),
    }
    for name, ask in asked.items():
        with Waits("meta") as seen, contextlib.suppress(NotImplementedError):
            ask()
        assert seen.found[:1] == [name], name


@pytest.mark.parametrize("kind", ["topk", "crosscoder", "batch_topk", "matryoshka"])
def test_sizes_are_the_same_at_every_update(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CUDA graph wants it; on the host with the device's code, on batches of
    different values.
    """
    monkeypatch.setattr(devices, "on_host", lambda _: False)
    one, (x, layer) = made(kind, "cpu")
    one.listed = torch.arange(9)
    one.silent_rows[:9] = 1000
    found = []
    for step in range(4):
        if step == 3:
            one.silent_rows[:5] = 0
        with Waits("cpu") as seen:
            one.update(x * (step - 1.5), layer.roll(step))
        found.append(seen.shapes)
        one.step = 1  # on a step that does not look for the dead
    asked = [name for name, _ in found[1]]
    assert "topk" in asked
    assert found[1] == found[2] == found[3]
    assert {"nonzero", "_local_scalar_dense"}.isdisjoint(asked) or kind in {
        "batch_topk",
        "matryoshka",
    }


@pytest.mark.parametrize(
    "kind", ["topk", "batch_topk", "matryoshka", "crosscoder_batch"]
)
def test_the_devices_way_is_the_hosts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "DEAD_EVERY", 3)
    ends = []
    for there in (True, False):
        monkeypatch.setattr(devices, "on_host", lambda _, there=there: there)
        torch.manual_seed(0)
        one, (x, layer) = made(kind, "cpu")
        one.silent_rows[:9] = 1000
        for step in range(8):
            one.update(x.roll(step, 0), layer)
        ends.append(
            [
                *one.sae.state_dict().values(),
                one.silent_rows.double(),
                torch.tensor(one.interval().loss),
            ]
        )
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(
    n_rows=st.integers(1, 30),
    m=st.integers(1, 40),
    share=st.floats(0, 1),
    levels=st.sampled_from([2, 5, 1000]),
    shift=st.sampled_from([-3.0, -1.0, 0.0, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    sample=st.sampled_from([1, 4, 100]),
    block=st.sampled_from([1, 1 << 30]),
    seed=st.integers(0, 10**6),
)
def test_a_fixed_size_selection_is_the_ragged_one(
    n_rows: int,
    m: int,
    share: float,
    levels: int,
    shift: float,
    dtype: torch.dtype,
    sample: int,
    block: int,
    seed: int,
) -> None:
    """By rows, of equal ones the first, and filled up with zeros all over; whether the
    guess held or not, in one block or in many.
    """
    g = torch.Generator().manual_seed(seed)
    x = (
        ((torch.randn(n_rows, m, generator=g) + shift) * levels)
        .round()
        .div(levels)
        .to(dtype)
    )
    n, arguments = (
        max(1, round(share * n_rows * m)),
        (x, torch.eye(m, dtype=dtype), x.new_zeros(m)),
    )
    before = topk_select._SAMPLE_ROWS, topk_select.CPU_BLOCK_BYTES
    topk_select._SAMPLE_ROWS, topk_select.CPU_BLOCK_BYTES = sample, block
    try:
        fixed, ragged = (
            topk_select.batch_top_k_on_device(*arguments, n),
            topk_select.batch_top_k_of_product(*arguments, n),
        )
    finally:
        topk_select._SAMPLE_ROWS, topk_select.CPU_BLOCK_BYTES = before
    is_entry = fixed[0] != 0
    for ours, wanted in zip(fixed, ragged, strict=True):
        assert len(ours) == n
        assert torch.equal(ours[is_entry], wanted)
    assert ((fixed[1] * m + fixed[2]).diff() >= 0).all()
    most = -(-n // n_rows) + 1  # zeros in a row
    assert torch.bincount(fixed[1][~is_entry], minlength=n_rows).max() <= most


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("normal", 1), ("one row has all", 1), ("the sample has none", 2)],
)
def test_the_guess_nearly_always_holds(
    kind: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`asked`: searches; where a guess is wrong, which it is where the sample has none
    of what is chosen, two.
    """
    x = torch.randn(2048, 256, generator=torch.Generator().manual_seed(1))
    if kind == "one row has all":
        x[5] += 20
    if kind == "the sample has none":
        x[::32] = -x[::32].abs()
    calls = []
    plain = topk_select.batch_top_k_of_product

    def counted(*args: Any) -> Any:
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(topk_select, "batch_top_k_of_product", counted)
    found = topk_select.batch_top_k_on_device(
        x, torch.eye(256), torch.zeros(256), 8 * 2048
    )
    assert 1 + len(calls) == asked
    for ours, wanted in zip(
        found, plain(x, torch.eye(256), torch.zeros(256), 8 * 2048), strict=True
    ):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
@pytest.mark.parametrize("alive", [0, 2, 5, 9])
def test_a_latent_that_has_fired_since_has_no_part_in_aux_k(
    kind: str, alive: int
) -> None:
    """Of 9 that were listed; 4 are chosen in each row, where there are so many."""
    one, (x, layer) = made(kind, "cpu")
    rows = one.rows(x, layer)
    listed = torch.arange(3, 30, 3)
    lists = (
        torch.where(torch.arange(9) < alive, ~listed, listed),
        torch.zeros(M, dtype=torch.bool),
    )
    lists[1][listed[alive:]] = True
    found = []
    for dead in lists:
        one.sae.zero_grad()
        step = one.sae.training_step(rows, 1.0, dead)
        step.loss.backward()
        found.append(
            [
                step.loss,
                step.parts.get("aux", torch.zeros(())),
                *(p.grad for p in one.sae.parameters()),
            ]
        )
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert bool(found[0][1]) == (alive < 9)


def test_what_is_not_a_number_is_kept() -> None:
    g = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(200, 8, generator=g),
        torch.randn(8, 64, generator=g),
        torch.zeros(64),
    )
    x[70, 3] = torch.nan
    values, rows, _ = topk_select.batch_top_k_on_device(x, weight, bias, 100)
    assert values[rows == 70].isnan().all()
    assert 70 in rows


@pytest.mark.parametrize("ends", [[3, 11, 30], [30], [0, 0, 7, 30]])
def test_prefixes_at_once_are_those_one_by_one(
    ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(2)
    dense = torch.randn(20, 30, generator=g, dtype=torch.float64).relu()
    dense[3] = 0
    rows, latents = dense.nonzero().T
    values = dense[rows, latents].requires_grad_()
    decoder = torch.randn(30, 7, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, generator=g, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(ends), 20, 7, generator=g, dtype=torch.float64)
    found = []
    for there in (True, False):
        monkeypatch.setattr(devices, "on_host", lambda _, there=there: there)
        out = torch.stack(
            prefix_decoded(
                values, decoder, Pattern.ragged(rows, latents, 20, 30), ends, bias
            )
        )
        found.append(
            [out, *torch.autograd.grad((out * weights).sum(), (values, decoder, bias))]
        )
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other)
