"""Whether a model's values at tokens stay what they are with padding beside them: found
out by trying, when needed.

Padding behind the tokens needs a mask that the model heeds, or one that only looks
back. Padding before them also moves their positions: models with absolute positions are
given those that follow the mask, some find them by themselves, and what does neither is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from actstore.errors import SpecError
from actstore.model.forward import device_of, random_tokens

# of every site, [b, t, d]
Values = Callable[[Tensor, Tensor | None, Tensor | None], list[Tensor]]
TOKENS, PADS = 5, 3


class Padding:
    """What a model is to be given for padded batches. values: runs it, as it will be
    run.
    """

    def __init__(self, module: nn.Module, values: Values, vocabulary: int) -> None:
        self._module, self._values, self._vocabulary = module, values, vocabulary
        self._given: dict[str, bool] = {}  # per side, whether positions are given
        self._id: int | None = getattr(
            getattr(module, "config", None), "pad_token_id", None
        )

    def prepared(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens, with the model's own padding in place of any other, and positions
        if it is to be given some.

        Raises SpecError where padding on that side changes the values at tokens.
        """
        before = bool((mask[:, 0] == 0).any())
        tokens = self._padded(tokens, mask) if before else tokens
        if bool((mask[:, -1] == 0).any()):
            self._positions_given("right")
        return tokens, (
            positions_of(mask) if before and self._positions_given("left") else None
        )

    def _padded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Models that find positions by themselves look for their own padding."""
        usable = self._id is not None and 0 <= self._id < (
            self._vocabulary or self._id + 1
        )
        return torch.where(mask > 0, tokens, self._id) if usable else tokens  # type: ignore[arg-type]

    def _positions_given(self, side: str) -> bool:
        if side not in self._given:
            self._given[side] = self._try(side)
        return self._given[side]

    def _try(self, side: str) -> bool:
        row = random_tokens(1, TOKENS, self._vocabulary, device_of(self._module))
        wanted = self._values(row, None, None)
        pads = (PADS, 0) if side == "left" else (0, PADS)
        mask = nn.functional.pad(torch.ones_like(row), pads)
        tokens = self._padded(nn.functional.pad(row, pads), mask)
        kept = slice(pads[0], pads[0] + TOKENS)
        for given in (True, False) if side == "left" else (False,):
            # a model's own code refuses positions in its own ways
            with suppress(Exception):
                got = self._values(tokens, mask, positions_of(mask) if given else None)
                if all(close(x[:, kept], y) for x, y in zip(got, wanted, strict=True)):
                    return given
        raise SpecError(self._refusal(side))

    def _refusal(self, side: str) -> str:
        name = type(self._module).__name__
        if side == "left":
            return (
                f"sequences are padded before their tokens, and {name} gives other"
                " values then (its positions do not follow the mask); pad behind the"
                " tokens"
            )
        return (
            f"sequences are padded, and {name} gives other values at tokens then (it"
            " sees the padding); give sequences without padding, of a corpus with"
            " packing"
        )


def positions_of(mask: Tensor) -> Tensor:
    """Positions that count tokens only, int64 [b, t]."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def close(x: Tensor, wanted: Tensor) -> bool:
    """Equal but for what other kernels round differently."""
    if x.shape != wanted.shape:
        return False
    tolerance = 1e-3 if x.dtype == torch.float32 else 0.05
    size = torch.linalg.vector_norm(wanted.float())
    return bool(torch.linalg.vector_norm((x - wanted).float()) <= tolerance * size)
