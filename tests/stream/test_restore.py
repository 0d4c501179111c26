"""A stream restored at every batch of two epochs goes on as if nothing had happened:
rows, layers and values, by bytes.

Every state goes through JSON text, every rest is streamed by a new handle, and the
thread count changes from one to the next. Ranks are joined: what all of them deliver
for a batch is the undisturbed run's batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import actstore
from actstore.errors import SpecError
from actstore.store.store import Store
from actstore.stream.stream import Batch
from schemas.stream import StreamSpec, StreamState
from tests.support import make_store

BASE: dict[str, Any] = {"batch": 160, "window_chunks": 8, "lanes": 4, "epochs": 2}
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16, some sites": {
        "dtype": "bfloat16",
        "sites": ("blocks.0.*", "blocks.2.*"),
        "batch": 107,
    },
    "rescaled": {"rescale": "sqrt", "center": True, "seed": 5},
    "limited": {"limit_rows": 7001},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Units of unequal numbers of rows, with partial chunks."""
    return make_store(
        tmp_path_factory.mktemp("restore") / "store",
        n_units=25,
        unit_sequences=2,
        padded=True,
    )


def spec(**changes: Any) -> StreamSpec:
    return StreamSpec.model_validate({**BASE, **changes})


def bytes_of(batch: Batch) -> tuple[bytes, bytes, bytes]:
    """Values, layers and rows of a batch, as they lie in memory."""
    x = batch.x.view(torch.int16) if batch.x.dtype == torch.bfloat16 else batch.x
    return (
        x.numpy().tobytes(),
        batch.layer.numpy().tobytes(),
        batch.row.numpy().tobytes(),
    )


def undisturbed(
    store: Store, one: StreamSpec, **runtime: Any
) -> tuple[list[Batch], list[str]]:
    """All batches, and the state before each and after the last, as JSON."""
    with store.stream(one, threads=2, **runtime) as stream:
        states, batches = [stream.state().to_json()], []
        for batch in stream:
            batches.append(batch)
            states.append(stream.state().to_json())
    return batches, states


def read_again(text: str) -> StreamState:
    """As it comes back from a file that some other program has rewritten."""
    return StreamState.model_validate(json.loads(json.dumps(json.loads(text))))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_the_rest_is_the_same_from_every_batch(store: Store, name: str) -> None:
    one = spec(**SPECS[name])
    batches, states = undisturbed(store, one)
    wanted = [bytes_of(batch) for batch in batches]
    assert len(set(wanted)) == len(wanted)
    assert 40 <= len(batches) <= 80
    for i, state in enumerate(states):
        with actstore.open(store.url).stream(one, threads=(1, 3, 2)[i % 3]) as again:
            again.restore(read_again(state))
            assert again.state().to_json() == state
            assert [bytes_of(batch) for batch in again] == wanted[i:], f"batch {i}"


def test_one_stream_jumps_to_any_batch_in_any_order(store: Store) -> None:
    one = spec()
    batches, states = undisturbed(store, one)
    with store.stream(one) as stream:
        for i in np.random.default_rng(0).permutation(len(batches)):
            stream.restore(read_again(states[i]))
            assert bytes_of(next(stream)) == bytes_of(batches[i])
            assert stream.state().to_json() == states[i + 1]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_restored_at_every_batch_deliver_the_same_batches_together(
    store: Store, world: int
) -> None:
    """The state is of one process; each of `world` others goes on from it."""
    one = spec(rescale="log")
    batches, states = undisturbed(store, one)
    wanted = [rows_by_id([batch]) for batch in batches]
    for i, state in enumerate(states[:-1]):
        parts = [
            from_state(store, one, state, rank, world, 3 if i % 10 else len(batches))
            for rank in range(world)
        ]
        for k, together in enumerate(zip(*parts, strict=True), i):
            assert sum(len(part.row) for part in together) == len(batches[k].row)
            assert rows_by_id(together) == wanted[k], f"restored at {i}, batch {k}"


def test_a_rank_of_many_hands_its_state_to_one_process(store: Store) -> None:
    one = spec()
    batches, states = undisturbed(store, one)
    for rank, world in ((0, 2), (1, 2), (3, 4)):
        mine, of_rank = undisturbed(store, one, rank=rank, world=world)
        assert of_rank == states
        assert len(mine) == len(batches)
        with store.stream(one) as stream:
            stream.restore(read_again(of_rank[17]))
            assert [bytes_of(batch) for batch in stream] == [
                bytes_of(batch) for batch in batches[17:]
            ]


def rows_by_id(parts: Any) -> dict[tuple[int, int], bytes]:
    """(layer, row id) -> the bytes of its values, over the parts of one batch."""
    return {
        (int(layer), int(row)): x.numpy().tobytes()
        for part in parts
        for layer, row, x in zip(part.layer, part.row, part.x, strict=True)
    }


def from_state(
    store: Store, one: StreamSpec, state: str, rank: int, world: int, n: int
) -> list[Batch]:
    """At most n batches of a rank from a state on."""
    with store.stream(one, rank=rank, world=world, threads=1) as stream:
        stream.restore(read_again(state))
        return [batch for batch, _ in zip(stream, range(n), strict=False)]


def test_what_changes_no_batch_may_change(store: Store) -> None:
    batches, states = undisturbed(store, spec())
    more = spec(epochs=3, limit_rows=10**6)
    with store.stream(more) as stream:
        stream.restore(read_again(states[-1]))
        assert stream.state().epoch == 1
        assert len(list(stream)) == len(batches) // 2, "the third epoch"


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 161},
        {"seed": 1},
        {"window_chunks": 12},
        {"lanes": 8},
        {"split": "held_out"},
        {"sites": ("blocks.0.*",)},
        {"rescale": "sqrt"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_state_of_another_spec_is_refused(
    store: Store, change: dict[str, Any]
) -> None:
    state = store.stream(spec()).state()
    with store.stream(spec(**change)) as stream:
        first = stream.state()
        with pytest.raises(
            SpecError, match=r"another (StreamSpec|store).*(resume with|open) the"
        ):
            stream.restore(state)
        assert stream.state() == first, "a refused state must change nothing"


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"n_units": 24}, {"codec": "raw"}, {"padded": False}],
    ids=str,
)
def test_a_state_of_another_store_is_refused(
    store: Store, tmp_path: Path, options: dict[str, Any]
) -> None:
    other = make_store(
        tmp_path / "other",
        **{"n_units": 25, "unit_sequences": 2, "padded": True, **options},
    )
    with (
        other.stream(spec()) as stream,
        pytest.raises(
            SpecError, match=rf"^{other.url}: this state is of another store"
        ),
    ):
        stream.restore(store.stream(spec()).state())


def test_a_copy_of_the_store_elsewhere_is_the_same_store(
    store: Store, tmp_path: Path
) -> None:
    copy = make_store(tmp_path / "copy", n_units=25, unit_sequences=2, padded=True)
    batches, states = undisturbed(store, spec())
    with copy.stream(spec()) as stream:
        stream.restore(read_again(states[40]))
        assert [bytes_of(batch) for batch in stream] == [
            bytes_of(batch) for batch in batches[40:]
        ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 99}, "upgrade"),
        ({"epoch": -1}, "epoch"),
        ({"batch": "x"}, "batch"),
        ({"position": 3}, "position"),
    ],
    ids=str,
)
def test_a_state_of_a_newer_version_or_no_state_is_refused(
    store: Store, change: dict[str, Any], named: str
) -> None:
    state = {**json.loads(store.stream(spec()).state().to_json()), **change}
    with pytest.raises((ValidationError, SpecError), match=named):
        store.stream(spec()).restore(StreamState.model_validate_json(json.dumps(state)))


def test_a_refused_state_leaves_the_stream_where_it_was(store: Store) -> None:
    batches, states = undisturbed(store, spec())
    with store.stream(spec()) as stream:
        for _ in range(3):
            next(stream)
        for change in ({"spec": "0"}, {"store": "0"}, {"batch": 10**6}, {"version": 2}):
            with pytest.raises(SpecError):
                stream.restore(read_again(states[5]).model_copy(update=change))
        assert [bytes_of(batch) for batch in stream] == [
            bytes_of(batch) for batch in batches[3:]
        ]
