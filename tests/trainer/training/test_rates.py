"""Learning rates and dead latents where a spec says auto."""

from __future__ import annotations

import pytest

from schemas.train import TrainSpec
from trainer.saes.build import every_kind
from trainer.training.learning_rates import dead_after, peak_rate

RATES = {
    kind.name: kind.learning_rate
    for kind in every_kind()
    if kind.learning_rate is not None
}


def spec(kind: str = "topk", batch: int = 4096, **more: object) -> TrainSpec:
    sae = {"kind": kind}
    return TrainSpec.model_validate(
        {"store": "s", "sae": sae, "stream": {"batch": batch}, **more}
    )


@pytest.mark.parametrize("kind", RATES)
def test_the_rate_goes_by_size_batch_and_updates(kind: str) -> None:
    one = spec(kind)
    assert peak_rate(one, 128, 250) == pytest.approx(RATES[kind])
    # four times the latents
    assert peak_rate(one, 512, 250) == pytest.approx(RATES[kind] / 2)
    wide = one.model_copy(
        update={"sae": one.sae.model_copy(update={"expansion": 32.0})}
    )
    assert peak_rate(wide, 128, 250) == pytest.approx(RATES[kind] / 2)
    # an eighth of the rows
    assert peak_rate(spec(kind, batch=512), 128, 250) == pytest.approx(RATES[kind] / 2)
    assert peak_rate(spec(kind, batch=10**6), 128, 250) == peak_rate(
        spec(kind, batch=16_384), 128, 250
    )
    tiny = one.model_copy(
        update={"sae": one.sae.model_copy(update={"expansion": 0.01})}
    )
    assert peak_rate(tiny, 128, 250) == pytest.approx(RATES[kind] * 8**0.5), (
        "that of 128 latents"
    )
    assert (
        peak_rate(one, 128, 25)
        == peak_rate(one, 128, 2500)
        == pytest.approx(RATES[kind] * 10**-0.15)
    )


def test_a_given_rate_stands_and_the_factor_multiplies_both() -> None:
    given = spec(optimiser={"lr": 0.002})
    assert peak_rate(given, 4096, 10**6) == 0.002
    assert peak_rate(spec(optimiser={"lr": 0.002, "lr_factor": 2}), 4096, 10) == 0.004
    assert peak_rate(spec(optimiser={"lr_factor": 0.5}), 128, 250) == RATES["topk"] / 2


def test_latents_of_a_transcoder_have_the_rate_of_their_kind() -> None:
    one = TrainSpec.model_validate(
        {"store": "s", "sae": {"kind": "transcoder", "inner": {"kind": "relu_l1"}}}
    )
    assert peak_rate(one, 128, 250) == RATES["relu_l1"]


@pytest.mark.parametrize(
    ("n_latents", "updates", "rows"),
    [
        (1024, 244, 4 * 4096),  # four batches are the least
        (16_384, 244, 51_200),  # 100 times 512 rows
        (16_384, 244 * 20, 51_200),
        (98_304, 244, 99_942),  # a tenth of the run
        (98_304, 10**6, 307_200),
        (10**8, 10**6, 10_000_000),
    ],
)
def test_a_latent_is_dead_after_many_times_its_usual_silence(
    n_latents: int, updates: int, rows: int
) -> None:
    assert dead_after(spec(), n_latents, updates) == rows
    assert dead_after(spec(dead_rows=7), n_latents, updates) == 7
