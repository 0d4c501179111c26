"""Load a model with its tokenizer, or take one that is in memory already.

`LoadedModel` is what every later stage works with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actstore.console.short_lists import first_few
from actstore.errors import ModelError, SpecError, first_line
from actstore.model.checkpoint_files import (
    NO_DIFFERENCES,
    KeyDifferences,
    check_code,
    check_files,
    constant_tensors,
    integer_tensors,
)
from actstore.model.model_class import model_class
from actstore.model.model_folder import model_folder
from actstore.model.model_info import config_integer, longest_context, model_info
from actstore.store.tokenizer_files import asks_trust, needs_code, read_tokenizer
from schemas.harvest import ModelInfo
from schemas.source import ModelSource

_MOST_SHOWN = 3  # parameters in a message


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that can be run.

    Attributes:
        module: The model, in evaluation mode and on its device.
        tokenizer: The model's tokenizer; None if it has none.
        info: What a store keeps of the model.
        max_context: How many tokens a context may have; None: not known.
        name: The model's name, for messages.
        keys: Where its checkpoint and its parameters differ, which
            `actstore/model/loaded_weights.py` judges.
    """

    module: nn.Module
    tokenizer: Any
    info: ModelInfo
    max_context: int | None
    name: str = "in memory"
    keys: KeyDifferences = NO_DIFFERENCES

    @property
    def pad(self) -> int:
        """The token that stands for padding; 0 where the model names none.

        Some models find the positions of tokens by it.
        """
        token = config_integer(getattr(self.module, "config", None), "pad_token_id")
        if token is None or not 0 <= token < self.info.vocabulary:
            return 0
        return token

    def check_context(self, context: int) -> None:
        """Check that the model has positions for contexts of `context` tokens.

        Raises:
            SpecError: It has not.
        """
        if self.max_context is not None and context > self.max_context:
            raise SpecError(
                f"context {context} is too long: {self.info.architecture} has"
                f" {self.max_context} positions"
            )


def load_model(source: ModelSource, device: str = "cpu") -> LoadedModel:
    """Load a model and its tokenizer.

    The user is never asked anything. Code that comes with the model runs only where
    `source.trust_remote_code` says so.

    Args:
        source: Names the model, and the dtype of its weights.
        device: The device to put it on; "auto" spreads it over all devices.

    Raises:
        ModelError: The message names the file, parameter, package or option that is in
            the way.
        SpecError: An option that has no use for this model.
    """
    folder = model_folder(source)
    weight_files = check_files(folder)
    check_code(source, folder)
    with _quiet_transformers():
        module, keys = _load_module(source, folder, weight_files, device)
        tokenizer = read_tokenizer(folder, source.name, trust=source.trust_remote_code)
    return wrap_module(_on_device(module, device), tokenizer, source.name, keys)


def load_or_wrap(
    source: ModelSource, module: nn.Module | None, tokenizer: Any, device: str
) -> LoadedModel:
    """Return a module in memory as a LoadedModel; without one, load the named model.

    Args:
        source: Names the model to load where `module` is None.
        module: A model in memory, or None.
        tokenizer: The tokenizer of the module.
        device: The device to put the model on; "auto" leaves a module where it is.

    Raises:
        ModelError: See `load_model`.
        SpecError: A tokenizer is given that would not be used.
    """
    if module is not None:
        return wrap_module(module if device == "auto" else module.to(device), tokenizer)
    if tokenizer is not None:
        raise SpecError(
            "tokenizer goes with a model in memory, and a model that is loaded has its"
            " own; leave it out"
        )
    return load_model(source, device)


def wrap_module(
    module: nn.Module,
    tokenizer: Any = None,
    name: str = "in memory",
    keys: KeyDifferences = NO_DIFFERENCES,
) -> LoadedModel:
    """Return a module as a LoadedModel, and switch it to evaluation mode.

    Args:
        module: A model in memory.
        tokenizer: The model's tokenizer; None: the one that the module holds, if any.
        name: The model's name, for messages.
        keys: Where its checkpoint and its parameters differ.
    """
    module.eval()
    # TransformerLens calls its configuration `cfg`.
    config = getattr(module, "config", None) or getattr(module, "cfg", None)
    if tokenizer is None:
        tokenizer = getattr(module, "tokenizer", None)
    info = model_info(module, config, tokenizer, keys.missing)
    max_context = longest_context(module, config)
    return LoadedModel(module, tokenizer, info, max_context, name, keys)


def _load_module(
    source: ModelSource, folder: Path, weight_files: list[Path], device: str
) -> tuple[nn.Module, KeyDifferences]:
    """Return the model, and where its checkpoint's keys differ from its own."""
    import transformers

    placement: dict[str, str] = {}
    if device == "auto":
        if not transformers.utils.is_accelerate_available():
            raise ModelError(
                "device auto needs the package accelerate; pip install accelerate, or"
                " name a device"
            )
        placement = {"device_map": "auto"}
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=source.trust_remote_code
        )
        module, loading = model_class(config, source).from_pretrained(
            folder,
            dtype=getattr(torch, source.dtype),
            # They are reported, and refused below with a better message.
            ignore_mismatched_sizes=True,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            use_safetensors=True,
            **placement,
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
            f"model {source.name!r} cannot be loaded from {folder}:"
            f" {_error_text(error)}"
        ) from error
    if loading.get("error_msgs"):
        raise ModelError(
            f"model {source.name!r} cannot be loaded from {folder}:"
            f" {'; '.join(loading['error_msgs'])}"
        )
    _check_shapes(source.name, loading["mismatched_keys"])
    missing = tuple(sorted(loading["missing_keys"]))
    unexpected = tuple(sorted(loading["unexpected_keys"]))
    is_quantised = getattr(module, "hf_quantizer", None) is not None
    if not is_quantised:
        integers = integer_tensors(weight_files).difference(unexpected)
        _check_not_integers(source.name, module, integers)
    constants = constant_tensors(weight_files, unexpected)
    return module, KeyDifferences(missing, unexpected, constants)


def _error_text(error: Exception) -> str:
    """Return an error's text, with its type where the text alone says little."""
    text = str(error).strip()
    if isinstance(error, (OSError, ValueError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text}"


def _check_shapes(name: str, mismatched: Any) -> None:
    """Raise ModelError where parameters have other shapes than the config says."""
    texts = [
        f"{key} is {list(in_file)}, wanted {list(wanted)}"
        for key, in_file, wanted in sorted(mismatched)
    ]
    if not texts:
        return
    shown = first_few(texts, _MOST_SHOWN, ";")
    raise ModelError(
        f"model {name!r}: parameters in its checkpoint are not of the shapes that"
        f" its config.json says: {shown}. The two are of different models; get the"
        " config.json of this one"
    )


def _check_not_integers(name: str, module: nn.Module, integers: set[str]) -> None:
    """Raise ModelError where integers in the files became floating-point weights.

    transformers would load them as if they were the weights themselves.
    """
    # Keys may have other prefixes in the file, so only their last steps are compared.
    own_integers = {
        key.rpartition(".")[2]
        for key, value in module.state_dict().items()
        if not value.is_floating_point()
    }
    wrong = sorted(
        key for key in integers if key.rpartition(".")[2] not in own_integers
    )
    if not wrong:
        return
    raise ModelError(
        f"model {name!r}: weights in its checkpoint are integers:"
        f" {first_few(wrong, _MOST_SHOWN)}. They are quantised, and its config.json has"
        " no quantization_config that is known; get the right one"
    )


def _on_device(module: nn.Module, device: str) -> nn.Module:
    if device == "auto":
        # It was spread over all devices while it was loaded.
        return module
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"the model does not go to device {device!r}: {first_line(error)}"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from showing bars and notes: the command line has its own."""
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
