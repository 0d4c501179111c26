"""How far a recomputed figure may be from the stored one.

Allowances follow from how numbers are rounded, never from what is usual. With the unit
roundoff u of a format (2^-24 in float32, 2^-11 in float16, 2^-8 in bfloat16: half the
distance from 1 to the next number), a stored value is within u times itself of the
value before the cast, and a sum of n products in float32 within n * u of the sum of
their absolute values (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
section 3.1). int8 values are half a step of their channel and row away at most.

How far a whole forward of a language model may be off follows from no such bound that
would be of use: errors of a layer are passed on and mixed by those after it. It is
taken as `ROUNDINGS` unit roundoffs of what the model computes in. That is more than a
forward in that precision differs from one in a higher precision (tests hold it to
that), so other sizes of batches, threads, padding, versions and processors stay below
it; rows of other tokens, sites or models are above it. A model that magnifies its own
rounding beyond that is allowed more, as much as is measured (`own_rounding.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Half of the smallest positive number: what rounding may lose of a value near zero.
_HALF_OF_SMALLEST = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
ROUNDINGS = {"float32": 1 << 12, "float16": 1 << 7, "bfloat16": 1 << 6}
# Errors are spread over the channels of a row, also over those that are near zero: each
# may have so many times the mean size of a value.
_SPREAD = 4
# A square below this is lost to float32, so a norm may lack sqrt(d) of its root.
_LOST_SQUARE = 2.0**-149
# Operations on a value besides the sum: a shift, a product, a root.
_OTHERS = 8


class Quantised(NamedTuple):
    """How coarse the rows of an int8 store are.

    Attributes:
        scale: Scale of each row, float64 [n]; NaN where the row is not finite.
        mean: Mean of each channel, float64 [d].
        step: Step of each channel, float64 [d].
    """

    scale: Floats
    mean: Floats
    step: Floats

    def element_error(self) -> Floats:
        """Return how far each value may be from the one quantised, float64 [n, d].

        That is half a step, and the rounding of a mean, a step and their products in
        float32.
        """
        half = self.scale[:, None] * self.step / 2
        largest = np.abs(self.mean) + 128 * self.scale[:, None] * self.step
        error: Floats = half + _OTHERS * UNIT_ROUNDOFF["float32"] * largest
        return error


def of_norms(norms: Floats, d: int, quantised: Quantised | None) -> Floats:
    """Return how far stored L2 norms, float32, may be from exact ones, float64 [n].

    Args:
        norms: The exact norms of the stored rows, float64 [n].
        d: Values of a row.
        quantised: How coarse the rows are; None: they are stored as they were measured.
    """
    # A root halves the relative error of its sum of d squares.
    u = UNIT_ROUNDOFF["float32"]
    allowed: Floats = (d / 2 + _OTHERS) * u * norms + np.sqrt(d * _LOST_SQUARE)
    if quantised is None:
        return allowed
    coarse = np.linalg.norm(quantised.element_error(), axis=1)
    whole: Floats = 2 * allowed + coarse
    return whole


def of_stored_values(
    computed: Floats, dtype: str, quantised: Quantised | None
) -> Floats:
    """Return how far storing may move values, float64 [n, d].

    Args:
        computed: The values before they are stored, float64 [n, d].
        dtype: The storage dtype.
        quantised: How coarse the rows are, for int8.
    """
    if quantised is not None:
        return quantised.element_error()
    error: Floats = UNIT_ROUNDOFF[dtype] * np.abs(computed) + _HALF_OF_SMALLEST[dtype]
    return error


def of_forward(computed: Floats, dtype: str, times: float = 1) -> Floats:
    """Return how far values may move that are computed again, float64 [n, d].

    Args:
        computed: The values, float64 [n, d].
        dtype: The coarsest dtype that the model computes in.
        times: So many times what is usual.
    """
    mean_size = np.sqrt(np.square(computed).mean(axis=1, keepdims=True))
    relative = times * ROUNDINGS[dtype] * UNIT_ROUNDOFF[dtype]
    allowed: Floats = relative * (np.abs(computed) + _SPREAD * mean_size)
    return allowed


def of_rows(
    computed: Floats, dtype: str, of_storing: Floats, times: float = 1
) -> Floats:
    """Return how far a row may move as a whole, in L2 norm, float64 [n].

    Args:
        computed: The rows, float64 [n, d].
        dtype: The coarsest dtype that the model computes in.
        of_storing: How far storing may move each value, float64 [n, d].
        times: So many times what is usual of a forward.
    """
    relative = times * ROUNDINGS[dtype] * UNIT_ROUNDOFF[dtype]
    norms = np.linalg.norm(computed, axis=1)
    allowed: Floats = relative * norms + np.linalg.norm(of_storing, axis=1)
    return allowed


def coarsest(*dtypes: str | None) -> str:
    """Return the coarsest of some dtypes; one that is not known counts as bfloat16."""
    given = [dtype for dtype in dtypes if dtype is not None]
    known = [dtype if dtype in UNIT_ROUNDOFF else "bfloat16" for dtype in given]
    return max(known, key=UNIT_ROUNDOFF.__getitem__)
