"""Models from where they lie: one that ships, a local folder in Hugging Face layout,
the hub, or memory.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from actstore.errors import ModelError, SpecError, first_line
from actstore.format.file_systems import windows_path
from actstore.format.object_records import files_digest
from actstore.model.checkpoint_files import (
    KEYS_FIT,
    Keys,
    check_code,
    check_files,
    constants,
    integers,
    mend_auto_map,
)
from actstore.store.tokenizer_files import asks_trust, needs_code, read_tokenizer
from schemas.harvest import ModelInfo
from schemas.source import ModelSource

BUILTIN = Path(__file__).parent.parent / "builtin"
_WANTED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """module: in evaluation mode, on its device; tokenizer: None where there is none;
    keys: see `loaded_weights.py`.
    """

    module: nn.Module
    tokenizer: Any
    info: ModelInfo
    max_context: int | None
    name: str = "in memory"
    keys: Keys = KEYS_FIT

    @property
    def pad(self) -> int:
        """The token that stands for padding, which some models count positions by; 0
        where none is told.
        """
        found = _first(getattr(self.module, "config", None), "pad_token_id")
        return found if found is not None and 0 <= found < self.info.vocabulary else 0

    def check_context(self, context: int) -> None:
        """Raises SpecError where the model has no positions for such a context."""
        if self.max_context is not None and context > self.max_context:
            raise SpecError(
                f"context {context} is too long: {self.info.architecture} has"
                f" {self.max_context} positions"
            )


def load_model(source: ModelSource, device: str = "cpu") -> LoadedModel:
    """Load a model, its weights in `source.dtype`, and its tokenizer; never asks, and
    runs code that comes with the model only where `source.trust_remote_code` says so.

    Where the checkpoint's keys differ from the model's, `keys` says so;
    `loaded_weights.py` decides whether that matters.

    Raises ModelError naming the file, parameter, package or option that is in the way.
    """
    folder = _folder(source)
    weights = check_files(folder)
    check_code(source, folder)
    with _quiet():
        module, keys = _module(source, folder, weights, device)
        tokenizer = read_tokenizer(folder, source.name, trust=source.trust_remote_code)
    return describe(_placed(module, device), tokenizer, source.name, keys)


def loaded_model(
    source: ModelSource, module: nn.Module | None, tokenizer: Any, device: str
) -> LoadedModel:
    """The module in memory with its tokenizer, on the device; without a module the
    model that `source` names.

    Raises as `load_model`, and SpecError for a tokenizer that would not be used.
    """
    if module is not None:
        return describe(module if device == "auto" else module.to(device), tokenizer)
    if tokenizer is not None:
        raise SpecError(
            "tokenizer goes with a model in memory, and a model that is loaded has its"
            " own; leave it out"
        )
    return load_model(source, device)


def describe(
    module: nn.Module,
    tokenizer: Any = None,
    name: str = "in memory",
    keys: Keys = KEYS_FIT,
) -> LoadedModel:
    """A module that is in memory already, as it is (evaluation mode apart)."""
    module.eval()
    config = getattr(module, "config", None) or getattr(module, "cfg", None)
    tokenizer = (
        tokenizer if tokenizer is not None else getattr(module, "tokenizer", None)
    )
    info = ModelInfo(
        architecture=type(module).__name__,
        n_layers=_first(config, "num_hidden_layers", "n_layers") or 0,
        d_model=_first(config, "hidden_size", "d_model") or 0,
        vocabulary=_first(config, "vocab_size", "d_vocab") or 0,
        weights_digest=_digest(module, keys.missing),
        tokenizer_digest=(
            files_digest(tokenizer_files(tokenizer)) if tokenizer is not None else None
        ),
        bos_token=getattr(tokenizer, "bos_token_id", None),
        special_tokens=tuple(sorted(set(getattr(tokenizer, "all_special_ids", ())))),
    )
    return LoadedModel(module, tokenizer, info, _positions(module, config), name, keys)


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """A tokenizer as the files that a store keeps of it."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        mend_auto_map(Path(name) / "tokenizer_config.json")
        return {
            path.name: path.read_bytes()
            for path in sorted(Path(name).iterdir())
            if path.is_file()
        }


def place(name: str) -> str:
    """A model's or a corpus' name and, where a path on this machine has it, that path
    as a whole: it is looked up from the current folder.
    """
    path = Path(name).expanduser()
    return (
        f"{name} ({path.absolute()})"
        if path.exists() and not path.is_absolute()
        else name
    )


def _folder(source: ModelSource) -> Path:
    """Where the model's files lie, after a download where it is a hub name."""
    name = source.name
    if name.startswith("builtin:"):
        folder = BUILTIN / name.removeprefix("builtin:")
        if not (folder / "config.json").is_file():
            there = ", ".join(
                f"builtin:{path.parent.name}"
                for path in sorted(BUILTIN.glob("*/config.json"))
            )
            raise ModelError(f"there is no model {name!r}; those that ship are {there}")
        _no_revision(source)
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        _no_revision(source)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: wanted a model in Hugging Face layout, but there is no"
                " config.json in it"
            )
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r}: there is no such folder")
    if (why := windows_path(name)) is not None:
        raise ModelError(f"model {name!r}: {why}")
    return _download(source)


def _no_revision(source: ModelSource) -> None:
    if source.revision is not None:
        raise SpecError(
            f"model {place(source.name)} is here, but revision (--revision) is of a"
            " model on the hub; leave it out"
        )


def _download(source: ModelSource) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it has

    wanted = [*_WANTED_FILES, *(["*.py"] if source.trust_remote_code else [])]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source.name,
                revision=source.revision,
                allow_patterns=wanted,
                tqdm_class=None,
            )
        )
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        revision = f" at revision {source.revision!r}" if source.revision else ""
        raise ModelError(
            f"model {source.name!r}: no such folder here, and the hub does not give"
            f" it{revision}: {first_line(error)}. Check the name, the revision and the"
            " network, or give a local folder"
        ) from error


def _module(
    source: ModelSource, folder: Path, weights: list[Path], device: str
) -> tuple[nn.Module, Keys]:
    """The model in memory, and where the keys of its checkpoint differ from its own."""
    import transformers

    spread = {"device_map": "auto"} if device == "auto" else {}
    if spread and not transformers.utils.is_accelerate_available():
        raise ModelError(
            "device auto needs the package accelerate; pip install accelerate, or name"
            " a device"
        )
    options = {
        "trust_remote_code": source.trust_remote_code,
        "output_loading_info": True,
        "use_safetensors": True,
    }
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=source.trust_remote_code
        )
        module, found = _class(config, source).from_pretrained(
            folder,
            dtype=getattr(torch, source.dtype),
            ignore_mismatched_sizes=True,
            **options,
            **spread,
        )
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            f"model {source.name!r} needs a package that is not here:"
            f" {str(error).strip()}"
        ) from error
    except Exception as error:  # a config from anywhere, or code of the model's own
        if asks_trust(error):
            raise needs_code(source.name, "architecture") from error
        raise ModelError(
            f"model {source.name!r} cannot be loaded from {folder}: {_told(error)}"
        ) from error
    if found.get("error_msgs"):
        raise ModelError(
            f"model {source.name!r} cannot be loaded from {folder}:"
            f" {'; '.join(found['error_msgs'])}"
        )
    _check_sizes(source.name, found["mismatched_keys"])
    missing, unexpected = (
        tuple(sorted(found[kind])) for kind in ("missing_keys", "unexpected_keys")
    )
    if getattr(module, "hf_quantizer", None) is None:
        _check_types(source.name, module, integers(weights).difference(unexpected))
    return module, Keys(missing, unexpected, constants(weights, unexpected))


def _told(error: Exception) -> str:
    """The error, with its kind where the text alone says little."""
    text = str(error).strip()
    return (
        text
        if isinstance(error, (OSError, ValueError, RuntimeError)) and text
        else f"{type(error).__name__}: {text}"
    )


def _check_sizes(name: str, mismatched: Any) -> None:
    """Raises ModelError where parameters in the file have other shapes than the config
    says.
    """
    lines = [
        f"{key} is {list(there)}, wanted {list(wanted)}"
        for key, there, wanted in sorted(mismatched)
    ]
    if lines:
        more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ModelError(
            f"model {name!r}: parameters in its checkpoint are not of the shapes that"
            f" its config.json says: {'; '.join(lines[:3])}{more}. The two are of"
            " different models; get the config.json of this one"
        )


def _check_types(name: str, module: nn.Module, whole: set[str]) -> None:
    """Raises ModelError where integers in the file (`whole`) became weights that are
    none.
    """
    state = module.state_dict().items()
    # prefixes may differ
    own = {
        key.rpartition(".")[2] for key, value in state if not value.is_floating_point()
    }
    if wrong := sorted(key for key in whole if key.rpartition(".")[2] not in own):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            f"model {name!r}: weights in its checkpoint are integers:"
            f" {', '.join(wrong[:3])}{more}. They are quantised, and its config.json"
            " has no quantization_config that is known; get the right one"
        )


def _class(config: Any, source: ModelSource) -> Any:
    """The class that loads the model: the one its config names, or that of its own code
    where it is trusted.
    """
    import transformers

    named = getattr(config, "architectures", None) or ()
    names = [named] if isinstance(named, str) else list(named)
    custom = {
        auto: str(one).rpartition(".")[2]
        for auto, one in (getattr(config, "auto_map", None) or {}).items()
    }
    autos = [
        auto
        for auto in custom
        if auto.startswith("AutoModel") and hasattr(transformers, auto)
    ]
    if source.trust_remote_code and autos:
        # First the one that gives the class named, then one with a head for the next
        # token.
        autos.sort(
            key=lambda auto: (
                custom[auto] not in names,
                auto != "AutoModelForCausalLM",
                auto,
            )
        )
        return getattr(transformers, autos[0])
    found = next(
        (getattr(transformers, one) for one in names if hasattr(transformers, one)),
        None,
    )
    if found is None and autos:
        raise needs_code(source.name, "architecture")
    # what transformers has for the type, with a language model's head if it has one
    if not names:
        kinds = (
            "AutoModelForMaskedLM",
            "AutoModelForSeq2SeqLM",
            "AutoModelForCausalLM",
        )
        usual = (getattr(transformers, kind) for kind in kinds)
        return next(
            (kind for kind in usual if type(config) in kind._model_mapping),
            transformers.AutoModel,
        )
    if found is None:
        raise ModelError(
            f"model {source.name!r}: its config.json names the architectures {names},"
            f" and transformers {transformers.__version__} has none of them"
        )
    if not _fits(config, found):
        raise ModelError(
            f"model {source.name!r}: its config.json names the architecture"
            f" {found.__name__}, and says that the model is of type"
            f" {config.model_type!r}, which is another family; get the config.json of"
            " this model"
        )
    return found


def _fits(config: Any, kind: Any) -> bool:
    """Whether a class is one of the configuration's family: its own, of one of its
    parts, or listed by transformers.
    """
    from transformers.models.auto import modeling_auto

    wanted = getattr(kind, "config_class", None)
    parts = (getattr(type(config), "sub_configs", None) or {}).values()
    if wanted is None or isinstance(config, wanted) or wanted in parts:
        return True
    tables = (
        table
        for name, table in vars(modeling_auto).items()
        if name.endswith("_MAPPING_NAMES")
    )
    listed = (table.get(config.model_type, ()) for table in tables)
    return any(
        kind.__name__ in ([one] if isinstance(one, str) else one) for one in listed
    )


def _placed(module: nn.Module, device: str) -> nn.Module:
    if device == "auto":  # placed over all devices while it was loaded
        return module
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"the model does not go to device {device!r}: {first_line(error)}"
        ) from error


def _first(config: Any, *names: str) -> int | None:
    """The first of these that a configuration has; one of several models is asked for
    its text model's.
    """
    parts = [
        config,
        *(getattr(config, part, None) for part in ("text_config", "encoder")),
    ]
    values = (getattr(part, name, None) for part in parts for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _positions(module: nn.Module, config: Any) -> int | None:
    """How many tokens a context may have. Tables of the RoBERTa kind keep their first
    rows for padding.
    """
    declared = _first(config, "max_position_embeddings", "n_ctx")
    tables = [
        table.num_embeddings - table.padding_idx - 1
        for name, table in module.named_modules()
        if isinstance(table, nn.Embedding)
        and table.padding_idx is not None
        and "position" in name.rpartition(".")[2]
    ]
    return min(
        (one for one in (declared, *tables) if one is not None and one > 0),
        default=None,
    )


def _digest(module: nn.Module, without: Iterable[str] = ()) -> str:
    """without: parameters that no file gave; their random numbers would differ from one
    run to the next.
    """
    state, left_out = blake3(), set(without)
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor) and name not in left_out:
            state.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy().data)
    return str(state.hexdigest())


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without transformers' own bars and notes: the command line has its own."""
    import transformers

    logger = logging.getLogger("transformers")
    level = logger.level
    transformers.utils.logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        transformers.utils.logging.enable_progress_bar()
