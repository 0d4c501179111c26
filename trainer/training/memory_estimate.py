"""What training takes of a device's memory, before it begins, and groups of SAEs that
fit into it.

A group's SAEs are all in memory, with gradients and optimiser state; their steps come
one after the other, so of the activations only the largest count; the stream's windows
come once. Factors of activations were measured as peaks of resident memory over a step
on a CPU (`tests/trainer/test_sweep.py` holds them to it).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from actstore.format.dtypes import numpy_dtype
from actstore.store.store import Store
from actstore.stream.stream import Stream, StreamWarning
from schemas.sae import (
    BatchTopK,
    Crosscoder,
    Matryoshka,
    ReluL1,
    SaeSpec,
    TopK,
    Transcoder,
)
from schemas.train import TrainSpec
from trainer.kernels.topk_select import ROOM
from trainer.saes.build import build
from trainer.training.run_stream import shared_stream

# float32 [B, m] at the peak, by kind: what autograd keeps, gradients, masks
DENSE = {
    "relu_l1": 3.5,
    "decoder_norm": 4.5,
    "gated": 7.7,
    "jumprelu": 4.7,
    "nsae": 5.5,
    "mlp_encoder": 3.6,
}
# of [B, m] on a CPU, all told (kernels/dense.py): 1.6 to 3.6, as the heap's gaps fall
IN_CACHE = {"relu_l1": 3.6}
# of [B, m] on a CPU: a heap that keeps freed memory (allocator.py) has gaps between
# what lives longer
HEAP = 2.2
# float32 [B, d]: batch, scaled, reconstruction, error, their gradients, gaps
ROWS, ROWS_PER_PREFIX = 12, 4
# of pre-activations that are searched at once (kernels/select.py)
BLOCK_BYTES = {"cpu": 12 << 20, "cuda": 1 << 30}
# of a nonzero of the TopK kinds: value, gradient, indices, their sorting
CODE_BYTES = 48
# of a nonzero while two candidates for each are sorted, and then: value, row, latent
SEARCH_BYTES, KEPT_BYTES = 64, 20
INDEX_BYTES = 24  # of a row in a window: where it lies, its id, its lane
SHARE = 0.9  # of free memory, where no limit is given
FLOAT = 4


class Memory(NamedTuple):
    """Bytes. states: weights, gradients, Adam's moments, averages; step: the largest
    activations; windows: rows that are read ahead.
    """

    states: int
    step: int
    windows: int

    @property
    def total(self) -> int:
        return self.states + self.step + self.windows

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {value / 1e9:.2g}"
            for name, value in (
                ("weights and optimisers", self.states),
                ("a step", self.step),
                ("rows", self.windows),
            )
        )
        return f"{self.total / 1e9:.2g} GB ({parts})"


def state_bytes(spec: TrainSpec, stream: Stream) -> int:
    """float32 weights, gradients, Adam's two moments, and the moving average where
    there is one; exact.
    """
    with torch.device("meta"):
        sae = build(spec.sae, stream.d, 0, len(stream.sites), stream.d_target)
    n = sum(parameter.numel() for parameter in sae.parameters())
    return FLOAT * n * (4 if spec.ema is None else 5)


def step_bytes(spec: TrainSpec, stream: Stream, device: str) -> int:
    """Activations and temporary values at the peak of one step."""
    parts = len(stream.sites) if spec.stream.mode == "aligned" else 1
    width = parts * max(stream.d, stream.d_target or 0)
    batch = spec.stream.batch
    piece, n_latents = -(-batch // spec.accumulate), spec.sae.size(stream.d)
    inner: SaeSpec = (
        spec.sae.inner if isinstance(spec.sae, Transcoder | Crosscoder) else spec.sae
    )
    rows = ROWS + (
        ROWS_PER_PREFIX * len(inner.prefixes) if isinstance(inner, Matryoshka) else 0
    )
    values = (
        FLOAT * rows * width * (piece if spec.accumulate == 1 else piece + batch // 2)
    )
    on_gpu = device.startswith("cuda")
    # the decoder's gradient is projected at once there
    weights = 2 * FLOAT * n_latents * width if on_gpu else 0
    if isinstance(inner, TopK | BatchTopK | Matryoshka):
        block = min(BLOCK_BYTES["cuda" if on_gpu else "cpu"], FLOAT * piece * n_latents)
        codes = CODE_BYTES * piece * inner.k
        # found for the whole batch, then kept for its parts
        if spec.accumulate > 1 and not isinstance(inner, TopK):
            codes = max(
                SEARCH_BYTES * batch * inner.k, codes + KEPT_BYTES * batch * inner.k
            )
        # more candidates, and which entries of a block are some
        if on_gpu and not isinstance(inner, TopK):
            codes, block = (
                max(codes, ROOM // 2 * SEARCH_BYTES * batch * inner.k),
                block + block // 4,
            )
        return values + weights + block + codes
    free = isinstance(inner, ReluL1) and (
        inner.penalty == "decoder_norm" or isinstance(spec.sae, Crosscoder)
    )
    kind = "decoder_norm" if free else inner.kind
    factor = DENSE[kind] + (0.5 if spec.precision == "bfloat16" else 0)
    if not on_gpu:
        factor = IN_CACHE.get(kind, factor * HEAP)
    return values + weights + round(FLOAT * factor * piece * n_latents)


def window_bytes(stream: Stream, device: str) -> int:
    """Rows in memory at once: two windows on a CPU; on a GPU the copy of one, the two
    being page-locked outside.
    """
    store, columns = stream.store, stream.columns
    dtype = numpy_dtype(store.manifest.spec.dtype)
    on_gpu = device.startswith("cuda")
    item = FLOAT if dtype.itemsize == 1 and not on_gpu else dtype.itemsize
    rows = stream.window_chunks * store.layout.chunk_rows * len(columns.label)
    return (
        (1 if on_gpu else 2) * rows * (item * sum(columns.widths(store)) + INDEX_BYTES)
    )


def estimate(specs: list[TrainSpec], stream: Stream, device: str) -> Memory:
    """Of runs that are trained together."""
    states = sum(state_bytes(spec, stream) for spec in specs)
    step = max((step_bytes(spec, stream, device) for spec in specs), default=0)
    return Memory(states, step, window_bytes(stream, device))


class Group(NamedTuple):
    """Runs (URL -> spec) that are trained in one pass, and what that takes."""

    specs: dict[str, TrainSpec]
    memory: Memory


def fitting(
    store: Store, specs: dict[str, TrainSpec], limit: int, device: str
) -> list[Group]:
    """Runs of one stream in as few groups as fit into `limit` bytes, in their order;
    one that does not fit is alone.
    """
    with warnings.catch_warnings():
        # it comes again when the stream is used
        warnings.simplefilter("ignore", StreamWarning)
        stream = Stream(store, shared_stream(next(iter(specs.values()))))
    windows, groups = window_bytes(stream, device), []
    now: dict[str, TrainSpec] = {}
    taken = Memory(0, 0, windows)
    for url, spec in specs.items():
        states, step = state_bytes(spec, stream), step_bytes(spec, stream, device)
        more = Memory(taken.states + states, max(taken.step, step), windows)
        if now and more.total > limit:
            groups.append(Group(now, taken))
            now, more = {}, Memory(states, step, windows)
        now[url], taken = spec, more
    stream.close()
    return [*groups, Group(now, taken)]


def usable_memory(device: str) -> int:
    """Bytes that training may take of a device: 90 % of what is free."""
    if device.startswith("cuda"):
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    free = [_meminfo(), _control_group()]
    return int(SHARE * min(value for value in (*free, 1 << 62) if value is not None))


def _meminfo() -> int | None:
    """What Linux says is available, in bytes; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (
            int(line.split()[1]) * 1024
            for line in lines
            if line.startswith("MemAvailable")
        ),
        None,
    )


def _control_group() -> int | None:
    """What a container's limit leaves (cgroup v2), None where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        return (
            None
            if limit == "max"
            else int(limit) - int((folder / "memory.current").read_text())
        )
    except (OSError, ValueError):
        return None
