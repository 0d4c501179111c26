"""Estimates what training takes of a device's memory, and which SAEs fit together.

A group's SAEs are all in memory, with gradients and optimiser state; their steps come
one after the other, so of the activations only the largest count; the stream's windows
come once. Factors of activations were measured as peaks of resident memory over a step
on a CPU (`tests/trainer/training/test_sweep.py` holds them to it).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from actstore.format.stored_dtypes import numpy_dtype
from actstore.store.streamed_store import StreamedStore
from actstore.stream.stream import Stream, StreamWarning
from schemas.sae import inner_of
from schemas.train import TrainSpec
from trainer.errors import SaeError
from trainer.kernels.topk_select import CPU_BLOCK_BYTES, GPU_BLOCK_BYTES, ROOM
from trainer.saes.build import build, kind_of, latents_kind
from trainer.training.run_stream import shared_stream

# of [B, m] on a CPU: a heap that keeps freed memory (`machine/glibc_malloc.py`) has
# gaps between what lives longer
HEAP = 2.2
# float32 [B, d]: batch, scaled, reconstruction, error, their gradients, gaps
ROWS, ROWS_PER_PREFIX = 12, 4
# of a nonzero of the TopK kinds: value, gradient, indices, their sorting
CODE_BYTES = 48
# of a nonzero while two candidates for each are sorted, and then: value, row, latent
SEARCH_BYTES, KEPT_BYTES = 64, 20
# Bytes for each row of a window: its index in the buffer, its id, its lane.
INDEX_BYTES = 24
# The share of free memory that is used, if no limit is given.
SHARE = 0.9
FLOAT = 4


class Memory(NamedTuple):
    """Bytes that training takes."""

    states: int
    """Weights, gradients, Adam's moments, averages."""
    step: int
    """The largest activations."""
    windows: int
    """Rows that are read ahead."""

    @property
    def total(self) -> int:
        return self.states + self.step + self.windows

    def __str__(self) -> str:
        return (
            f"{self.total / 1e9:.2g} GB"
            f" (weights and optimisers {self.states / 1e9:.2g},"
            f" a step {self.step / 1e9:.2g}, rows {self.windows / 1e9:.2g})"
        )


def state_bytes(spec: TrainSpec, stream: Stream) -> int:
    """Return what weights, gradients, Adam's two moments and averages take; exact."""
    # on the meta device tensors have shapes, but take no memory
    with torch.device("meta"):
        sae = build(spec.sae, stream.d, 0, len(stream.sites), stream.d_target)
    n = sum(parameter.numel() for parameter in sae.parameters())
    copies = 4 if spec.ema is None else 5
    return FLOAT * n * copies


def step_bytes(spec: TrainSpec, stream: Stream, device: str) -> int:
    """Return what activations and temporary values take at the peak of one step."""
    n_sites = len(stream.sites) if spec.stream.mode == "aligned" else 1
    width = n_sites * max(stream.d, stream.d_target or 0)
    batch = spec.stream.batch
    piece = -(-batch // spec.accumulate)  # rounded up
    n_latents = spec.sae.size(stream.d)
    kind = latents_kind(spec.sae)
    inner = inner_of(spec.sae)
    on_gpu = device.startswith("cuda")
    per_row = ROWS + ROWS_PER_PREFIX * len(getattr(inner, "prefixes", ()))
    # of all micro-batches the reconstructions stay
    n_rows = piece if spec.accumulate == 1 else piece + batch // 2
    values = FLOAT * per_row * width * n_rows
    # the decoder's gradient is projected at once there
    weights = 2 * FLOAT * n_latents * width if on_gpu else 0
    if kind.step_memory is None:
        codes = _sparse_bytes(spec, piece, n_latents, on_gpu)
        return values + weights + codes
    if kind_of(spec.sae).stream_mode == "aligned":
        inner = inner.model_copy(update=kind.crosscoder_options)
    memory = kind.step_memory(inner)
    tensors = memory.tensors
    # autocast's copies in half precision, beside the rest in float32
    if spec.precision == "bfloat16":
        tensors += 0.5
    if not on_gpu:
        tensors = tensors * HEAP if memory.in_cache is None else memory.in_cache
    return values + weights + round(FLOAT * tensors * piece * n_latents)


def _sparse_bytes(spec: TrainSpec, piece: int, n_latents: int, on_gpu: bool) -> int:
    """Return what sparse codes take, and the search for them; piece: rows at once."""
    k = inner_of(spec.sae).latents_per_row
    assert k is not None, "sparse codes have k latents per row"
    batch = spec.stream.batch
    over_batch = latents_kind(spec.sae).selects_over_batch
    block_bytes = GPU_BLOCK_BYTES if on_gpu else CPU_BLOCK_BYTES
    block = min(block_bytes, FLOAT * piece * n_latents)
    codes = CODE_BYTES * piece * k
    # found for the whole batch, then kept for its parts
    if spec.accumulate > 1 and over_batch:
        search = SEARCH_BYTES * batch * k
        codes = max(search, codes + KEPT_BYTES * batch * k)
    # more candidates, and which entries of a block are some
    if on_gpu and over_batch:
        codes = max(codes, ROOM // 2 * SEARCH_BYTES * batch * k)
        block = block + block // 4
    return block + codes


def window_bytes(stream: Stream, device: str) -> int:
    """Return what the rows take that are in memory at once.

    On a CPU these are two windows; on a GPU the copy of one, the two being page-locked
    outside.
    """
    store = stream.store
    columns = stream.columns
    dtype = numpy_dtype(store.manifest.spec.dtype)
    on_gpu = device.startswith("cuda")
    item = FLOAT if dtype.itemsize == 1 and not on_gpu else dtype.itemsize
    rows = stream.window_chunks * store.layout.chunk_rows * len(columns.label)
    n_windows = 1 if on_gpu else 2
    row_bytes = item * sum(columns.widths(store)) + INDEX_BYTES
    return n_windows * rows * row_bytes


def estimate(specs: list[TrainSpec], stream: Stream, device: str) -> Memory:
    """Return what runs take that are trained together."""
    states = sum(state_bytes(spec, stream) for spec in specs)
    # steps come one after the other, so that only the largest counts
    steps = [step_bytes(spec, stream, device) for spec in specs]
    step = max(steps, default=0)
    return Memory(states, step, window_bytes(stream, device))


class Group(NamedTuple):
    """Runs that are trained in one pass."""

    specs: dict[str, TrainSpec]
    """By URL of the run."""
    memory: Memory
    """The bytes that that takes."""


def fitting(
    store: StreamedStore,
    specs: dict[str, TrainSpec],
    limit: int,
    device: str,
) -> list[Group]:
    """Return runs of one stream in groups that fit into `limit` bytes, in their order.

    One that does not fit is alone.
    """
    with warnings.catch_warnings():
        # it comes again when the stream is used
        warnings.simplefilter("ignore", StreamWarning)
        first = next(iter(specs.values()))
        stream = Stream(store, shared_stream(first))
    windows = window_bytes(stream, device)
    groups: list[Group] = []
    group: dict[str, TrainSpec] = {}
    taken = Memory(0, 0, windows)
    for url, spec in specs.items():
        states = state_bytes(spec, stream)
        step = step_bytes(spec, stream, device)
        largest_step = max(taken.step, step)
        with_it = Memory(taken.states + states, largest_step, windows)
        if group and with_it.total > limit:
            groups.append(Group(group, taken))
            group = {}
            with_it = Memory(states, step, windows)
        group[url] = spec
        taken = with_it
    stream.close()
    return [*groups, Group(group, taken)]


def check_weights_fit(
    n_latents: int, d: int, device: str, limit: int | None = None
) -> None:
    """Check that the encoder and the decoder alone are not more than a device holds.

    Args:
        n_latents: Size of the dictionary.
        d: Width of the rows.
        device: The device.
        limit: The bytes that may be taken of it; None: what it has free.

    Raises:
        SaeError: They are; training takes several times as much.
    """
    wanted = 2 * n_latents * d * 4  # float32
    there = usable_memory(device) if limit is None else limit
    if wanted > there:
        raise SaeError(
            f"{n_latents:,} latents on rows of {d} values are {wanted / 1e9:,.1f} GB of"
            f" weights, and {device} has {there / 1e9:,.1f} GB free; take fewer latents"
            " (a smaller expansion)"
        )


def usable_memory(device: str) -> int:
    """Return the bytes that training may take of a device: 90 % of what is free."""
    if device.startswith("cuda"):
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    # a container may be allowed less than the machine has; where neither is known,
    # nothing limits
    sources = (_meminfo(), _control_group())
    known = [value for value in sources if value is not None]
    return int(SHARE * min([*known, 1 << 62]))


def _meminfo() -> int | None:
    """Return what Linux says is available, in bytes; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable"):
            # "MemAvailable:   23456789 kB"
            return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    """Return what a container's limit leaves (cgroup v2); None where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        return int(limit) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
