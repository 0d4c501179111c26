"""The Python API of a store: rows by slice and in pieces, streams by keywords, and what
notebooks show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.console.notebook import table
from actstore.errors import SiteError, SpecError
from actstore.store.store import Store
from schemas.stream import StreamSpec
from tests.support import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("s") / "store", n_units=5, unit_sequences=3
    )


ENDS = st.one_of(st.none(), st.integers(-700, 700))


@settings(max_examples=40, deadline=None)
@given(
    ENDS,
    ENDS,
    st.one_of(st.none(), st.integers(-5, -1), st.integers(1, 5)),
    st.integers(1, 200),
)
def test_slices_and_pieces_are_rows_in_store_order(
    store: Store, start: int | None, stop: int | None, step: int | None, size: int
) -> None:
    site, asked = store.sites[0], slice(start, stop, step)
    wanted = store.read(site, store.rows()[asked])
    assert np.array_equal(store.read(site, asked), wanted)
    pieces = list(store.read_pieces(site, asked, size))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert np.array_equal(np.concatenate([wanted[:0], *pieces]), wanted)
    assert np.array_equal(
        store.provenance(asked).token, store.provenance(store.rows()[asked]).token
    )
    by_id = list(store.read_pieces(site, store.rows()[asked], size))
    assert np.array_equal(np.concatenate([wanted[:0], *by_id]), wanted)


def test_a_whole_site(store: Store) -> None:
    site = store.sites[1]
    every = store.read(site)
    assert len(every) == store.manifest.n_rows
    assert np.array_equal(every, store.read(site, store.rows()))
    assert np.array_equal(store.read_norms(site), store.read_norms(site, store.rows()))


def test_what_is_no_id_is_refused(store: Store) -> None:
    site = store.sites[0]
    for rows in ([True, False], [0.5], ["a"], np.ones(store.manifest.n_rows, bool)):
        with pytest.raises(IndexError, match="rows are ids, whole numbers"):
            store.read(site, rows)
    assert store.read(site, []).shape == (0, store.site(site).d)
    with pytest.raises(SiteError):
        next(store.read_pieces("nowhere"))
    with pytest.raises(SpecError, match="wanted a count above 0"):
        next(store.read_pieces(site, size=0))


def test_a_stream_takes_the_fields_of_its_spec(store: Store) -> None:
    with store.stream(
        batch="64", rescale="log", sites=store.sites[0], seed=3
    ) as stream:
        assert stream.spec == StreamSpec(
            batch=64, rescale="log", sites=(store.sites[0],), seed=3
        )
        first = next(stream)
    spec = StreamSpec(batch=32, rescale="log", sites=(store.sites[0],), seed=3)
    with store.stream(spec, batch=64) as again:
        assert again.spec == stream.spec
        assert (next(again).row == first.row).all()
    with pytest.raises(
        SpecError,
        match=r"store.stream: bach: there is no such key; did you mean batch\?",
    ):
        store.stream(bach=64)
    with pytest.raises(SpecError, match="rescale: there is no 'lg'"):
        store.stream(StreamSpec(), rescale="lg")


def test_what_is_shown(store: Store) -> None:
    text = repr(store)
    for word in (
        store.url,
        f"{store.manifest.n_rows:,} rows",
        f"{len(store.sites)} sites",
        store.manifest.spec.dtype,
    ):
        assert word in text
    assert store.manifest.content_id in store._repr_html_()
    with store.stream(batch=64, rescale="log") as stream:
        next(stream)
        for word in (
            store.url,
            "batch 64 rows",
            "rescale log",
            "next batch 1 of epoch 0",
            store.sites[0],
        ):
            assert word in repr(stream)
        assert "rescale" in stream._repr_html_()


def test_html_of_strangers_is_escaped(tmp_path: Path) -> None:
    assert "<script" not in table("<script>", [("<script>", '"<script>&')])
    made = make_store(tmp_path / "<script>alert(1)<", n_units=2)
    assert "<script" not in actstore.open(made.url)._repr_html_()
