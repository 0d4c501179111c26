"""A tokenizer from its files, which lie in a model's folder or in a store.

Files that are damaged, and tokenizers that need code of their own, are named in the
error.
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


def needs_code(name: str, what: str) -> ModelError:
    """The error for a model or tokenizer (`what`) that only its own code can read."""
    return ModelError(
        f"model {name!r}: its {what} is custom code that lies beside it, and running it"
        f" means trusting it with everything you may do; read it, then give {OPTION}"
        " (Python: trust_remote_code of the model)"
    )


def read_tokenizer(
    folder: Path, name: str, *, trust: bool = False, where: str = ""
) -> Any:
    """The tokenizer in a folder, None where there is none. Raises ModelError where it
    is there and cannot be read.

    name: of the model; where: the folder, if its files come from elsewhere (both for
    errors). trust: run the code that the tokenizer brings with it, if it does.
    """
    import transformers

    files, where = files_like(folder, TOKENIZER), where or str(folder)
    if not files:  # transformers would make one with an empty vocabulary
        return None
    for path in files:
        check_pointer(path, f"{where}/{path.name}")
    try:
        found = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust
        )
    except Exception as error:  # its parsers and plug-ins raise whatever they like
        if asks_trust(error) or (
            not trust
            and "AutoTokenizer" in str(auto_map(folder / "tokenizer_config.json"))
        ):
            raise needs_code(name, "tokenizer") from error
        broken = next((path for path in files if is_unreadable(path)), files[0])
        raise ModelError(
            f"model {name!r}: it has a tokenizer, but {where}/{broken.name} cannot be"
            f" read: {first_line(error)}; get the file again, or take the tokenizer's"
            " files away and give token ids"
        ) from error
    if getattr(found, "vocab_files_names", None) and not files_like(
        folder, _VOCABULARY
    ):
        wanted = ", ".join(
            sorted({"tokenizer.json", *map(str, found.vocab_files_names.values())})
        )
        raise ModelError(
            f"model {name!r}: {where} has a tokenizer_config.json, but of the files"
            f" with the vocabulary ({wanted}) none"
        )
    return found


def stored_tokenizer(
    files: Mapping[str, bytes], name: str, where: str, *, trust: bool = False
) -> Any:
    """As `read_tokenizer`, from the files that a store keeps; `name` of the store's
    model.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            (Path(folder) / file).write_bytes(data)
        return read_tokenizer(Path(folder), name, trust=trust, where=where)


def asks_trust(error: Exception) -> bool:
    """Whether transformers refused to run custom code."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def files_like(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted(
        {path for one in patterns for path in folder.glob(one) if path.is_file()}
    )


def check_pointer(path: Path, name: str = "") -> None:
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise ModelError(
                f"{name or path}: this is a git-LFS pointer, not the file itself; run"
                " `git lfs pull` where it lies"
            )


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where it cannot be read: whoever needs it says so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def auto_map(path: Path) -> Any:
    return json_object(path).get("auto_map")


def is_unreadable(path: Path) -> bool:
    """Whether a file that should be a JSON object is none."""
    return path.suffix == ".json" and not json_object(path)
