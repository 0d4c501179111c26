"""Look at a model's folder as files, before any of it is used.

What is damaged, missing, pickled or needs code of its own is named in an error. How the
tensors in the files differ from the model's parameters is `KeyDifferences`.
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

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The files beside the weights that are read.
_READ_FILES = (
    *TOKENIZER,
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Masks and tables that older versions of transformers kept among the weights.
_CONSTANT_NAMES = {
    "masked_bias",
    "causal_mask",
    "position_ids",
    "token_type_ids",
    "inv_freq",
}
# As safetensors names integer types.
_INTEGER_DTYPES = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}


class KeyDifferences(NamedTuple):
    """Differences between the keys of a checkpoint and the parameters of its model.

    Attributes:
        missing: Parameters that the checkpoint lacks, sorted.
        unexpected: Keys of the checkpoint that the model has no place for, sorted.
        constants: Those of `unexpected` that are masks or tables, and no weights.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    constants: frozenset[str] = frozenset()


NO_DIFFERENCES = KeyDifferences()


def check_files(folder: Path) -> list[Path]:
    """Check the files of a model, and return those with the weights.

    Raises:
        ModelError: A file is missing, damaged, pickled or a git-LFS pointer.
    """
    for path in files_like(folder, _READ_FILES):
        check_pointer(path)
    if is_unreadable(folder / "config.json"):
        raise ModelError(
            f"{folder / 'config.json'}: wanted a JSON object that describes the model;"
            " get the file again"
        )
    weights = list(_weight_files(folder))
    for path in weights:
        check_pointer(path)
        _check_safetensors(path)
    return weights


def check_code(source: ModelSource, folder: Path) -> None:
    """Check that code which is trusted is there.

    Raises:
        SpecError: `trust_remote_code` is given, and the model has no code of its own.
    """
    if not source.trust_remote_code:
        return
    for name in ("config.json", "tokenizer_config.json"):
        if auto_map(folder / name):
            return
    raise SpecError(
        f"{OPTION}: model {source.name!r} has no code of its own; leave the option out"
    )


def confirm_code(source: ModelSource, again: bool, where: str) -> None:
    """Check that the user trusts a model's code again when a store names that model.

    What a store says of its model does not make code run: it may come from anyone.

    Args:
        source: The model, as the store names it.
        again: Whether the user gave the option now.
        where: The store, for the error.

    Raises:
        ModelError: The option is missing.
        SpecError: The option is given, and the model runs no code of its own.
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


def constant_tensors(files: Iterable[Path], names: Iterable[str]) -> frozenset[str]:
    """Return those of the named tensors in the files that are masks or tables."""
    from safetensors import safe_open

    wanted = set(names)
    if not wanted:
        return frozenset()
    constants = set()
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in wanted & set(tensors.keys()):
                if _is_constant(name, tensors.get_slice(name)):
                    constants.add(name)
    return frozenset(constants)


def integer_tensors(files: Iterable[Path]) -> set[str]:
    """Return the names of tensors in the files that are integers and no constants."""
    from safetensors import safe_open

    integers = set()
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                tensor = tensors.get_slice(name)
                is_integer = tensor.get_dtype() in _INTEGER_DTYPES
                if is_integer and not _is_constant(name, tensor):
                    integers.add(name)
    return integers


def mend_auto_map(path: Path) -> None:
    """Mend a tokenizer_config.json that transformers wrote for a custom tokenizer.

    transformers writes the tokenizer's class as one name, and reads a pair of names
    (the slow one, the fast one).
    """
    config = json_object(path)
    classes = config.get("auto_map")
    if isinstance(classes, dict) and isinstance(classes.get("AutoTokenizer"), str):
        pair = [classes["AutoTokenizer"], None]
        config["auto_map"] = {**classes, "AutoTokenizer": pair}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _is_constant(name: str, tensor: Any) -> bool:
    """Return whether a tensor in a file is a mask or a table, and no weight."""
    shape = tensor.get_shape()
    if tensor.get_dtype() == "BOOL":
        return True
    # GPT-2's causal mask is [1, 1, 1024, 1024], for instance.
    if len(shape) == 4 and shape[:2] == [1, 1] and shape[2] == shape[3]:
        return True
    return name.rpartition(".")[2] in _CONSTANT_NAMES


def _weight_files(folder: Path) -> Iterator[Path]:
    """Give the files with the weights, looked for in the order of transformers.

    Raises:
        ModelError: There are none, or one that the index names is missing.
    """
    named_file = json_object(folder / "config.json").get("transformers_weights")
    single = folder / (named_file if isinstance(named_file, str) else WEIGHTS)
    index = folder / INDEX
    if single.is_file() and single.suffix == ".safetensors":
        yield single
    elif index.is_file():
        check_pointer(index)
        for name in _files_of_index(index):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{index}: the weights are in several files, and {name} is not"
                    " there; get it too"
                )
            yield folder / name
    else:
        raise _no_safetensors_error(folder)


def _no_safetensors_error(folder: Path) -> ModelError:
    pickled = [
        path.name for path in files_like(folder, ("*.bin", "*.pt", "*.pth", "*.ckpt"))
    ]
    if pickled:
        what = f"only {', '.join(pickled)}, which"
    else:
        what = f"no {WEIGHTS}; pickled weights (pytorch_model.bin)"
    return ModelError(
        f"{folder}: wanted weights as safetensors, there is {what} would not be"
        " read: unpickling can run code. Convert them once where you trust them:"
        " load the model with transformers, then model.save_pretrained(FOLDER)"
    )


def _files_of_index(index: Path) -> list[str]:
    """Return the names of the files that an index lists. Raises ModelError."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
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
