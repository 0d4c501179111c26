"""The store of the benchmark on known features: 16,384 of them in 768 dimensions, with
trees, topics, a bias and a little noise, in the manner of SynthSAEBench.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from actstore.importing.known_features import Firings, KnownFeatures
from actstore.store.store import Store
from schemas.toy import FeatureSpec
from tests.support import make_store

SITE = "known"
CONTEXT, UNIT_SEQUENCES = 128, 32
UNIT_ROWS = CONTEXT * UNIT_SEQUENCES
SUPERPOSED = FeatureSpec(
    n_features=16_384,
    d=768,
    l0=25.0,
    n_roots=128,
    n_topics=32,
    magnitudes=(5.0, 4.0),
    bias=5.0,
    noise=0.02,
)


def make_known_store(folder: Path, known: KnownFeatures, rows: int) -> Store:
    """A bfloat16 store of (about) so many rows at one site; unit k holds block k."""
    return make_store(
        folder,
        {SITE: known.spec.d},
        lambda _site, sequence, _position: known.rows(
            int(sequence[0]) // UNIT_SEQUENCES, len(sequence)
        ),
        n_units=max(20, round(rows / UNIT_ROWS)),
        unit_sequences=UNIT_SEQUENCES,
        context=CONTEXT,
        chunk_rows=1024,
    )


def firings_of_unit(known: KnownFeatures, store: Store, unit: int) -> Firings:
    """Firings on a unit's rows as they lie in such a store, which is not the order in
    which they were made.
    """
    n = int(store.unit_rows[unit])
    where = store.provenance(np.arange(n) + unit * store.layout.capacity)
    made = (where.sequence - unit * UNIT_SEQUENCES) * CONTEXT + where.position
    fired = known.firings(unit, n)
    return fired._replace(row=np.argsort(made)[fired.row])
