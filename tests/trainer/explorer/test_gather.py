"""What is gathered of each latent, against all latents of all rows in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.store.store import Store
from tests.support import make_store
from tests.trainer.explorer.explored import dense, small_store, trained
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import row_ids
from trainer.explorer.activation_bins import BINS, bin_edges, bin_of
from trainer.explorer.explorer_tables import OF_LAYER, TOP, shown_contexts
from trainer.explorer.firings import Codes, Firings
from trainer.explorer.gather_contexts import gather
from trainer.explorer.hashed import hashed
from trainer.explorer.kept_firings import BEFORE, WINDOW, Keeper, SortedFirings
from trainer.explorer.latent_arrays import LatentArrays
from trainer.explorer.row_sketch import RowSketch, together, trajectories

KINDS: dict[str, dict[str, Any]] = {
    "topk": {"sae": {"kind": "topk", "k": 4, "n_latents": 48}},
    "relu_l1": {"sae": {"kind": "relu_l1", "n_latents": 48}},
    "batch_topk by layer": {
        "sae": {
            "kind": "batch_topk",
            "k": 4,
            "n_latents": 48,
            "per_layer_threshold": True,
            "per_layer_bias": True,
        },
        "stream": {"rescale": "log"},
    },
    "topk by layer": {
        "sae": {"kind": "topk", "k": 4, "n_latents": 48, "per_layer_bias": True}
    },
    "filtered": {
        "sae": {"kind": "topk", "k": 4, "n_latents": 48},
        "stream": {"filter": {"positions": [4, 20]}},
    },
    "crosscoder": {
        "sae": {
            "kind": "crosscoder",
            "inner": {"kind": "topk", "k": 4, "n_latents": 48},
        },
        "stream": {"mode": "aligned"},
    },
    "transcoder": {
        "sae": {
            "kind": "transcoder",
            "inner": {"kind": "topk", "k": 4, "n_latents": 48},
        },
        "stream": {
            "mode": "pairs",
            "sites": ["blocks.0.hook_mlp_out"],
            "targets": ["blocks.1.hook_mlp_out"],
        },
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("gather") / "store", padded=True)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_all_latents_of_all_rows_say(
    store: Store, tmp_path: Path, kind: str
) -> None:
    sae = trained(store, tmp_path / "run", **KINDS[kind])
    (tmp_path / "scratch").mkdir()
    # So little memory that rows come in many lots.
    found = gather(sae, store, tmp_path / "scratch", memory=400_000)
    arrays = found.arrays.mapped(0, sae.n_latents)
    ids = row_ids(sae, store, "held_out")
    values = dense(sae, store, ids)
    fires = values > 0
    assert found.rows == len(ids)
    assert (arrays["firings"] == fires.sum(axis=1).T).all()
    np.testing.assert_allclose(arrays["sums"], values.sum(axis=1).T, rtol=1e-4)
    np.testing.assert_allclose(arrays["most"], values.max(axis=1).T, rtol=1e-5)
    assert arrays["histogram"].sum() == fires.sum()
    came_from = store.provenance(ids)
    for latent in range(sae.n_latents):
        check_top(arrays, latent, values[:, :, latent], came_from.sequence)
    check_windows(arrays, values, came_from, ids)


def check_top(
    arrays: dict[str, Any], latent: int, values: np.ndarray, sequence: np.ndarray
) -> None:
    """The strongest firing of each sequence, and of those the strongest."""
    best = {
        one: values[:, sequence == one].max() for one in np.unique(sequence).tolist()
    }
    wanted = sorted((value for value in best.values() if value > 0), reverse=True)
    kept = arrays["top.value"][latent][arrays["top.score"][latent] > 0]
    np.testing.assert_allclose(
        kept, wanted[: len(arrays["top.value"][latent])], rtol=1e-5
    )
    shown = arrays["top.sequence"][latent][arrays["top.score"][latent] > 0]
    assert len(set(shown.tolist())) == len(shown)


def check_windows(
    arrays: dict[str, Any], values: np.ndarray, came_from: Any, ids: np.ndarray
) -> None:
    """Each shown context's activations are those of the tokens around it."""
    places = {
        (int(one), int(position)): row
        for row, (one, position) in enumerate(
            zip(came_from.sequence, came_from.position, strict=True)
        )
    }
    contexts = shown_contexts(arrays)
    groups = set(contexts.group.tolist())
    assert TOP in groups
    assert groups & set(range(1, OF_LAYER))
    shown = list(zip(contexts.latent, contexts.sequence, strict=True))
    assert len(set(shown)) == len(shown), "a context is shown twice"
    for i in range(len(contexts.latent)):
        window = np.full(WINDOW, np.nan, np.float32)
        for j in range(WINDOW):
            at = (int(contexts.sequence[i]), int(contexts.position[i]) + j - BEFORE)
            if at in places:
                layer, latent = contexts.layer[i], contexts.latent[i]
                window[j] = values[layer, places[at], latent]
        np.testing.assert_allclose(contexts.values[i], window, rtol=1e-4)
        assert window[BEFORE] == pytest.approx(contexts.value[i], rel=1e-4)
        assert (
            ids[places[int(contexts.sequence[i]), int(contexts.position[i])]]
            == (contexts.row[i])
        )


def test_the_lots_do_not_matter(store: Store, tmp_path: Path) -> None:
    """Any memory and any range of latents keep the same, the sample included."""
    sae = trained(store, tmp_path / "run", **KINDS["topk"])
    kept = []
    for memory in (200_000, 1 << 30):
        folder = tmp_path / str(memory)
        folder.mkdir()
        found = gather(sae, store, folder, memory=memory, seed=3)
        arrays = found.arrays.mapped(0, 48)
        kept.append({name: np.array(values) for name, values in arrays.items()})
    # Slots depend on what was kept before, and are no result.
    windows = [name for name in kept[0] if name.endswith((".slot", ".window"))]
    for name in kept[0]:
        # The sketch is as large as there is memory for it.
        of_sketch = name.startswith(("together", "trajectory"))
        if name not in windows and not of_sketch:
            np.testing.assert_array_equal(kept[0][name], kept[1][name], err_msg=name)
    one, other = (shown_contexts(arrays) for arrays in kept)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_held_out_rows_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=4)
    sae = trained(store, tmp_path / "run", **KINDS["topk"])
    (tmp_path / "scratch").mkdir()
    with pytest.raises(RunError, match="--split train"):
        gather(sae, store, tmp_path / "scratch")
    found = gather(sae, store, tmp_path / "scratch", split="train", max_rows=100)
    assert found.rows == 100


def firings_on(latents: list[int], values: list[float], sequences: list[int]) -> Any:
    n = len(latents)
    row = np.arange(n)
    codes = Codes(row, np.array(latents, np.int32), np.array(values, np.float32))
    rows = Firings(row, np.array(sequences), row % 7, np.zeros(n, int), codes)
    order = np.argsort(codes.latent, kind="stable")
    latent = codes.latent[order].astype(np.int64)
    return SortedFirings(rows, latent, row[order], codes.value[order])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 6)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 5),
)
def test_a_keeper_keeps_the_best_in_any_lots(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[int, int, int]],
    lot: int,
) -> None:
    keeper = Keeper("top", 1, 3, one_per_sequence=True)
    folder = tmp_path_factory.mktemp("keeper")
    arrays = LatentArrays(folder, 3, keeper.entries(), 1 << 20).mapped(0, 3)
    for first in range(0, len(made), lot):
        part = made[first : first + lot]
        firings = firings_on(*(list(column) for column in zip(*part, strict=True)))
        keeper.add(arrays, firings, firings.latent, firings.value.astype(float))
    for latent in range(3):
        best: dict[int, int] = {}
        for one, value, sequence in made:
            if one == latent:
                best[sequence] = max(value, best.get(sequence, 0))
        wanted = sorted(best.values(), reverse=True)[:3]
        assert arrays["top.score"][latent].tolist() == wanted + [0] * (3 - len(wanted))


def test_numbers_by_chance_are_even_and_of_the_row_only() -> None:
    draws = hashed(np.arange(100_000), seed=1)
    assert ((draws > 0) & (draws < 1)).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert hashed(np.array([7]), 1) == draws[7]
    assert hashed(np.array([7]), 2) != draws[7]


def test_bins_hold_what_is_between_their_edges() -> None:
    values = np.array([1e-30, 0.3, 1.0, 1.18, 2.0, 7.7, 1e30], np.float32)
    edges = bin_edges()
    bins = bin_of(values)
    assert (bins[0], bins[2], bins[4], bins[-1]) == (0, 64, 68, BINS - 1)
    for value, place in zip(values[1:-1], bins[1:-1], strict=True):
        assert edges[place] <= value < edges[place + 1]


def test_which_latents_fire_together() -> None:
    """Rows: {0, 1}, {0, 1}, {0, 2}, {1}; the second is of another layer."""
    codes = Codes(
        np.array([0, 0, 1, 1, 2, 2, 3]),
        np.array([0, 1, 0, 1, 0, 2, 1], np.int32),
        np.array([1, 2, 3, 4, 5, 6, 7], np.float32),
    )
    rows = Firings(
        np.array([9, 9, 5, 6]),
        np.zeros(4, int),
        np.zeros(4, int),
        np.array([0, 1, 0, 0]),
        codes,
    )
    (found,) = together(rows, 3, most=8)
    assert found.latent.tolist() == [0, 1]
    assert found.other.tolist() == [1, 0]
    # two rows with both, three with each
    assert found.cosine == pytest.approx([2 / 3, 2 / 3])
    means, tokens = trajectories(rows, 0, 3, 2)
    assert tokens.tolist() == [2, 2, 1]
    assert means[0].tolist() == [(1 + 5) / 2, 3 / 2]
    assert means[2].tolist() == [6, 0]


def test_a_sketch_is_bounded_and_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for lot in range(20):
        ids = np.arange(lot * 50, lot * 50 + 50)
        latents = rng.integers(0, 90, (50, 4)).astype(np.int32)
        codes = Codes(
            np.repeat(np.arange(50), 4), latents.ravel(), np.ones(200, np.float32)
        )
        parts.append(Firings(ids, ids, ids, np.zeros(50, int), codes))
    found = []
    for order in (range(20), reversed(range(20))):
        sketch = RowSketch(seed=0, most_nonzeros=700)
        for i in order:
            sketch.add(parts[i])
        rows = sketch.rows()
        assert rows is not None
        assert 0 < len(rows.codes.row) <= 700
        found.append((sketch.share, sorted(rows.row_id.tolist())))
    assert found[0] == found[1]
