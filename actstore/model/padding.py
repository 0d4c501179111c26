"""Find out whether padding beside a sequence changes a model's values at its tokens.

That is tried, once, when the first padded batch comes. Padding after the tokens needs a
mask that the model heeds, or a model that only looks back. Padding before them also
moves their positions: models with absolute positions are given those that follow the
mask, some models find them by themselves, and what does neither is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor, nn

from actstore.errors import SpecError
from actstore.model.forward import device_of, random_tokens

# Runs the model on tokens, a mask and positions, int64 [b, t] each; returns the values
# of every site, [b, t, d].
Values = Callable[[Tensor, Tensor | None, Tensor | None], list[Tensor]]
Side = Literal["left", "right"]

# The sequence that is tried, and the padding that is put beside it.
N_TOKENS = 5
N_PADS = 3


class Padding:
    """The inputs that a model is given with padded batches.

    Args:
        module: The model.
        values: Runs it, as it will be run in the harvest.
        vocabulary: Token ids are below it; 0: not known.
    """

    def __init__(self, module: nn.Module, values: Values, vocabulary: int) -> None:
        self._module = module
        self._values = values
        self._vocabulary = vocabulary
        # For each side that was tried, whether the model is to be given positions.
        self._gives_positions: dict[Side, bool] = {}
        config = getattr(module, "config", None)
        self._pad_token: int | None = getattr(config, "pad_token_id", None)

    def prepared(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the model is to be given: tokens, and positions or None.

        Where padding is on the left, the tokens have the model's own padding there.
        Both are int64 [b, t].

        Args:
            tokens: int64 [b, t], with any token where there is padding.
            mask: int64 [b, t], 1 where there is a token.

        Raises:
            SpecError: Padding on that side changes the values at tokens.
        """
        pads_on_left = bool((mask[:, 0] == 0).any())
        pads_on_right = bool((mask[:, -1] == 0).any())
        if pads_on_left:
            tokens = self._with_own_padding(tokens, mask)
        if pads_on_right:
            self._check_side("right")
        positions = None
        if pads_on_left and self._check_side("left"):
            positions = positions_of(mask)
        return tokens, positions

    def _with_own_padding(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # Models that find positions by themselves look for their own padding token.
        pad = self._pad_token
        if pad is None or pad < 0:
            return tokens
        if self._vocabulary and pad >= self._vocabulary:
            return tokens
        return torch.where(mask > 0, tokens, pad)

    def _check_side(self, side: Side) -> bool:
        """Return whether positions are to be given where padding is on this side.

        Raises:
            SpecError: With positions or without, values at tokens change.
        """
        if side not in self._gives_positions:
            self._gives_positions[side] = self._try(side)
        return self._gives_positions[side]

    def _try(self, side: Side) -> bool:
        """Run a sequence without padding and with it, and compare the values.

        On the left, tokens [7, 8, 9, 4, 2] become [0, 0, 0, 7, 8, 9, 4, 2], and what
        is compared are the values at the last five.
        """
        tokens = random_tokens(1, N_TOKENS, self._vocabulary, device_of(self._module))
        wanted = self._values(tokens, None, None)
        pads = (N_PADS, 0) if side == "left" else (0, N_PADS)
        mask = nn.functional.pad(torch.ones_like(tokens), pads)
        padded = self._with_own_padding(nn.functional.pad(tokens, pads), mask)
        kept = slice(pads[0], pads[0] + N_TOKENS)
        # After the tokens, padding moves no position, so none have to be given.
        ways = (True, False) if side == "left" else (False,)
        for gives_positions in ways:
            positions = positions_of(mask) if gives_positions else None
            # A model's own code refuses positions in ways of its own.
            with suppress(Exception):
                values = self._values(padded, mask, positions)
                if _equal_at_tokens(values, wanted, kept):
                    return gives_positions
        raise SpecError(self._refusal(side))

    def _refusal(self, side: Side) -> str:
        name = type(self._module).__name__
        if side == "left":
            return (
                f"sequences are padded before their tokens, and {name} gives other"
                " values then (its positions do not follow the mask); pad after the"
                " tokens"
            )
        return (
            f"sequences are padded, and {name} gives other values at tokens then (it"
            " sees the padding); give sequences without padding, of a corpus with"
            " packing"
        )


def positions_of(mask: Tensor) -> Tensor:
    """Return positions that count tokens only, int64 [b, t].

    A mask [0, 0, 1, 1, 1] gives [0, 0, 0, 1, 2]: where there is padding before the
    tokens, its positions do not matter, but none may be below 0.

    Args:
        mask: int64 [b, t], 1 where there is a token.
    """
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def nearly_equal(x: Tensor, wanted: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of other kernels.

    Compared are the norms of the difference and of `wanted`, over all elements. Both
    tensors are [...], of one shape.
    """
    if x.shape != wanted.shape:
        return False
    tolerance = 1e-3 if x.dtype == torch.float32 else 0.05
    difference = torch.linalg.vector_norm((x - wanted).float())
    size = torch.linalg.vector_norm(wanted.float())
    return bool(difference <= tolerance * size)


def _equal_at_tokens(values: list[Tensor], wanted: list[Tensor], kept: slice) -> bool:
    return all(nearly_equal(x[:, kept], y) for x, y in zip(values, wanted, strict=True))
