"""Reads a tokenizer from its files, in a model's folder or in a store.

Errors name the file that is damaged, or say that the tokenizer needs code of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from actstore.errors import ModelError, first_line
from actstore.format.file_systems import GIT_LFS

OPTION = "--trust-remote-code"

# Files that may hold a vocabulary, as the tokenizers of transformers name them.
_VOCABULARY = (
    "tokenizer.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.bpe",
    "*.tiktoken",
    "tekken.json",
)

TOKENIZER = (*_VOCABULARY, "tokenizer_config.json")
"""Patterns of the names of a tokenizer's files."""


def needs_code(name: str, what: str) -> ModelError:
    """Return the error for a part of a model that only the model's own code can read.

    Args:
        name: The model's name.
        what: The part: "tokenizer", "model", ...
    """
    return ModelError(
        f"model {name!r}: its {what} is custom code that lies beside it, and running it"
        f" means trusting it with everything you may do; read it, then give {OPTION}"
        " (Python: trust_remote_code of the model)"
    )


def read_tokenizer(
    folder: Path, name: str, *, trust: bool = False, where: str = ""
) -> Any:
    """Return the tokenizer in a folder, as transformers loads it; None for none.

    Args:
        folder: The folder with the tokenizer's files.
        name: The model's name, for errors.
        trust: Whether to run code that comes with the tokenizer.
        where: The place that errors name, if that is not the folder.

    Raises:
        ModelError: There is a tokenizer, but it cannot be read.
    """
    import transformers

    files = files_like(folder, TOKENIZER)
    where = where or str(folder)
    # Without files transformers would make a tokenizer with an empty vocabulary.
    if not files:
        return None
    for path in files:
        check_pointer(path, f"{where}/{path.name}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust
        )
    except Exception as error:  # transformers' parsers raise errors of any type
        if asks_trust(error) or (not trust and _has_own_class(folder)):
            raise needs_code(name, "tokenizer") from error
        unreadable = [path for path in files if is_unreadable(path)]
        broken = unreadable[0] if unreadable else files[0]
        raise ModelError(
            f"model {name!r}: it has a tokenizer, but {where}/{broken.name} cannot be"
            f" read: {first_line(error)}; get the file again, or take the tokenizer's"
            " files away and give token ids"
        ) from error
    # From a configuration alone transformers makes a tokenizer without a vocabulary,
    # and raises no error.
    vocabulary_names = getattr(tokenizer, "vocab_files_names", None)
    if vocabulary_names and not files_like(folder, _VOCABULARY):
        names = {"tokenizer.json", *map(str, vocabulary_names.values())}
        raise ModelError(
            f"model {name!r}: {where} has a tokenizer_config.json, but none of the"
            f" files with the vocabulary ({', '.join(sorted(names))})"
        )
    return tokenizer


def _has_own_class(folder: Path) -> bool:
    """Return whether a tokenizer's configuration names a class of its own code."""
    return "AutoTokenizer" in str(auto_map(folder / "tokenizer_config.json"))


def stored_tokenizer(
    files: Mapping[str, bytes],
    name: str,
    where: str,
    *,
    trust: bool = False,
) -> Any:
    """Return the tokenizer that a store keeps; see `read_tokenizer`.

    Args:
        files: The bytes of the tokenizer's files, by name.
        name: The name of the store's model, for errors.
        where: The place of the files that errors name.
        trust: Whether to run code that comes with the tokenizer.
    """
    # transformers reads tokenizers from folders only.
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            (Path(folder) / file).write_bytes(data)
        return read_tokenizer(Path(folder), name, trust=trust, where=where)


def asks_trust(error: Exception) -> bool:
    """Return whether transformers refused to run custom code."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def files_like(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files of a folder whose names match a pattern, sorted."""
    paths: set[Path] = set()
    for pattern in patterns:
        paths.update(path for path in folder.glob(pattern) if path.is_file())
    return sorted(paths)


def check_pointer(path: Path, name: str = "") -> None:
    """Raise ModelError if a file is only the pointer that git-LFS leaves in its place.

    Args:
        path: The file.
        name: The name of the file in the error, if that is not the path.
    """
    with path.open("rb") as file:
        beginning = file.read(len(GIT_LFS))
    if beginning == GIT_LFS:
        raise ModelError(
            f"{name or path}: this is a git-LFS pointer, not the file itself; run"
            " `git lfs pull` where it lies"
        )


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none to read.

    Callers that need one of its keys raise an error of their own.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def auto_map(path: Path) -> Any:
    """Return the entry `auto_map` of a configuration file; None without one.

    It names the classes that the model's own code has.
    """
    return json_object(path).get("auto_map")


def is_unreadable(path: Path) -> bool:
    """Return whether a file should hold a JSON object, by its name, but does not."""
    return path.suffix == ".json" and not json_object(path)
