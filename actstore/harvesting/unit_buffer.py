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
    # quantised with the whole unit's channel steps, by the writer
    "int8": torch.float32,
}


def buffer_bytes(sites: Sequence[Site], dtype: StorageDtype) -> int:
    """Bytes that one row of all sites takes in a unit's buffers, norms and provenance
    included.
    """
    return sum(site.d * _BUFFER_DTYPE[dtype].itemsize + 4 for site in sites) + 8


@dataclass(slots=True)
class UnitBuffer:
    """Room for one unit on the host. values: per site [capacity, d]; norms: float32
    [n_sites, capacity].
    """

    values: list[Tensor]
    norms: Tensor
    rows: NDArray[np.int32]
    special: NDArray[np.bool_]
    ready: Any = None  # a CUDA event behind the copies to the host

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
        """Buffers for units of up to `capacity` rows."""
        kept = _BUFFER_DTYPE[dtype]
        return cls(
            values=[
                torch.empty(
                    capacity, site.d, dtype=kept, pin_memory=pinned, device=device
                )
                for site in sites
            ],
            norms=torch.empty(len(sites), capacity, pin_memory=pinned, device=device),
            rows=np.empty((capacity, 2), np.int32),
            special=np.empty(capacity, np.bool_),
        )
