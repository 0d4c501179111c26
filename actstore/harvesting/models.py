"""Models from where they lie: one that ships, a local folder in Hugging Face layout, the hub, or memory."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from actstore.errors import ModelError, SpecError
from schemas.harvest import ModelInfo
from schemas.source import ModelSource

BUILTIN = Path(__file__).parent.parent / "builtin"
_WANTED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """module: in evaluation mode, on its device; tokenizer: None where there is none."""

    module: nn.Module
    tokenizer: Any
    info: ModelInfo
    max_context: int | None

    def check_context(self, context: int) -> None:
        """Raises SpecError where the model has no positions for such a context."""
        if self.max_context is not None and context > self.max_context:
            raise SpecError(f"context {context} is too long: {self.info.architecture} has {self.max_context} positions")


def load_model(source: ModelSource, device: str = "cpu") -> LoadedModel:
    """Load a model, its weights in `source.dtype`, and its tokenizer. Raises ModelError."""
    import transformers

    folder = _folder(source)
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            kind = _class(config, source.name)
            spread = {"device_map": "auto"} if device == "auto" else {}
            module = kind.from_pretrained(folder, dtype=getattr(torch, source.dtype), **spread)
        except ImportError as error:
            raise ModelError(f"device auto needs the package accelerate: {error}") from error
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"model {source.name!r} cannot be loaded from {folder}: {error}") from error
        tokenizer = _tokenizer(folder)
    return describe(_placed(module, device), tokenizer)


def describe(module: nn.Module, tokenizer: Any = None) -> LoadedModel:
    """A module that is in memory already, as it is (evaluation mode apart)."""
    module.eval()
    config = getattr(module, "config", None) or getattr(module, "cfg", None)
    tokenizer = tokenizer if tokenizer is not None else getattr(module, "tokenizer", None)
    info = ModelInfo(
        architecture=type(module).__name__,
        n_layers=_first(config, "num_hidden_layers", "n_layers") or 0,
        d_model=_first(config, "hidden_size", "d_model") or 0,
        vocabulary=_first(config, "vocab_size", "d_vocab") or 0,
        weights_digest=_digest(module),
        tokenizer_digest=_files_digest(tokenizer_files(tokenizer)) if tokenizer is not None else None,
        bos_token=getattr(tokenizer, "bos_token_id", None),
        special_tokens=tuple(sorted(set(getattr(tokenizer, "all_special_ids", ())))),
    )
    return LoadedModel(module, tokenizer, info, _positions(module, config))


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """A tokenizer as the files that a store keeps of it."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir()) if path.is_file()}


def _folder(source: ModelSource) -> Path:
    """Where the model's files lie, after a download where it is a hub name."""
    name = source.name
    if name.startswith("builtin:"):
        folder = BUILTIN / name.removeprefix("builtin:")
        if not (folder / "config.json").is_file():
            there = ", ".join(f"builtin:{path.parent.name}" for path in sorted(BUILTIN.glob("*/config.json")))
            raise ModelError(f"there is no model {name!r}; those that ship are {there}")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: wanted a model in Hugging Face layout, but there is no config.json in it")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r}: there is no such folder")
    return _download(source)


def _download(source: ModelSource) -> Path:
    import httpx
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                source.name, revision=source.revision, allow_patterns=list(_WANTED_FILES), tqdm_class=None
            )
        )
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        revision = f" at revision {source.revision!r}" if source.revision else ""
        raise ModelError(
            f"model {source.name!r}: no such folder here, and the hub does not give it{revision}: "
            f"{str(error).strip().splitlines()[0] if str(error) else type(error).__name__}. "
            "Check the name, the revision and the network, or give a local folder"
        ) from error


def _class(config: Any, name: str) -> Any:
    import transformers

    names = list(getattr(config, "architectures", None) or ())
    found = next((getattr(transformers, one) for one in names if hasattr(transformers, one)), None)
    if found is None:
        raise ModelError(
            f"model {name!r}: its config.json names the architectures {names}, and transformers "
            f"{transformers.__version__} has none of them"
        )
    return found


def _tokenizer(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a corpus of token ids needs none, and one of text says what is missing


def _placed(module: nn.Module, device: str) -> nn.Module:
    if device == "auto":  # placed over all devices while it was loaded
        return module
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the model does not go to device {device!r}: {str(error).splitlines()[0]}") from error


def _first(config: Any, *names: str) -> int | None:
    """The first of these that a configuration has; one of several models is asked for its text model's."""
    parts = [config, *(getattr(config, part, None) for part in ("text_config", "encoder"))]
    values = (getattr(part, name, None) for part in parts for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _positions(module: nn.Module, config: Any) -> int | None:
    """How many tokens a context may have. Tables of the RoBERTa kind keep their first rows for padding."""
    declared = _first(config, "max_position_embeddings", "n_ctx")
    tables = [
        table.num_embeddings - table.padding_idx - 1
        for name, table in module.named_modules()
        if isinstance(table, nn.Embedding) and table.padding_idx is not None and "position" in name.rpartition(".")[2]
    ]
    return min((one for one in (declared, *tables) if one is not None and one > 0), default=None)


def _digest(module: nn.Module) -> str:
    state = blake3()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            state.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy().data)
    return str(state.hexdigest())


def _files_digest(files: dict[str, bytes]) -> str:
    state = blake3()
    for name, data in sorted(files.items()):
        state.update(f"{name}\0{len(data)}\0".encode() + data)
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
