"""A run of the model on a few tokens, and what its values must look like to be a
site's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from actstore.errors import SiteError
from actstore.model.forward import device_of, random_tokens
from actstore.model.load_model import LoadedModel
from actstore.model.value_layouts import Layout, arranged, layout_of

LENGTHS = (11, 7, 13, 9, 17, 19, 23, 29, 31, 37, 5, 3)


def probe_tokens(model: LoadedModel, avoid: Iterable[int] = ()) -> Tensor:
    """A few tokens, int64 [2, t]; t is a length that is none of the model's own sizes
    (number of heads, ...).
    """
    sizes = {*avoid, *(size for p in model.module.parameters() for size in p.shape)}
    most = model.max_context or max(LENGTHS)
    length = next(
        (t for t in LENGTHS if t not in sizes and t <= most), min(LENGTHS[0], most)
    )
    return random_tokens(2, length, model.info.vocabulary, device_of(model.module))


def vectors(
    name: str, seen: Sequence[Tensor], shape: torch.Size
) -> tuple[Tensor, Layout]:
    """The values [b, t, d] of a site in a probe. Raises SiteError where they are not
    one vector per token.
    """
    if not seen:
        raise SiteError(
            f"site {name!r}: the model does not compute it in a plain forward; take"
            " another site"
        )
    x = seen[0]
    if len(seen) > 1:
        raise SiteError(
            f"site {name!r} is passed {len(seen)} times in one forward; wanted one"
            " vector per token"
        )
    layout = layout_of(x, shape)
    values = arranged(x, layout, shape) if layout is not None else None
    # a width that is the length is a pattern's
    if layout is None or values is None or shape[1] in x.shape[2:]:
        raise SiteError(
            f"site {name!r} has values of shape {list(x.shape)} for tokens of shape"
            f" {list(shape)}: not one vector per token (attention patterns and the like"
            " cannot be stored); take another site"
        )
    return values, layout
