"""Effects of adding, swapping and walking: one pass gives what a loop over latents
does.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.stitching.made import random_dictionary, random_rows
from trainer.analysis.cosines import Pairs
from trainer.stitching import dictionary as dictionary_module
from trainer.stitching import swap as swap_module
from trainer.stitching.add import effects_of_adding
from trainer.stitching.components import Swap, swaps_of
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.swap import effects_of_swaps
from trainer.stitching.walk import Step, added_in_order, walk

NONE = torch.zeros(0, dtype=torch.int64)


def mse(a: Dictionary, rows: list[Tensor]) -> float:
    x = torch.cat(rows)
    return float((x - a.reconstruct(x)[0]).square().sum(dim=1).mean())


def l0(a: Dictionary, rows: list[Tensor]) -> float:
    return float(a.reconstruct(torch.cat(rows))[1].double().mean())


def hybrid(a: Dictionary, b: Dictionary, out: Tensor, into: Tensor) -> Dictionary:
    """`a` without some latents, and with some of b."""
    stays = torch.ones(a.n_latents, dtype=torch.bool)
    stays[out] = False
    return a.taken(stays.nonzero()[:, 0]).joined(b.taken(into))


@pytest.mark.parametrize("thresholds", [False, True])
def test_adding_each_latent_alone(
    monkeypatch: pytest.MonkeyPatch, thresholds: bool
) -> None:
    monkeypatch.setattr(dictionary_module, "LATENTS_AT_ONCE", 4)
    a = random_dictionary(10, seed=1, thresholds=thresholds)
    b = random_dictionary(15, seed=2)
    b = b._replace(b_enc=b.b_enc.index_fill(0, torch.tensor([7]), -1e3))
    rows = random_rows(90)
    x = torch.cat(rows)
    found = effects_of_adding(a, b, rows)
    before = mse(a, rows)
    assert found.rows == 90
    assert found.mse_a == pytest.approx(before)
    assert found.mse_b == pytest.approx(mse(b, rows))
    errors = {
        name: (x - one.reconstruct(x)[0]).square().sum(dim=1)
        for name, one in (("a", a), ("b", b))
    }
    for j in range(15):
        change = mse(hybrid(a, b, NONE, torch.tensor([j])), rows) - before
        assert float(found.delta_mse[j]) == pytest.approx(change, abs=1e-9)
        fires = b.encode(x)[:, j] > 0
        assert int(found.fires[j]) == int(fires.sum())
        for name, error in errors.items():
            for at, part in ((fires, "active"), (~fires, "inactive")):
                value = float(getattr(found, f"{part}_{name}")[j])
                wanted = float(error[at].mean())
                assert value == pytest.approx(wanted, nan_ok=True)
    assert found.delta_mse[7] == 0
    assert found.active_a[7].isnan()


@settings(deadline=None)
@given(seed=st.integers(0, 200), n_steps=st.integers(1, 4))
def test_a_walk_measures_what_each_sae_on_the_way_does(seed: int, n_steps: int) -> None:
    a, b = random_dictionary(8, seed=seed), random_dictionary(11, seed=seed + 1)
    draws = np.random.default_rng(seed)
    into = np.array_split(draws.permutation(11), n_steps)
    out = np.array_split(draws.permutation(8)[:5], n_steps)
    steps = [
        Step(torch.from_numpy(i), torch.from_numpy(o), 0.5)
        for i, o in zip(into, out, strict=True)
    ]
    rows = random_rows(60, seed=seed)
    found = walk(a, b, steps, rows)
    assert found.mse[0] == pytest.approx(mse(a, rows))
    assert (len(found.mse), found.size[0], found.rows) == (n_steps + 1, 8, 60)
    for n in range(1, n_steps + 1):
        here = hybrid(
            a,
            b,
            torch.cat([step.removed for step in steps[:n]]),
            torch.cat([step.added for step in steps[:n]]),
        )
        assert found.mse[n] == pytest.approx(mse(here, rows))
        assert found.l0[n] == pytest.approx(l0(here, rows))
        assert found.size[n] == here.n_latents


def test_steps_are_in_order_of_cosine() -> None:
    cosines = torch.tensor([0.5, -0.1, 0.3, 0.2, 0.4])
    steps = added_in_order(torch.tensor([10, 11, 12, 13, 14]), cosines, 2)
    assert [step.added.tolist() for step in steps] == [[11, 13, 12], [14, 10]]
    assert [step.cosine for step in steps] == pytest.approx([0.3, 0.5])
    assert len(added_in_order(torch.arange(2), cosines[:2], 9)) == 2
    assert added_in_order(NONE, torch.zeros(0), 9) == []


def pairs(*edges: tuple[int, int, float]) -> Pairs:
    a, b, cosine = zip(*edges, strict=True)
    return Pairs(torch.tensor(a), torch.tensor(b), torch.tensor(cosine))


def test_swaps_are_connected_components() -> None:
    edges = pairs((4, 0, 0.9), (1, 2, 0.8), (3, 2, 0.75), (3, 5, 1.0), (0, 1, 0.7))
    found = swaps_of(edges, 6, 7)
    assert [(s.parents.tolist(), s.children.tolist(), s.pairs) for s in found] == [
        ([0], [1], 1),
        ([1, 3], [2, 5], 3),
        ([4], [0], 1),
    ]
    assert [s.max_cosine for s in found] == pytest.approx([0.7, 1.0, 0.9])
    assert [s.mean_cosine for s in found] == pytest.approx([0.7, 0.85, 0.9])
    assert swaps_of(Pairs(NONE, NONE, torch.zeros(0)), 3, 3) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25)
)
def test_components_are_those_of_a_search(edges: list[tuple[int, int]]) -> None:
    made = pairs(*((a, b, 0.8) for a, b in edges))
    left = {("a", a) for a, _ in edges} | {("b", b) for _, b in edges}
    wanted = []
    while left:
        found, edge = set(), {min(left)}
        while edge:
            found |= edge
            edge = {
                ends[1 - i]
                for a, b in edges
                for ends in ((("a", a), ("b", b)),)
                for i in (0, 1)
                if ends[i] in found
            } - found
        left -= found
        wanted.append(found)
    got = [
        {("a", a) for a in s.parents.tolist()} | {("b", b) for b in s.children.tolist()}
        for s in swaps_of(made, 10, 10)
    ]
    assert got == wanted


def test_each_swap_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_dictionary(8, seed=1), random_dictionary(11, seed=2)
    swaps = [
        Swap(torch.tensor(out), torch.tensor(into), 0.9, 0.8, len(into))
        for out, into in (
            ([0], [3]),
            ([1, 4], [0, 7]),
            ([2], [10]),
            ([7], [1, 2, 5]),
            ([5], [9]),
        )
    ]
    rows = random_rows(70)
    whole = effects_of_swaps(a, b, swaps, rows)
    for swap, delta_mse, delta_l0 in zip(
        swaps, whole.delta_mse, whole.delta_l0, strict=True
    ):
        other = hybrid(a, b, swap.parents, swap.children)
        assert delta_mse == pytest.approx(mse(other, rows) - whole.mse)
        assert delta_l0 == pytest.approx(l0(other, rows) - whole.l0)
    assert whole.rows == 70
    assert whole.mse == pytest.approx(mse(a, rows))
    assert whole.l0 == pytest.approx(l0(a, rows))
    monkeypatch.setattr(swap_module, "MOST_NUMBERS", 1)
    monkeypatch.setattr(swap_module, "MOST_CODES", 40)
    again = effects_of_swaps(a, b, swaps, rows)
    np.testing.assert_allclose(again.delta_mse, whole.delta_mse)
    np.testing.assert_allclose(again.delta_l0, whole.delta_l0)
    assert len(effects_of_swaps(a, b, [], rows).delta_mse) == 0
