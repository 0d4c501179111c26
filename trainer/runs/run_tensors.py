"""Reads the tensors of a run, which may be someone else's.

A file that is damaged, or does not fit its record, is reported as such, before memory
is taken for what it claims to hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from actstore.errors import ActstoreError
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError
from trainer.saes.build import Sae, build

LATENTS = "latents.safetensors"
_ELEMENT_BYTES = 8  # bytes of a number of the widest dtypes, float64 and int64
_HEADER_BYTES = 1 << 20
_MOST_TOLD = 4  # tensors of a wrong shape that a message names


def read_tensors(
    storage: Storage, key: str, wanted: Iterable[str] = (), limit: int | None = None
) -> dict[str, Tensor]:
    """Return the tensors of an object by name, [...] of any shape and dtype.

    Args:
        storage: The run's folder.
        key: The object.
        wanted: Names of tensors that must be there.
        limit: How many bytes the object may have; None for any number.

    Raises:
        ObjectError: There is no such object (CorruptError where it is too large).
        RunError: It is no safetensors file, or lacks a tensor.
    """
    return parsed_tensors(storage.read(key, limit), f"{storage.url}/{key}", wanted)


def most_bytes(record: RunRecord, where: str) -> int:
    """Return how many bytes `sae.safetensors` of a record may have.

    Raises:
        RunError: No SAE can be built from the record, which is read from `where`.
    """
    weights = sum(math.prod(shape) for shape in _shapes(record, where).values())
    d_out = record.d if record.d_out is None else record.d_out
    # For each site two scales and two means, those of the input and of the output.
    scales_and_means = len(record.sites) * (2 + record.d + d_out)
    return _ELEMENT_BYTES * (weights + scales_and_means) + _HEADER_BYTES


def most_latents_bytes(record: RunRecord) -> int:
    """Return how many bytes `latents.safetensors` of a record may have.

    It holds firings, int64 [n_layers, m], and rows, int64 [n_layers].
    """
    numbers = len(record.sites) * (record.n_latents + 1)
    return _ELEMENT_BYTES * numbers + _HEADER_BYTES


def parsed_tensors(
    data: bytes, where: str, wanted: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file's bytes, by name.

    Their shapes [...] are not checked.

    Raises:
        RunError: It is no safetensors file, or lacks a tensor of `wanted`.
    """
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # KeyError: a dtype that torch does not have
        raise RunError(
            f"{where}: not a safetensors file that can be read: {error}; copy it again"
        ) from error
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise RunError(
            f"{where}: it has no tensor {', '.join(missing)}; it was changed or badly"
            " written"
        )
    return tensors


def sae_with_weights(record: RunRecord, weights: dict[str, Tensor], where: str) -> Sae:
    """Build the SAE of a record and load its weights.

    Memory is taken only once the weights are known to fit.

    weights: By name, [...] of the shapes that the SAE's parameters and buffers have.

    Raises:
        RunError: The weights do not fit the record.
    """
    wanted = _shapes(record, where)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(
        name for name in {*wanted, *found} if wanted.get(name) != found.get(name)
    )
    if wrong:
        told = (
            f"{name}: {list(found.get(name, ()))}, wanted {list(wanted.get(name, ()))}"
            for name in wrong[:_MOST_TOLD]
        )
        raise RunError(
            f"{where}: its weights do not fit its record ({'; '.join(told)})"
        )
    sae = _build(record)
    sae.load_state_dict(weights)
    return sae


def _build(record: RunRecord) -> Sae:
    return build(record.sae, record.d, n_sites=len(record.sites), d_out=record.d_out)


def _shapes(record: RunRecord, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of an SAE's weights, without allocating any."""
    try:
        with torch.device("meta"):
            state = _build(record).state_dict()
    except ActstoreError:
        raise
    except Exception as error:  # sizes that no tensor can have, whatever they lead to
        raise RunError(
            f"{where}: no SAE can be built from its record: {error}"
        ) from error
    return {name: tuple(value.shape) for name, value in state.items()}


def check_shapes(
    tensors: dict[str, Tensor | None], shape: tuple[int, ...], where: str
) -> None:
    """Check that tensors [...] have the shape `shape`; None stands for no tensor.

    Raises:
        RunError: One of them has another shape.
    """
    for name, value in tensors.items():
        if value is not None and tuple(value.shape) != shape:
            raise RunError(
                f"{where}: {name} is {list(value.shape)}, wanted {list(shape)}"
            )
