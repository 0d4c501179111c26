"""Replaces the outputs of a model's modules while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from actstore.model.hooks import first_tensor

# Takes a site's values as the model has them, and returns those that replace them.
Hook = Callable[..., Tensor]


@contextmanager
def patched(
    module: nn.Module, hooks: Sequence[tuple[str, Hook]]
) -> Iterator[nn.Module]:
    """Inside the `with`, let hooks replace the outputs of modules.

    Args:
        module: The model.
        hooks: Pairs of a module's name and the hook for its output. Where the output is
            a tuple or another container, the hook gets the first tensor in it.
    """
    modules = dict(module.named_modules())

    def attach(name: str, hook: Hook) -> Any:
        def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            old = first_tensor(output)
            if old is None:
                return output
            return _with_replaced(output, old, hook(old))

        return modules[name].register_forward_hook(replace)

    handles = [attach(name, hook) for name, hook in hooks]
    try:
        yield module
    finally:
        for handle in handles:
            handle.remove()


def _with_replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return a module's output with the tensor `new` where `old` was."""
    if value is old:
        return new
    if isinstance(value, dict):
        items = {key: _with_replaced(item, old, new) for key, item in value.items()}
        return type(value)(**items)
    if isinstance(value, (tuple, list)):
        elements = [_with_replaced(element, old, new) for element in value]
        # A NamedTuple takes its fields one by one, other sequences take an iterable.
        if hasattr(value, "_fields"):
            return type(value)(*elements)
        return type(value)(elements)
    return value
