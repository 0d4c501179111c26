"""From a site's name to its values: the module to hook, and a forward that stops behind the last one.

TransformerLens names the sites. Its bridge wraps every module and forces eager attention, which costs more than a
quarter of the speed, so values are taken from the *unwrapped* model wherever that gives the bridge's own: each hook
point of a bridge over a copy (sharing the weights) leads to candidates in the plain model, both run once on a few
random tokens, and a candidate counts only if its values are equal. If a site has none (per-head results, normalised
LayerNorm outputs), the bridge's forward is used for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from actstore.errors import ModelError, SiteError
from actstore.harvesting.models import LoadedModel
from actstore.harvesting.patterns import match_sites
from schemas.source import Site

Sink = Callable[[int, Tensor], None]
Put = Callable[[Tensor], None]


class Tap(Protocol):
    """Runs the model and hands over each site's values."""

    sites: tuple[Site, ...]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        """tokens: int64 [b, t]; mask: 1 where there is a token, int64 [b, t], None for everywhere.

        `sink(i, x)` gets site i's values, [b, t, d] with heads flattened, valid during the call only.
        """
        ...

    def close(self) -> None:
        """Remove all hooks."""
        ...


class _Stop(Exception):  # noqa: N818 (not an error: the last site has been seen)
    """Ends a forward."""


class HookTap:
    """Hooks that hand values to a sink, and the call that runs the model.

    `attach(put)` adds one site's hook and gives its remover.
    """

    def __init__(
        self, sites: Sequence[Site], attach: Sequence[Callable[[Put], Callable[[], None]]], call: Callable[..., Any]
    ) -> None:
        self.sites = tuple(sites)
        self._call = call
        self._sink: Sink | None = None
        self._seen = 0
        self._hand_over: Sink = self._take
        self._removers = [one(self._put(i)) for i, one in enumerate(attach)]

    def run(self, tokens: Tensor, mask: Tensor | None, sink: Sink) -> None:
        self._sink, self._seen = sink, 0
        try:
            with torch.inference_mode(), suppress(_Stop):
                self._call(tokens, mask)
        finally:
            self._sink = None
        if self._seen != len(self.sites):
            raise ModelError(f"only {self._seen} of {len(self.sites)} sites were computed; please report this model")

    def compile(self) -> None:
        """Run the forward through torch.compile; the hooks stay outside of the compiled graphs."""
        self._call = torch.compile(self._call)
        self._hand_over = torch.compiler.disable(self._take)

    def close(self) -> None:
        for remove in self._removers:
            remove()
        self._removers.clear()

    def _put(self, site: int) -> Put:
        return lambda x: self._hand_over(site, x)

    def _take(self, site: int, x: Tensor) -> None:
        if self._sink is None:
            return
        self._sink(site, x.flatten(2) if x.ndim > 3 else x)
        self._seen += 1
        if self._seen == len(self.sites):
            raise _Stop


def open_tap(model: LoadedModel, patterns: Iterable[str], *, compiled: bool = False) -> Tap:
    """The tap for a model's sites.

    For a Hugging Face model, a TransformerBridge or a HookedTransformer, sites are TransformerLens hook names (values
    without compatibility mode or weight processing of ours); for any other module they are names of its submodules,
    and the values are their outputs (of a tuple, the first). compiled: run the forward through torch.compile.

    Raises:
        SiteError: an unknown name (with the nearest that exist), or a site that has no single vector per token.
        ModelError: TransformerLens has no adapter for the model.
    """
    from transformers import PreTrainedModel

    from actstore.harvesting.resolve import bridge_tap, model_tap

    if isinstance(model.module, PreTrainedModel):
        tap = model_tap(model, patterns)
    elif hasattr(model.module, "hook_dict"):
        tap = bridge_tap(model.module, model.info.vocabulary, patterns)
    else:
        tap = _module_tap(model.module, model.info.vocabulary, patterns)
    if compiled:
        tap.compile()
    return tap


def module_hook(module: nn.Module, where: str, pick: Callable[[Tensor], Tensor] | None = None) -> Any:
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


def probe_tokens(vocabulary: int, device: torch.device, avoid: Iterable[int] = ()) -> Tensor:
    """A few tokens, int64 [2, t]; t is a length that is none of the model's own sizes (number of heads, ...)."""
    length = next(t for t in (11, 7, 13, 9) if t not in set(avoid))
    draws = torch.randint(0, max(vocabulary, 2), (2, length), generator=torch.Generator().manual_seed(0))
    return draws.to(device)


def vectors(name: str, seen: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """The values [b, t, d] of a site in a probe. Raises SiteError where they are not one vector per token."""
    if not seen:
        raise SiteError(f"site {name!r}: the model does not compute it in a plain forward; take another site")
    x = seen[0]
    if len(seen) > 1:
        raise SiteError(f"site {name!r} is passed {len(seen)} times in one forward; wanted one vector per token")
    if x.ndim < 3 or x.shape[:2] != shape:
        raise SiteError(
            f"site {name!r} has values of shape {list(x.shape)} for tokens of shape {list(shape)}: "
            "not one vector per token (attention patterns and the like cannot be stored); take another site"
        )
    return x.flatten(2)


def capture(attach: Sequence[Any], call: Callable[[], Any]) -> list[list[Tensor]]:
    """Run `call` once with hooks; per hook, clones of what it saw."""
    seen: list[list[Tensor]] = [[] for _ in attach]
    removers = [one(_keeper(kept)) for one, kept in zip(attach, seen, strict=True)]
    try:
        with torch.inference_mode():
            call()
    finally:
        for remove in removers:
            remove()
    return seen


def _keeper(kept: list[Tensor]) -> Put:
    return lambda x: kept.append(x.detach().clone())


def _module_tap(module: nn.Module, vocabulary: int, patterns: Iterable[str]) -> HookTap:
    """Sites are submodules' names, values their outputs."""
    modules = {name: one for name, one in module.named_modules() if name}
    names = match_sites(patterns, list(modules))
    attach = [module_hook(modules[name], "out") for name in names]
    masked = "attention_mask" in inspect.signature(module.forward).parameters

    def call(tokens: Tensor, mask: Tensor | None) -> Any:
        return module(tokens, attention_mask=mask) if masked and mask is not None else module(tokens)

    tokens = probe_tokens(vocabulary, device_of(module))
    seen = capture(attach, lambda: call(tokens, None))
    sites = [Site(name=n, d=vectors(n, x, tokens.shape).shape[2]) for n, x in zip(names, seen, strict=True)]
    return HookTap(sites, attach, call)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter lies."""
    first = next(module.parameters(), None)
    return first.device if first is not None else torch.device("cpu")
