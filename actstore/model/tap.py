"""Run a model on batches of tokens, and hand over the values of some sites.

A tap has hooks at the sites. Its forward stops after the last of them, so that later
layers and the head cost nothing. A site is a hook name of TransformerLens
(`actstore/model/hugging_face_tap.py`), where it knows the model's family, or the name
of one of the model's own modules, whose output it is.
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
from actstore.model.probe import site_vectors
from actstore.model.value_layouts import ValueLayout, arranged
from schemas.source import Site

# What a site has in one forward: [b, t, d], with heads flattened into d, in the dtype
# that the model computes in.
TappedValues = Tensor
# Gets the index of a site among those of the tap, and its values.
Sink = Callable[[int, TappedValues], None]


class Tap(Protocol):
    """Runs a model and hands over each site's values.

    Attributes:
        sites: The sites whose values are handed over, in the order of their indices.
    """

    sites: tuple[Site, ...]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        """Run the model once; `sink(i, values)` gets the values of site i.

        Values at tokens are those that the sequences have without padding. They are
        valid during the call of `sink` only.

        Args:
            tokens: int64 [b, t].
            mask: int64 [b, t], 1 where there is a token; None for everywhere.
            sink: Called once for each site, in the order in which the model computes
                them.

        Raises:
            SpecError: Padding changes the model's values at tokens.
        """
        ...

    def check_padding(self, tokens: NDArray[np.int32]) -> None:
        """Check that the model can be run on sequences that are padded as these.

        Args:
            tokens: int32 [n, t], -1 where there is padding.

        Raises:
            SpecError: Padding there changes its values at tokens.
        """
        ...

    def close(self) -> None:
        """Remove all hooks."""
        ...


class _StopForward(Exception):  # noqa: N818 (not an error: the last site has been seen)
    """Ends a forward from inside a hook."""


class TapPoint(NamedTuple):
    """A site with all that is needed to get its values.

    Attributes:
        site: Its name and width.
        attach: Puts the hook there.
        layout: How its values lie.
    """

    site: Site
    attach: Attach
    layout: ValueLayout


class HookTap:
    """A tap made of hooks and a call that runs the model.

    Args:
        module: The model.
        points: One for each site.
        call: Runs the model on tokens, a mask and positions.
        vocabulary: Token ids are below it; 0: not known.
    """

    def __init__(
        self,
        module: nn.Module,
        points: Sequence[TapPoint],
        call: Call,
        vocabulary: int,
    ) -> None:
        self.sites = tuple(point.site for point in points)
        self._layouts = [point.layout for point in points]
        self._call = call
        self._padding = Padding(module, self._collected, vocabulary)
        # Of the forward that is running: who gets the values, the shape of its tokens,
        # and how many sites have been seen.
        self._sink: Sink | None = None
        self._shape = torch.Size()
        self._n_seen = 0
        self._hand_over: Sink = self._take
        self._removers = [
            point.attach(self._put_for(i)) for i, point in enumerate(points)
        ]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        """Run the model once; see `Tap.run`.

        tokens: int64 [b, t]; mask: int64 [b, t].
        """
        positions = None
        if mask is not None:
            tokens, positions = self._padding.prepared(tokens, mask)
        self._run(tokens, mask, positions, sink)

    def check_padding(self, tokens: NDArray[np.int32]) -> None:
        """Check padding; see `Tap.check_padding`. tokens: int32 [n, t]."""
        mask = torch.from_numpy(tokens >= 0).long()
        # Only the mask counts here, so it does for the tokens too.
        self._padding.prepared(mask, mask)

    def compile(self) -> None:
        """Run the forward through torch.compile from now on.

        The hooks stay outside of the compiled graphs.
        """
        self._call = torch.compile(self._call)
        self._hand_over = torch.compiler.disable(self._take)

    def close(self) -> None:
        """See `Tap.close`."""
        for remove in self._removers:
            remove()
        self._removers.clear()

    def _run(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, sink: Sink
    ) -> None:
        self._sink = sink
        self._shape = tokens.shape
        self._n_seen = 0
        try:
            with torch.inference_mode(), suppress(_StopForward):
                self._call(tokens, mask, positions)
        finally:
            self._sink = None
        if self._n_seen != len(self.sites):
            raise ModelError(
                f"only {self._n_seen} of {len(self.sites)} sites were computed; please"
                " report this model"
            )

    def _collected(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> list[TappedValues]:
        """Return a copy of every site's values."""
        values: dict[int, TappedValues] = {}

        def keep(i: int, x: TappedValues) -> None:
            values[i] = x.clone()

        self._run(tokens, mask, positions, keep)
        return [values[i] for i in range(len(self.sites))]

    def _put_for(self, i: int) -> Put:
        # `_hand_over` is looked up at each call, since `compile` replaces it.
        return lambda x: self._hand_over(i, x)

    def _take(self, i: int, x: Tensor) -> None:
        """Hand the values of site i to the sink, as [b, t, d]."""
        if self._sink is None:
            # Somebody else runs the model while the hooks are there.
            return
        site = self.sites[i]
        values = arranged(x, self._layouts[i], self._shape)
        if values is None or values.shape[2] != site.d:
            raise ModelError(
                f"site {site.name!r} has values of shape {list(x.shape)} for tokens of"
                f" shape {list(self._shape)}, not one vector of {site.d} per token;"
                " take another site"
            )
        self._sink(i, values)
        self._n_seen += 1
        if self._n_seen == len(self.sites):
            raise _StopForward


def points_of(
    names: Sequence[str], attach: Sequence[Attach], call: Call, tokens: Tensor
) -> list[TapPoint]:
    """Return the sites of these names, after one run on a probe.

    Args:
        names: The names of the sites.
        attach: For each of them, what puts a hook there.
        call: Runs the model.
        tokens: The tokens of the probe, int64 [b, t].

    Raises:
        SiteError: A site has not exactly one vector per token.
    """
    seen = capture(attach, lambda: call(tokens, None, None))
    points = []
    for name, attach_one, values in zip(names, attach, seen, strict=True):
        x, layout = site_vectors(name, values, tokens.shape)
        points.append(TapPoint(Site(name=name, d=x.shape[2]), attach_one, layout))
    return points
