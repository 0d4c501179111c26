"""A model whose modules' outputs are replaced while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from actstore.model.hooks import first_tensor

# takes a site's values as the model has them, and gives those that stand for them
Hook = Callable[..., Tensor]


@contextmanager
def patched(
    module: nn.Module, hooks: Sequence[tuple[str, Hook]]
) -> Iterator[nn.Module]:
    """Inside the `with`, outputs of modules (of a tuple, the first tensor) are what the
    hooks of their names give.
    """
    modules = dict(module.named_modules())

    def attach(name: str, hook: Hook) -> Any:
        def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            old = first_tensor(output)
            return output if old is None else _with(output, old, hook(old))

        return modules[name].register_forward_hook(replace)

    handles = [attach(name, hook) for name, hook in hooks]
    try:
        yield module
    finally:
        for handle in handles:
            handle.remove()


def _with(value: Any, old: Tensor, new: Tensor) -> Any:
    """A module's output with one tensor in another's place."""
    if value is old:
        return new
    if isinstance(value, dict):
        return type(value)(**{key: _with(one, old, new) for key, one in value.items()})
    if isinstance(value, (tuple, list)):
        parts = [_with(one, old, new) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
