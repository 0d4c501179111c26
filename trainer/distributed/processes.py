"""The processes of one run: how they know each other, exchange tensors, and end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

# first imported later, its defaults would keep the group alive beyond its end
import torch.distributed.nn
from torch import Tensor

from actstore.machine.stop_signals import Stopped
from trainer.errors import PeerError

# a checkpoint that one process writes takes the others' time
TIMEOUT = timedelta(minutes=30)


class World:
    """One process of a run, number `rank` of `size`, and its exchanges with the others.

    Tensors are exchanged by NCCL on a GPU and by gloo on a CPU; but for `gather_rows`
    they have one shape in all processes, which may be any. Every process must call the
    same methods in the same order. All raise PeerError when another process is gone.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self.device = device
        self.rank = rank
        self.size = size

    @property
    def lead(self) -> bool:
        """True in the one process that writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes of a tensor [...], in place."""
        self.sum_later(tensor).wait()
        return tensor

    def sum_later(self, tensor: Tensor) -> Waiting:
        """Begin to sum a tensor [...] over processes, in place; `wait` ends it."""
        dense = _dense(tensor)
        with _lost():
            return _Work(dist.all_reduce(dense, async_op=True), dense, tensor)

    def min_(self, tensor: Tensor) -> Tensor:
        """Return the minimum over processes of each element of [...], in place."""
        with _lost():
            dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return tensor

    def total(self, n: int) -> int:
        """Return the sum of a number over processes."""
        number = torch.full((), n, dtype=torch.int64, device=self.device)
        return int(self.sum_(number))

    def least(self, value: float) -> float:
        """Return the smallest of a number over processes."""
        number = torch.full((), value, dtype=torch.float64, device=self.device)
        return float(self.min_(number))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return tensors of one shape from all processes: [size, ...]."""
        parts = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for _ in range(self.size)
        ]
        with _lost():
            dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows [., ...] of all processes, in the order of processes.

        They may have different numbers of them.
        """
        n_rows = torch.full((), len(tensor), dtype=torch.int64, device=tensor.device)
        counts = self.gather(n_rows).tolist()
        # parts of one shape are exchanged, and then cut to what each had
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = zip(self.gather(padded), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Return the lead's values of a tensor [...], in place."""
        dense = _dense(tensor)
        with _lost():
            dist.broadcast(dense, 0)
        # a copy was exchanged, as in `_Work`
        if dense.data_ptr() != tensor.data_ptr():
            tensor.copy_(dense)
        return tensor

    def shared(self, value: Any) -> Any:
        """Return the lead's value, anything that JSON can hold.

        The values that other processes pass are ignored.
        """
        encoded = bytearray(json.dumps(value).encode())
        text = torch.frombuffer(encoded, dtype=torch.uint8)
        # the length first: a collective wants tensors of one shape
        size = self.broadcast_(torch.tensor(len(text)))
        if not self.lead:
            text = torch.empty(int(size), dtype=torch.uint8)
        text = self.broadcast_(text)
        # the lead reads it back too, so that all have what JSON makes of a value
        return json.loads(bytes(text.numpy()))

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor [...] to process number `to`, through the host's memory."""
        with _lost():
            dist.send(tensor.detach().cpu().contiguous(), to)

    def receive(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        source: int,
    ) -> Tensor:
        """Return the tensor [*shape] that process `source` sends, on the host."""
        out = torch.empty(shape, dtype=dtype)
        with _lost():
            dist.recv(out, source)
        return out

    def barrier(self) -> None:
        """Wait for all processes."""
        self.total(1)


class Waiting(Protocol):
    """A collective under way."""

    def wait(self) -> None: ...


class _Work:
    def __init__(self, work: Any, dense: Tensor, wanted: Tensor) -> None:
        self._work = work
        self._dense = dense
        self._wanted = wanted

    def wait(self) -> None:
        with _lost():
            self._work.wait()
        # a copy was exchanged, whose values belong where they came from
        if self._dense.data_ptr() != self._wanted.data_ptr():
            self._wanted.copy_(self._dense)


def _dense(tensor: Tensor) -> Tensor:
    """Return the same memory, as collectives want it; a copy only where it has gaps."""
    if tensor.is_contiguous():
        return tensor
    if tensor.ndim == 2 and tensor.T.is_contiguous():
        return tensor.T
    return tensor.contiguous()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch's backends raise, without a common type
        raise PeerError(
            "another process of this run has ended or cannot be reached, and this one"
            " ends too; look for its message, then start all of them again with"
            " --resume"
        ) from error


@contextmanager
def started(
    device: str, environment: Mapping[str, str] = os.environ
) -> Iterator[World]:
    """Give the world that torchrun's variables describe.

    When one of its processes fails, all end. Of processes that fail, one raises its
    error; the others leave with exit status 1 and say nothing.

    Raises:
        PeerError: The device cannot be one of each process's own.
    """
    rank = int(environment["RANK"])
    size = int(environment["WORLD_SIZE"])
    local_rank = int(environment.get("LOCAL_RANK", rank))
    own_device = _own_device(device, local_rank)
    # on a GPU gloo, too: for texts and checkpoints, which go through the host's memory
    backend = "cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo"
    with _lost():
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(own_device, rank, size)
    try:
        yield world
        # who is ready first still has to answer the others
        world.barrier()
    except BaseException as error:
        # a signal stops all of them, with the same exit code
        first = isinstance(error, Stopped) or _first_to_fail()
        # gloo's threads must not outlive the interpreter; NCCL's end might wait for the
        # others
        if own_device.type == "cpu":
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        if not first:
            raise SystemExit(1) from None
        raise
    dist.destroy_process_group()


def _first_to_fail() -> bool:
    """Return whether no other process has failed before.

    Only the first has something to say.
    """
    with contextlib.suppress(RuntimeError):
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("actstore/failed", 1) == 1)
    return True


def _own_device(device: str, local_rank: int) -> torch.device:
    """Return the device of this process, the `local_rank`-th of its machine."""
    if torch.device(device).type != "cuda":
        return torch.device(device)
    if torch.device(device).index is not None:
        raise PeerError(
            f"device is {device}, but each process takes a GPU of its own; give"
            " --device cuda"
        )
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise PeerError(
            f"process {local_rank} of this machine wants GPU {local_rank}, but torch"
            f" finds {found}; start fewer with --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
