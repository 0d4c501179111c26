"""A model's folder as files: what is damaged, missing or needs code of its own is told by name, before it is used."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from actstore.errors import ModelError, SpecError, first_line
from actstore.places import GIT_LFS
from schemas.source import ModelSource

OPTION = "--trust-remote-code"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_VOCABULARY = ("tokenizer.json", "vocab.*", "merges.txt", "*.model", "*.bpe", "*.tiktoken", "tekken.json")
_TOKENIZER = (*_VOCABULARY, "tokenizer_config.json")
_READ = (*_TOKENIZER, "config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
_CONSTANTS = {"masked_bias", "causal_mask", "position_ids", "token_type_ids", "inv_freq"}
_INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}


class Keys(NamedTuple):
    """Where a checkpoint's keys and its model's differ; names of parameters, sorted.

    constants: those of `unexpected` that are no weights (masks and tables that older versions of transformers kept).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    constants: frozenset[str] = frozenset()


KEYS_FIT = Keys()


def check_files(folder: Path) -> list[Path]:
    """The files with the weights. Raises ModelError naming one that is missing, damaged, pickled or a LFS pointer."""
    for path in _there(folder, _READ):
        _check_pointer(path)
    if _unreadable(folder / "config.json"):
        raise ModelError(f"{folder / 'config.json'}: wanted a JSON object that describes the model; get the file again")
    weights = list(_weights(folder))
    for path in weights:
        _check_pointer(path)
        _check_safetensors(path)
    return weights


def check_code(source: ModelSource, folder: Path) -> None:
    """Raises SpecError where custom code is trusted and there is none."""
    if source.trust_remote_code and not any(map(_auto_map, (folder / "config.json", folder / "tokenizer_config.json"))):
        raise SpecError(f"{OPTION}: model {source.name!r} has no code of its own; leave the option out")


def needs_code(name: str, what: str) -> ModelError:
    """The error for a model or tokenizer (`what`) that only its own code can read."""
    return ModelError(
        f"model {name!r}: its {what} is custom code that lies beside it, and running it means trusting it with "
        f"everything you may do; read it, then give {OPTION} (Python: trust_remote_code of the model)"
    )


def confirm_code(source: ModelSource, again: bool, where: str) -> None:
    """What a store says of its model does not make code run: the user says so again.

    Raises ModelError where that is missing, SpecError where it is not needed.
    """
    if source.trust_remote_code and not again:
        raise ModelError(
            f"{where}: its model {source.name!r} runs code of its own, and a store may come from anyone; "
            f"if you trust that model's code, say so again with {OPTION} (Python: trust_remote_code=True)"
        )
    if again and not source.trust_remote_code:
        raise SpecError(f"{OPTION}: {where} was harvested without custom code; leave the option out")


def constants(files: Iterable[Path], names: Iterable[str]) -> frozenset[str]:
    """Of tensors in the files, those that are masks or tables and no weights, told by name, type and shape."""
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
            found |= {name for name, part in parts if part.get_dtype() in _INTEGERS and not _constant(name, part)}
    return found


def read_tokenizer(folder: Path, name: str, *, trust: bool = False, where: str = "") -> Any:
    """The tokenizer in a folder, None where there is none. Raises ModelError where it is there and cannot be read.

    name: of the model; where: the folder, if its files come from elsewhere (both for errors). trust: run the code that
    the tokenizer brings with it, if it does.
    """
    import transformers

    files, where = _there(folder, _TOKENIZER), where or str(folder)
    if not files:  # transformers would make one with an empty vocabulary
        return None
    for path in files:
        _check_pointer(path, f"{where}/{path.name}")
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:  # its parsers and plug-ins raise whatever they like
        if asks_trust(error) or (not trust and "AutoTokenizer" in str(_auto_map(folder / "tokenizer_config.json"))):
            raise needs_code(name, "tokenizer") from error
        broken = next((path for path in files if _unreadable(path)), files[0])
        raise ModelError(
            f"model {name!r}: it has a tokenizer, but {where}/{broken.name} cannot be read: {first_line(error)}; "
            "get the file again, or take the tokenizer's files away and give token ids"
        ) from error
    if getattr(found, "vocab_files_names", None) and not _there(folder, _VOCABULARY):
        wanted = ", ".join(sorted({"tokenizer.json", *map(str, found.vocab_files_names.values())}))
        raise ModelError(
            f"model {name!r}: {where} has a tokenizer_config.json, but of the files with the vocabulary ({wanted}) none"
        )
    return found


def stored_tokenizer(files: Mapping[str, bytes], name: str, where: str, *, trust: bool = False) -> Any:
    """As `read_tokenizer`, from the files that a store keeps; `name` of the store's model."""
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            (Path(folder) / file).write_bytes(data)
        return read_tokenizer(Path(folder), name, trust=trust, where=where)


def mend_auto_map(path: Path) -> None:
    """transformers writes the class of a custom tokenizer as one name, and reads a pair (slow, fast)."""
    found = _json(path)
    auto = found.get("auto_map")
    if isinstance(auto, dict) and isinstance(auto.get("AutoTokenizer"), str):
        found["auto_map"] = {**auto, "AutoTokenizer": [auto["AutoTokenizer"], None]}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def asks_trust(error: Exception) -> bool:
    """Whether transformers refused to run custom code."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def _constant(name: str, part: Any) -> bool:
    """Whether a tensor is a mask or a table by name, type or shape."""
    shape = part.get_shape()
    mask = part.get_dtype() == "BOOL" or (len(shape) == 4 and shape[:2] == [1, 1] and shape[2] == shape[3])
    return mask or name.rpartition(".")[2] in _CONSTANTS


def _there(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for one in patterns for path in folder.glob(one) if path.is_file()})


def _weights(folder: Path) -> Iterator[Path]:
    """In the order in which transformers looks. Raises ModelError where there are none."""
    named = _json(folder / "config.json").get("transformers_weights")
    single, index = folder / (named if isinstance(named, str) else WEIGHTS), folder / INDEX
    if single.is_file() and single.suffix == ".safetensors":
        yield single
    elif index.is_file():
        _check_pointer(index)
        for name in _shards(index):
            if not (folder / name).is_file():
                raise ModelError(f"{index}: the weights are in several files, and {name} is not there; get it too")
            yield folder / name
    else:
        pickled = [path.name for path in _there(folder, ("*.bin", "*.pt", "*.pth", "*.ckpt"))]
        what = f"only {', '.join(pickled)}, which" if pickled else f"no {WEIGHTS}; pickled weights (pytorch_model.bin)"
        raise ModelError(
            f"{folder}: wanted weights as safetensors, there is {what} would not be read: unpickling can run code. "
            "Convert them once where you trust them: load the model with transformers, then "
            "model.save_pretrained(FOLDER)"
        )


def _shards(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: this index of weights cannot be read: {first_line(error)}; get it again") from error


def _check_pointer(path: Path, name: str = "") -> None:
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise ModelError(
                f"{name or path}: this is a git-LFS pointer, not the file itself; run `git lfs pull` where it lies"
            )


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path}: these weights cannot be read ({first_line(error)}; {size:,} bytes): the file is empty, cut off, "
            "or no safetensors file; get it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where it cannot be read: whoever needs it says so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _auto_map(path: Path) -> Any:
    return _json(path).get("auto_map")


def _unreadable(path: Path) -> bool:
    """Whether a file that should be a JSON object is none."""
    return path.suffix == ".json" and not _json(path)
