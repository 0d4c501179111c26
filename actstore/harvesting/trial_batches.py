"""Runs a few batches of a harvest on this machine, to estimate the whole of it.

They tell how fast the model is, alone and while rows are kept, and give some rows.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.harvesting.fill_unit_buffer import RowCollector
from actstore.harvesting.model_inputs import autocast, model_inputs
from actstore.harvesting.process_memory import peak, reset_peak
from actstore.harvesting.sealed_unit import SealedUnit, seal
from actstore.harvesting.token_filter import TokenFilter
from actstore.harvesting.unit_buffer import UnitBuffer
from actstore.model.forward import device_of
from actstore.model.load_model import LoadedModel
from actstore.model.tap import Sink, Tap
from schemas.harvest import HarvestSpec


class Calibration(NamedTuple):
    """The time and memory that some batches of a harvest took, and their rows.

    Attributes:
        forward_s: Seconds per token of the model alone.
        harvest_s: Seconds per token of the model and of collecting its rows.
        kept: Rows per token.
        forward_bytes: How much the process grew with the first forward, in bytes.
        rows: The rows of the batches, as if they were a unit.
        device: The kind of device that the model is on: `cpu`, `cuda`.
    """

    forward_s: float
    harvest_s: float
    kept: float
    forward_bytes: int
    rows: SealedUnit
    device: str


def calibrate(
    spec: HarvestSpec, loaded: LoadedModel, tap: Tap, tokens: NDArray[np.int32]
) -> Calibration:
    """Run each batch twice, with and without keeping rows, and measure both.

    One more forward comes before, to warm up.

    Args:
        spec: The harvest's spec.
        loaded: The model.
        tap: The tap at the spec's sites.
        tokens: int32 [n, context], -1 where there is padding.
    """
    device = device_of(loaded.module)
    collector = RowCollector(
        sites=tap.sites,
        special_tokens=np.array(loaded.info.special_tokens, np.int32),
        device=device,
        filter=TokenFilter.of(spec, loaded.info),
    )
    buffer = UnitBuffer.make(
        tap.sites,
        tokens.size,
        spec.dtype,
        device=None if device.type == "cpu" else device,
    )
    collector.begin_unit(buffer)
    batches = [
        tokens[start : start + spec.batch]
        for start in range(0, len(tokens), spec.batch)
    ]

    def forward_s(batch: NDArray[np.int32], sink: Sink) -> float:
        """Return the seconds of one forward on a batch, int32 [b, context]."""
        ids, mask = model_inputs(batch, loaded.pad, device)
        began = time.perf_counter()
        with autocast(spec.autocast, device):
            tap.run(ids, mask, sink)
        # A GPU goes on working after the call has returned.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    # The first forward also loads kernels and makes the allocator grow, so its time is
    # not used. Its memory is: later forwards take the same.
    bytes_before = reset_peak()
    forward_s(batches[0], _drop)
    forward_bytes = max(0, peak() - bytes_before)
    alone: list[float] = []
    keeping: list[float] = []
    # The two ways take turns: if the machine slows down meanwhile, it slows down both.
    for i, batch in enumerate(batches):
        alone.append(forward_s(batch, _drop) / batch.size)
        collector.begin_batch(batch, i * spec.batch)
        keeping.append(forward_s(batch, collector.add_values) / batch.size)
    # `seal` wants a unit in the host's memory. A harvest copies it there from a staging
    # buffer; here the unit's own buffer is on the device.
    if device.type != "cpu":
        buffer.values = [value.cpu() for value in buffer.values]
        buffer.norms = buffer.norms.cpu()
    rows = seal(collector.finish_unit(0, len(tokens)))
    median_alone = float(np.median(alone))
    median_keeping = float(np.median(keeping))
    return Calibration(
        forward_s=median_alone,
        # With few batches the model alone may happen to have been the slower way.
        harvest_s=max(median_alone, median_keeping),
        kept=len(rows.rows) / tokens.size,
        forward_bytes=forward_bytes,
        rows=rows,
        device=device.type,
    )


def _drop(_site: int, _values: Tensor) -> None:
    """Take a site's values and keep nothing."""
