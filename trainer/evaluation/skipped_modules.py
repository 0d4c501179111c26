"""Runs a model without the modules whose outputs are known already.

What a pass computes before it comes to a site does not depend on what is put there.
The outputs of the modules that were done by then (embeddings, whole blocks, the
attention of the site's own block) are kept from a pass without changes, and given again
in the passes with changes, for several copies of the batch at once. Whether a model has
other ways from module to module than their outputs is for the caller to try.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """The result of one call of a module.

    Attributes:
        module: The module.
        value: Its output: mostly a tensor [B, context, d], or a tuple or mapping with
            one.
    """

    module: nn.Module
    value: Any


@contextmanager
def keeping_outputs(model: nn.Module) -> Iterator[list[Output]]:
    """Inside the `with`, hold the outputs of all modules that are done, in order.

    A module's own output takes the place of those of the modules in it. While the
    second layer's MLP runs, say, there are the outputs of the embedding, of the first
    layer, and of the second layer's norms and attention.

    model: It runs once.
    """
    outputs: list[Output] = []

    def keep(module: nn.Module, _inputs: Any, value: Any) -> None:
        inside = set(module.modules())
        outputs[:] = [output for output in outputs if output.module not in inside]
        outputs.append(Output(module, value))

    # Before other hooks, which run again in a pass in which the module is skipped.
    handles = [
        module.register_forward_hook(keep, prepend=True) for module in model.modules()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(
    outputs: Sequence[Output], shape: torch.Size, n_copies: int
) -> Iterator[None]:
    """Inside the `with`, let modules give what they gave before instead of running.

    A module that is called more often than it has outputs here runs from then on.

    Args:
        outputs: What `keeping_outputs` held at one moment of a pass.
        shape: The shape of that pass' tokens, [B, context].
        n_copies: How many copies of that batch, one after the other, the passes inside
            the `with` are of.
    """
    known: dict[nn.Module, deque[Any]] = {}
    for output in outputs:
        known.setdefault(output.module, deque()).append(output.value)
    # Other packages too may have given a module a forward of its own.
    own_forwards = {module: vars(module).get("forward") for module in known}
    for module, values in known.items():
        forward = partial(_given, values, module.forward, shape, n_copies)
        # Of the module itself, it hides the method of its class. TransformerLens'
        # modules would hand an attribute that is set on to what they wrap.
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own_forward in own_forwards.items():
            del vars(module)["forward"]
            if own_forward is not None:
                vars(module)["forward"] = own_forward


def _given(
    values: deque[Any],
    forward: Callable[..., Any],
    shape: torch.Size,
    n_copies: int,
    *args: Any,
    **options: Any,
) -> Any:
    """Stand for a module's forward: give the next of its values, or else run it."""
    if values:
        return repeated(values.popleft(), shape, n_copies)
    return forward(*args, **options)


def repeated(value: Any, shape: torch.Size, n_copies: int) -> Any:
    """Return a module's output for several copies of its batch.

    Tensors whose first dimension is that of the sequences, or of all their tokens, are
    repeated along it; others stay as they are.

    Args:
        value: A tensor [B, ...] or [B * context, ...], or a container of such.
        shape: The shape of the tokens, [B, context].
        n_copies: How many copies.
    """
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] not in {shape[0], shape.numel()}:
            return value
        return value.repeat(n_copies, *[1] * (value.ndim - 1))
    again = partial(repeated, shape=shape, n_copies=n_copies)
    if isinstance(value, dict):
        items = {name: again(item) for name, item in value.items()}
        return type(value)(**items)
    if isinstance(value, (tuple, list)):
        elements = [again(element) for element in value]
        # A NamedTuple takes its fields one by one, other sequences take an iterable.
        is_named = hasattr(value, "_fields")
        return type(value)(*elements) if is_named else type(value)(elements)
    return value
