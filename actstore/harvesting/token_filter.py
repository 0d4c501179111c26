"""Which tokens' rows are kept."""

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
    """Which tokens are kept: a property of the token alone, so that all sites keep the
    same rows.
    """

    skip_first: int = 0
    excluded: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, spec: HarvestSpec, model: ModelInfo) -> Self:
        """The filter of a spec. Raises SpecError where it names no tokens of the model,
        or no position is left.
        """
        check_token_ids(spec.exclude_tokens, model.vocabulary, "exclude_tokens")
        if spec.skip_first >= spec.context:
            raise SpecError(
                f"skip_first {spec.skip_first} leaves nothing of contexts of"
                f" {spec.context} tokens"
            )
        out = {
            *spec.exclude_tokens,
            *(model.special_tokens if spec.exclude_special_tokens else ()),
        }
        return cls(spec.skip_first, np.array(sorted(out), np.int64) if out else None)

    def keep(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Mask over tokens, int32 [b, t] with -1 for padding."""
        kept: NDArray[np.bool_] = tokens >= 0
        kept[:, : self.skip_first] = False
        if self.excluded is not None:
            kept &= ~np.isin(tokens, self.excluded)
        return kept
