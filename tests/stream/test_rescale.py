from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actstore.errors import SpecError
from actstore.store.store import Store
from actstore.stream.rescale import rescaling
from tests.support import SITES, make_store

NAMES = tuple(SITES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("rescale") / "store", n_units=21)


def train_rows(store: Store, site: str) -> np.ndarray:
    return store.read(site, store.rows("train")).astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "phi"),
    [("sqrt", np.sqrt), ("log", np.log), ("log1p", np.log1p), ("linear", lambda n: n)],
)
def test_the_four_scalings_by_mean_norm(store: Store, kind: str, phi: object) -> None:
    n = np.array(
        [np.linalg.norm(train_rows(store, site), axis=1).mean() for site in NAMES]
    )
    wanted = phi(n).mean() / phi(n)  # type: ignore[operator]
    np.testing.assert_allclose(rescaling(store, NAMES, kind).scale, wanted, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("center", [False, True])
def test_unit_makes_the_mean_squared_norm_one(store: Store, center: bool) -> None:
    scale, mean = rescaling(store, NAMES, "unit", center)
    for i, site in enumerate(NAMES):
        x = (train_rows(store, site) - (0 if mean is None else mean[i])) * scale[i]
        assert np.square(x).sum(axis=1).mean() == pytest.approx(1, rel=1e-5)


def test_sqrt_d_makes_the_mean_norm_the_root_of_d(store: Store) -> None:
    scale, _ = rescaling(store, NAMES, "sqrt_d")
    for i, site in enumerate(NAMES):
        assert np.linalg.norm(
            train_rows(store, site) * scale[i], axis=1
        ).mean() == pytest.approx(4, rel=1e-5)


def test_none_changes_nothing(store: Store) -> None:
    scale, mean = rescaling(store, NAMES, "none")
    assert scale.tolist() == [1, 1, 1]
    assert mean is None


def test_log_needs_norms_above_one_and_zero_norms_are_named(tmp_path: Path) -> None:
    def small(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
        return np.full((len(sequence), 4), 0.1 if site == "a" else 0.0)

    store = make_store(tmp_path / "store", {"a": 4, "b": 4}, values=small, n_units=2)
    with pytest.raises(
        SpecError, match=r"'log' needs mean norms above 1.*a \(0.2\).*log1p"
    ):
        rescaling(store, ("a",), "log")
    for kind in ("linear", "unit", "sqrt_d", "sqrt", "log1p"):
        with pytest.raises(SpecError, match="mean norm 0"):
            rescaling(store, ("a", "b"), kind)  # type: ignore[arg-type]
