"""Runs a language model on a batch once untouched, and then with one site replaced.

All replacements of a site run as one batch of as many copies, and only what comes
after the site is run (`skipped_modules.py`). Both are tried when a site comes first: a
further copy in which nothing is replaced has to give the logits of the untouched pass.
Where it does not, each replacement of that site gets a whole pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from actstore.errors import ActstoreError
from actstore.model.value_layouts import arranged, layout_of
from trainer.errors import RunError
from trainer.evaluation.patched_language_model import Subject
from trainer.evaluation.skipped_modules import (
    Output,
    keeping_outputs,
    skipping,
)
from trainer.runs.module_patching import Hook
from trainer.runs.notes import Tell

# Takes a site's activations [B, context, d], and returns those that replace them.
Patch = Callable[[Tensor], Tensor]


class Tokens(NamedTuple):
    """A batch of sequences.

    Attributes:
        ids: Token ids, int64 [B, context]; any id where there is padding.
        attention: 1 where there is a token, int64 [B, context]; None for everywhere.
        keeps_own: Where activations are not replaced, bool [B, context].
    """

    ids: Tensor
    attention: Tensor | None
    keeps_own: Tensor

    def copies(self, n: int) -> Tokens:
        """Return n copies of the batch, one after the other."""
        attention = self.attention
        if attention is not None:
            attention = attention.repeat(n, 1)
        return Tokens(self.ids.repeat(n, 1), attention, self.keeps_own.repeat(n, 1))


class CleanPass(NamedTuple):
    """The result of a pass in which nothing was replaced.

    Attributes:
        tokens: The batch.
        logits: [B, context, vocabulary].
        activations: Those of the sites, [B, context, d] each.
        before: By site, what the modules gave that were done when the pass came to it.
    """

    tokens: Tokens
    logits: Tensor
    activations: dict[str, Tensor]
    before: dict[str, tuple[Output, ...]]


class PatchedPasses:
    """Runs a model with the activations of one site replaced, in several ways."""

    def __init__(self, subject: Subject, tell: Tell) -> None:
        """Begin with nothing tried.

        Args:
            subject: The model.
            tell: Is given a note about each site that needs whole passes.
        """
        self._subject = subject
        self._tell = tell
        # Whether copies after the site are as good as whole passes: by site, and by
        # whether there is padding, since models have other code for a mask.
        self._trusted: dict[tuple[str, bool], bool] = {}

    def clean(self, tokens: Tokens, sites: Sequence[str]) -> CleanPass:
        """Run the model untouched.

        Args:
            tokens: The batch.
            sites: The sites whose activations are kept, or that are to be replaced.
        """
        activations: dict[str, Tensor] = {}
        before: dict[str, tuple[Output, ...]] = {}
        with keeping_outputs(self._subject.running) as outputs:

            def passed(name: str, value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 (TransformerLens calls it by name)
                activations[name] = _vectors(value, tokens.ids.shape)
                before.setdefault(name, tuple(outputs))
                return value

            hooks = [(name, partial(passed, name)) for name in dict.fromkeys(sites)]
            logits = self._subject.logits(tokens.ids, tokens.attention, hooks)
        return CleanPass(tokens, logits, activations, before)

    def patched(
        self, clean: CleanPass, site: str, patches: Sequence[Patch]
    ) -> tuple[Tensor, ...]:
        """Return the logits with one site replaced, [B, context, vocabulary] each.

        Args:
            clean: The untouched pass of the batch, which had the site among its own.
            site: The site.
            patches: What replaces its activations, one for each pass.
        """
        case = (site, clean.tokens.attention is not None)
        if case not in self._trusted:
            logits = self._tried(clean, site, patches)
            self._trusted[case] = logits is not None
            if logits is not None:
                return logits
            self._tell(
                f"{site}: the model does not give the same logits when only what comes"
                " after it is run, in one batch; each of its passes is a whole one,"
                " which takes longer"
            )
        if self._trusted[case]:
            return self._together(clean, site, patches)
        ids, attention, keeps_own = clean.tokens
        return tuple(
            self._subject.logits(ids, attention, [(site, _replace([patch], keeps_own))])
            for patch in patches
        )

    def _tried(
        self, clean: CleanPass, site: str, patches: Sequence[Patch]
    ) -> tuple[Tensor, ...] | None:
        """Return what `_together` does; None where it cannot be relied on."""
        try:
            *logits, untouched = self._together(clean, site, [*patches, _unchanged])
        except ActstoreError:
            raise
        except Exception:  # noqa: BLE001 (whatever a model's code makes of such a pass)
            return None
        return tuple(logits) if _nearly_equal(untouched, clean.logits) else None

    def _together(
        self, clean: CleanPass, site: str, patches: Sequence[Patch]
    ) -> tuple[Tensor, ...]:
        """Return the logits for each patch, from one pass over what is after a site."""
        n_copies = len(patches)
        copies = clean.tokens.copies(n_copies)
        hooks = [(site, _replace(patches, clean.tokens.keeps_own))]
        with skipping(clean.before[site], clean.tokens.ids.shape, n_copies):
            logits = self._subject.logits(copies.ids, copies.attention, hooks)
        return logits.chunk(n_copies)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _replace(patches: Sequence[Patch], keeps_own: Tensor) -> Hook:
    """Return a hook that replaces a site's activations outside `keeps_own`.

    Args:
        patches: One for each copy of the batch.
        keeps_own: Of one copy, bool [B, context].
    """
    n_sequences, context = keeps_own.shape
    shape = torch.Size((len(patches) * n_sequences, context))

    def hook(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001
        copies = _vectors(value, shape).split(n_sequences)
        replaced = []
        for old, patch in zip(copies, patches, strict=True):
            new = patch(old).to(old.dtype)
            replaced.append(torch.where(keeps_own[..., None], old, new))
        return torch.cat(replaced).reshape(value.shape)

    return hook


def _vectors(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a site's values as [B, context, d]; they may come as a row per token."""
    layout = layout_of(value, shape)
    flat = None
    if layout in {"sequences", "rows"}:
        flat = arranged(value, layout, shape)
    if flat is None:
        raise RunError(
            f"a site has values of shape {list(value.shape)} for tokens of shape"
            f" {list(shape)}, which are not one vector for each token; leave out --ce"
        )
    return flat


def _nearly_equal(logits: Tensor, wanted: Tensor) -> bool:
    """Return whether two passes gave the same logits, but for rounding.

    Compared are the norm of the difference and that of `wanted`, [B, context,
    vocabulary]. Kernels round otherwise where a batch has another size.
    """
    if logits.shape != wanted.shape:
        return False
    tolerance = 1e-5 if wanted.dtype == torch.float32 else 1e-2
    difference = torch.linalg.vector_norm((logits - wanted).float())
    size = torch.linalg.vector_norm(wanted.float())
    return bool(difference <= tolerance * size)
