"""Tensors of a run that may be someone else's: a file that is damaged, or does not fit
its record, is told as such.
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


def read_tensors(
    storage: Storage, key: str, wanted: Iterable[str] = (), limit: int | None = None
) -> dict[str, Tensor]:
    """The tensors of an object, which has at least those wanted. Raises ObjectError
    (CorruptError where it has more than `limit` bytes), or RunError where it has not.
    """
    return parsed_tensors(storage.read(key, limit), f"{storage.url}/{key}", wanted)


def most_bytes(record: RunRecord, where: str) -> int:
    """What the weights of a record may take, with their scales, means and header.
    Raises RunError.
    """
    weights = sum(math.prod(shape) for shape in _shapes(record, where).values())
    widths = record.d + (record.d if record.d_out is None else record.d_out)
    return 8 * (weights + len(record.sites) * (2 + widths)) + (1 << 20)


def most_latents_bytes(record: RunRecord) -> int:
    """What `latents.safetensors` may take: int64 [n_layers, m] and [n_layers], and a
    header.
    """
    return 8 * len(record.sites) * (record.n_latents + 1) + (1 << 20)


def parsed_tensors(
    data: bytes, where: str, wanted: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The tensors in a file's bytes. Raises RunError."""
    try:
        found: dict[str, Tensor] = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # KeyError: a dtype that torch does not have
        raise RunError(
            f"{where}: not a safetensors file that can be read: {error}; copy it again"
        ) from error
    if missing := [name for name in wanted if name not in found]:
        raise RunError(
            f"{where}: it has no tensor {', '.join(missing)}; it was changed or badly"
            " written"
        )
    return found


def built(record: RunRecord, tensors: dict[str, Tensor], where: str) -> Sae:
    """The SAE of a record with its weights. Memory is taken only once they are known to
    fit. Raises RunError.
    """
    wanted = _shapes(record, where)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := sorted(
        name for name in {*wanted, *found} if wanted.get(name) != found.get(name)
    ):
        told = (
            f"{name}: {list(found.get(name, ()))}, wanted {list(wanted.get(name, ()))}"
            for name in wrong[:4]
        )
        raise RunError(
            f"{where}: its weights do not fit its record ({'; '.join(told)})"
        )
    sae = _make(record)
    sae.load_state_dict(tensors)
    return sae


def _make(record: RunRecord) -> Sae:
    return build(record.sae, record.d, n_sites=len(record.sites), d_out=record.d_out)


def _shapes(record: RunRecord, where: str) -> dict[str, tuple[int, ...]]:
    """Of each of the weights; nothing is allocated."""
    try:
        with torch.device("meta"):
            return {
                name: tuple(value.shape)
                for name, value in _make(record).state_dict().items()
            }
    except ActstoreError:
        raise
    except Exception as error:  # sizes that no tensor can have, whatever they lead to
        raise RunError(
            f"{where}: its record is of no SAE that can be built: {error}"
        ) from error


def check_shapes(
    tensors: dict[str, Tensor | None], shape: tuple[int, ...], where: str
) -> None:
    """Raises RunError where a tensor that is there has another shape."""
    for name, value in tensors.items():
        if value is not None and tuple(value.shape) != shape:
            raise RunError(
                f"{where}: {name} is {list(value.shape)}, wanted {list(shape)}"
            )
