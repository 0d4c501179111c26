"""Metrics, on rows whose figures can be worked out by hand (docs/metrics.md)."""

from __future__ import annotations

import math

import pytest
import torch

from schemas.records import ModelMetrics
from trainer.evaluation.metric_definitions import (
    LayerSums,
    layer_shares,
    layer_sums,
    log_density,
    pooled,
    recovered,
    spread,
)

FIGURES = (
    "fvu",
    "mse",
    "mse_per_element",
    "l0",
    "l1",
    "l1_decoder",
    "suppression",
)


def example() -> LayerSums:
    """Three rows in two dimensions, the last of them 0, and two latents."""
    return layer_sums(
        x=torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]),
        reconstruction=torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        latents=torch.tensor([[6.0, 0.0], [2.0, 4.0], [0.0, -1.0]]),
        mean=torch.tensor([1.0, 1.0]),
        scale=2.0,
        decoder_norms=torch.tensor([1.0, 3.0]),
    )


def test_the_sums_of_one_layer() -> None:
    sums = example()
    assert sums.rows == 3
    # errors (0, 4), (0, 1), (-1, 0): 16 + 1 + 1
    assert sums.error == 18
    # from the mean (2, 3), (-1, 1), (-1, -1): 13 + 2 + 2
    assert sums.variance == 17
    assert sums.l0 == 3  # a latent below 0 is not active
    assert sums.l1 == 5.5  # (6 + 2 + 4 - 1) / 2
    assert sums.l1_decoder == 8.5  # (8 * 1 + 3 * 3) / 2
    # |x'| / |x| is 3 / 5 and 1 / 2; the row that is 0 has none
    assert sums.suppression == pytest.approx(1.1)
    assert sums.nonzero == 2
    assert sums.firings.tolist() == [2, 1]
    assert torch.as_tensor(sums.shift).tolist() == [0, 3]


def test_small_latents_and_small_rows_count() -> None:
    x = torch.tensor([[0.5], [0.25]])
    sums = layer_sums(x, x / 2, x, torch.zeros(1), 1.0, torch.ones(1))
    assert sums.l0 == 2
    assert sums.firings.tolist() == [2]
    assert sums.nonzero == 2
    assert sums.suppression == 1.0  # a half for each of two rows


def test_the_figures_of_one_layer() -> None:
    sums = example()
    figures = sums.metrics("blocks.0.hook_mlp_out", d=2)
    assert figures.site == "blocks.0.hook_mlp_out"
    assert figures.rows == 3
    wanted = (18 / 17, 6, 3, 1, 5.5 / 3, 8.5 / 3, 0.55)
    for name, value in zip(FIGURES, wanted, strict=True):
        assert getattr(figures, name) == pytest.approx(value), name
    assert sums.density.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert sums.density.dtype == torch.float64


def test_sums_of_layers_are_added_field_by_field() -> None:
    one, other = example(), example()
    both = one + other
    assert both.rows == 6
    assert both.nonzero == 4
    assert both.error == 36
    assert both.firings.tolist() == [4, 2]
    # a mean over rows does not change if the same rows come twice
    assert both.metrics("pooled", 2) == one.metrics("pooled", 2).model_copy(
        update={"rows": 6}
    )


def test_rows_that_were_filtered_are_about_their_own_mean() -> None:
    sums = example()
    sums.about_own_mean()
    # the mean is (1, 2): (2, 2), (-1, 0), (-1, -2) are 8 + 1 + 5
    assert sums.variance == pytest.approx(14)
    alike = LayerSums(
        firings=torch.zeros(1), rows=4, variance=4.0, shift=torch.tensor([4.0, 0.1])
    )
    alike.about_own_mean()
    assert alike.variance == 0.0
    alone = LayerSums(
        firings=torch.zeros(1), rows=1, variance=4.0, shift=torch.tensor([1.0])
    )
    alone.about_own_mean()
    assert alone.variance == 3.0
    nothing = LayerSums(firings=torch.zeros(1))
    nothing.about_own_mean()
    assert nothing.variance == 0.0


def test_without_rows_there_are_no_figures() -> None:
    sums = LayerSums(firings=torch.zeros(2, dtype=torch.int64))
    figures = sums.metrics("x", d=4)
    assert all(math.isnan(getattr(figures, name)) for name in FIGURES)
    assert sums.density.tolist() == [0.0, 0.0]


def test_a_sum_in_float32_would_lose_what_float64_keeps() -> None:
    x = torch.full((4097, 1), 4096.0)
    reconstruction = x + 1 / 2048  # the last bit that float32 has at 4,096
    sums = layer_sums(x, reconstruction, x, torch.zeros(1), 1.0, torch.ones(1))
    assert sums.error == 4097 / 2048**2
    assert sums.l1 == 4097 * 4096.0
    small = torch.cat([torch.full((1, 1), 2.0**24), torch.ones(1000, 1)])
    sums = layer_sums(small, small, small, torch.zeros(1), 1.0, torch.ones(1))
    assert sums.l1 == 2.0**24 + 1000
    assert sums.l1_decoder == 2.0**24 + 1000
    assert torch.as_tensor(sums.shift).item() == 2.0**24 + 1000


def test_a_latent_that_never_fires_has_a_density_that_can_be_drawn() -> None:
    assert log_density(torch.tensor([0.01, 0.0])).tolist() == pytest.approx([-2, -10])


def test_shares_are_of_rates_and_not_of_counts() -> None:
    firings = torch.tensor([[10, 0, 0], [20, 5, 0]])
    shares = layer_shares(firings, rows=torch.tensor([100, 200]))
    assert shares.dtype == torch.float64
    assert shares[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert shares[:, 1].tolist() == [0.0, 1.0]
    assert shares[:, 2].tolist() == [0.0, 0.0]
    # a layer of which no row was evaluated is no division by 0
    none = layer_shares(torch.tensor([[0], [3]]), torch.tensor([0, 6]))
    assert none.tolist() == [[0.0], [1.0]]
    once = layer_shares(torch.tensor([[1], [2]]), torch.tensor([1, 2]))
    assert once.tolist() == [[0.5], [0.5]]


def test_the_spread_is_the_effective_number_of_layers() -> None:
    shares = torch.tensor([[0.5, 1.0, 0.0, 0.8], [0.5, 0.0, 0.0, 0.2]])
    wanted = 0.8**-0.8 * 0.2**-0.2
    assert spread(shares.double()).tolist() == pytest.approx([2.0, 1.0, 0.0, wanted])


def test_the_share_recovered_of_what_ablating_costs() -> None:
    assert recovered(ablated=5.0, patched=2.0, clean=1.0) == 0.75
    assert recovered(ablated=0.5, patched=1.0, clean=1.0) == 1.0
    assert recovered(ablated=2.0, patched=3.0, clean=1.0) == -1.0
    assert math.isnan(recovered(ablated=1.0, patched=3.0, clean=1.0))


def site(
    tokens: int, clean: float, sae: float, zero: float, mean: float
) -> ModelMetrics:
    return ModelMetrics(
        site="a",
        tokens=tokens,
        ce_clean=clean,
        ce_sae=sae,
        ce_zero=zero,
        ce_mean=mean,
        recovered_zero=0.0,
        recovered_mean=0.0,
        kl=sae - clean,
    )


def test_pooled_cross_entropies_are_means_over_tokens() -> None:
    sites = [
        site(30, 1.0, 1.5, 5.0, 3.0),
        site(10, 3.0, 3.5, 9.0, 7.0),
        site(0, math.nan, math.nan, math.nan, math.nan),
    ]
    both = pooled(sites)
    assert both.site == "pooled"
    assert both.tokens == 40
    assert both.ce_clean == 1.5
    assert both.ce_sae == 2.0
    assert both.ce_zero == 6.0
    assert both.ce_mean == 4.0
    assert both.kl == 0.5
    # from the pooled figures: (6 - 2) / (6 - 1.5), (4 - 2) / (4 - 1.5)
    assert both.recovered_zero == pytest.approx(4 / 4.5)
    assert both.recovered_mean == pytest.approx(0.8)
    nothing = pooled([])
    assert nothing.tokens == 0
    assert math.isnan(nothing.ce_clean)
    assert math.isnan(nothing.kl)
