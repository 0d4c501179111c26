"""The largest cosines of two dictionaries: right, in blocks, in little memory."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.analysis import cosines as module
from trainer.analysis.cosines import (
    max_cosine,
    mutual_max_cosine,
    nearest,
    pairs_above,
)
from trainer.analysis.random_directions import random_directions, random_floor
from trainer.errors import RunError

sizes = st.integers(1, 12)


@settings(deadline=None)
@given(m_a=sizes, m_b=sizes, d=st.integers(1, 5), block=sizes, seed=st.integers(0, 99))
def test_it_is_the_maximum_of_the_matrix(
    m_a: int, m_b: int, d: int, block: int, seed: int
) -> None:
    made = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m_a, d, generator=made), torch.randn(m_b, d, generator=made)
    cosines = torch.nn.functional.cosine_similarity(
        a[:, None].double(), b[None].double(), dim=2
    )
    found = max_cosine(a, b, block)
    torch.testing.assert_close(
        found.cosine.double(), cosines.amax(dim=0), rtol=1e-5, atol=1e-5
    )
    at_match = cosines[found.latent, torch.arange(m_b)]
    torch.testing.assert_close(at_match, cosines.amax(dim=0), rtol=1e-5, atol=1e-5)
    of_b, of_a = mutual_max_cosine(a, b, block)
    for one, two in ((of_b, found), (of_a, max_cosine(b, a, block))):
        torch.testing.assert_close(one.cosine, two.cosine)
    at_match = cosines[torch.arange(m_a), of_a.latent]
    torch.testing.assert_close(at_match, cosines.amax(dim=1), rtol=1e-5, atol=1e-5)
    pairs = pairs_above(a, b, 0.5, block)
    sure = (cosines - 0.5).abs() > 1e-5
    wanted = {tuple(at) for at in ((cosines > 0.5) & sure).nonzero().tolist()}
    got = set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    assert wanted <= got
    assert all(cosines[at] > 0.5 - 1e-5 for at in got)
    assert len(got) == len(pairs.a)


def test_directions_of_zero_have_no_cosine() -> None:
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [math.nan, 1.0]])
    b = torch.tensor([[0.0, 0.0], [-2.0, 0.0], [math.inf, 1.0], [3.0, 3.0]])
    found = max_cosine(a, b, 2)
    assert found.latent.tolist() == [-1, 1, -1, 1]
    assert found.cosine[[1, 3]].tolist() == pytest.approx([-1, math.sqrt(0.5)])
    assert found.without_direction == 2
    assert max_cosine(a[:1], b).without_direction == 4
    for block in (1, 2, 9):
        of_b, of_a = mutual_max_cosine(a, b, block)
        assert of_b.latent.tolist() == [-1, 1, -1, 1]
        assert of_a.latent.tolist() == [-1, 3, -1]
        assert of_a.cosine.isnan().tolist() == [True, False, True]
    assert pairs_above(a, b, 0.1).b.tolist() == [3]


def test_of_equal_ones_the_first_is_taken() -> None:
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    assert max_cosine(a, a, 1).latent.tolist() == [0, 0, 0]
    for matches in mutual_max_cosine(a, a, 1):
        assert matches.latent.tolist() == [0, 0, 0]


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", 3)
    with pytest.raises(RunError, match=r"more than 3 pairs .* raise --threshold"):
        pairs_above(torch.ones(2, 2), torch.ones(2, 2), 0.7)


@settings(deadline=None)
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 300), st.integers(0, 99))
def test_the_nearest_are_those_of_the_matrix(
    m: int, others: int, n: int, memory: int, seed: int
) -> None:
    made = torch.Generator().manual_seed(seed)
    wanted, among = torch.randn(m, 3, generator=made), torch.randn(others, 3)
    found = nearest(wanted, among, n, memory)
    cosines = torch.nn.functional.cosine_similarity(wanted[:, None], among[None], dim=2)
    best = cosines.sort(dim=1, descending=True).values[:, :n].numpy()
    there = best.shape[1]
    assert found.latent.shape == found.cosine.shape == (m, n)
    np.testing.assert_allclose(found.cosine[:, :there], best, atol=1e-5)
    at_latent = np.take_along_axis(cosines.numpy(), found.latent[:, :there], axis=1)
    np.testing.assert_allclose(at_latent, best, atol=1e-5)
    assert (found.latent[:, there:] == -1).all()
    assert np.isnan(found.cosine[:, there:]).all()
    np.testing.assert_allclose(
        found.cosine[:, 0], max_cosine(among, wanted).cosine.numpy(), atol=1e-5
    )


def test_the_nearest_are_not_the_latent_itself_nor_one_without_direction() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    rows[2] = 0
    rows[5] = math.nan
    # The last three rows, so that their own places begin at 3.
    found = nearest(rows[3:], rows, 8, 64, own=3)
    for place, own in enumerate((3, 4)):
        assert set(found.latent[place].tolist()) == {-1, 0, 1, 3, 4} - {own}
    assert found.latent[2].tolist() == [-1] * 8
    assert np.isnan(found.cosine[2]).all()
    assert nearest(rows[:1], rows[:1], 8, own=0).latent.tolist() == [[-1] * 8]


def test_one_dictionary_with_itself_has_each_pair_once() -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for start_a, start_b, block in module.blocks_of_cosines(rows, rows, 3, later=True):
        b, a = (torch.ones_like(block) > 0).nonzero(as_tuple=True)
        pairs = zip((a + start_a).tolist(), (b + start_b).tolist(), strict=True)
        found += [pair for pair in pairs if pair[0] < pair[1]]
    assert sorted(found) == [(a, b) for a in range(7) for b in range(a + 1, 7)]


@pytest.mark.parametrize(("m", "d"), [(1, 4), (50, 8), (512, 32), (9000, 16)])
def test_the_floor_is_the_expected_largest_cosine(m: int, d: int) -> None:
    """A random cosine has the density (1 - t²)^((d - 3) / 2); with F its distribution
    the largest of m has the mean 1 - (integral of F^m from -1 to 1).
    """
    t = np.linspace(-1, 1, 200_001)
    density = (1 - t**2) ** ((d - 3) / 2)
    steps = (density[1:] + density[:-1]) / 2
    distribution = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    powers = distribution**m
    expected = 1 - float(((powers[1:] + powers[:-1]) / 2).sum() * (t[1] - t[0]))
    assert random_floor(m, d) == pytest.approx(expected, abs=0.1 if m == 1 else 0.02)
    assert random_floor(m, d, 1) != random_floor(m, d)
    assert random_floor(m, d, 1) == random_floor(m, d, 1)


def test_the_floor_is_what_two_random_dictionaries_have() -> None:
    """So it is the floor of every mean of largest cosines: MMCS, stitching, layers."""
    wanted = random_directions(4000, 8, (5, 0))
    cosines = max_cosine(random_directions(200, 8, (5, 1)), wanted).cosine
    assert random_floor(200, 8) == pytest.approx(float(cosines.mean()), abs=0.02)
    # Two directions of a plane: the mean of the larger of two cosines.
    assert random_floor(1, 2) == pytest.approx(0, abs=0.1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_matrix() -> None:
    """8,192 x 16,384 latents, whose matrix is 512 MiB, in a process of its own."""
    code = """
import resource, torch
from trainer.analysis.cosines import max_cosine, mutual_max_cosine
made = torch.Generator().manual_seed(0)
a, b = torch.randn(8192, 2, generator=made), torch.randn(16384, 2, generator=made)
max_cosine(a[:9], b[:9])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mutual_max_cosine(a, b)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // 1024)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    # Blocks of 64 MiB: the last, the next, and what of it is looked at again.
    assert int(ran.stdout) < 256
