"""Put hooks at modules, take the values that pass there, and remove the hooks again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Gets each value that passes a hook, [...] in the model's own shape.
Put = Callable[[Tensor], None]
Remove = Callable[[], None]
# Puts one hook somewhere, which hands values to the `Put`, and returns its remover.
Attach = Callable[[Put], Remove]


def module_hook(
    module: nn.Module, where: str, pick: Callable[[Tensor], Tensor] | None = None
) -> Attach:
    """Return a function that attaches a hook to a module.

    Args:
        module: The module to put the hook at.
        where: "in" for the module's input, "out" for its output.
        pick: Takes a part of each value, [...] to [...]; None: the whole.
    """

    def attach(put: Put) -> Remove:
        def hand_over(value: Any) -> None:
            x = first_tensor(value)
            if x is None:
                return
            put(pick(x) if pick else x)

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            hand_over((args, kwargs))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            hand_over(output)

        if where == "in":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after)
        return handle.remove

    return attach


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in a module's input or output, in the model's own shape.

    In a mapping `hidden_states` comes before all else. Tensors [...] of other dtypes
    than floating-point ones do not count; None if there is no tensor.
    """
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, dict):
        hidden_states = value.get("hidden_states")
        if isinstance(hidden_states, Tensor):
            return hidden_states
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            x = first_tensor(item)
            if x is not None:
                return x
    return None


def capture(
    attach: Sequence[Attach],
    call: Callable[[], Any],
    keeper: Callable[[list[Tensor]], Put] | None = None,
) -> list[list[Tensor]]:
    """Run `call` once with hooks, and return the values that each of them saw.

    Args:
        attach: One for each hook.
        call: Runs the model.
        keeper: Makes a `Put` that adds what it wants of each value to the list that it
            is given; None: clones of the values are added.

    Returns:
        For each hook, the list that its `Put` filled: tensors [...] in the model's own
        shape, if they are clones.
    """
    keeper = keeper or _keep_clones
    seen: list[list[Tensor]] = [[] for _ in attach]
    watch(attach, [keeper(kept) for kept in seen], call)
    return seen


def watch(
    attach: Sequence[Attach], puts: Sequence[Put], call: Callable[[], Any]
) -> None:
    """Run `call` once with hooks, each of which hands its values to its own `put`.

    Args:
        attach: One for each hook.
        puts: One for each hook, in the same order.
        call: Runs the model.
    """
    removers = [attach_one(put) for attach_one, put in zip(attach, puts, strict=True)]
    try:
        with torch.inference_mode():
            call()
    finally:
        for remove in removers:
            remove()


def _keep_clones(kept: list[Tensor]) -> Put:
    # A clone, since a model may write over its values in place later on.
    return lambda x: kept.append(x.detach().clone())
