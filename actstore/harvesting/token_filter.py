"""Chooses the tokens whose rows a harvest keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from actstore.errors import SpecError
from actstore.format.token_ids import check_token_ids
from schemas.harvest import HarvestSpec, ModelInfo


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """A choice of the tokens whose rows are kept.

    It looks at a token and its position alone, so that all sites keep the same rows.

    Attributes:
        skip_first: The first positions of a context whose rows are not kept.
        excluded: Token ids whose rows are not kept, int64 [n]; None: no such ids.
    """

    skip_first: int = 0
    excluded: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, spec: HarvestSpec, model: ModelInfo) -> Self:
        """Return the filter of a spec.

        Raises:
            SpecError: It names tokens that the model does not have, or leaves no
                position of a context.
        """
        check_token_ids(spec.exclude_tokens, model.vocabulary, "exclude_tokens")
        if spec.skip_first >= spec.context:
            raise SpecError(
                f"skip_first {spec.skip_first} leaves nothing of contexts of"
                f" {spec.context} tokens"
            )
        excluded = set(spec.exclude_tokens)
        if spec.exclude_special_tokens:
            excluded.update(model.special_tokens)
        if not excluded:
            return cls(spec.skip_first, None)
        return cls(spec.skip_first, np.array(sorted(excluded), np.int64))

    def keep(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which tokens are kept, bool [b, t].

        `tokens` is int32 [b, t], with -1 for padding.
        """
        # Padding is no token, so it has no row.
        kept: NDArray[np.bool_] = tokens >= 0
        kept[:, : self.skip_first] = False
        if self.excluded is not None:
            kept &= ~np.isin(tokens, self.excluded)
        return kept
