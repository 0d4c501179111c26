from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from actstore.errors import SpecError
from actstore.store.store import Store
from actstore.store.streamed_store import StreamedStore
from actstore.stream.rescale import Rescaling, rescaling
from schemas.stream import Rescale
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
def test_the_four_scalings_by_mean_norm(
    store: Store, kind: Rescale, phi: Callable[[Any], Any]
) -> None:
    n = np.array(
        [np.linalg.norm(train_rows(store, site), axis=1).mean() for site in NAMES]
    )
    wanted = phi(n).mean() / phi(n)
    np.testing.assert_allclose(rescaling(store, NAMES, kind).scale, wanted, rtol=1e-5)


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
            rescaling(store, ("a", "b"), kind)


class Norms:
    """As many figures of a store as `rescaling` asks for: the stored sums of a site."""

    def __init__(self, **sites: SimpleNamespace) -> None:
        self._sites = sites
        self.norms = {name: SimpleNamespace(all=one) for name, one in sites.items()}

    def site(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(d=self._sites[name].d)

    def mean(self, name: str) -> np.ndarray:
        return np.full(self._sites[name].d, self._sites[name].mean_norm / 2)

    def variance(self, name: str) -> np.ndarray:
        return np.array(self._sites[name].variance, np.float64)


def site(
    mean_norm: float,
    count: int = 5,
    d: int = 4,
    mean_sq_norm: float = 0.25,
    variance: tuple[float, ...] = (1.0, 3.0),
) -> SimpleNamespace:
    return SimpleNamespace(
        mean_norm=mean_norm,
        count=count,
        d=d,
        mean_sq_norm=mean_sq_norm,
        variance=variance,
    )


def scale_of(store: Norms, kind: Rescale, center: bool = False) -> Rescaling:
    asked = cast("StreamedStore", store)
    return rescaling(asked, tuple(store.norms), kind, center)


def test_factors_by_hand() -> None:
    store = Norms(a=site(2.0), b=site(8.0))
    # sqrt: 1.414 and 2.828, whose mean is 2.121
    assert scale_of(store, "sqrt").scale == pytest.approx([1.5, 0.75])
    assert scale_of(store, "linear").scale == pytest.approx([2.5, 0.625])
    # ln 8 is 3 ln 2, so their mean is 2 ln 2
    assert scale_of(store, "log").scale == pytest.approx([2.0, 2 / 3])
    # ln 9 is 2 ln 3, so their mean is 1.5 ln 3
    assert scale_of(store, "log1p").scale == pytest.approx([1.5, 0.75])
    assert scale_of(store, "none").scale.tolist() == [1.0, 1.0]
    # a mean square of 0.25 has the root 0.5; a variance of 1 + 3 has the root 2
    assert scale_of(store, "unit").scale == pytest.approx([2.0, 2.0])
    assert scale_of(store, "unit", center=True).scale == pytest.approx([0.5, 0.5])
    assert scale_of(store, "sqrt_d").scale == pytest.approx([1.0, 0.25])


def test_means_are_float32_and_come_only_when_rows_are_centred() -> None:
    store = Norms(a=site(2.0), b=site(8.0))
    assert scale_of(store, "sqrt").mean is None
    centred = scale_of(store, "none", center=True)
    assert centred.mean is not None
    assert centred.mean.dtype == np.float32
    assert centred.mean.tolist() == [[1.0] * 4, [4.0] * 4]


def test_a_site_without_finite_rows_is_named() -> None:
    store = Norms(a=site(2.0), b=site(0.0, count=0), c=site(0.0, count=0))
    text = "b, c has no finite training row, so neither mean nor norm; leave it out"
    with pytest.raises(SpecError, match=f"^rescale 'log': {text}$"):
        scale_of(store, "log")
    with pytest.raises(SpecError, match=f"^rescale 'none', centred: {text}$"):
        scale_of(store, "none", center=True)
    assert scale_of(store, "none").scale.tolist() == [1.0, 1.0, 1.0]


def test_log_names_every_norm_that_is_too_small() -> None:
    store = Norms(a=site(1.0), b=site(1.5), c=site(0.12345))
    with pytest.raises(
        SpecError,
        match=r"^rescale 'log' needs mean norms above 1, but there are a \(1\), c"
        r" \(0.123\); use 'log1p' or 'sqrt'$",
    ):
        scale_of(store, "log")
    with pytest.raises(SpecError, match=r"there are b \(1\);"):
        scale_of(Norms(a=site(3.0), b=site(1.0)), "log")
    above = Norms(a=site(1.01))
    assert scale_of(above, "log").scale == pytest.approx([1.0])


def test_factors_that_are_not_finite_are_named() -> None:
    zero = Norms(a=site(0.0, mean_sq_norm=0.0), b=site(2.0))
    for kind in ("unit", "sqrt_d", "sqrt"):
        with pytest.raises(
            SpecError,
            match=f"^rescale '{kind}': a has mean norm 0; leave it out, or use 'none'$",
        ):
            scale_of(zero, kind)
    # 0 / 0, without a warning of numpy's before the message
    nothing = Norms(a=site(0.0), b=site(0.0))
    with pytest.raises(SpecError, match=r"^rescale 'sqrt': a, b has mean norm 0"):
        scale_of(nothing, "sqrt")
    still = Norms(a=site(2.0, variance=(0.0,)), b=site(2.0))
    with pytest.raises(SpecError, match=r"^rescale 'unit': a does not vary; leave"):
        scale_of(still, "unit", center=True)
    with pytest.raises(SpecError, match="a has mean norm 0"):
        scale_of(zero, "linear", center=True)
    two = Norms(a=site(0.0), b=site(2.0), c=site(0.0))
    with pytest.raises(SpecError, match=r"^rescale 'sqrt_d': a, c has mean norm 0"):
        scale_of(two, "sqrt_d")


def test_tensors_of_a_rescaling() -> None:
    made = Rescaling(np.array([1.5, 0.75]), np.ones((2, 4), np.float32))
    scale, mean = made.tensors(torch.device("cpu"))
    assert scale.dtype == torch.float32
    assert scale.tolist() == [[1.5], [0.75]]
    assert mean is not None
    assert mean.tolist() == np.ones((2, 4)).tolist()
    # "meta" is a device that every machine has
    elsewhere = made.tensors(torch.device("meta"))
    assert [one is not None and one.is_meta for one in elsewhere] == [True, True]
    assert Rescaling(np.ones(2), None).tensors(torch.device("cpu"))[1] is None
