"""The order of a stream from its spec and its store.

It says which units, which filter and which window there are.
"""

from __future__ import annotations

from typing import NamedTuple

from actstore.store.followed import finished_store
from actstore.store.streamed_store import StreamedStore
from actstore.stream.columns import Columns
from actstore.stream.group_cells import KeptRows
from actstore.stream.mixing import Mix, window_chunks
from actstore.stream.order import Order
from actstore.stream.row_filter import check_filter_is_not_inert, kept_rows
from actstore.stream.unit_source import UnitSource, unit_source
from schemas.stream import StreamSpec


class StreamOrder(NamedTuple):
    """The order of a stream's rows, and the units that they come from.

    Attributes:
        units: The units that the rows come from.
        order: Their order.
        mix: All that their mixing depends on, except for the window.
    """

    units: UnitSource
    order: Order
    mix: Mix


def order_from_spec(
    store: StreamedStore, spec: StreamSpec, columns: Columns, value_bytes: int
) -> StreamOrder:
    """Return the order of a stream.

    Args:
        store: The store that is streamed.
        spec: What is asked for.
        columns: What the stream's columns read.
        value_bytes: Bytes of one value of a row in memory.

    Raises:
        SpecError: There are no rows, or not even the smallest window fits into
            `spec.memory`.
        NoRowsError: The filter keeps no row.
    """
    units = unit_source(store, spec)
    kept = _kept_rows(store, spec, columns, units)
    # Filtered chunks differ in their numbers of rows, and in a cell all sites have
    # chunks of one number: often the very same chunk. So they are taken as one site,
    # which is the worst that the mixing can be.
    copies = columns.copies if kept is None else (1,)
    mix = Mix(store.layout, len(units.unit), copies, units.group_units)
    values_per_row = len(columns.label) * sum(columns.widths(store))
    cell_bytes = values_per_row * store.layout.chunk_rows * value_bytes
    # By number in the store and not among the streamed ones: which other sites are
    # streamed does not change a site's own order.
    first_sites = tuple(store.sites.index(name) for name in columns.planes[0])
    order = Order(
        layout=store.layout,
        columns=first_sites,
        window_chunks=window_chunks(mix, cell_bytes, spec),
        lanes=spec.lanes,
        seed=spec.seed,
        kept=kept,
    )
    return StreamOrder(units, order, mix)


def _kept_rows(
    store: StreamedStore, spec: StreamSpec, columns: Columns, units: UnitSource
) -> KeptRows | None:
    """Return the rows that the spec's filter keeps; None where it has no filter."""
    if spec.filter is None:
        return None
    finished = finished_store(store)
    check_filter_is_not_inert(finished, spec.filter)
    return kept_rows(finished, spec.filter, units.unit, columns.sites)
