"""From a site's name to its values: the module to hook, and a forward that stops behind
the last one.

A site is a hook name of TransformerLens (`hook_names.py`), where it knows the model's
family, or the name of one of the model's own modules, whose output it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstore.errors import ModelError
from actstore.model.forward import Call
from actstore.model.hooks import Attach, Put, capture
from actstore.model.padding import Padding
from actstore.model.probe import vectors
from actstore.model.value_layouts import Layout, arranged
from schemas.source import Site

Sink = Callable[[int, Tensor], None]


class Tap(Protocol):
    """Runs the model and hands over each site's values."""

    sites: tuple[Site, ...]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        """tokens: int64 [b, t]; mask: 1 where there is a token, int64 [b, t], None for
        everywhere.

        `sink(i, x)` gets site i's values, [b, t, d] with heads flattened, valid during
        the call only. Values at tokens are those without padding. Raises SpecError
        where the model does not give these.
        """
        ...

    def check_padding(self, tokens: NDArray[np.int32]) -> None:
        """Raises SpecError where the model gives other values for sequences that are
        padded as these, with -1.
        """
        ...

    def close(self) -> None:
        """Remove all hooks."""
        ...


class _Stop(Exception):  # noqa: N818 (not an error: the last site has been seen)
    """Ends a forward."""


class Point(NamedTuple):
    """A site, how its values are got, and how they lie."""

    site: Site
    attach: Attach
    layout: Layout


class HookTap:
    """Hooks that hand values to a sink, and the call that runs the model."""

    def __init__(
        self, module: nn.Module, points: Sequence[Point], call: Call, vocabulary: int
    ) -> None:
        self.sites = tuple(point.site for point in points)
        self._layouts = [point.layout for point in points]
        self._call = call
        self._padding = Padding(module, self._values, vocabulary)
        self._sink: Sink | None = None
        self._shape, self._seen = torch.Size(), 0
        self._hand_over: Sink = self._take
        self._removers = [point.attach(self._put(i)) for i, point in enumerate(points)]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        positions = None
        if mask is not None:
            tokens, positions = self._padding.prepared(tokens, mask)
        self._run(tokens, mask, positions, sink)

    def check_padding(self, tokens: NDArray[np.int32]) -> None:
        mask = torch.from_numpy(tokens >= 0).long()
        self._padding.prepared(mask, mask)

    def compile(self) -> None:
        """Run the forward through torch.compile; the hooks stay outside of the compiled
        graphs.
        """
        self._call = torch.compile(self._call)
        self._hand_over = torch.compiler.disable(self._take)

    def close(self) -> None:
        for remove in self._removers:
            remove()
        self._removers.clear()

    def _run(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, sink: Sink
    ) -> None:
        self._sink, self._shape, self._seen = sink, tokens.shape, 0
        try:
            with torch.inference_mode(), suppress(_Stop):
                self._call(tokens, mask, positions)
        finally:
            self._sink = None
        if self._seen != len(self.sites):
            raise ModelError(
                f"only {self._seen} of {len(self.sites)} sites were computed; please"
                " report this model"
            )

    def _values(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> list[Tensor]:
        got: dict[int, Tensor] = {}
        self._run(tokens, mask, positions, lambda i, x: got.__setitem__(i, x.clone()))
        return [got[i] for i in range(len(self.sites))]

    def _put(self, site: int) -> Put:
        return lambda x: self._hand_over(site, x)

    def _take(self, site: int, x: Tensor) -> None:
        if self._sink is None:
            return
        values = arranged(x, self._layouts[site], self._shape)
        if values is None or values.shape[2] != self.sites[site].d:
            raise ModelError(
                f"site {self.sites[site].name!r} has values of shape {list(x.shape)}"
                f" for tokens of shape {list(self._shape)}, not one vector of"
                f" {self.sites[site].d} per token; take another site"
            )
        self._sink(site, values)
        self._seen += 1
        if self._seen == len(self.sites):
            raise _Stop


def points_of(
    names: Sequence[str], attach: Sequence[Attach], call: Call, tokens: Tensor
) -> list[Point]:
    """Sites by name, from one run on a probe. Raises SiteError for one that has no
    vector per token.
    """
    seen = capture(attach, lambda: call(tokens, None, None))
    found = [
        vectors(name, x, tokens.shape) for name, x in zip(names, seen, strict=True)
    ]
    return [
        Point(Site(name=name, d=x.shape[2]), one, layout)
        for name, one, (x, layout) in zip(names, attach, found, strict=True)
    ]
