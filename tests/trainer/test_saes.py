"""Every architecture: its formula, its gradients, and that it finds features that are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from schemas.sae import SaeSpec
from trainer.errors import SaeError
from trainer.saes.build import build, initialise_from

STEPS = 1300
KINDS: dict[str, dict[str, Any]] = {
    "relu_l1": {"kind": "relu_l1", "l1": 0.1, "n_latents": 24},
    "tied": {"kind": "relu_l1", "l1": 0.1, "n_latents": 24, "tied": True},
    "topk": {"kind": "topk", "k": 3, "n_latents": 24, "aux_k": 4},
}


def make(name: str, d: int = 8, **more: Any) -> Any:
    return build(TypeAdapter(SaeSpec).validate_python({**KINDS[name], **more}), d, seed=1)


def plain_loss(name: str, p: dict[str, torch.Tensor], x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """The formula as the papers write it, densely."""
    encoder = p["W_dec"].T if name == "tied" else p["W_enc"]
    pre = (x - p["b_dec"]) @ encoder + p["b_enc"]
    f = pre.relu()
    if name == "topk":
        f = f * (pre >= pre.sort(dim=1, descending=True).values[:, 2:3])
    again = f @ p["W_dec"] + p["b_dec"]
    loss = (x - again).square().sum(1).mean()
    if name != "topk":
        return loss + 0.1 * 0.5 * f.sum(1).mean()
    if dead.any():
        among = pre.masked_fill(~dead, -torch.inf)
        best = among >= among.sort(dim=1, descending=True).values[:, 3:4]
        aux = torch.where(best, pre.relu(), 0) @ p["W_dec"]
        loss = loss + ((x - again).detach() - aux).square().sum(1).mean() / 32
    return loss


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("n_dead", [0, 9])
def test_loss_and_all_gradients_are_those_of_the_plain_formula(name: str, n_dead: int) -> None:
    sae = make(name).double()
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=torch.manual_seed(3))
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.manual_seed(4)) * 2
    dead = torch.arange(24) < n_dead
    step = sae.training_step(x, 0.5, dead)
    names, parameters = zip(*sae.named_parameters(), strict=True)
    ours = torch.autograd.grad(step.loss, parameters)
    wanted = plain_loss(name, dict(zip(names, parameters, strict=True)), x, dead)
    assert torch.allclose(step.loss, wanted, rtol=1e-10)
    for one, a, b in zip(names, ours, torch.autograd.grad(wanted, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10), one
    latents = sae.encode(x)
    assert torch.allclose(sae.decode(latents), step.reconstruction)
    assert ((latents > 0).sum(0) == step.fired).all()
    assert float(step.l0) == pytest.approx(float((latents > 0).sum(1).double().mean()))
    assert torch.equal(step.loss, sae.training_step(x, 0.5, dead).loss), "calling twice changed something"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_decoder_rows_stay_at_norm_one(name: str) -> None:
    sae = make(name)
    optimiser = torch.optim.AdamW(sae.parameters(), 0.05)
    for _ in range(5):
        sae.training_step(torch.randn(64, 8), 1.0, torch.zeros(24, dtype=torch.bool)).loss.backward()
        sae.before_update()
        along = (sae.W_dec.grad * sae.W_dec).sum(1) / sae.W_dec.grad.norm(dim=1).clamp_min(1e-9)
        assert along.abs().max() < 1e-4
        optimiser.step()
        optimiser.zero_grad()
        sae.after_update()
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(24), atol=1e-6)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_initialisation_is_seeded_and_from_data(name: str) -> None:
    assert all(torch.equal(a, b) for a, b in zip(make(name).parameters(), make(name).parameters(), strict=True))
    sae, rows = make(name), torch.randn(10, 8) + 3
    initialise_from(sae, rows)
    assert torch.allclose(sae.b_dec, rows.mean(0))
    centred = rows - rows.mean(0)
    assert torch.allclose(sae.W_dec[:10], centred / centred.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.equal(sae.encoder, sae.W_dec.T)


def test_more_latents_per_row_than_there_are_is_refused() -> None:
    with pytest.raises(SaeError, match="k is 25, but the dictionary has 24"):
        make("topk", k=25)


@pytest.mark.parametrize("name", ["relu_l1", "topk"])
def test_known_features_are_found(name: str) -> None:
    """Sparse sums of 48 known directions in 32 dimensions: at least 95 % come back with cosine above 0.9."""
    g = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(48, 32, generator=g), dim=1)

    def rows(n: int) -> torch.Tensor:
        active = torch.rand(n, 48, generator=g) < 2.5 / 48
        return (active * (1 + torch.rand(n, 48, generator=g))) @ truth

    sae = make(name, d=32, n_latents=96, **({"k": 4, "aux_k": 16} if name == "topk" else {"l1": 0.25}))
    initialise_from(sae, rows(96))
    optimiser = torch.optim.AdamW(sae.parameters(), 4e-3, weight_decay=0.0, fused=True)
    silent = torch.zeros(96, dtype=torch.int64)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, (STEPS - step) / 200)
        result = sae.training_step(rows(256), min(1.0, step / 100), silent > 10_000)
        optimiser.zero_grad()
        result.loss.backward()
        sae.before_update()
        optimiser.step()
        sae.after_update()
        silent = (silent + 256).masked_fill(result.fired > 0, 0)
    best = (truth @ sae.W_dec.detach().T).max(dim=1).values
    assert float((best > 0.9).float().mean()) >= 0.95
