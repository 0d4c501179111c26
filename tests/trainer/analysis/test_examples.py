"""Cross-layer latents: which are chosen, and what is said of them."""

from __future__ import annotations

import pytest
import torch

from trainer.analysis.examples import layer_variance, widest
from trainer.evaluate.metrics import LayerSums, layer_sums, recovered

ROWS = torch.tensor([1000, 1000])


def test_the_widest_of_middling_frequency_come_first() -> None:
    #                        wide  narrow  too frequent  silent  lopsided
    firings = torch.tensor([[10, 20, 900, 0, 30], [10, 0, 900, 0, 5]])
    assert widest(firings, ROWS, 5).tolist() == [0, 4, 1]
    assert widest(firings, ROWS, 1).tolist() == [0]


def test_where_none_is_of_middling_frequency_all_that_fire_count() -> None:
    assert widest(torch.tensor([[900, 0], [800, 0]]), ROWS, 3).tolist() == [0]
    assert widest(torch.zeros(2, 3, dtype=torch.int64), ROWS, 3).tolist() == []


def test_variance_is_over_the_layers_of_a_token() -> None:
    assert layer_variance(torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]])) == pytest.approx(1 / 3)
    assert layer_variance(torch.full((4, 7), 2.5)) == 0


def test_sums_do_not_depend_on_the_batches_they_came_in() -> None:
    made = torch.Generator().manual_seed(0)
    x, again = torch.randn(90, 5, generator=made), torch.randn(90, 5, generator=made)
    latents = torch.randn(90, 8, generator=made).relu()
    mean, norms = torch.randn(5, generator=made), torch.rand(8, generator=made)
    whole = layer_sums(x, again, latents, mean, 0.5, norms)
    parts = LayerSums(torch.zeros(8, dtype=torch.int64))
    for i in range(0, 90, 7):
        at = slice(i, i + 7)
        parts += layer_sums(x[at], again[at], latents[at], mean, 0.5, norms)
    one, other = whole.metrics("s", 5), parts.metrics("s", 5)
    for name in ("fvu", "mse", "mse_per_element", "l0", "l1", "l1_decoder", "suppression"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    assert torch.equal(whole.firings, parts.firings)
    assert one.l1_decoder == pytest.approx(float((latents.double() / 0.5 * norms.double()).sum(1).mean()), rel=1e-6)


def test_known_values() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    one = layer_sums(x, x / 2, torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.zeros(2), 1.0, torch.ones(2))
    found = one.metrics("s", 2)
    assert (found.fvu, found.mse, found.mse_per_element) == (0.25, 3.125, 1.5625)
    assert (found.l0, found.l1) == (1.5, 3.0)
    assert one.density.tolist() == [1.0, 0.5]
    assert recovered(6.0, 4.0, 3.0) == pytest.approx(2 / 3)
