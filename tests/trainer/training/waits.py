"""Records the waits of an update for its device, without a device.

On the meta device nothing has values, so that whatever would read one fails or is seen;
code that asks where a tensor is takes the way that it takes on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# operators that read a value of the device's on the host, or whose result's size is the
# data's
_WAITING = {
    *(
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "bincount",
        "argwhere",
        "item",
    ),
    *(
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "histc",
        "repeat_interleave.Tensor",
    ),
}
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class Waits(TorchDispatchMode):
    """Records, inside, what would wait for the device `on`, and the shapes of all
    results; answers what is asked of the meta device: numbers with 1, sizes with none.
    """

    def __init__(self, on: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.on = on
        self.found: list[str] = []
        self.shapes: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = any(one.device.type == self.on for one in given)
        name = str(func).removeprefix("aten.").removesuffix(".default")
        if there and self._waits(func, name, args):
            self.found.append(name)
            if self.on == "meta" and func is _aten._local_scalar_dense.default:
                return 1
            if self.on == "meta" and func is _aten.nonzero.default:
                return given[0].new_zeros(0, given[0].ndim, dtype=torch.int64)
        if self.on == "meta" and self._moves(name, given, kwargs):
            self.found.append(f"copy: {name}")
        out = func(*args, **kwargs)
        self.shapes.append(
            (
                name,
                [
                    tuple(one.shape)
                    for one in tree_leaves(out)
                    if isinstance(one, Tensor)
                ],
            )
        )
        return out

    def _waits(self, func: Any, name: str, args: Any) -> bool:
        base = name.partition(".")[0]
        if base in _INDEXING:
            return any(
                isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8)
                for one in args[1]
            )
        return (
            name in _WAITING
            or base in _WAITING
            or func is _aten.repeat_interleave.Tensor
        )

    def _moves(self, name: str, given: list[Tensor], kwargs: dict[str, Any]) -> bool:
        """A copy between the host and the device, either way."""
        if name.startswith("copy_"):
            return len({one.device.type for one in given}) > 1
        wanted = kwargs.get("device")
        return (
            name.startswith("_to_copy")
            and wanted is not None
            and given[0].device != torch.device(wanted)
        )
