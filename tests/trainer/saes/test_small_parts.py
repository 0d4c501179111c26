"""The small parts of architectures, each with values worked by hand."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from schemas.sae import SaeSpec
from trainer.errors import SaeError
from trainer.kernels import dense_encoder
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.saes import relu_l1, sparse_codes
from trainer.saes.build import build, initialise_from
from trainer.saes.centres import geometric_median, mean
from trainer.saes.explained_variance import fvu
from trainer.saes.flat_sae import above
from trainer.saes.jumprelu import Jump
from trainer.saes.registry import (
    find,
    kind_importing,
    kind_of,
    kind_trained_on,
    latents_kind,
)
from trainer.saes.scaled_rows import ScaledRows, Selection, of_layer
from trainer.saes.shape import Shape, encoder_input, first_encoder
from trainer.saes.sparse_codes import fired, listed, smallest, top_k
from trainer.saes.step import Step, firings, squared_error
from trainer.saes.step_noise import Draws
from trainer.saes.unit_rows import (
    mean_norm,
    normalise_rows,
    remove_parallel,
    unit_rows,
)

D, M, SITES = 2, 4, 3


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def make(
    kind: str, n_sites: int = 1, latents_here: int | None = None, **more: Any
) -> Any:
    spec = TypeAdapter(SaeSpec).validate_python({"kind": kind, "n_latents": M, **more})
    return build(spec, D, 1, n_sites, latents_here=latents_here)


JUMP: dict[str, Any] = {"l0": 0.1, "bandwidth": 0.5}


# Unit rows


def test_rows_at_norm_one() -> None:
    rows = tensor((3, 4), (0, 0), (0, -2))
    unit = tensor((0.6, 0.8), (0, 0), (0, -1))
    assert torch.equal(unit_rows(rows), unit)
    assert torch.equal(rows, tensor((3, 4), (0, 0), (0, -2)))
    normalise_rows(rows)
    assert torch.equal(rows, unit)
    # the squares of such small numbers are still above 0
    assert close(unit_rows(tensor((3e-18, 4e-18)).view(1, 2)), unit[:1])


def test_what_only_changes_a_rows_norm_is_taken_out_of_its_gradient() -> None:
    gradient = tensor((3, 4), (3, 4), (6, 2))
    remove_parallel(tensor((1, 0), (0, 2), (1, 1)), gradient)
    assert close(gradient, tensor((0, 4), (3, 0), (2, -2)))
    g = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(2, 700, 3, generator=g).unbind()
    along = (weight * gradient).sum(1, keepdim=True) / weight.square().sum(
        1, keepdim=True
    )
    wanted = gradient - along * weight
    remove_parallel(weight, gradient)
    assert torch.allclose(gradient, wanted, atol=1e-5)
    with pytest.raises(AssertionError):
        remove_parallel(weight, None)


def test_the_mean_norm() -> None:
    assert mean_norm(tensor((3, 4), (0, 1))) == 3
    assert mean_norm(torch.zeros(0, 2)) == 1


# Centres


def test_the_mean_and_the_geometric_median() -> None:
    # the distances to (0, 0), (0, 6) and (1, 0) are least in sum where they are seen
    # under angles of 120 degrees: a right angle's Fermat point
    rows = tensor((0, 0), (0, 6), (1, 0)).double()
    assert close(mean(rows).float(), tensor(1 / 3, 2))
    at = geometric_median(rows, iterations=10_000, tolerance=1e-12)
    towards = torch.nn.functional.normalize(rows - at, dim=1)
    cosines = (towards @ towards.T).masked_select(~torch.eye(3, dtype=torch.bool))
    assert cosines.tolist() == pytest.approx([-0.5] * 6, abs=1e-6)


def test_how_long_the_geometric_median_goes_on() -> None:
    rows = tensor((0, 0), (0, 6), (1, 0)).double()
    # a step of Weiszfeld's iteration, from the mean on
    point = mean(rows)
    points = []
    for _ in range(200):
        weights = 1 / (rows - point).norm(dim=1)
        point = (weights / weights.sum()) @ rows
        points.append(point)
    assert torch.allclose(geometric_median(rows, iterations=1), points[0])
    assert torch.allclose(geometric_median(rows, iterations=3), points[2])
    moved = [float((b - a).norm() / b.norm()) for a, b in itertools.pairwise(points)]
    last = next(i for i, by in enumerate(moved) if by <= 1e-3) + 1
    assert torch.equal(geometric_median(rows, tolerance=1e-3), points[last])
    assert float((points[last] - points[last - 1]).norm()) > 0
    assert not torch.equal(geometric_median(rows), geometric_median(rows, 99, 1e-5))
    assert geometric_median(rows.float()).dtype == torch.float32
    # a row at the point itself
    assert torch.equal(geometric_median(tensor((1, 2), (1, 2))), tensor(1, 2))
    assert torch.equal(geometric_median(tensor((1, 2)).view(1, 2)), tensor(1, 2))


def test_the_fraction_of_variance_unexplained() -> None:
    assert fvu(1.0, 4.0) == 0.25
    assert math.isnan(fvu(1.0, 0.0))


# Steps


def test_the_squared_error_and_firings() -> None:
    x, again = tensor((1, 2), (3, 4)), tensor((1, 0), (4, 4))
    assert squared_error(x, again) == (4 + 1) / 2
    latents = tensor((0, 1, -1), (2, 1e-9, 0))
    counts = firings(latents.requires_grad_())
    assert counts.tolist() == [1, 2, 0]
    assert counts.dtype == torch.int64


def test_draws_are_those_of_the_seed_the_stage_and_the_update() -> None:
    """A resumed run depends on it."""
    draws = Draws(5, 31)
    host = torch.device("cpu")

    def seed_of(update: int) -> int:
        sequence = np.random.SeedSequence([5, 31, update, 0])
        return int(sequence.generate_state(1, np.uint64)[0]) // 2

    assert draws.generator(host).initial_seed() == seed_of(0)
    draws.advance()
    draws.advance()
    assert draws.generator(host).initial_seed() == seed_of(2)
    again = Draws(5, 31)
    again.load_state_dict(draws.state_dict())
    assert again.updates == 2
    assert draws.state_dict()["_extra_state"].tolist() == [2]


@pytest.mark.parametrize("n_latents", [1, 3, 100])
def test_noise_is_drawn_in_blocks_of_16_rows_or_more(
    n_latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn is one sequence, whatever the blocks are."""
    sizes: list[int] = []
    randn = torch.randn

    def watched(n: int, *rest: Any, **more: Any) -> Tensor:
        sizes.append(n)
        return randn(n, *rest, **more)

    draws = Draws(7, 1)
    generator = draws.generator(torch.device("cpu"))
    plain = torch.randn(80, n_latents, generator=generator)
    monkeypatch.setattr("trainer.saes.step_noise._BLOCK", 100)
    monkeypatch.setattr(torch, "randn", watched)
    noise = draws.normal(torch.empty(70, n_latents), None)
    assert torch.equal(noise, plain[:70])
    # of 1 latent 96 rows at once, of 3 latents 32, of 100 latents 16 all the same
    assert sizes == {1: [80], 3: [32, 32, 16], 100: [16] * 5}[n_latents]
    sizes.clear()
    # rows 3, 40 and 41 of the batch, of which none is in the last block
    position = torch.tensor([3, 40, 41])
    noise = draws.normal(torch.empty(3, n_latents), position)
    assert torch.equal(noise, plain[position])
    assert sizes == {1: [48], 3: [32, 16], 100: [16] * 3}[n_latents]
    noise = draws.normal(torch.empty(3, n_latents, dtype=torch.float64), position)
    assert noise.dtype == torch.float64


# Rows and shapes


def test_the_entry_of_each_rows_layer() -> None:
    values = tensor((1, 2), (3, 4))
    assert torch.equal(of_layer(values[0], None), tensor(1, 2))
    assert torch.equal(of_layer(values[0], 1), tensor(1, 2))
    assert torch.equal(of_layer(values, 1), tensor(3, 4))
    rows = of_layer(values, torch.tensor([1, 1, 0]))
    assert torch.equal(rows, tensor((3, 4), (3, 4), (1, 2)))
    with pytest.raises(SaeError, match="parts for each of 2 layers: say with `layer`"):
        of_layer(values, None)


def test_the_sizes_that_the_data_gives() -> None:
    plain = Shape(3, n_sites=5)
    assert (plain.out, plain.bias(False), plain.bias(True)) == (3, (3,), (5, 3))
    other = Shape(3, 2, n_sites=5)
    assert (other.out, other.bias(False), other.bias(True)) == (2, (2,), (5, 2))
    x, b_dec = tensor((1, 2, 3)).view(1, 3), tensor((1, 1, 1), (2, 2, 2))
    assert torch.equal(encoder_input(x, b_dec, 1, plain), tensor(-1, 0, 1).view(1, 3))
    assert encoder_input(x, b_dec, 1, other) is x


def test_the_first_encoder() -> None:
    decoder = torch.randn(4, 3)
    plain = first_encoder(decoder, Shape(3))
    by_latent = first_encoder(decoder, Shape(3), by_latent=True)
    assert torch.equal(plain, decoder.T)
    assert torch.equal(by_latent, decoder.T)
    assert plain.is_contiguous()
    assert by_latent.T.is_contiguous()
    assert plain.data_ptr() != decoder.data_ptr() != by_latent.data_ptr()
    other = first_encoder(decoder, Shape(5, 3))
    assert other.shape == (5, 4)
    assert close(other.norm(dim=0), torch.ones(4))


def test_a_selection_is_split_by_rows() -> None:
    # of rows 0, 1 and 2: one, two and no latents
    pattern = Pattern.ragged(torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]), 3, 4)
    whole = Selection(Chosen(tensor(1, 2, 3), pattern), tensor(1))
    parts = whole.split([1, 2])
    assert [part.chosen.values.tolist() for part in parts] == [[1], [2, 3]]
    assert [part.smallest is whole.smallest for part in parts] == [True, True]


# Sparse codes


def test_dead_latents_are_listed() -> None:
    flags = torch.tensor([False, True, False, True])
    assert listed(flags).tolist() == [1, 3]
    numbers = torch.tensor([3, -6, 8])
    assert listed(numbers) is numbers


def test_the_k_largest_of_each_row() -> None:
    pre = tensor((1, 3, 2), (-1, -3, 5)).requires_grad_()
    codes = top_k(pre, 2)
    assert codes.tolist() == [[0, 3, 2], [0, 0, 5]]
    codes.sum().backward()
    assert pre.grad is not None
    assert pre.grad.tolist() == [[0, 1, 1], [0, 0, 1]]


def test_firings_and_the_smallest_values_of_sparse_codes() -> None:
    rows, latents = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 3, 3, 0])
    values = tensor(0.5, 2, 3, 0)
    pattern = Pattern.ragged(rows, latents, 3, 4)
    counts = fired(values, pattern)
    assert counts.tolist() == [0, 1, 0, 2]
    assert counts.dtype == torch.int64
    chosen = Chosen(values.double(), pattern)
    by_layer = smallest(chosen, torch.tensor([2, 0, 1]), 4)
    # the row of layer 1 has a 0 only, which fills up; no row is of layer 3
    assert by_layer.tolist() == [3, math.inf, 0.5, math.inf]
    assert by_layer.dtype == torch.float32
    assert smallest(chosen, None, 1).tolist() == [0.5]


@pytest.mark.parametrize("with_bias", [True, False])
def test_prefixes_at_once_are_those_one_after_the_other(
    with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a device does, here on the host."""
    g = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 6, generator=g).relu()
    rows, latents = dense.nonzero().T
    pattern = Pattern.ragged(rows, latents, 5, 6)
    decoder = torch.randn(6, 3, generator=g)
    bias = torch.randn(3, generator=g) if with_bias else None
    ends = [1, 4, 6]
    values = dense[rows, latents]
    host = sparse_codes.prefix_decoded(values, decoder, pattern, ends, bias)
    no_host = SimpleNamespace(on_host=lambda _: False)
    monkeypatch.setattr(sparse_codes, "devices", no_host)
    device = sparse_codes.prefix_decoded(values, decoder, pattern, ends, bias)
    added = 0.0 if bias is None else bias
    for end, a, b in zip(ends, host, device, strict=True):
        wanted = dense[:, :end] @ decoder[:end] + added
        assert close(a, wanted)
        assert close(b, wanted)


# Biases and thresholds


def test_dead_latents_are_lifted_and_all_thresholds_are_raised() -> None:
    sae = make("relu_l1", l1=0.1)
    sae.lift_biases(torch.tensor([True, False, False, True]), 0.5)
    assert sae.b_enc.tolist() == [0.5, 0, 0, 0.5]
    sae.raise_thresholds(torch.tensor(0.25))
    assert sae.b_enc.tolist() == [0.25, -0.25, -0.25, 0.25]
    weight = sae.W_enc.clone()
    sae.forget_biases(torch.tensor([0, 2]), lambda _: pytest.fail("not asked"))
    assert sae.b_enc.tolist() == [0, -0.25, 0, 0.25]
    assert torch.equal(weight, sae.W_enc)


def test_gates_and_magnitudes_are_lifted_together() -> None:
    sae = make("gated", l1=0.1)
    sae.lift_biases(torch.tensor([True, False, False, True]), 0.5)
    assert sae.b_gate.tolist() == sae.b_mag.tolist() == [0.5, 0, 0, 0.5]
    sae.raise_thresholds(torch.tensor(0.25))
    assert sae.b_gate.tolist() == [0.25, -0.25, -0.25, 0.25]
    assert sae.b_mag.tolist() == [0.5, 0, 0, 0.5]
    sae.r_mag.data.fill_(0.5)
    sae.forget_biases(torch.tensor([0, 2]), mean_of_living=lambda _: torch.tensor(9.0))
    assert sae.b_gate.tolist() == [0, -0.25, 0, 0.25]
    assert sae.b_mag.tolist() == [0, 0, 0, 0.5]
    assert sae.r_mag.tolist() == [0, 0.5, 0, 0.5]


@torch.no_grad()
def test_thresholds_of_jumprelu() -> None:
    sae = make("jumprelu", threshold=0.5, **JUMP)
    assert sae.threshold.tolist() == pytest.approx([0.5] * M)
    sae.raise_thresholds(torch.tensor(math.log(3)))
    assert sae.threshold.tolist() == pytest.approx([1.5] * M)
    sae.b_enc.copy_(tensor(1, 2, 3, 4))
    sae.forget_biases(torch.tensor([0, 2]), lambda t: t.mean() * 2)
    assert sae.threshold.tolist() == pytest.approx([3, 1.5, 3, 1.5])
    assert sae.b_enc.tolist() == [0, 2, 0, 4]
    # a pre-activation of 3 times the threshold has a margin of log 3
    sae.W_enc.zero_()
    sae.b_enc.copy_(tensor(9, 1.5, -3, 0.75))
    margins = sae.margins(torch.ones(1, D))[0]
    assert margins.tolist() == pytest.approx([math.log(3), 0, -math.inf, -math.log(2)])
    assert sae.encode(torch.ones(1, D))[0].tolist() == [9, 0, 0, 0]
    by_layer = make("jumprelu", n_sites=3, per_layer_threshold=True, **JUMP)
    assert by_layer.log_threshold.shape == (3, M)
    assert by_layer.threshold.flatten().tolist() == pytest.approx([0.01] * 3 * M)


def test_a_jump_at_the_threshold_and_at_the_kernels_ends() -> None:
    z = tensor(1, 1.125, 0.875, 1.25, 0.75, 2, 0.5).view(1, 7).requires_grad_()
    threshold = torch.ones(7, requires_grad=True)
    latents, n_active, counts = Jump.apply(z, threshold, 0.5)  # type: ignore[no-untyped-call]
    assert latents.tolist() == [[0, 1.125, 0, 1.25, 0, 2, 0]]
    assert n_active == 3
    assert counts.tolist() == [0, 1, 0, 1, 0, 1, 0]
    (latents.sum() + 3 * n_active).backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[0, 1, 0, 1, 0, 1, 0]]
    # -(threshold * 1 + 3) / 0.5 where z is less than 0.25 away
    assert threshold.grad is not None
    assert threshold.grad.tolist() == [-8, -8, -8, 0, 0, 0, 0]


@torch.no_grad()
def test_a_gate_opens_above_0_where_the_magnitude_is_too() -> None:
    sae = make("gated", l1=0.1)
    sae.W_enc.zero_()
    sae.b_gate.copy_(tensor(2, -1, 3, 0))
    sae.b_mag.copy_(tensor(5, 5, -1, 5))
    margins = sae.margins(torch.ones(1, D))
    assert margins.tolist() == [[2, -1, -math.inf, 0]]
    assert sae.encode(torch.ones(1, D)).tolist() == [[5, 0, 0, 0]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_thresholds_of_a_selection_over_a_batch(kind: str) -> None:
    more: dict[str, Any] = {"prefixes": (0.5, 1.0)} if kind == "matryoshka" else {}
    sae = make(kind, k=2, **more)
    assert sae.threshold.tolist() == sae.updates.tolist() == [0]
    assert sae.thresholds_by_layer() == 1
    sae.raise_thresholds(torch.tensor(0.75))
    assert sae.threshold.tolist() == [0.75]
    pre = tensor(0.5, 0.75, 1, -1).view(1, M)
    assert sae.activate(pre).tolist() == [[0, 0, 1, 0]]
    x = torch.randn(5, D)
    assert close(sae.margins(x), x @ sae.W_enc - 0.75)
    sae.raise_thresholds(torch.tensor(-2.0))
    assert sae.threshold.tolist() == [0]


@torch.no_grad()
def test_thresholds_by_layer_of_a_selection_over_a_batch() -> None:
    sae = make("batch_topk", n_sites=3, k=2, per_layer_threshold=True)
    assert sae.thresholds_by_layer() == 3
    sae.raise_thresholds(tensor(1, 2, -3))
    assert sae.threshold.tolist() == [1, 2, 0]
    assert sae.threshold_of(1).tolist() == [2]
    pre = tensor((1.5, 2, 0, -1), (1.5, 2, 3, -1))
    codes = sae.activate(pre, torch.tensor([0, 1]))
    assert codes.tolist() == [[1.5, 2, 0, 0], [0, 0, 3, 0]]
    x = torch.randn(2, D)
    assert close(sae.margins(x, torch.tensor([1, 2])), x @ sae.W_enc - tensor([2], [0]))


def test_an_update_moves_the_threshold_of_a_layer_that_had_rows() -> None:
    sae = make("batch_topk", n_sites=2, k=2, per_layer_threshold=True)
    sae.W_dec.data.mul_(3)
    none = torch.zeros(())
    step = Step(none, none, none, none, {}, smallest_kept=tensor(0.5, math.inf))
    sae.after_update(step)
    assert sae.threshold.tolist() == pytest.approx([0.5, 0])
    assert sae.updates.tolist() == [1, 0]
    assert close(sae.W_dec.norm(dim=1), torch.ones(M))
    sae.after_update(step._replace(smallest_kept=None))
    assert sae.updates.tolist() == [1, 0]


@torch.no_grad()
def test_a_selecting_encoders_first_length_fits_what_is_kept() -> None:
    g = torch.Generator().manual_seed(2)
    rows = torch.randn(300, D, generator=g)
    sae = make("batch_topk", k=1)
    initialise_from(sae, rows)
    centred = rows[M:] - rows.mean(0)
    # the length is 1 / scale of what the directions give
    pre = centred @ sae.W_dec.T
    kept = pre * (pre > pre.flatten().sort(descending=True).values[len(pre) - 1])
    again = kept @ sae.W_dec
    scale = (again * centred).sum() / again.square().sum()
    assert torch.allclose(sae.W_enc, scale * sae.W_dec.T, rtol=1e-4)


def test_what_is_above_a_level_is_kept() -> None:
    pre = tensor((1, 2, 3), (-1, 5, 2))
    assert above(2.0)(pre).tolist() == [[0, 0, 3], [0, 5, 0]]
    assert above(tensor(0, 5, 1))(pre).tolist() == [[1, 0, 3], [0, 0, 2]]


# Kinds


def test_prefixes_of_the_latents_here() -> None:
    sae = make("matryoshka", k=1, prefixes=(0.25, 0.5, 1.0))
    assert sae.prefixes == [1, 2, 4]
    assert sae.prefixes_here(0) == [1, 2, 4]
    part = make("matryoshka", k=1, prefixes=(0.25, 0.5, 1.0), latents_here=2)
    assert part.prefixes == [1, 2, 4]
    assert part.prefixes_here(0) == [1, 2, 2]
    assert part.prefixes_here(1) == [0, 1, 2]
    assert part.prefixes_here(2) == [0, 0, 2]


def test_the_penalty_of_nsae_is_weighed_by_squared_norms() -> None:
    x = tensor((3, 4), (0, 1))
    by_row = make("nsae", alpha=0.05, norm="row")
    assert by_row.squared_norms(ScaledRows(x)).tolist() == [25, 1]
    by_layer = make("nsae", alpha=0.05, n_sites=3)
    rows = ScaledRows(x, torch.tensor([2, 0]), tensor(2, 9, 3))
    assert by_layer.squared_norms(rows).tolist() == [9, 4]
    assert by_layer.squared_norms(ScaledRows(x, None, tensor(3))).tolist() == [9]
    for poor in (ScaledRows(x), ScaledRows(x, None, tensor(2, 3))):
        with pytest.raises(SaeError, match="nsae weighs its penalty by the layers'"):
            by_layer.squared_norms(poor)


@torch.no_grad()
def test_the_similarity_of_decoder_rows() -> None:
    sae = make("relu_l1", l1=0.1, decoder_similarity=1.0, similar_above=0.5)
    # cosines of pairs: 0.8, 0 and 0.6
    rows = tensor((2, 0), (0.8, 0.6), (0, 3))
    assert float(sae.similarity(rows)) == pytest.approx(2 * (0.3**2 + 0.1**2) / 6)
    assert sae.similarity(rows[:1]) == 0


def test_the_compared_latents_are_a_new_sample_at_each_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert relu_l1.SAMPLED == 256
    monkeypatch.setattr(relu_l1, "SAMPLED", 5)
    sae = make("relu_l1", l1=0.1, decoder_similarity=1.0, n_latents=50)
    assert (sae.draws.seed, sae.draws.stage) == (1, 31)
    generator = sae.draws.generator(torch.device("cpu"))
    wanted = torch.randperm(50, generator=generator)[:5]
    assert torch.equal(sae.sampled(sae.draws), wanted)
    none = torch.zeros(())
    sae.after_update(Step(none, none, none, none, {}))
    assert sae.draws.updates == 1
    assert not torch.equal(sae.sampled(sae.draws), wanted)
    assert make("relu_l1", l1=0.1).draws is None


def test_norms_of_a_crosscoders_latents_are_summed_over_sites() -> None:
    inner = {"kind": "relu_l1", "l1": 0.1, "n_latents": 2}
    spec = TypeAdapter(SaeSpec).validate_python({"kind": "crosscoder", "inner": inner})
    sae: Any = build(spec, 2, n_sites=2)
    sae.inner.W_dec.data = tensor((3, 4, 0, 1), (0, 0, 0, 2))
    assert sae.inner.latent_norms.tolist() == [6, 2]
    assert sae.W_dec[0].tolist() == [[3, 4], [0, 1]]


@torch.no_grad()
def test_the_hidden_layer_begins_as_rows_and_their_opposites() -> None:
    wide = make("mlp_encoder", l1=0.1, hidden=2.5)
    assert wide.W_hidden.shape == (2, 5)
    both = tensor((1, 0, -1, 0), (0, 1, 0, -1))
    assert torch.equal(wide.W_hidden[:, :4], both)
    assert close(wide.W_hidden.norm(dim=0), torch.ones(5))
    assert torch.equal(wide.W_enc[:2], wide.W_dec.T)
    assert torch.equal(wide.W_enc[2:4], -wide.W_dec.T)
    assert (wide.W_enc[4:] == 0).all()
    x = torch.randn(6, D)
    assert close(wide.margins(x), x @ wide.W_dec.T)
    exact = make("mlp_encoder", l1=0.1, hidden=2.0)
    assert torch.equal(exact.W_hidden, both)
    narrow = make("mlp_encoder", l1=0.1, hidden=1.5)
    assert narrow.W_hidden.shape == (2, 3)
    assert not torch.equal(narrow.W_hidden[:, :2], torch.eye(2))
    assert close(narrow.W_enc.norm(dim=0), torch.ones(M))
    assert make("mlp_encoder", l1=0.1, hidden=0.1).W_hidden.shape == (2, 1)


@torch.no_grad()
def test_what_latents_are_multiplied_with_and_what_rows_become() -> None:
    x = tensor((1, 2), (3, 4))
    sae = make("relu_l1", l1=0.1)
    sae.b_dec.copy_(tensor(1, 1))
    assert sae.latent_inputs(ScaledRows(x)).tolist() == [[0, 1], [2, 3]]
    assert torch.equal(sae.predict(x), sae.decode(sae.encode(x)))
    hidden = make("mlp_encoder", l1=0.1, hidden=2.0)
    inputs = hidden.latent_inputs(ScaledRows(-x))
    assert inputs.tolist() == [[0, 0, 1, 2], [0, 0, 3, 4]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["relu_l1", "gated", "mlp_encoder"])
def test_a_rows_layer_says_which_bias_is_taken(kind: str) -> None:
    more: dict[str, Any] = {"hidden": 2.0} if kind == "mlp_encoder" else {}
    sae = make(kind, n_sites=2, l1=0.1, per_layer_bias=True, **more)
    sae.b_dec.copy_(tensor((1, 1), (-2, 3)))
    alone = make(kind, l1=0.1, **more)
    alone.b_dec.copy_(tensor(-2, 3))
    x, layer = tensor((1, 2), (3, 4)), torch.tensor([1, 1])
    rows = ScaledRows(x, layer)
    assert torch.equal(sae.predict(x, layer), alone.predict(x))
    assert torch.equal(sae.margins(x, layer), alone.margins(x))
    assert torch.equal(sae.latent_inputs(rows), alone.latent_inputs(ScaledRows(x)))


@torch.no_grad()
def test_a_transcoders_layer_says_which_bias_and_threshold_are_taken() -> None:
    inner = {"kind": "batch_topk", "k": 1, "n_latents": M}
    layered = {**inner, "per_layer_bias": True, "per_layer_threshold": True}
    saes: list[Any] = [
        build(
            TypeAdapter(SaeSpec).validate_python({"kind": "transcoder", "inner": one}),
            D,
            n_sites=2,
            d_out=3,
        )
        for one in (layered, inner)
    ]
    by_layer, alone = saes
    by_layer.b_dec.copy_(tensor((1, 1, 1), (-2, 3, 4)))
    by_layer.inner.threshold.copy_(tensor(9, 0.5))
    alone.b_dec.copy_(tensor(-2, 3, 4))
    alone.inner.threshold.fill_(0.5)
    x, layer = tensor((1, 2), (3, 4)), torch.tensor([1, 1])
    assert torch.equal(by_layer.predict(x, layer), alone.predict(x))
    pre = tensor((0.4, 0.6, 0, 8), (0.4, 0.6, 10, 8))
    assert torch.equal(by_layer.activate(pre, layer), alone.activate(pre))


@torch.no_grad()
def test_thresholds_by_row_go_by_the_blocks_of_narrower_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under autocast pre-activations are bfloat16, and thresholds float32."""
    z = torch.arange(40.0).view(10, 4).bfloat16()
    threshold = torch.arange(10.0)[:, None].expand(10, 4) * 4 + 1
    monkeypatch.setattr(dense_encoder, "BLOCK_BYTES", 2 * 4 * z.itemsize)
    latents, n_active, _ = Jump.apply(z, threshold.contiguous(), 0.5)  # type: ignore[no-untyped-call]
    assert torch.equal(latents, z * (z > threshold))
    assert n_active == 2


def test_what_is_built_without_more_being_said() -> None:
    spec = TypeAdapter(SaeSpec).validate_python(
        {"kind": "matryoshka", "k": 1, "expansion": 4, "prefixes": (0.25, 1.0)}
    )
    sae: Any = build(spec, D)
    assert sae.shape == Shape(D)
    assert (sae.n_latents, sae.prefixes) == (8, [2, 8])
    assert torch.equal(sae.W_dec, build(spec, D, seed=0).W_dec)
    assert sae.draws is None
    # the columns of sparse kinds' encoders are contiguous, as their gradients come
    assert sae.W_enc.T.is_contiguous()
    assert make("gated", l1=0.1).W_enc.is_contiguous()


@torch.no_grad()
def test_a_skip_is_added_to_what_latents_predict() -> None:
    inner = {"kind": "relu_l1", "l1": 0.1, "n_latents": M}
    raw = {"kind": "transcoder", "inner": inner, "skip": True}
    sae: Any = build(TypeAdapter(SaeSpec).validate_python(raw), D, d_out=3)
    x, target = tensor((1, 2), (3, 4)), tensor((1, 1, 1), (2, 2, 2))
    by_latents = sae.decode(sae.encode(x))
    assert torch.equal(sae.predict(x), by_latents)
    sae.W_skip.copy_(tensor((1, 0, 0), (0, 0, 1)))
    skipped = tensor((1, 0, 2), (3, 0, 4))
    assert close(sae.predict(x), by_latents + skipped)
    rows = ScaledRows(x, target=target)
    assert torch.equal(sae.inner_rows(rows).target, target - skipped)
    assert sae.activate(tensor(-1, 2)).tolist() == [0, 2]
    plain: Any = build(
        TypeAdapter(SaeSpec).validate_python({**raw, "skip": False}), D, d_out=3
    )
    assert torch.equal(plain.predict(x), plain.decode(plain.encode(x)))
    assert plain.inner_rows(rows) is rows
    for call in (plain.inner_rows, sae.inner_rows):
        with pytest.raises(SaeError, match="needs rows of two sites of the same"):
            call(ScaledRows(x))


@torch.no_grad()
def test_a_crosscoder_predicts_all_sites() -> None:
    inner = {"kind": "relu_l1", "l1": 0.1, "n_latents": M}
    spec = TypeAdapter(SaeSpec).validate_python({"kind": "crosscoder", "inner": inner})
    sae: Any = build(spec, D, n_sites=3)
    x = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(sae.predict(x), sae.decode(sae.encode(x)))
    rows = ScaledRows(x, batch_position=torch.tensor([4, 5]))
    inside = sae.inner_rows(rows)
    assert torch.equal(inside.x, x.view(2, 6))
    assert inside.batch_position is rows.batch_position


def test_the_kind_of_the_latents_is_that_inside() -> None:
    inner = {"kind": "gated", "l1": 0.1, "n_latents": M}
    spec = TypeAdapter(SaeSpec).validate_python({"kind": "transcoder", "inner": inner})
    assert latents_kind(spec).name == "gated"
    assert latents_kind(make("topk", k=1).spec).name == "topk"


def test_kinds_are_found_by_name_mode_and_architecture() -> None:
    names = {"aligned": "crosscoder", "pairs": "transcoder"}
    for mode, name in names.items():
        kind = kind_trained_on(mode)
        assert kind is not None
        assert kind.name == name
    assert kind_trained_on("mixed") is None
    assert kind_trained_on("no mode") is None
    imported = {
        "standard": "relu_l1",
        "topk": "topk",
        "jumprelu": "jumprelu",
        "gated": "gated",
        "transcoder": "transcoder",
    }
    for architecture, name in imported.items():
        kind = kind_importing(architecture)
        assert kind is not None
        assert kind.name == name
    assert kind_importing("no architecture") is None
    assert find("no kind") is None
    spec = make("relu_l1", l1=0.1).spec
    assert find("relu_l1") is kind_of(spec)
    inner = {"kind": "relu_l1", "l1": 0.1, "n_latents": M}
    for skip, counterpart in ((True, None), (False, "transcoder")):
        spec = TypeAdapter(SaeSpec).validate_python(
            {"kind": "transcoder", "inner": inner, "skip": skip}
        )
        assert kind_of(spec).counterpart(spec) == counterpart
