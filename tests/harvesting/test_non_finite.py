"""Rows that are no numbers: a site of nothing else ends the harvest, some are told
wherever one looks.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import actstore
from actstore.errors import HarvestWarning, NoRowsError, NumericsError, SpecError
from actstore.harvesting.estimate import Prices, estimate
from actstore.harvesting.extend import extend
from actstore.harvesting.plan_command import lines
from actstore.inspect.verify import verify
from actstore.store.description import describe
from actstore.store.non_finite import non_finite
from actstore.store.norms_of_sites import compute_norms
from actstore.stream.rescale import rescaling
from schemas.manifest import StoreManifest, StratumNorms
from tests.cli.conftest import Cli, cli
from tests.support import low_rank, make_plan, make_store
from trainer.evaluation.metric_definitions import LayerSums

CLI = cli  # a fixture of the command lines' tests


class Parts(nn.Module):
    """Two embeddings of the token's number; the second is NaN for tokens below `bad`."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.good, self.bad = nn.Embedding(100, 4), nn.Embedding(100, 4)
        with torch.no_grad():
            for one in (self.good, self.bad):
                one.weight.copy_(torch.arange(1, 101.0)[:, None].expand(100, 4))
            self.bad.weight[:bad] = math.nan

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.bad(tokens) + self.good(tokens)


SPEC: dict[str, Any] = {
    "sites": ["good", "bad"],
    "dtype": "float32",
    "batch": 4,
    "unit_sequences": 100,
}
TOKENS = np.random.default_rng(0).integers(0, 100, (400, 8))


def test_a_site_without_a_finite_row_ends_the_harvest_with_its_first_rows(
    tmp_path: Path,
) -> None:
    seen: list[int] = []
    out = tmp_path / "s"
    with pytest.raises(
        NumericsError, match=r"site 'bad': none of its first 256 rows is finite"
    ):
        actstore.harvest(
            SPEC,
            str(out),
            model=Parts(100),
            tokens=TOKENS,
            progress=lambda now: seen.append(now.tokens),
        )
    assert max(seen) == 256 - 32  # the batch in which it showed is not told as done
    assert not list(out.glob("units/*"))
    with pytest.raises(NumericsError, match="site 'bad'"):
        estimate(SPEC, model=Parts(100), tokens=TOKENS, batches=9)


@pytest.mark.parametrize("unit_sequences", [1, 100])
def test_a_short_harvest_ends_before_its_manifest(
    unit_sequences: int, tmp_path: Path
) -> None:
    for n in (1, 20):
        out = tmp_path / f"{n}"
        spec = {**SPEC, "unit_sequences": unit_sequences}
        with pytest.raises(NumericsError, match=f"none of its {8 * n} rows is finite"):
            actstore.harvest(spec, str(out), model=Parts(100), tokens=TOKENS[:n])
        assert not (out / "manifest.json").exists()


def test_a_site_that_is_added_without_a_finite_row(tmp_path: Path) -> None:
    actstore.harvest(
        {**SPEC, "sites": "good"}, str(tmp_path / "s"), model=Parts(100), tokens=TOKENS
    )
    with pytest.raises(NumericsError, match="site 'bad': none"):
        extend(str(tmp_path / "s"), sites="bad", model=Parts(100))
    assert actstore.open(tmp_path / "s").sites == ("good",)


def test_an_import_without_a_finite_row(tmp_path: Path) -> None:
    x = np.full((300, 4), np.nan, np.float32)
    for n in (300, 10):
        with pytest.raises(NumericsError, match="site 'a': none of its"):
            actstore.import_activations(
                {"b": np.ones((n, 4), np.float32), "a": x[:n]}, str(tmp_path / f"{n}")
            )
    x[299] = 1  # behind more rows than are waited for
    with pytest.raises(NumericsError):
        actstore.import_activations({"a": x}, str(tmp_path / "late"))
    x[:250] = 1
    with pytest.warns(HarvestWarning, match="not finite: 49 of 300 rows at a"):
        actstore.import_activations({"a": x}, str(tmp_path / "some"))


def test_values_that_overflow_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="too large for the storage dtype"):
        actstore.import_activations(
            {"a": np.full((999, 4), 1e6, np.float32)},
            str(tmp_path / "s"),
            dtype="float16",
        )


def test_a_harvest_that_keeps_no_row(tmp_path: Path) -> None:
    spec = {**SPEC, "sites": "good", "exclude_tokens": [7]}
    with pytest.raises(NoRowsError, match="no row was kept"):
        actstore.harvest(
            spec, str(tmp_path / "s"), model=Parts(0), tokens=np.full((4, 8), 7)
        )


@pytest.fixture
def some(tmp_path: Path) -> Iterator[actstore.Store]:
    """A store with rows of tokens 0 to 9 that are not finite at one of two sites."""
    with pytest.warns(
        HarvestWarning, match=r"not finite: \d+ of 3,200 rows at bad; they are stored"
    ):
        yield actstore.harvest(
            SPEC, str(tmp_path / "some"), model=Parts(10), tokens=TOKENS
        )


def test_some_rows_are_told_wherever_one_looks(some: actstore.Store, cli: Cli) -> None:
    bad = int((TOKENS < 10).sum())
    assert non_finite(some) == {"bad": bad}
    assert ("not finite", f"{bad} rows at bad") in describe(some)
    assert f"not finite   {bad} rows at bad" in cli("actstore", "info", some.url)[1]
    found = estimate(SPEC, model=Parts(10), tokens=TOKENS, batches=2)
    bad = int((TOKENS[:8] < 10).sum())
    assert (found.non_finite, found.tried) == ({"bad": bad}, 64)
    assert ("not finite", f"{bad} of 64 rows at bad") in lines(
        found, Prices(device=0.0)
    )


def test_more_tokens_with_rows_that_are_not_finite(tmp_path: Path) -> None:
    tokens = np.concatenate([TOKENS % 90 + 10, TOKENS])
    actstore.harvest(
        {**SPEC, "tokens": 3200}, str(tmp_path / "s"), model=Parts(10), tokens=tokens
    )
    with pytest.warns(
        HarvestWarning, match=f"not finite: {(TOKENS < 10).sum()} of 6,400 rows at bad"
    ):
        extend(str(tmp_path / "s"), tokens=3200, model=Parts(10), source=tokens)


def empty_store(url: Path) -> actstore.Store:
    """One site of which only a held-out row is finite."""
    plan = make_plan({"full": 8, "empty": 8}, n_units=20)
    made = low_rank(plan)

    def values(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        x = made(site, sequence, position)
        return x if site == "full" or sequence[0] >= 19 * 4 else x * math.nan

    return make_store(url, {"full": 8, "empty": 8}, values, n_units=20)


def test_means_over_nothing_are_no_numbers(tmp_path: Path, cli: Cli) -> None:
    store = empty_store(tmp_path / "s")
    one = store.norms["empty"].all
    assert (one.count, one.non_finite) == (0, 19 * 4 * 32)
    assert all(
        map(math.isnan, (one.mean_norm, one.mean_sq_norm, one.max_norm, *one.quantiles))
    )
    assert np.isnan(store.mean("empty")).all()
    assert np.isnan(store.variance("empty")).all()
    assert np.isfinite(store.mean("full")).all()
    assert not verify(store).problems
    written = json.loads(store.storage.read("manifest.json"))["norms"][1]["all"]
    assert (written["mean_norm"], written["quantiles"]) == ("NaN", ["NaN"] * 9)
    code, out, _ = cli("actstore", "norms", store.url, "--json")
    assert code == 0
    told = json.loads(
        out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert told[1]["all"]["mean_norm"] == "NaN"
    code, out, _ = cli("actstore", "norms", store.url)
    assert code == 0
    line = next(line for line in out.splitlines() if "empty" in line)
    assert line.split() == ["empty", "-", "-", "-", "-", "0", "2,432"]
    table = compute_norms(store)
    assert list(table["site"]) == ["full"]
    assert table.facts["sites without a finite row"] == 1
    assert store.manifest == StoreManifest.model_validate_json(
        store.storage.read("manifest.json")
    )


@pytest.mark.parametrize("kind", ["sqrt", "log", "log1p", "linear", "unit", "sqrt_d"])
def test_a_site_without_a_mean_is_not_rescaled(kind: Any, tmp_path: Path) -> None:
    store = empty_store(tmp_path / "s")
    for center in (False, True):
        with pytest.raises(SpecError, match="empty has no finite training row"):
            store.stream(batch=8, rescale=kind, center=center)
    with pytest.raises(SpecError, match="empty has no finite training row"):
        rescaling(store, store.sites, "none", center=True)
    with store.stream(batch=8) as stream:
        assert next(stream).x.shape == (8, 8)
    with store.stream(batch=8, sites="full", rescale=kind) as stream:
        assert torch.isfinite(next(stream).x).all()


def test_old_stores_say_zero_of_no_rows() -> None:
    old = {
        "count": 0,
        "non_finite": 3,
        "mean_norm": 0.0,
        "mean_sq_norm": 0.0,
        "max_norm": 0.0,
        "quantiles": [0.0] * 9,
    }
    read = StratumNorms.model_validate_json(json.dumps(old))
    assert all(
        map(
            math.isnan,
            (read.mean_norm, read.mean_sq_norm, read.max_norm, *read.quantiles),
        )
    )
    assert (read.count, read.non_finite, read.outliers) == (0, 3, 0)
    assert read == StratumNorms.model_validate_json(read.to_json())


def test_metrics_of_no_rows_are_no_numbers() -> None:
    found = LayerSums(torch.zeros(3, dtype=torch.int64)).metrics("a", 4)
    figures = (
        found.fvu,
        found.mse,
        found.mse_per_element,
        found.l0,
        found.l1,
        found.l1_decoder,
        found.suppression,
    )
    assert all(map(math.isnan, figures))
    assert json.loads(found.to_json())["mse"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(found).model_validate_json(found.to_json()).rows == 0
