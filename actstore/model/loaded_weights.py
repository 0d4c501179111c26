"""Whether the weights that a harvest depends on came from the checkpoint.

A key that the checkpoint lacks is a parameter of random numbers, and one that the model
has no place for is a weight left out. Which of them matter is decided by running: what
the tap's forward completes before it stops behind the last site is used; heads and
later layers are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every_module

from actstore.errors import HarvestWarning, ModelError
from actstore.model.load_model import LoadedModel
from actstore.model.probe import probe_tokens
from actstore.model.tap import Tap

_SHOWN = 4
_WRAPPERS = {
    "module": "torch.nn.DataParallel and DistributedDataParallel put it there",
    "_orig_mod": "torch.compile puts it there",
    "_fsdp_wrapped_module": "FSDP puts it there",
    "_checkpoint_wrapped_module": "activation checkpointing puts it there",
    "model": "training frameworks that keep the network as `self.model` put it there",
}


def check_used(model: LoadedModel, tap: Tap) -> None:
    """Compare the checkpoint's keys with what the tap runs; warns (HarvestWarning) of
    differences that do not matter.

    Raises ModelError: weights that the sites depend on are not in the checkpoint, or it
    has weights for a module that runs which the model has no place for.
    """
    missing, unexpected = model.keys.missing, model.keys.unexpected
    if not missing and not unexpected:
        return
    used = _run(model, tap)
    lacking = [name for name in missing if used.parameter(name)]
    if lacking:
        raise ModelError(_lacking(model, lacking, "that the sites depend on"))
    _check_left_out(model, used)
    _note(model)


def check_whole(model: LoadedModel) -> None:
    """As `check_used`, for a model that is run to its end, the head included: every
    parameter must be loaded.
    """
    if model.keys.missing:
        raise ModelError(
            _lacking(model, model.keys.missing, "that the whole model needs")
        )
    used = _Used(model.module)
    for module in model.module.modules():
        used.completed(module)
    _check_left_out(model, used)


def _check_left_out(model: LoadedModel, used: _Used) -> None:
    """Raises ModelError where the checkpoint has weights of modules that run, and the
    model has no place for them.
    """
    names = [
        name
        for name in model.keys.unexpected
        if name not in model.keys.constants and used.place(name)
    ]
    if names:
        raise ModelError(
            f"{_the(model)} {_count(names, 'weight')} of modules that are run, and the"
            " model that its config.json describes has no place for"
            f" {'it' if len(names) == 1 else 'them'}: {_named(names)}. The config is"
            " that of another model, or misses an option (attention_bias, qk_norm,"
            " ...); mend it"
        )


class _Used:
    """What ran, as ids of modules and of parameters: a bridge runs a copy of the model
    that shares its parameters.
    """

    def __init__(self, root: nn.Module) -> None:
        from transformers import PreTrainedModel

        self._root, self._whole_kinds = root, (PreTrainedModel,)
        self._names = dict(root.named_modules())
        self._own = {id(module) for module in self._names.values()}
        self._prefix = str(getattr(root, "base_model_prefix", ""))
        self._modules: set[int] = set()
        self._parameters: set[int] = set()
        # parameters of modules that began, and may have been stopped in the middle
        self._begun: set[int] = set()
        self._copy = True

    def begun(self, module: nn.Module) -> None:
        self._copy &= id(module) not in self._own
        # it may use its own before any of its modules
        if next(module.children(), None) is not None:
            self._parameters.update(map(id, module.parameters(recurse=False)))
        if not self._whole(module):
            self._begun.update(map(id, module.parameters()))

    def completed(self, module: nn.Module) -> None:
        # a whole model has unused parts
        for one in [module] if self._whole(module) else module.modules():
            self._modules.add(id(one))
            self._parameters.update(map(id, one.parameters(recurse=False)))

    def parameter(self, name: str) -> bool:
        """Whether a parameter or buffer of the model was used."""
        owner, _, own = name.rpartition(".")
        module = self._names.get(owner)
        if module is None:
            return True  # it is not where it is said to be: on the safe side
        return id(module) in self._modules or self._seen(getattr(module, own, None))

    def place(self, name: str) -> bool:
        """Whether a key without a parameter belongs to a module that ran."""
        path, module = self._nearest(name)
        if module is self._root or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return False  # a head of another task, a layer more
        # a part that this model does without, or a parameter of its own
        if self._whole(module):
            return name.rpartition(".")[0] == path
        return id(module) in self._modules or any(map(self._seen, self._untied(module)))

    def _seen(self, parameter: Any) -> bool:
        # What a bridge takes apart is copied, and the copies run: to have begun is
        # enough there.
        return id(parameter) in self._parameters or (
            self._copy and id(parameter) in self._begun
        )

    def _untied(self, module: nn.Module) -> Iterator[nn.Parameter]:
        """Parameters that no module outside has too: an output embedding has not run
        because the input one has.
        """
        inside = {id(one) for one in module.modules()}
        others = (one for one in self._names.values() if id(one) not in inside)
        elsewhere = {
            id(value) for one in others for value in one.parameters(recurse=False)
        }
        return (value for value in module.parameters() if id(value) not in elsewhere)

    def _nearest(self, name: str) -> tuple[str, nn.Module]:
        """The longest beginning of a key that is a module; also with the base model's
        prefix put before or taken off, where that leads to a part of the model.
        """
        prefix = f"{self._prefix}."
        for one in (name, prefix + name, name.removeprefix(prefix)):
            path = next(path for path in _above(one) if path in self._names)
            if not self._whole(self._names[path]):
                return path, self._names[path]
        path = next(path for path in _above(name) if path in self._names)
        return path, self._names[path]

    def _whole(self, module: nn.Module) -> bool:
        return (
            module is self._root
            or isinstance(module, self._whole_kinds)
            or hasattr(module, "hook_dict")
        )


def _above(name: str) -> Iterator[str]:
    """Names of the modules that a key may belong to, the innermost first and the root
    ("") last.
    """
    parts = name.split(".")[:-1]
    return (".".join(parts[:n]) for n in range(len(parts), -1, -1))


def _run(model: LoadedModel, tap: Tap) -> _Used:
    """Run the tap once, without compiled code, and see what it runs."""
    used = _Used(model.module)
    tokens = probe_tokens(model)
    with _watched(used), torch.compiler.set_stance("force_eager"):
        tap.run(tokens, None, lambda _site, _x: None)
    return used


@contextmanager
def _watched(used: _Used) -> Iterator[None]:
    def begin(module: nn.Module, _args: Any) -> None:
        used.begun(module)

    def end(module: nn.Module, _args: Any, _output: Any) -> None:
        used.completed(module)

    handles = [
        every_module.register_module_forward_pre_hook(begin),
        every_module.register_module_forward_hook(end),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lacking(model: LoadedModel, names: Sequence[str], which: str) -> str:
    advice = _wrapped(model.keys.missing, model.keys.unexpected)
    if advice is None:
        advice = (
            "Its config.json describes more than it holds, or its keys are called"
            " otherwise"
            + (
                f" (it has {_named(model.keys.unexpected)}, which the model has not)"
                if model.keys.unexpected
                else ""
            )
            + "; get the right config.json or save the model again"
            " (model.save_pretrained)"
        )
    return (
        f"{_the(model, has=False)} {_count(names, 'weight')} {which}, and random"
        f" numbers would stand there: {_named(names)}. {advice}"
    )


def _wrapped(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """Where the keys fit but for one part that all of them have: which."""
    # with the base model's prefix and without
    wanted = {*missing, *(name.partition(".")[2] for name in missing)}
    first = {name.partition(".")[0] for name in unexpected}
    for part in (*_WRAPPERS, *(first if len(first) == 1 else ())):
        bare = [
            name.replace(f"{part}.", "", 1)
            for name in unexpected
            if f".{part}." in f".{name}"
        ]
        fits = sum(name in wanted for name in bare)
        if fits * 2 > len(unexpected):
            why = f" ({_WRAPPERS[part]})" if part in _WRAPPERS else ""
            return (
                f"Its keys have `{part}.` in them{why}, and fit without it: load the"
                f" file with safetensors, take `{part}.` out of every key, and save it"
                " again"
            )
    return None


def _note(model: LoadedModel) -> None:
    """Say which differences were found that do not matter for the sites."""
    parts = []
    if model.keys.unexpected:
        parts.append(
            f"it has {_named(model.keys.unexpected)}, which the model has no place for"
        )
    if model.keys.missing:
        parts.append(f"it lacks {_named(model.keys.missing)}, which no site depends on")
    warnings.warn(
        f"the checkpoint of {model.name}: {'; '.join(parts)}",
        HarvestWarning,
        stacklevel=3,
    )


def _the(model: LoadedModel, *, has: bool = True) -> str:
    return f"model {model.name!r}: its checkpoint {'has' if has else 'lacks'}"


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
