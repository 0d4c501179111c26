"""The largest cosines of two dictionaries: right, in blocks, in little memory."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import RunError
from trainer.stitching import max_cosine as module
from trainer.stitching.max_cosine import (
    max_cosine,
    mutual_max_cosine,
    pairs_above,
    random_floor,
)

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


def test_the_floor_is_that_of_random_directions() -> None:
    made = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(200, 8, generator=made), dim=1)
    probes = torch.nn.functional.normalize(torch.randn(4000, 8, generator=made), dim=1)
    wanted = float((probes @ rows.T).amax(dim=1).mean())
    assert random_floor(200, 8) == pytest.approx(wanted, abs=0.02)
    assert random_floor(200, 8) == random_floor(200, 8)
    assert random_floor(200, 8, seed=1) != random_floor(200, 8)
    # Two directions of a plane: the mean of the larger of two cosines.
    assert random_floor(1, 2) == pytest.approx(0, abs=0.1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_matrix() -> None:
    """8,192 x 16,384 latents, whose matrix is 512 MiB, in a process of its own."""
    code = """
import resource, torch
from trainer.stitching.max_cosine import max_cosine, mutual_max_cosine
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
