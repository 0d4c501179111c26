"""Try a model on a few tokens, and check that sites have one vector for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from actstore.errors import SiteError
from actstore.model.forward import device_of, random_tokens
from actstore.model.load_model import LoadedModel
from actstore.model.value_layouts import ValueLayout, arranged, layout_of

# In the order in which they are tried: mostly primes, which few sizes of models are.
LENGTHS = (11, 7, 13, 9, 17, 19, 23, 29, 31, 37, 5, 3)


def probe_tokens(model: LoadedModel, avoid: Iterable[int] = ()) -> Tensor:
    """Return two sequences of a few random tokens, int64 [2, t].

    t is a length that is none of the model's own sizes, so that the shape of a value
    tells which of its dimensions counts tokens: in a model with 11 heads, an attention
    pattern [2, 11, 11, 11] would look like vectors of tokens if t were 11.

    Args:
        model: The model to be run on them.
        avoid: More sizes of the model, beside those of its parameters.
    """
    sizes = set(avoid)
    for parameter in model.module.parameters():
        sizes.update(parameter.shape)
    longest = model.max_context or max(LENGTHS)
    # Where every length is one of the model's sizes, the first has to do.
    length = min(LENGTHS[0], longest)
    for candidate in LENGTHS:
        if candidate not in sizes and candidate <= longest:
            length = candidate
            break
    return random_tokens(2, length, model.info.vocabulary, device_of(model.module))


def site_vectors(
    name: str, seen: Sequence[Tensor], shape: torch.Size
) -> tuple[Tensor, ValueLayout]:
    """Return a site's values in a probe as [b, t, d], and the layout that they had.

    Args:
        name: The name of the site.
        seen: Every value that passed there, in the model's own shape.
        shape: The shape of the probe's tokens, [b, t].

    Raises:
        SiteError: There is not exactly one vector per token.
    """
    if not seen:
        raise SiteError(
            f"site {name!r}: the model does not compute it in a plain forward; take"
            " another site"
        )
    if len(seen) > 1:
        raise SiteError(
            f"site {name!r} is passed {len(seen)} times in one forward; wanted one"
            " vector per token"
        )
    x = seen[0]
    layout = layout_of(x, shape)
    values = arranged(x, layout, shape) if layout is not None else None
    # A width that is the number of tokens is that of an attention pattern.
    is_pattern = shape[1] in x.shape[2:]
    if layout is None or values is None or is_pattern:
        raise SiteError(
            f"site {name!r} has values of shape {list(x.shape)} for tokens of shape"
            f" {list(shape)}: not one vector per token (attention patterns and the like"
            " cannot be stored); take another site"
        )
    return values, layout
