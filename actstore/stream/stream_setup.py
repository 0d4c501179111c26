"""What a stream is set up from: its order, its plan of loading, and the digests that
pin a state to its store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from blake3 import blake3

from actstore.errors import SiteError, SpecError
from actstore.store.followed import FollowedStore
from actstore.store.store import Store
from actstore.stream.columns import Columns, columns_of
from actstore.stream.mixing import Mix, window_chunks
from actstore.stream.order import Order
from actstore.stream.row_filter import check_acts, kept_rows
from actstore.stream.window_feed import WindowLoads
from actstore.validation import validated
from schemas.stream import StreamSpec, StreamState


def spec_with(spec: StreamSpec | None, fields: Mapping[str, Any]) -> StreamSpec:
    """The spec (or the default one) with some of its fields given anew. Raises
    SpecError in sentences.
    """
    made = spec or StreamSpec()
    given = {name: getattr(made, name) for name in made.model_fields_set}
    return (
        validated(StreamSpec, {**given, **fields}, "store.stream") if fields else made
    )


def digests(
    store: Store, spec: StreamSpec, columns: Columns, window: int
) -> tuple[str, str]:
    """Of what a state pins: the units and sites; the spec but for what changes no
    batch, and the window.
    """
    units = "".join(
        generation.units_digest for generation in store.manifest.generations
    )
    # these grow; the rest does not
    layout = store.layout.model_copy(update={"n_sequences": 1, "n_units": 1})
    pinned = blake3(f"{units} {layout.to_json()} {columns.planes}".encode()).hexdigest()
    fixed = spec.model_copy(
        update={"memory": 1, "epochs": None, "limit_rows": None, "window_chunks": None}
    )
    return pinned, blake3(f"{fixed.to_json()} {window}".encode()).hexdigest()


def order_of(
    store: Store, spec: StreamSpec, columns: Columns, value_bytes: int
) -> tuple[Mix, Order]:
    units = np.array(store.units(spec.split), np.int64)
    followed = store if isinstance(store, FollowedStore) and spec.follow else None
    if followed is None and len(units):
        units = units[store.unit_rows[units] > 0]
    if not len(units):
        raise SpecError(
            f"{store.url}: there are no {spec.split} rows; a store of fewer than 20"
            " units has none held out"
        )
    if spec.filter is not None:
        check_acts(store, spec.filter)
    kept = (
        None
        if spec.filter is None
        else kept_rows(store, spec.filter, units, columns.sites)
    )
    # Filtered chunks differ in their numbers of rows, so that sites share places: as
    # far as that, they mix as one.
    mix = Mix(
        store.layout,
        len(units),
        (1,) if kept else columns.copies,
        followed.group_units if followed else 0,
    )
    place_bytes = (
        len(columns.label)
        * sum(columns.widths(store))
        * store.layout.chunk_rows
        * value_bytes
    )
    rows = (
        np.zeros(len(units), np.int64)
        if followed
        else store.unit_rows[units].astype(np.int64)
    )
    order = Order(
        layout=store.layout,
        unit_ids=units,
        unit_rows=rows,
        columns=tuple(store.sites.index(name) for name in columns.planes[0]),
        window_chunks=window_chunks(mix, place_bytes, spec),
        lanes=spec.lanes,
        batch=spec.batch,
        seed=spec.seed,
        kept=kept,
        group_units=mix.group_units,
        released=None if followed is None else followed.releaser(units, rows),
    )
    return mix, order


def load_plan(
    order: Order,
    epoch: int,
    row: int,
    epochs: int | None,
    lanes: tuple[int, int],
    stopped: Callable[[], bool],
) -> WindowLoads:
    """Windows and the chunks to load for them, over the ends of epochs. Holds no
    stream: it may outlive one.
    """
    while epochs is None or epoch < epochs:
        for window in order.windows(epoch, row, stopped):
            yield window, window.chunks(*lanes, order.lanes)
        epoch, row = epoch + 1, 0


def pinned(store: Store, spec: StreamSpec, state: StreamState) -> Store:
    """The store as it was when the state was taken. Raises SpecError where the state is
    of another store.
    """
    for n in range(len(store.manifest.generations) - 1, 0, -1):
        before = store.before(n)
        try:
            columns = columns_of(before, spec)
        except SiteError:
            continue
        if digests(before, spec, columns, 0)[0] == state.store:
            return before
    raise SpecError(
        f"{store.url}: this state is of another store (its units or sites differ); open"
        " the one that the stream was of"
    )
