"""The processes of one run: who they are, how they exchange tensors, and how they end
together.
"""

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
    """Process `rank` of `size`. Tensors are exchanged by NCCL on a GPU and by gloo on a
    CPU.

    Every process must call the same methods in the same order. All raise PeerError when
    another process is gone.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self.device, self.rank, self.size = device, rank, size

    @property
    def lead(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        self.sum_later(tensor).wait()
        return tensor

    def sum_later(self, tensor: Tensor) -> Waiting:
        """The sum over processes, in place, valid when the result has been waited for."""
        dense = _dense(tensor)
        with _lost():
            return _Work(dist.all_reduce(dense, async_op=True), dense, tensor)

    def min_(self, tensor: Tensor) -> Tensor:
        """The minimum over processes, in place."""
        with _lost():
            dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return tensor

    def total(self, n: int) -> int:
        """The sum of a number over processes."""
        return int(self.sum_(torch.full((), n, dtype=torch.int64, device=self.device)))

    def least(self, value: float) -> float:
        """The smallest of a number over processes."""
        return float(
            self.min_(torch.full((), value, dtype=torch.float64, device=self.device))
        )

    def gather(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape from all processes: [size, ...]."""
        out = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for _ in range(self.size)
        ]
        with _lost():
            dist.all_gather(out, tensor.contiguous())
        return torch.stack(out)

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, which may have different numbers of them, in the
        order of processes.
        """
        counts = self.gather(
            torch.full((), len(tensor), dtype=torch.int64, device=tensor.device)
        ).tolist()
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return torch.cat(
            [part[:n] for part, n in zip(self.gather(padded), counts, strict=True)]
        )

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """The lead's values, in place."""
        dense = _dense(tensor)
        with _lost():
            dist.broadcast(dense, 0)
        if dense.data_ptr() != tensor.data_ptr():
            tensor.copy_(dense)
        return tensor

    def shared(self, value: Any) -> Any:
        """The lead's value, anything that JSON can hold; what the others give is not
        looked at.
        """
        text = torch.frombuffer(
            bytearray(json.dumps(value).encode()), dtype=torch.uint8
        )
        size = self.broadcast_(torch.tensor(len(text)))
        text = self.broadcast_(
            text if self.lead else torch.empty(int(size), dtype=torch.uint8)
        )
        return json.loads(bytes(text.numpy()))

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor through the host's memory."""
        with _lost():
            dist.send(tensor.detach().cpu().contiguous(), to)

    def receive(
        self, shape: tuple[int, ...], dtype: torch.dtype, source: int
    ) -> Tensor:
        """A tensor that `source` sends, in the host's memory."""
        out = torch.empty(shape, dtype=dtype)
        with _lost():
            dist.recv(out, source)
        return out

    def barrier(self) -> None:
        """Wait for all."""
        self.total(1)


class Waiting(Protocol):
    """A collective under way."""

    def wait(self) -> None: ...


class _Work:
    def __init__(self, work: Any, dense: Tensor, wanted: Tensor) -> None:
        self._work, self._dense, self._wanted = work, dense, wanted

    def wait(self) -> None:
        with _lost():
            self._work.wait()
        if self._dense.data_ptr() != self._wanted.data_ptr():
            self._wanted.copy_(self._dense)


def _dense(tensor: Tensor) -> Tensor:
    """The same memory, as collectives want it; a copy only where it has gaps."""
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
    """The world that torchrun's variables describe. Ends all its processes when one of
    them fails.

    Of processes that fail, one raises its error; the others leave with exit status 1
    and say nothing. Raises PeerError where the device cannot be one of each process's
    own.
    """
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    place = _own_device(device, int(environment.get("LOCAL_RANK", rank)))
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    with _lost():
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(place, rank, size)
    try:
        yield world
        world.barrier()
    except BaseException as error:
        # a signal stops all of them, with the same exit code
        first = isinstance(error, Stopped) or _first_to_fail()
        # gloo's threads must not outlive the interpreter; NCCL's end might wait for the
        # others
        if place.type == "cpu":
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        if not first:
            raise SystemExit(1) from None
        raise
    dist.destroy_process_group()


def _first_to_fail() -> bool:
    """Whether no other process has failed before: only the first has something to say."""
    with contextlib.suppress(RuntimeError):
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("actstore/failed", 1) == 1)
    return True


def _own_device(device: str, local_rank: int) -> torch.device:
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
