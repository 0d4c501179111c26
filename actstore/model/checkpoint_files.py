"""A model's folder as files: what is damaged, missing or needs code of its own is told
by name, before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from actstore.errors import ModelError, SpecError, first_line
from actstore.store.tokenizer_files import (
    OPTION,
    TOKENIZER,
    auto_map,
    check_pointer,
    files_like,
    is_unreadable,
    json_object,
)
from schemas.source import ModelSource

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


_READ = (
    *TOKENIZER,
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


_CONSTANTS = {
    "masked_bias",
    "causal_mask",
    "position_ids",
    "token_type_ids",
    "inv_freq",
}


_INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}


class Keys(NamedTuple):
    """Where a checkpoint's keys and its model's differ; names of parameters, sorted.

    constants: those of `unexpected` that are no weights (masks and tables that older
    versions of transformers kept).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    constants: frozenset[str] = frozenset()


KEYS_FIT = Keys()


def check_files(folder: Path) -> list[Path]:
    """The files with the weights. Raises ModelError naming one that is missing,
    damaged, pickled or a LFS pointer.
    """
    for path in files_like(folder, _READ):
        check_pointer(path)
    if is_unreadable(folder / "config.json"):
        raise ModelError(
            f"{folder / 'config.json'}: wanted a JSON object that describes the model;"
            " get the file again"
        )
    weights = list(_weights(folder))
    for path in weights:
        check_pointer(path)
        _check_safetensors(path)
    return weights


def check_code(source: ModelSource, folder: Path) -> None:
    """Raises SpecError where custom code is trusted and there is none."""
    if source.trust_remote_code and not any(
        map(auto_map, (folder / "config.json", folder / "tokenizer_config.json"))
    ):
        raise SpecError(
            f"{OPTION}: model {source.name!r} has no code of its own; leave the"
            " option out"
        )


def confirm_code(source: ModelSource, again: bool, where: str) -> None:
    """What a store says of its model does not make code run: the user says so again.

    Raises ModelError where that is missing, SpecError where it is not needed.
    """
    if source.trust_remote_code and not again:
        raise ModelError(
            f"{where}: its model {source.name!r} runs code of its own, and a store may"
            " come from anyone; if you trust that model's code, say so again with"
            f" {OPTION} (Python: trust_remote_code=True)"
        )
    if again and not source.trust_remote_code:
        raise SpecError(
            f"{OPTION}: {where} was harvested without custom code; leave the option out"
        )


def constants(files: Iterable[Path], names: Iterable[str]) -> frozenset[str]:
    """Of tensors in the files, those that are masks or tables and no weights, told by
    name, type and shape.
    """
    from safetensors import safe_open

    wanted, found = set(names), set()
    for path in files if wanted else ():
        with safe_open(path, "pt") as tensors:
            for name in wanted & set(tensors.keys()):
                if _constant(name, tensors.get_slice(name)):
                    found.add(name)
    return frozenset(found)


def integers(files: Iterable[Path]) -> set[str]:
    """Tensors in the files that are integers and no masks or tables."""
    from safetensors import safe_open

    found = set()
    for path in files:
        with safe_open(path, "pt") as tensors:
            parts = ((name, tensors.get_slice(name)) for name in tensors.keys())  # noqa: SIM118 (it is no mapping)
            found |= {
                name
                for name, part in parts
                if part.get_dtype() in _INTEGERS and not _constant(name, part)
            }
    return found


def mend_auto_map(path: Path) -> None:
    """transformers writes the class of a custom tokenizer as one name, and reads a pair
    (slow, fast).
    """
    found = json_object(path)
    auto = found.get("auto_map")
    if isinstance(auto, dict) and isinstance(auto.get("AutoTokenizer"), str):
        found["auto_map"] = {**auto, "AutoTokenizer": [auto["AutoTokenizer"], None]}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _constant(name: str, part: Any) -> bool:
    """Whether a tensor is a mask or a table by name, type or shape."""
    shape = part.get_shape()
    mask = part.get_dtype() == "BOOL" or (
        len(shape) == 4 and shape[:2] == [1, 1] and shape[2] == shape[3]
    )
    return mask or name.rpartition(".")[2] in _CONSTANTS


def _weights(folder: Path) -> Iterator[Path]:
    """In the order in which transformers looks. Raises ModelError where there are none."""
    named = json_object(folder / "config.json").get("transformers_weights")
    single, index = (
        folder / (named if isinstance(named, str) else WEIGHTS),
        folder / INDEX,
    )
    if single.is_file() and single.suffix == ".safetensors":
        yield single
    elif index.is_file():
        check_pointer(index)
        for name in _shards(index):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{index}: the weights are in several files, and {name} is not"
                    " there; get it too"
                )
            yield folder / name
    else:
        pickled = [
            path.name
            for path in files_like(folder, ("*.bin", "*.pt", "*.pth", "*.ckpt"))
        ]
        what = (
            f"only {', '.join(pickled)}, which"
            if pickled
            else f"no {WEIGHTS}; pickled weights (pytorch_model.bin)"
        )
        raise ModelError(
            f"{folder}: wanted weights as safetensors, there is {what} would not be"
            " read: unpickling can run code. Convert them once where you trust them:"
            " load the model with transformers, then model.save_pretrained(FOLDER)"
        )


def _shards(index: Path) -> list[str]:
    try:
        return sorted(
            {
                str(name)
                for name in json.loads(index.read_text(encoding="utf-8"))[
                    "weight_map"
                ].values()
            }
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelError(
            f"{index}: this index of weights cannot be read: {first_line(error)}; get"
            " it again"
        ) from error


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path}: these weights cannot be read ({first_line(error)}; {size:,}"
            " bytes): the file is empty, cut off, or no safetensors file; get it again"
        ) from error
