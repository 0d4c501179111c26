"""Hooks at modules: putting them there, taking the values that pass, and removing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Put = Callable[[Tensor], None]


Attach = Callable[[Put], Callable[[], None]]  # adds one hook and gives its remover


def module_hook(
    module: nn.Module, where: str, pick: Callable[[Tensor], Tensor] | None = None
) -> Attach:
    """`attach` for a plain module's input ("in") or output ("out"), or a part of it."""

    def attach(put: Put) -> Callable[[], None]:
        def take(value: Any) -> None:
            x = first_tensor(value)
            if x is not None:
                put(pick(x) if pick else x)

        if where == "in":
            handle = module.register_forward_pre_hook(
                lambda _m, args, kwargs: take((args, kwargs)), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(
                lambda _m, _args, output: take(output)
            )
        return handle.remove

    return attach


def first_tensor(value: Any) -> Tensor | None:
    """The tensor of a module's input or output: itself, or the first inside tuples and
    mappings.
    """
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, dict):
        named = value.get("hidden_states")
        if isinstance(named, Tensor):
            return named
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((x for x in map(first_tensor, value) if x is not None), None)
    return None


def capture(
    attach: Sequence[Attach],
    call: Callable[[], Any],
    keeper: Callable[[list[Tensor]], Put] | None = None,
) -> list[list[Tensor]]:
    """Run `call` once with hooks; per hook, what `keeper` keeps of what it saw (None:
    clones).
    """
    seen: list[list[Tensor]] = [[] for _ in attach]
    watch(attach, [(keeper or _keeper)(kept) for kept in seen], call)
    return seen


def watch(
    attach: Sequence[Attach], puts: Sequence[Put], call: Callable[[], Any]
) -> None:
    """Run `call` once with hooks, each of which hands its values to the `put` of its
    place.
    """
    removers = [one(put) for one, put in zip(attach, puts, strict=True)]
    try:
        with torch.inference_mode():
            call()
    finally:
        for remove in removers:
            remove()


def _keeper(kept: list[Tensor]) -> Put:
    return lambda x: kept.append(x.detach().clone())
