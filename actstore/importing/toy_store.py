"""Makes a store of toy data, whose true features are known and kept beside it.

It comes through the same door as any other import, so that all that takes a store takes
this one (docs/methods.md, section 4).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.harvesting.progress import Report
from actstore.importing.import_activations import Stored, import_activations
from actstore.importing.known_features import KnownFeatures
from actstore.store.store import Store
from actstore.store.true_features import write_true_features
from actstore.validation import validated
from schemas.toy import FeatureSpec

SITE = "toy"
MODEL = "toy data"
BLOCK_ROWS = 4096  # rows that are made at once
# So many units that several are held out (every twentieth is).
N_UNITS = 40
DEFAULT_ROWS = 500_000


@checked(
    out=arguments.folder,
    rows=arguments.count,
    options=optional(arguments.mapping),
    progress=optional(arguments.callback),
)
def make_toy_store(
    out: str | os.PathLike[str],
    spec: FeatureSpec | dict[str, Any] | None = None,
    *,
    rows: int | str = DEFAULT_ROWS,
    options: dict[str, Any] | None = None,
    progress: Report | None = None,
    **stored: Unpack[Stored],
) -> Store:
    """Make a store of toy data: sparse sums of known features.

    The same spec and rows give the same values on any machine of the same libraries.
    `features.safetensors` and `features.json` in the store's folder hold the features.

    Args:
        out: Where the store goes: any fsspec URL.
        spec: What rows are made of; None for 512 features in 256 dimensions.
        rows: How many rows: 500_000 or "500k".
        options: Options of `out`'s file system.
        progress: Is told how far it is.
        **stored: How values are stored, as in an import.

    Returns:
        The finished store, of one site called `toy`.

    Raises:
        SpecError: An option cannot be used.
        ExistsError: A store is there already.

    Examples:
        >>> from actstore.importing.toy_store import make_toy_store
        >>> store = make_toy_store("toy", {"d": 8, "n_features": 16, "l0": 2}, rows=800)
        >>> store.read("toy").shape
        (800, 8)
    """
    n_rows = arguments.count(rows)
    checked_spec = validated(FeatureSpec, spec or {}, "the toy data")
    known = KnownFeatures(checked_spec)
    if stored.get("unit_sequences") is None:
        # Rows without contexts are sequences of their own.
        stored["unit_sequences"] = max(1, -(-n_rows // N_UNITS))
    store = import_activations(
        _blocks(known, n_rows),
        out,
        site=SITE,
        rows=n_rows,
        model=MODEL,
        options=options,
        progress=progress,
        **stored,
    )
    write_true_features(store, SITE, known.directions, checked_spec)
    return store


def _blocks(known: KnownFeatures, n_rows: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows, float32 [block, d]."""
    for block, first in enumerate(range(0, n_rows, BLOCK_ROWS)):
        yield known.rows(block, min(BLOCK_ROWS, n_rows - first))
