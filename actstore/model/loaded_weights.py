"""Check that the weights which a harvest depends on came from the checkpoint.

A parameter that the checkpoint lacks is made of random numbers, and a key that the
model has no place for is a weight left out. Which of them matter is decided by running
the model: what completes before the tap stops the forward after its last site is used.
Heads and later layers are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every_module

from actstore.console.short_lists import first_few
from actstore.console.user_warnings import warn
from actstore.errors import HarvestWarning, ModelError
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens
from actstore.model.tap import Tap, TappedValues

_MOST_SHOWN = 4  # names in a message
# Steps that other tools put into the names of parameters, and which of them do.
_WRAPPERS = {
    "module": "torch.nn.DataParallel and DistributedDataParallel put it there",
    "_orig_mod": "torch.compile puts it there",
    "_fsdp_wrapped_module": "FSDP puts it there",
    "_checkpoint_wrapped_module": "activation checkpointing puts it there",
    "model": "training frameworks that keep the network as `self.model` put it there",
}


def check_used(model: LoadedModel, tap: Tap) -> None:
    """Compare the checkpoint's keys with what the tap runs.

    Differences that do not matter for the sites are told of in a HarvestWarning.

    Raises:
        ModelError: Weights that the sites depend on are not in the checkpoint, or it
            has weights for a module that runs, which the model has no place for.
    """
    missing = model.keys.missing
    if not missing and not model.keys.unexpected:
        return
    used = _run_and_watch(model, tap)
    lacking = [name for name in missing if used.has_parameter(name)]
    if lacking:
        raise ModelError(_lacking_text(model, lacking, "that the sites depend on"))
    _check_left_out(model, used)
    _warn_of_differences(model)


def check_whole(model: LoadedModel) -> None:
    """Compare the checkpoint's keys with a model that is run to its end, head included.

    Raises:
        ModelError: Any parameter is not in the checkpoint, or the checkpoint has
            weights that the model has no place for.
    """
    missing = model.keys.missing
    if missing:
        raise ModelError(_lacking_text(model, missing, "that the whole model needs"))
    used = _UsedParts(model.module)
    for module in model.module.modules():
        used.note_end(module)
    _check_left_out(model, used)


def _check_left_out(model: LoadedModel, used: _UsedParts) -> None:
    """Raise ModelError where modules that run have weights left out."""
    names = [
        name
        for name in model.keys.unexpected
        if name not in model.keys.constants and used.has_owner_of(name)
    ]
    if names:
        pronoun = "it" if len(names) == 1 else "them"
        raise ModelError(
            f"model {model.name!r}: its checkpoint has {_count_of_weights(names)} of"
            " modules that are run, and the model that its config.json describes has"
            f" no place for {pronoun}: {_first_names(names)}. The config is that of"
            " another model, or misses an option (attention_bias, qk_norm, ...); mend"
            " it"
        )


class _UsedParts:
    """The modules and parameters of a model that a forward used.

    They are kept as ids, since a bridge runs a copy of the model that shares its
    parameters, but has modules of its own.
    """

    def __init__(self, root: nn.Module) -> None:
        from transformers import PreTrainedModel

        self._root = root
        self._pretrained_model = PreTrainedModel
        self._modules_by_name = dict(root.named_modules())
        self._own_modules = {id(module) for module in self._modules_by_name.values()}
        self._body_name = str(getattr(root, "base_model_prefix", ""))
        self._completed_modules: set[int] = set()
        self._used_parameters: set[int] = set()
        # Parameters of modules that began, and may have been stopped in the middle.
        self._begun_parameters: set[int] = set()
        self._runs_a_copy = True  # until a module of the model itself is seen to run

    def note_begin(self, module: nn.Module) -> None:
        """Note that a module's forward has begun."""
        if id(module) in self._own_modules:
            self._runs_a_copy = False
        has_children = next(module.children(), None) is not None
        if has_children:
            # It may use its own parameters before any of its modules.
            own_parameters = module.parameters(recurse=False)
            self._used_parameters.update(map(id, own_parameters))
        if not self._is_whole_model(module):
            self._begun_parameters.update(map(id, module.parameters()))

    def note_end(self, module: nn.Module) -> None:
        """Note that a module's forward has completed."""
        # A module that ran has used all that is in it. A whole model has not: it may
        # have a pooler or a second head.
        parts = [module] if self._is_whole_model(module) else module.modules()
        for part in parts:
            self._completed_modules.add(id(part))
            own_parameters = part.parameters(recurse=False)
            self._used_parameters.update(map(id, own_parameters))

    def has_parameter(self, name: str) -> bool:
        """Return whether a parameter or buffer of the model was used."""
        owner_name, _, attribute = name.rpartition(".")
        owner = self._modules_by_name.get(owner_name)
        if owner is None:
            # It is not where it is said to be: to be safe, it counts as used.
            return True
        if id(owner) in self._completed_modules:
            return True
        return self._is_used(getattr(owner, attribute, None))

    def has_owner_of(self, key: str) -> bool:
        """Return whether a key without a parameter belongs to a module that ran."""
        path, module = self._nearest_module(key)
        if module is self._root or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            # The head of another task, or one layer more than the model has.
            return False
        if self._is_whole_model(module):
            # `model.pooler.weight` belongs to a part that this model does without;
            # `model.scale` would be a parameter of the model's own.
            return key.rpartition(".")[0] == path
        if id(module) in self._completed_modules:
            return True
        return any(map(self._is_used, self._untied_parameters(module)))

    def _is_used(self, parameter: Any) -> bool:
        if id(parameter) in self._used_parameters:
            return True
        # What a bridge takes apart is copied, and the copies run: there, to have begun
        # is enough.
        return self._runs_a_copy and id(parameter) in self._begun_parameters

    def _untied_parameters(self, module: nn.Module) -> Iterator[nn.Parameter]:
        """Give the parameters that no module outside this one has too.

        An output embedding that is tied to the input embedding has not run because
        that one has.
        """
        inside = {id(part) for part in module.modules()}
        shared: set[int] = set()
        for part in self._modules_by_name.values():
            if id(part) not in inside:
                shared.update(map(id, part.parameters(recurse=False)))
        for parameter in module.parameters():
            if id(parameter) not in shared:
                yield parameter

    def _nearest_module(self, key: str) -> tuple[str, nn.Module]:
        """Return the longest beginning of a key that is a module, and that module.

        A checkpoint may have been saved from the body alone, or with a head: the name
        of the body (`transformer.` in GPT-2) is also put before the key, and taken off
        it, where that leads to a part of the model. So `h.0.attn.bias` leads to
        `transformer.h.0.attn`.
        """
        prefix = f"{self._body_name}."
        for variant in (key, prefix + key, key.removeprefix(prefix)):
            path = self._innermost_path(variant)
            if not self._is_whole_model(self._modules_by_name[path]):
                return path, self._modules_by_name[path]
        path = self._innermost_path(key)
        return path, self._modules_by_name[path]

    def _innermost_path(self, key: str) -> str:
        """Return the longest beginning of a key that is a module; "" is the root."""
        steps = key.split(".")[:-1]
        while ".".join(steps) not in self._modules_by_name:
            steps.pop()
        return ".".join(steps)

    def _is_whole_model(self, module: nn.Module) -> bool:
        """Return whether a module is a model, a body or a bridge rather than a part."""
        return (
            module is self._root
            or isinstance(module, self._pretrained_model)
            or hasattr(module, "hook_dict")
        )


def _run_and_watch(model: LoadedModel, tap: Tap) -> _UsedParts:
    """Run the tap once, and return which parts of the model that used."""
    used = _UsedParts(model.module)
    tokens = probe_tokens(model)
    # Compiled code would run past the hooks that watch.
    with _watched(used), torch.compiler.set_stance("force_eager"):
        tap.run(tokens, None, _ignore)
    return used


def _ignore(_site: int, _values: TappedValues) -> None:
    """Get values, and do nothing with them."""


@contextmanager
def _watched(used: _UsedParts) -> Iterator[None]:
    """Have every module that runs noted in `used`."""

    def begin(module: nn.Module, _args: Any) -> None:
        used.note_begin(module)

    def end(module: nn.Module, _args: Any, _output: Any) -> None:
        used.note_end(module)

    handles = [
        every_module.register_module_forward_pre_hook(begin),
        every_module.register_module_forward_hook(end),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lacking_text(model: LoadedModel, names: Sequence[str], which: str) -> str:
    advice = _wrapper_advice(model.keys.missing, model.keys.unexpected)
    if advice is None:
        others = ""
        if model.keys.unexpected:
            unexpected = _first_names(model.keys.unexpected)
            others = f" (it has {unexpected}, which the model has not)"
        advice = (
            "Its config.json describes more than it holds, or its keys are called"
            f" otherwise{others}; get the right config.json or save the model again"
            " (model.save_pretrained)"
        )
    return (
        f"model {model.name!r}: its checkpoint lacks {_count_of_weights(names)}"
        f" {which}, and random numbers would stand there: {_first_names(names)}."
        f" {advice}"
    )


def _wrapper_advice(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """Return what to do where the keys fit but for one step that all of them have.

    None where they do not. If `h.0.bias` is missing and `module.h.0.bias` is
    unexpected, the step is `module`.
    """
    # With the name of the body before it and without.
    wanted = set(missing)
    wanted.update(name.partition(".")[2] for name in missing)
    steps = list(_WRAPPERS)
    first_steps = {name.partition(".")[0] for name in unexpected}
    if len(first_steps) == 1:
        steps.extend(first_steps)
    for step in steps:
        without_step = [
            name.replace(f"{step}.", "", 1)
            for name in unexpected
            if f".{step}." in f".{name}"
        ]
        n_fitting = sum(name in wanted for name in without_step)
        if n_fitting * 2 > len(unexpected):
            reason = f" ({_WRAPPERS[step]})" if step in _WRAPPERS else ""
            return (
                f"Its keys have `{step}.` in them{reason}, and fit without it: load the"
                f" file with safetensors, take `{step}.` out of every key, and save it"
                " again"
            )
    return None


def _warn_of_differences(model: LoadedModel) -> None:
    """Warn of differences that were found, and do not matter for the sites."""
    texts = []
    if model.keys.unexpected:
        unexpected = _first_names(model.keys.unexpected)
        texts.append(f"it has {unexpected}, which the model has no place for")
    if model.keys.missing:
        missing = _first_names(model.keys.missing)
        texts.append(f"it lacks {missing}, which no site depends on")
    warn(f"the checkpoint of {model.name}: {'; '.join(texts)}", HarvestWarning)


def _count_of_weights(names: Sequence[str]) -> str:
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} weight{plural}"


def _first_names(names: Sequence[str]) -> str:
    return first_few(names, _MOST_SHOWN)
