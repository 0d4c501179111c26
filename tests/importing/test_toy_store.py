"""Stores of toy data: their rows are sums of the features that lie beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import actstore
from actstore.errors import CorruptError, ExistsError, SpecError
from actstore.importing.known_features import KnownFeatures
from actstore.importing.toy_store import BLOCK_ROWS, make_toy_store
from actstore.inspect.verify import verify
from actstore.store.true_features import read_true_features
from schemas.toy import FeatureSpec
from tests.support import make_store

SMALL = {"d": 8, "n_features": 20, "l0": 2.0, "n_topics": 3}


def test_rows_are_sums_of_the_features_beside_them(tmp_path: Path) -> None:
    rows = BLOCK_ROWS + 904
    store = make_toy_store(tmp_path / "toy", SMALL, rows=rows, dtype="float32")
    found = read_true_features(actstore.open(tmp_path / "toy"))
    assert found is not None
    assert found.directions.shape == (20, 8)
    assert np.linalg.norm(found.directions, axis=1) == pytest.approx(1, abs=1e-6)
    assert found.record.spec == FeatureSpec.model_validate(SMALL)
    known = KnownFeatures(found.record.spec)
    made = np.zeros((rows, 8))
    for block, first, n in ((0, 0, BLOCK_ROWS), (1, BLOCK_ROWS, 904)):
        row, feature, magnitude = known.firings(block, n)
        parts = magnitude[:, None] * found.directions[feature]
        np.add.at(made, row + first, parts)
    # rows of a unit are permuted; provenance says which one each is
    where = store.provenance().sequence
    assert np.abs(store.read("toy") - made[where]).max() < 1e-5
    assert len(store.units("held_out")) == 2
    assert verify(store.url).problems == []


def test_the_same_seed_gives_the_same_rows_and_another_does_not(tmp_path: Path) -> None:
    one, again, other = (
        make_toy_store(
            tmp_path / name, {**SMALL, "seed": seed}, rows=200, unit_sequences=50
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one.manifest.content_id == again.manifest.content_id
    assert other.manifest.content_id != one.manifest.content_id


def test_defaults_follow_a_power_law_with_the_wanted_l0() -> None:
    known = KnownFeatures()
    assert known.rates.sum() == pytest.approx(5.0)
    assert known.rates[0] / known.rates[255] == pytest.approx(16.0)  # 256 ** 0.5
    row, _, _ = known.firings(0, 4000)
    assert len(row) / 4000 == pytest.approx(5.0, rel=0.05)


def test_features_of_a_group_fire_together() -> None:
    known = KnownFeatures(FeatureSpec(n_features=40, d=8, l0=4, n_topics=4))
    on = np.zeros((8000, 40), bool)
    row, feature, _ = known.firings(0, 8000)
    on[row, feature] = True
    together = np.corrcoef(on.T)
    topic = known.topic_of
    same = (topic[:, None] == topic) & ~np.eye(40, dtype=bool)
    assert together[same].mean() > 0.05
    assert together[topic[:, None] != topic].mean() < 0


def test_other_stores_have_no_known_features(tmp_path: Path) -> None:
    assert read_true_features(make_store(tmp_path / "store", n_units=2)) is None


def test_damaged_and_foreign_features_are_refused(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "toy", SMALL, rows=200, unit_sequences=50)
    other = make_toy_store(
        tmp_path / "other", {**SMALL, "seed": 1}, rows=200, unit_sequences=50
    )
    record = tmp_path / "toy" / "features.json"
    tensors = tmp_path / "toy" / "features.safetensors"
    directions = load_file(tensors)["directions"]
    save_file({"directions": -directions}, tensors)
    with pytest.raises(CorruptError, match="blake3"):
        read_true_features(store)
    record.write_bytes((tmp_path / "other" / "features.json").read_bytes())
    with pytest.raises(CorruptError, match="another store"):
        read_true_features(store)
    record.write_text(json.dumps({"no": "record"}))
    with pytest.raises(SpecError, match=r"features\.json"):
        read_true_features(store)
    assert read_true_features(other) is not None


def test_what_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(SpecError, match="most frequent one would fire on"):
        make_toy_store(
            tmp_path / "a", {"n_features": 4, "l0": 3.9}, rows=100, unit_sequences=50
        )
    with pytest.raises(SpecError, match="too few for 9 trees"):
        make_toy_store(
            tmp_path / "a",
            {"n_features": 40, "n_roots": 9},
            rows=100,
            unit_sequences=50,
        )
    with pytest.raises(SpecError, match="n_feature"):
        make_toy_store(tmp_path / "a", {"n_feature": 4}, rows=100, unit_sequences=50)
    assert not (tmp_path / "a").exists()
    make_toy_store(tmp_path / "a", SMALL, rows=100, unit_sequences=50)
    with pytest.raises(ExistsError):
        make_toy_store(tmp_path / "a", SMALL, rows=100, unit_sequences=50)
