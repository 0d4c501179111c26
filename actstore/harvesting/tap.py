"""From a site's name to its values: the module to hook, and a forward that stops behind the last one.

A site is a hook name of TransformerLens (`resolve.py`), where it knows the model's family, or the name of one of the
model's own modules, whose output it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstore.errors import ModelError, SiteError
from actstore.harvesting.forward import Call, check_context, device_of, forward_of, probing, random_tokens
from actstore.harvesting.layouts import Layout, arranged, layout_of
from actstore.harvesting.models import LoadedModel
from actstore.harvesting.padding import Padding
from actstore.harvesting.patterns import match_sites
from schemas.source import Site

Sink = Callable[[int, Tensor], None]
Put = Callable[[Tensor], None]
Attach = Callable[[Put], Callable[[], None]]  # adds one hook and gives its remover
LENGTHS = (11, 7, 13, 9, 17, 19, 23, 29, 31, 37, 5, 3)


class Tap(Protocol):
    """Runs the model and hands over each site's values."""

    sites: tuple[Site, ...]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        """tokens: int64 [b, t]; mask: 1 where there is a token, int64 [b, t], None for everywhere.

        `sink(i, x)` gets site i's values, [b, t, d] with heads flattened, valid during the call only. Values at tokens
        are those without padding. Raises SpecError where the model does not give these.
        """
        ...

    def check_padding(self, tokens: NDArray[np.int32]) -> None:
        """Raises SpecError where the model gives other values for sequences that are padded as these, with -1."""
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

    def __init__(self, module: nn.Module, points: Sequence[Point], call: Call, vocabulary: int) -> None:
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
        """Run the forward through torch.compile; the hooks stay outside of the compiled graphs."""
        self._call = torch.compile(self._call)
        self._hand_over = torch.compiler.disable(self._take)

    def close(self) -> None:
        for remove in self._removers:
            remove()
        self._removers.clear()

    def _run(self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, sink: Sink) -> None:
        self._sink, self._shape, self._seen = sink, tokens.shape, 0
        try:
            with torch.inference_mode(), suppress(_Stop):
                self._call(tokens, mask, positions)
        finally:
            self._sink = None
        if self._seen != len(self.sites):
            raise ModelError(f"only {self._seen} of {len(self.sites)} sites were computed; please report this model")

    def _values(self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[Tensor]:
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
                f"site {self.sites[site].name!r} has values of shape {list(x.shape)} for tokens of shape "
                f"{list(self._shape)}, not one vector of {self.sites[site].d} per token; take another site"
            )
        self._sink(site, values)
        self._seen += 1
        if self._seen == len(self.sites):
            raise _Stop


def open_tap(
    model: LoadedModel, patterns: Iterable[str], *, compiled: bool = False, context: int | None = None
) -> HookTap:
    """The tap for a model's sites.

    For a Hugging Face model whose family TransformerLens knows, a TransformerBridge or a HookedTransformer, sites are
    its hook names (values without compatibility mode or weight processing of ours); of any Hugging Face model, and of
    any other module, also the names of its submodules, whose values are their outputs (of a tuple, the first).
    An encoder–decoder model's decoder sees the same tokens, shifted right by one behind its start token.

    compiled: run the forward through torch.compile. context: the length that it will be run with, which is tried.

    Raises:
        SiteError: an unknown name (with the nearest that exist), or a site that has no single vector per token.
        SpecError: a context that the model does not run on.
        ModelError: a model that does not run on token ids.
    """
    from transformers import PreTrainedModel

    from actstore.harvesting.resolve import bridge_tap, model_tap

    if isinstance(model.module, PreTrainedModel):
        tap = model_tap(model, patterns)
    elif hasattr(model.module, "hook_dict"):
        tap = bridge_tap(model, patterns)
    else:
        tap = _module_tap(model, patterns)
    if context is not None:
        run = lambda tokens: tap.run(tokens, None, lambda *_: None)  # noqa: E731
        check_context(model.module, run, context, model.info.vocabulary)
    if compiled:
        tap.compile()
    return tap


def module_hook(module: nn.Module, where: str, pick: Callable[[Tensor], Tensor] | None = None) -> Attach:
    """`attach` for a plain module's input ("in") or output ("out"), or a part of it."""

    def attach(put: Put) -> Callable[[], None]:
        def take(value: Any) -> None:
            x = first_tensor(value)
            if x is not None:
                put(pick(x) if pick else x)

        if where == "in":
            handle = module.register_forward_pre_hook(lambda _m, args, kwargs: take((args, kwargs)), with_kwargs=True)
        else:
            handle = module.register_forward_hook(lambda _m, _args, output: take(output))
        return handle.remove

    return attach


def first_tensor(value: Any) -> Tensor | None:
    """The tensor of a module's input or output: itself, or the first inside tuples and mappings."""
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


def probe_tokens(model: LoadedModel, avoid: Iterable[int] = ()) -> Tensor:
    """A few tokens, int64 [2, t]; t is a length that is none of the model's own sizes (number of heads, ...)."""
    sizes = {*avoid, *(size for p in model.module.parameters() for size in p.shape)}
    most = model.max_context or max(LENGTHS)
    length = next((t for t in LENGTHS if t not in sizes and t <= most), min(LENGTHS[0], most))
    return random_tokens(2, length, model.info.vocabulary, device_of(model.module))


def vectors(name: str, seen: Sequence[Tensor], shape: torch.Size) -> tuple[Tensor, Layout]:
    """The values [b, t, d] of a site in a probe. Raises SiteError where they are not one vector per token."""
    if not seen:
        raise SiteError(f"site {name!r}: the model does not compute it in a plain forward; take another site")
    x = seen[0]
    if len(seen) > 1:
        raise SiteError(f"site {name!r} is passed {len(seen)} times in one forward; wanted one vector per token")
    layout = layout_of(x, shape)
    values = arranged(x, layout, shape) if layout is not None else None
    if layout is None or values is None or shape[1] in x.shape[2:]:  # a width that is the length is a pattern's
        raise SiteError(
            f"site {name!r} has values of shape {list(x.shape)} for tokens of shape {list(shape)}: "
            "not one vector per token (attention patterns and the like cannot be stored); take another site"
        )
    return values, layout


def capture(
    attach: Sequence[Attach], call: Callable[[], Any], keeper: Callable[[list[Tensor]], Put] | None = None
) -> list[list[Tensor]]:
    """Run `call` once with hooks; per hook, what `keeper` keeps of what it saw (None: clones)."""
    seen: list[list[Tensor]] = [[] for _ in attach]
    watch(attach, [(keeper or _keeper)(kept) for kept in seen], call)
    return seen


def watch(attach: Sequence[Attach], puts: Sequence[Put], call: Callable[[], Any]) -> None:
    """Run `call` once with hooks, each of which hands its values to the `put` of its place."""
    removers = [one(put) for one, put in zip(attach, puts, strict=True)]
    try:
        with torch.inference_mode():
            call()
    finally:
        for remove in removers:
            remove()


def _keeper(kept: list[Tensor]) -> Put:
    return lambda x: kept.append(x.detach().clone())


def points_of(names: Sequence[str], attach: Sequence[Attach], call: Call, tokens: Tensor) -> list[Point]:
    """Sites by name, from one run on a probe. Raises SiteError for one that has no vector per token."""
    seen = capture(attach, lambda: call(tokens, None, None))
    found = [vectors(name, x, tokens.shape) for name, x in zip(names, seen, strict=True)]
    return [
        Point(Site(name=name, d=x.shape[2]), one, layout)
        for name, one, (x, layout) in zip(names, attach, found, strict=True)
    ]


def _module_tap(model: LoadedModel, patterns: Iterable[str]) -> HookTap:
    """Sites are submodules' names, values their outputs."""
    module = model.module
    modules = {name: one for name, one in module.named_modules() if name}
    names = match_sites(patterns, list(modules))
    call = forward_of(module)
    with probing(f"{type(module).__name__} does not run on token ids, int64 [b, t]"):
        points = points_of(names, [module_hook(modules[name], "out") for name in names], call, probe_tokens(model))
    return HookTap(module, points, call, model.info.vocabulary)
