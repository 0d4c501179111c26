"""What an SAE's first weights are made of, step by step, with values worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.sae import ReluL1
from trainer.saes import encoder_init
from trainer.saes.centres import mean
from trainer.saes.encoder_init import (
    begin_at,
    blocks,
    finite,
    first_l0,
    fitted,
    level,
    limits,
    nth_largest,
    some,
    whitened,
    within_layers,
)
from trainer.saes.scaled_rows import ScaledRows


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def as_they_are(rows: ScaledRows) -> Tensor:
    """Pre-activations that are the rows."""
    return rows.x


def test_the_first_l0_is_the_one_that_is_steered_to() -> None:
    assert first_l0(ReluL1(kind="relu_l1", l1=0.1)) == 32
    assert first_l0(ReluL1(kind="relu_l1", target_l0=7)) == 7


def test_rows_about_their_layers_mean_and_what_sets_layers_apart() -> None:
    rows = tensor((1, 0), (3, 0), (0, 9), (0, 11))
    within, apart = within_layers(rows, torch.tensor([0, 0, 2, 2]))
    # means (2, 0) and (0, 10); of all rows (1, 5)
    assert close(within, tensor((-1, 0), (1, 0), (0, -1), (0, 1)))
    assert close(apart, tensor((1, -5), (-1, 5)))
    within, apart = within_layers(rows, None)
    assert close(within, tensor((0, -5), (2, -5), (-1, 4), (-1, 6)))
    assert apart.shape == (0, 2)


@pytest.mark.parametrize(("off", "n_apart"), [(0.99, 0), (1.01, 2)])
def test_layers_closer_than_a_tenth_of_the_rows_length_are_not_apart(
    off: float, n_apart: int
) -> None:
    # rows are (+-6, +-8) about the means: their length is 10, a tenth of it is 1
    spread = tensor((6, 8), (-6, -8))
    rows = torch.cat([spread + tensor(0, off), spread - tensor(0, off)])
    within, apart = within_layers(rows, torch.tensor([0, 0, 1, 1]))
    assert close(within, torch.cat([spread, spread]))
    assert len(apart) == n_apart


def test_whitened_directions_weigh_each_direction_by_its_spread() -> None:
    # variances 2 and 0.5: the second direction is blown up to twice the first
    rows = tensor((2, 0), (-2, 0), (0, 1), (0, -1)) + 7
    direction = whitened(rows)(tensor((1, 1), (-3, 0)))
    wanted = tensor((1, 2), (-1, 0)) / tensor([math.sqrt(5)], [1])
    assert close(direction, wanted)


def test_whitening_turns_back() -> None:
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(3, 3, generator=g, dtype=torch.float64)
    rows = torch.randn(5000, 3, generator=g, dtype=torch.float64) @ mixing
    covariance = torch.cov(rows.T, correction=0)
    # by Newton's iteration for the root of a matrix, which needs no eigenvectors
    root, inverse = covariance, torch.eye(3, dtype=torch.float64)
    for _ in range(50):
        root, inverse = (root + inverse.inverse()) / 2, (inverse + root.inverse()) / 2
    wanted = torch.nn.functional.normalize(rows[:9] @ inverse, dim=1)
    assert torch.allclose(whitened(rows)(rows[:9]), wanted, atol=1e-8)


def test_directions_hardly_any_row_has_are_not_blown_up_further() -> None:
    rows = tensor((1, 0), (-1, 0), (0, 1e-5), (0, -1e-5))
    # variances 0.5 and 5e-11, which is taken for 1e-4 of the larger: 100 times
    direction = whitened(rows)(tensor(1, 1).view(1, 2))
    assert close(direction, tensor(1, 100).view(1, 2) / math.hypot(1, 100))


def test_few_or_wide_rows_are_not_whitened(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tensor((2, 0), (-2, 0), (0, 1), (0, -1))
    along = tensor(1, 1).view(1, 2)
    plain = along / math.sqrt(2)
    assert close(whitened(rows[:3])(along), plain)
    monkeypatch.setattr(encoder_init, "_WIDEST", 2)
    assert not close(whitened(rows)(along), plain)
    monkeypatch.setattr(encoder_init, "_WIDEST", 1)
    assert close(whitened(rows)(along), plain)


def test_rows_with_nan_or_infinity_are_left_out() -> None:
    x, target = torch.ones(4, 2), torch.ones(4, 3)
    x[0, 1], target[2, 0] = torch.nan, torch.inf
    rows = ScaledRows(x, torch.arange(4), torch.ones(4), target)
    left = finite(rows)
    assert left.layer is not None
    assert left.target is not None
    assert left.layer.tolist() == [1, 3]
    assert torch.equal(left.x, torch.ones(2, 2))
    assert torch.equal(left.target, torch.ones(2, 3))
    assert left.norm is rows.norm
    whole = ScaledRows(torch.ones(4, 2))
    assert finite(whole) is whole
    hopeless = ScaledRows(torch.full((4, 2), torch.nan))
    assert finite(hopeless) is hopeless
    part = some(whole, slice(1, 3))
    assert (len(part.x), part.layer, part.target) == (2, None, None)


def test_blocks_have_256_rows_and_the_rest() -> None:
    x, layer = torch.arange(600.0)[:, None], torch.arange(600)
    parts = blocks(ScaledRows(x, layer))
    assert [len(part.x) for part in parts] == [256, 256, 88]
    assert torch.equal(torch.cat([part.x for part in parts]), x)
    layers = [part.layer for part in parts if part.layer is not None]
    assert torch.equal(torch.cat(layers), layer)


@pytest.mark.parametrize("block", [3, 100, 256])
@pytest.mark.parametrize("l0", [0.001, 1.0, 2.5, 6.999])
def test_thresholds_are_exceeded_on_the_same_share_of_rows(
    block: int, l0: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_init, "_BLOCK", block)
    n, m = 200, 7
    g = torch.Generator().manual_seed(1)
    values = torch.randn(n, m, generator=g) * torch.arange(1, m + 1) + 3
    found = limits(as_they_are, ScaledRows(values), l0)
    # 1 row, 29, 71, and not all: 199
    n_above = {0.001: 1, 1.0: 29, 2.5: 71, 6.999: 199}[l0]
    assert ((values > found.threshold).sum(dim=0) == n_above).all()
    ordered = values.sort(dim=0, descending=True).values
    halfway = (ordered[n_above - 1] + ordered[n_above]) / 2
    assert close(found.threshold, halfway)
    assert torch.allclose(found.std, values.std(dim=0, correction=0), rtol=1e-5)


def test_a_latent_that_never_changes_has_a_spread_above_0() -> None:
    values = torch.stack([torch.full((5,), 0.1), torch.arange(5.0)], dim=1)
    std = limits(as_they_are, ScaledRows(values), 1.0).std
    assert std.tolist() == pytest.approx([1e-6 * math.sqrt(2), math.sqrt(2)])
    still = limits(as_they_are, ScaledRows(torch.full((5, 2), 0.1)), 1.0).std
    assert ((still > 0) & (still < 1e-6)).all()


def test_the_nth_largest_of_parts() -> None:
    parts = [tensor(1, 5), tensor(3, 2), tensor(5, 0)]
    found = [nth_largest(iter(parts), n) for n in range(1, 8)]
    assert found == [5, 5, 3, 2, 1, 0, 0]
    assert nth_largest([tensor(-3, -2), tensor(-1, -5)], 2) == -2


def test_the_level_that_rows_have_so_many_pre_activations_above() -> None:
    rows = ScaledRows(tensor((1, 8), (2, 7), (3, 6), (4, 5)))
    assert level(as_they_are, rows, 0.5) == 7
    assert level(as_they_are, rows, 1.4) == 3  # the 6th: 5.6 is rounded
    assert level(as_they_are, rows, 0.01) == 8
    assert level(as_they_are, ScaledRows(-rows.x), 1.0) == 0


def identity(pre: Tensor) -> Tensor:
    return pre


@pytest.mark.parametrize("block", [1, 256])
def test_the_fitted_factor(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_init, "_BLOCK", block)

    def factor(rows: ScaledRows, decoder: Tensor, b_dec: Tensor) -> float:
        return fitted(as_they_are, identity, decoder, rows, b_dec)

    # the codes are the rows, so the decoder says what is reconstructed
    decoder = tensor((1, 0), (0, 0.5))
    x = tensor((2, 2), (1, 4))
    # (2, 1) for (2, 2) and (1, 2) for (1, 4): (4 + 2 + 1 + 8) / (4 + 1 + 1 + 4)
    assert factor(ScaledRows(x), decoder, torch.zeros(2)) == pytest.approx(1.5)
    # about (1, 1): for (1, 1) and (0, 3): (2 + 1 + 0 + 6) / 10
    assert factor(ScaledRows(x), decoder, torch.ones(2)) == pytest.approx(0.9)
    by_layer = ScaledRows(x, torch.tensor([1, 0]))
    # about (0, 0) and (1, 1): for (1, 1) and (1, 4): (2 + 1 + 1 + 8) / 10
    b_dec = tensor((0, 0), (1, 1))
    assert factor(by_layer, decoder, b_dec) == pytest.approx(1.2)
    to_target = ScaledRows(x, target=tensor((0, 1), (0, 1)))
    assert factor(to_target, decoder, torch.zeros(2)) == pytest.approx(0.3)
    assert factor(ScaledRows(x), torch.zeros(2, 2), torch.zeros(2)) == 1.0
    assert factor(ScaledRows(x), -decoder, torch.zeros(2)) == 1e-3


class First:
    """Weights before and after `begin_at`."""

    def __init__(
        self,
        rows: ScaledRows,
        n_latents: int,
        d_out: int,
        sites: int = 0,
        from_data: bool = True,
    ) -> None:
        g = torch.Generator().manual_seed(5)
        d = rows.x.shape[1]
        self.old_decoder = torch.randn(n_latents, d_out, generator=g)
        self.old_encoder = torch.randn(d, n_latents, generator=g)
        self.decoder = self.old_decoder.clone()
        self.encoder = self.old_encoder.clone()
        self.b_dec = torch.full((sites, d_out) if sites else (d_out,), 9.0)
        self.middle, self.fit = begin_at(
            rows, self.decoder, self.encoder, self.b_dec, mean, from_data
        )


def test_directions_are_the_centred_rows_and_the_rest_stay() -> None:
    # the mean is (1, 1); a row at it has no direction, one with a NaN is left out
    rows = ScaledRows(tensor((1, 1), (1, 4), (math.nan, 0), (1, -2)))
    first = First(rows, n_latents=5, d_out=2)
    assert close(first.middle, tensor(1, 1))
    assert close(first.b_dec, tensor(1, 1))
    assert close(first.decoder[:2], tensor((0, 1), (0, -1)))
    assert torch.equal(first.decoder[2:], first.old_decoder[2:])
    assert torch.equal(first.encoder, first.decoder.T)
    assert torch.equal(first.fit.x, rows.x[[0, 1, 3]])
    fewer = First(rows, n_latents=1, d_out=2)
    assert close(fewer.decoder, tensor(0, 1).view(1, 2))


def test_without_data_directions_stay_and_the_centre_is_set() -> None:
    rows = ScaledRows(tensor((1, 1), (1, 4), (1, -2)))
    first = First(rows, n_latents=5, d_out=2, from_data=False)
    assert close(first.b_dec, tensor(1, 1))
    assert close(first.middle, tensor(1, 1))
    assert torch.equal(first.decoder, first.old_decoder)
    assert torch.equal(first.encoder, first.old_encoder)
    assert torch.equal(first.fit.x, rows.x)


def test_a_bias_for_each_layer_is_its_centre() -> None:
    rows = ScaledRows(
        tensor((1, 0), (3, 0), (0, 9), (0, 11)), torch.tensor([0, 0, 2, 2])
    )
    first = First(rows, n_latents=4, d_out=2, sites=3)
    assert close(first.b_dec, tensor((2, 0), (9, 9), (0, 10)))
    # biases that hold the layers' means leave nothing that sets them apart
    whiten = whitened(tensor((-1, 0), (1, 0), (0, -1), (0, 1)))
    assert close(first.decoder, whiten(tensor((-1, 0), (1, 0), (0, -1), (0, 1))))


def test_one_bias_leaves_the_layers_means_to_the_first_directions() -> None:
    rows = ScaledRows(
        tensor((1, 0), (3, 0), (0, 9), (0, 11)), torch.tensor([0, 0, 2, 2])
    )
    first = First(rows, n_latents=4, d_out=2)
    assert close(first.b_dec, tensor(1, 5))
    apart = tensor((1, -5), (-1, 5)) / math.sqrt(26)
    assert close(first.decoder, torch.cat([apart, tensor((0, -1), (0, 1))]))
    one = First(rows, n_latents=1, d_out=2)
    assert close(one.decoder, apart[:1])


def test_a_transcoders_directions_are_of_targets_and_of_inputs() -> None:
    x = tensor((1, 0), (1, 0), (3, 4), (3, -4))
    target = tensor((0, 0, 1), (0, 0, 3), (0, 1, 2), (0, -1, 2))
    rows = ScaledRows(x, target=target)
    first = First(rows, n_latents=3, d_out=3)
    assert close(first.b_dec, tensor(0, 0, 2))
    assert close(first.middle, tensor(2, 0))
    assert close(first.decoder, tensor((0, 0, -1), (0, 0, 1), (0, 1, 0)))
    # inputs about (2, 0) are (-1, 0), (-1, 0) and (1, 4), with variances 1 and 8
    wanted = whitened(x)(tensor((-1, 0), (-1, 0), (1, 4)))
    assert close(first.encoder.T, wanted)
    assert float(wanted[2, 1] / wanted[2, 0]) == pytest.approx(4 / math.sqrt(8))
    # a target or an input at its centre gives no latent
    x[0] = tensor(2, 0)
    x[1] = tensor(0, 0)
    target[2] = tensor(0, 0, 2)
    target[3] = tensor(0, 0, 2)
    first = First(ScaledRows(x, target=target), n_latents=3, d_out=3)
    assert close(first.decoder[0], tensor(0, 0, 1))
    assert torch.equal(first.decoder[1:], first.old_decoder[1:])
    assert torch.equal(first.encoder[:, 1:], first.old_encoder[:, 1:])


@pytest.mark.parametrize(("n_unused", "n_fit"), [(255, 265), (256, 256), (300, 300)])
def test_the_length_is_fitted_to_rows_that_gave_no_direction(
    n_unused: int, n_fit: int
) -> None:
    rows = ScaledRows(torch.randn(10 + n_unused, 2))
    first = First(rows, n_latents=10, d_out=2)
    assert torch.equal(first.fit.x, rows.x[-n_fit:])


def test_no_more_rows_are_fitted_than_4096(monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder_init.FIT_ROWS == 4096
    monkeypatch.setattr(encoder_init, "FIT_ROWS", 300)
    rows = ScaledRows(torch.randn(400, 2))
    assert torch.equal(First(rows, 10, 2).fit.x, rows.x[-300:])
    assert torch.equal(First(rows, 200, 2).fit.x, rows.x[:300])
    assert torch.equal(First(rows, 10, 2, from_data=False).fit.x, rows.x[:300])
