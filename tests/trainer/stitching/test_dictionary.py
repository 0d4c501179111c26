"""Dictionaries: the same function as the SAE's, in whatever frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer import exchange
from tests.trainer.stitching.made import random_dictionary, random_rows
from trainer.errors import RunError
from trainer.imports.import_sae import to_sae
from trainer.runs.trained_sae import load
from trainer.stitching.dictionary import dictionary_of, of_plain

KINDS = [name for name in exchange.SPECS if not name.startswith("topk")]


@pytest.mark.parametrize("name", KINDS)
def test_it_computes_what_the_sae_does(tmp_path: Path, name: str) -> None:
    """Rescaled, centred, with biases and thresholds of each layer."""
    run = exchange.make_run(str(tmp_path / "run"), exchange.SPECS[name])
    sae = load(run)
    x = exchange.rows()
    for site in exchange.SITES:
        made = dictionary_of(sae, site)
        again, l0 = made.reconstruct(x)
        torch.testing.assert_close(
            again, sae.reconstruct(x, site), rtol=1e-4, atol=1e-4
        )
        assert torch.equal(l0, (sae.encode(x, site) > 0).sum(dim=1))
        assert l0.sum() > 0


@pytest.mark.parametrize("name", ["topk", "nsae", "mlp_encoder", "crosscoder"])
def test_latents_that_depend_on_each_other_are_refused(
    tmp_path: Path, name: str
) -> None:
    specs = exchange.SPECS | {key: spec for key, (spec, _) in exchange.NONE.items()}
    run = exchange.make_run(str(tmp_path / "run"), specs[name])
    with pytest.raises(RunError, match=r"cannot be moved|no SAE of one site"):
        dictionary_of(load(run), exchange.SITES[0])


def test_an_unknown_site_is_refused(tmp_path: Path) -> None:
    run = exchange.make_run(str(tmp_path / "run"), exchange.SPECS["relu"])
    with pytest.raises(RunError, match="no site elsewhere; its sites are blocks"):
        dictionary_of(load(run), "elsewhere")


@pytest.mark.parametrize("thresholds", [False, True])
def test_moved_latents_fire_on_the_same_rows_with_the_same_values(
    thresholds: bool,
) -> None:
    made = random_dictionary(50, seed=3, thresholds=thresholds)
    other = random_dictionary(7, seed=4)
    moved = made.moved_to(other.b_dec)
    for x in random_rows(300):
        here, there = made.encode(x), moved.encode(x)
        assert torch.equal(here > 0, there > 0)
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
        assert 0 < (here > 0).double().mean() < 1


def test_joined_latents_do_what_both_did() -> None:
    one, two = random_dictionary(20, seed=1), random_dictionary(30, seed=2)
    taken = torch.tensor([3, 29, 0])
    both = one.joined(two.taken(taken))
    for x in random_rows(100):
        wanted = one.reconstruct(x)[0] + two.encode(x)[:, taken] @ two.W_dec[taken]
        torch.testing.assert_close(both.reconstruct(x)[0], wanted)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), thresholds=st.booleans(), gated=st.booleans())
def test_the_neutral_form_is_the_same_function(
    seed: int, thresholds: bool, gated: bool
) -> None:
    made = random_dictionary(9, seed=seed, thresholds=thresholds)
    if not gated:
        made = made._replace(slope=torch.ones_like(made.slope), b_mag=made.b_enc)
    plain = made.plain()
    wanted = (
        "gated" if thresholds and gated else "jumprelu" if thresholds else "standard"
    )
    assert plain.architecture == wanted
    unit = made.with_unit_decoder()
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(9).double())
    sae = to_sae(plain, "here")
    for x in random_rows(40, seed=seed):
        wanted_rows = made.reconstruct(x)[0]
        for other in (of_plain(plain), unit):
            torch.testing.assert_close(other.reconstruct(x)[0], wanted_rows)
        torch.testing.assert_close(
            sae.predict(x.float(), 0).double(), wanted_rows, rtol=1e-3, atol=1e-3
        )
