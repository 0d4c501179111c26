"""Streams from stores that grow: while they are harvested, and after they were
extended.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import actstore
from actstore.errors import NotAStoreError, SpecError, StoreError
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.extend import extend
from actstore.harvesting.store_writer import StoreWriter
from actstore.store.followed import FollowedStore
from actstore.stream.stream import Batch
from schemas.harvest import Plan
from schemas.stream import StreamSpec
from tests.support import low_rank, make_plan, make_tokens, unit_rows

FOLLOW = StreamSpec(follow=True, batch=50, window_chunks=4, lanes=2)


class Growing:
    """A harvest that goes on by hand: `commit` adds the next unit."""

    def __init__(
        self, folder: Path, n_units: int = 40, ends_after: int | None = None
    ) -> None:
        self.url, self.plan = str(folder), make_plan(n_units=n_units, unit_sequences=2)
        self.writer = StoreWriter.create(Storage(self.url), self.plan)
        self.last = n_units - 1 if ends_after is None else ends_after
        self.done = 0

    def commit(self, n: int = 1) -> None:
        for unit in range(self.done, self.done + n):
            tokens = make_tokens(self.plan, unit)
            block = self.writer.commit_block(
                unit, tokens, {"unit": unit + 1}, last=unit == self.last
            )
            self.writer.commit_unit(
                unit_rows(self.plan, unit, tokens, low_rank(self.plan)), block
            )
        self.done += n

    def finish(self) -> None:
        self.commit(self.last + 1 - self.done)
        self.writer.finish()
        self.writer.close()


def follow(url: str) -> FollowedStore:
    return FollowedStore(
        Storage(url),
        Plan.model_validate_json(Storage(url).read(object_keys.plan_key())),
        poll_s=0.01,
    )


def test_a_store_that_is_followed_shows_itself(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "store")
    growing.commit(6)
    store = follow(growing.url)
    assert "not finite" not in store._repr_html_()
    assert "5 units so far" in repr(store)
    growing.writer.close()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("thing", ["pipe", "link"])
def test_a_unit_that_is_no_file_is_an_error_and_no_wait(
    tmp_path: Path, thing: str
) -> None:
    growing = Growing(tmp_path / "store")
    growing.commit(6)
    record = tmp_path / "store" / object_keys.unit_key(2)
    record.unlink()
    if thing == "pipe":
        os.mkfifo(record)
    else:
        record.symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        StoreError, match=f"{object_keys.unit_key(2)}|outside of the folder"
    ):
        follow(growing.url)
    growing.writer.close()


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y)
        for m, n in zip(a, b, strict=True)
        for x, y in zip(m[:3], n[:3], strict=True)
    )


@pytest.mark.timeout(200)
@pytest.mark.parametrize("ends_after", [None, 23])
def test_following_a_harvest_gives_every_row_once_in_groups_of_units(
    tmp_path: Path, ends_after: int | None
) -> None:
    growing = Growing(tmp_path / "store", ends_after=ends_after)
    growing.commit(6)
    store = follow(growing.url)
    assert store.group_units == 5  # an eighth of 40
    got, seen = [], threading.Event()

    def consume() -> None:
        with store.stream(FOLLOW) as stream:
            for batch in stream:
                got.append(batch)
                seen.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert seen.wait(20)  # the first group is enough
    time.sleep(0.2)
    assert max(int(b.row.max()) for b in got) < 5 * store.layout.capacity
    growing.finish()
    thread.join(30)
    assert not thread.is_alive()
    finished = actstore.open(growing.url)
    rows, layer = (
        torch.cat([b.row for b in got]).numpy(),
        torch.cat([b.layer for b in got]).numpy(),
    )
    x = torch.cat([b.x for b in got]).numpy()
    for i, site in enumerate(store.sites):
        np.testing.assert_array_equal(np.sort(rows[layer == i]), finished.rows("train"))
        np.testing.assert_array_equal(
            x[layer == i], finished.read(site, rows[layer == i])
        )
    again = list(follow(growing.url).stream(FOLLOW))
    assert same(again, got)  # now that the harvest has ended, the same


@pytest.mark.timeout(200)
def test_a_stream_that_follows_resumes_and_keeps_its_rescaling(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "store")
    growing.commit(14)
    one = FOLLOW.model_copy(update={"rescale": "sqrt_d"})
    with follow(growing.url).stream(one) as stream:
        for _ in range(7):
            next(stream)
        state, scale = stream.state(), stream.rescaling.scale
        norms = stream.store.norms["blocks.0.hook_mlp_out"].all
    assert norms.count == 5 * 2 * 32  # of the first group
    growing.finish()
    whole = list(follow(growing.url).stream(one))
    with follow(growing.url).stream(one) as later:
        later.restore(state)
        np.testing.assert_array_equal(later.rescaling.scale, scale)
        assert same(list(later), whole[7:])
    with pytest.raises(SpecError, match="another store"):
        actstore.open(growing.url).stream(
            one.model_copy(update={"follow": False})
        ).restore(state)


@pytest.mark.timeout(300)
def test_closing_while_it_waits_for_units_ends_all_threads(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "store")
    growing.commit(6)
    stream = follow(growing.url).stream(FOLLOW)
    next(stream)
    began = time.perf_counter()
    stream.close()
    assert time.perf_counter() - began < 5
    assert not [t.name for t in threading.enumerate() if t.name.startswith("stream-")]
    growing.writer.close()


def test_where_nothing_was_begun_there_is_nothing_to_follow(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="start it first"):
        actstore.open(tmp_path, follow=True)


def test_what_needs_the_whole_store_is_refused_while_it_grows(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "store")
    growing.commit(6)
    store = follow(growing.url)
    with pytest.raises(SpecError, match="not all known yet"):
        store.rows()
    with pytest.raises(SpecError, match="not all known yet"):
        store.stream(FOLLOW.model_copy(update={"follow": False}))
    growing.writer.close()


@pytest.mark.parametrize("sites", [None, ("blocks.*.hook_mlp_out",)])
def test_a_stream_goes_on_in_a_store_that_was_extended_since(
    tmp_path: Path, sites: tuple[str, ...] | None
) -> None:
    url = str(tmp_path / "store")
    spec = {
        "sites": "blocks.{1,3}.hook_mlp_out",
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "context": 32,
    }
    actstore.harvest({**spec, "tokens": 24 * 64, "unit_sequences": 2, "batch": 2}, url)
    one = StreamSpec(sites=sites, batch=64, epochs=2, rescale="unit", center=True)
    with actstore.open(url).stream(one) as stream:
        wanted, began = list(stream), stream.store.manifest
    stream = actstore.open(url).stream(one)
    for _ in range(5):
        next(stream)
    state = stream.state()
    stream.close()
    extend(url, tokens=6 * 64)
    extend(url, sites="blocks.2.hook_mlp_out")
    grown = actstore.open(url)
    with grown.stream(one) as longer:
        assert longer.rows_per_epoch > sum(len(b.row) for b in wanted) // 2
        longer.restore(state)
        assert longer.sites == stream.sites
        assert same(list(longer), wanted[5:])
        grows = {"layout", "spec", "files", "numerics", "n_bytes", "parent"}
        assert longer.store.manifest.model_dump(exclude=grows) == began.model_dump(
            exclude=grows
        )
    with pytest.raises(SpecError, match="another store"):
        grown.stream(one).restore(state.model_copy(update={"store": "0"}))
