"""Optimised codes: against every support there is, and against the encoder's."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.stitching.made import axes, random_dictionary, random_rows
from trainer.runs.trained_sae import FoldedSae
from trainer.stitching.dictionary import Dictionary
from trainer.stitching.optimise import gap_of
from trainer.stitching.pursuit import non_negative, pursued, refitted


def best_error(x: Tensor, decoder: Tensor, k: int) -> float:
    """The least squared error with k latents not below 0, by trying all supports."""
    least = float(x.square().sum())
    for size in range(1, k + 1):
        for some in combinations(range(len(decoder)), size):
            rows = decoder[list(some)]
            codes = torch.linalg.lstsq(rows.T, x[:, None]).solution[:, 0]
            if bool((codes >= 0).all()):
                least = min(least, float((x - codes @ rows).square().sum()))
    return least


def test_with_orthogonal_directions_it_is_the_best_there_is() -> None:
    decoder = (axes(6) * torch.arange(1, 7)[:, None]).float()
    made = torch.Generator().manual_seed(3)
    x = torch.randn(20, 6, generator=made)
    counts = torch.arange(20) % 5
    found = pursued(x, decoder, counts)
    for i in range(20):
        wanted = best_error(x[i], decoder, int(counts[i]))
        assert float(found.error[i]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert (found.value[i] > 0).sum() <= counts[i]
        again = found.value[i] @ decoder[found.latent[i]]
        error = (x[i] - again).double().square().sum()
        assert float(found.error[i]) == pytest.approx(float(error), rel=1e-4, abs=1e-5)
    assert (found.value >= 0).all()


@settings(deadline=None)
@given(seed=st.integers(0, 300), k=st.integers(1, 3))
def test_it_finds_sparse_codes_that_made_the_row(seed: int, k: int) -> None:
    """Few latents of directions that are far from each other: exact recovery, which
    Tropp 2004 shows where (2 k - 1) times the largest cosine is below 1.
    """
    made = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(12, 512, generator=made), dim=1)
    cosines = (decoder @ decoder.T).fill_diagonal_(0).abs()
    assume((2 * k - 1) * float(cosines.max()) < 1)
    codes = torch.zeros(5, 12)
    for row in codes:
        row[torch.randperm(12, generator=made)[:k]] = 1 + torch.rand(k, generator=made)
    found = pursued(codes @ decoder, decoder, torch.full((5,), k))
    again = torch.zeros(5, 12).scatter_add_(1, found.latent, found.value)
    torch.testing.assert_close(again, codes, rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(seed=st.integers(0, 300))
def test_it_is_never_better_than_the_best_and_optimal_on_its_latents(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    decoder = torch.randn(7, 4, generator=made)
    x = torch.randn(6, 4, generator=made)
    found = pursued(x, decoder, torch.full((6,), 2))
    for i in range(6):
        assert float(found.error[i]) >= best_error(x[i], decoder, 2) - 1e-4
        wanted = best_error(x[i], decoder[found.latent[i]], 2)
        assert float(found.error[i]) <= wanted + 1e-3


def test_codes_are_those_of_the_non_negative_problem() -> None:
    gram = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]).expand(3, 2, 2)
    target = torch.tensor([[3.0, 3.0], [2.0, -1.0], [-1.0, -1.0]])
    found = non_negative(gram, target, torch.zeros(3, 2), 200)
    torch.testing.assert_close(
        found, torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    )


def test_no_latents_leave_the_row_as_it_is() -> None:
    x = torch.ones(3, 4)
    decoder = torch.zeros(2, 4)
    assert pursued(x, decoder, torch.tensor([2, 0, 1])).error.tolist() == [4, 4, 4]
    none = torch.zeros(3, 0, dtype=torch.int64)
    assert refitted(x, decoder, none, none > 0).error.tolist() == [4, 4, 4]
    assert pursued(x, decoder, torch.zeros(3, dtype=torch.int64)).error.sum() == 12


def folded(made: Dictionary) -> FoldedSae:
    plain = made.to(torch.float32)
    return FoldedSae(
        plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, "relu_l1", torch.relu
    )


def test_the_gap_is_what_a_better_encoder_would_gain() -> None:
    rows = [x.float() for x in random_rows(60)]
    made = random_dictionary(20, seed=6)
    gap = gap_of(folded(made), rows)
    assert gap.rows == 60
    assert gap.optimised <= gap.refitted <= gap.encoder
    assert gap.optimised < 0.8 * gap.encoder
    x = torch.cat(rows).double()
    again, l0 = made.reconstruct(x)
    assert gap.encoder == pytest.approx(
        float((x - again).square().sum(1).mean()), rel=1e-4
    )
    assert gap.l0 == pytest.approx(float(l0.double().mean()), abs=0.05)


def test_a_perfect_encoder_has_no_gap() -> None:
    """An orthonormal dictionary without thresholds, whose encoder is its transpose."""
    q = axes(8).float()
    zeros = torch.zeros(8)
    sae = FoldedSae(q.T, zeros, q, zeros, "relu_l1", torch.relu)
    gap = gap_of(sae, [x.float() for x in random_rows(40, d=8)])
    assert gap.encoder - gap.optimised < 1e-4 * gap.encoder
    shrunk = FoldedSae(q.T, zeros - 0.2, q, zeros, "relu_l1", torch.relu)
    again = gap_of(shrunk, [x.float() for x in random_rows(40, d=8)])
    # What shrinks is lost by codes alone; no other latents are better.
    assert again.refitted < again.encoder - 0.01
    assert again.optimised == pytest.approx(again.refitted, rel=1e-4)
