"""The program that the memory test runs in a process of its own.

It is a harvest of units of some 100 MB, or its estimate.

The model is all width: rows of 1024 values out of a table, so that buffers and not the
model take the memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from actstore.machine.glibc_malloc import keep_freed_memory

WIDTH, CONTEXT, VOCABULARY = 1024, 64, 50
SITES = ("a", "b")


class Wide(nn.Module):
    """Two sites that cost next to nothing to compute; their values are random bits,
    which no codec makes smaller.
    """

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a, self.b = (nn.Embedding(VOCABULARY, WIDTH) for _ in range(2))
        for one in (self.a, self.b):
            one.weight.data = torch.randn(VOCABULARY, WIDTH, generator=g)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.a(tokens)
        out: torch.Tensor = self.b(tokens)
        return out


def main(what: str, out: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Estimates by dtype, or bytes in memory before the harvest and at its peak."""
    torch.set_num_threads(1)
    keep_freed_memory()
    import actstore
    from actstore.harvesting.estimate import estimate
    from actstore.harvesting.process_memory import peak, reset_peak

    n = int(changes.pop("sequences"))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (n, CONTEXT))
    spec, model = {"sites": SITES, **changes}, Wide()
    if what == "plan":
        wanted = {dtype: {**spec, "dtype": dtype} for dtype in ("bfloat16", "int8")}
        return {
            dtype: estimate(one, model=model, tokens=tokens).memory.model_dump()
            for dtype, one in wanted.items()
        }
    actstore.harvest(
        spec | {"unit_sequences": 8}, "memory://first", model=model, tokens=tokens[:16]
    )
    before = reset_peak()
    store = actstore.harvest(spec, out, model=model, tokens=tokens)
    return {
        "before": before,
        "peak": peak(),
        "rows": store.manifest.n_rows,
        "units": store.manifest.n_units,
    }


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(
            main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))
        )
    )
