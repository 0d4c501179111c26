"""Memory for the rows of one unit, made once and used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.source import Site, StorageDtype

_BUFFER_DTYPE = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    # The writer quantises: the steps of the channels are known with the whole unit.
    "int8": torch.float32,
}
_NORM_BYTES = 4  # float32
_PROVENANCE_BYTES = 8  # sequence and position, int32 each


def buffer_bytes(sites: Sequence[Site], dtype: StorageDtype) -> int:
    """Return the bytes that one row of all sites takes in a unit's buffer.

    Its norms and where it comes from are among them.
    """
    value_bytes = _BUFFER_DTYPE[dtype].itemsize
    per_site = [site.d * value_bytes + _NORM_BYTES for site in sites]
    return sum(per_site) + _PROVENANCE_BYTES


@dataclass(slots=True)
class UnitBuffer:
    """Room for the rows of one unit, on the host or on a device.

    Attributes:
        values: One for each site, [capacity, d].
        norms: float32 [n_sites, capacity].
        rows: Where each row comes from, int32 [capacity, 2]: sequence and position.
        special: bool [capacity], whether a row is a special token's or a sequence's
            first.
        ready: A CUDA event that has passed when the copies to the host are over; None
            where nothing is copied.
    """

    values: list[Tensor]
    norms: Tensor
    rows: NDArray[np.int32]
    special: NDArray[np.bool_]
    ready: Any = None

    @classmethod
    def make(
        cls,
        sites: Sequence[Site],
        capacity: int,
        dtype: StorageDtype,
        *,
        pinned: bool = False,
        device: torch.device | None = None,
    ) -> UnitBuffer:
        """Return a buffer for up to `capacity` rows of a storage dtype.

        Args:
            sites: The sites that are harvested.
            capacity: How many rows there is room for.
            dtype: How the store keeps them.
            pinned: Whether it lies in pinned memory, for copies from a GPU.
            device: Where `values` and `norms` lie; None: on the host.
        """
        value_dtype = _BUFFER_DTYPE[dtype]
        values = [
            torch.empty(
                capacity, site.d, dtype=value_dtype, pin_memory=pinned, device=device
            )
            for site in sites
        ]
        norms = torch.empty(len(sites), capacity, pin_memory=pinned, device=device)
        return cls(
            values=values,
            norms=norms,
            rows=np.empty((capacity, 2), np.int32),
            special=np.empty(capacity, np.bool_),
        )
