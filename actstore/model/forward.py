"""How a model is called on token ids, and what it must be given beside them.

An encoder–decoder model's encoder sees the tokens, and its decoder the same tokens
shifted right by one behind the model's start token: a decoder's row at a position has
seen the tokens before it, as in training on that text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from actstore.errors import ActstoreError, ModelError, SpecError, first_line

Call = Callable[[Tensor, Tensor | None, Tensor | None], Any]  # tokens, mask, positions
INPUT = "input_ids"


def forward_of(module: Any, *, body: bool = False) -> Call:
    """The call that runs a module in memory; body: without its head, so that no logits
    are computed.
    """
    target = module.base_model if body else module
    accepted = inspect.signature(target.forward).parameters
    keyword = INPUT in accepted
    fixed = {"use_cache": False} if "use_cache" in accepted else {}

    def call(
        tokens: Tensor, mask: Tensor | None, positions: Tensor | None = None
    ) -> Any:
        more = {
            "attention_mask": mask,
            "position_ids": positions,
            **decoder_inputs(module, tokens, mask),
        }
        options = {
            name: value
            for name, value in more.items()
            if value is not None and name in accepted
        }
        return (
            target(**{INPUT: tokens}, **options, **fixed)
            if keyword
            else target(tokens, **options, **fixed)
        )

    return call


def decoder_inputs(
    module: Any, tokens: Tensor, mask: Tensor | None
) -> dict[str, Tensor | None]:
    """What an encoder–decoder model's decoder is given; of any other model nothing."""
    config = getattr(module, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return {}
    places = (
        config,
        getattr(module, "generation_config", None),
        getattr(config, "text_config", None),
    )
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = next(
        (
            id_
            for name in names
            for one in places
            if (id_ := getattr(one, name, None)) is not None
        ),
        None,
    )
    if start is None:
        raise ModelError(
            f"{type(module).__name__}: its configuration has no decoder_start_token_id,"
            " so what its decoder begins with is not known; set it in config.json"
        )
    return {
        "decoder_input_ids": shifted_right(tokens, mask, start),
        "decoder_attention_mask": mask,
    }


def shifted_right(tokens: Tensor, mask: Tensor | None, start: int) -> Tensor:
    """Every token one position later, behind a start token at the first position that
    is no padding; int64 [b, t].
    """
    shifted = tokens.roll(1, dims=1)
    first = (
        torch.zeros_like(tokens)
        if mask is None
        else mask.long().argmax(1, keepdim=True).expand_as(tokens)
    )
    at = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(at == first, start, shifted)


def takes(module: nn.Module, option: str) -> bool:
    """Whether a module's forward has an argument of this name."""
    return option in inspect.signature(module.forward).parameters


def check_takes_tokens(module: Any) -> None:
    """Raises ModelError for a model of something else than text."""
    accepted = list(inspect.signature(module.forward).parameters)
    if INPUT not in accepted:
        raise ModelError(
            f"{type(module).__name__} takes {', '.join(accepted[:3])}, not token ids:"
            " only models that read text can be harvested; its activations can be"
            " stored with `actstore import`"
        )


@contextmanager
def probing(what: str, kind: type[ActstoreError] = ModelError) -> Iterator[None]:
    """Whatever a model's own code raises when it is tried becomes one error that says
    what was tried.
    """
    try:
        yield
    except ActstoreError:
        raise
    except Exception as error:  # a model's code may raise anything
        if out_of_memory(error):
            raise
        text = first_line(error)[:300] if str(error).strip() else ""
        raise kind(f"{what}: {type(error).__name__}: {text}") from error


def check_context(
    module: nn.Module, call: Callable[[Tensor], Any], context: int, vocabulary: int
) -> None:
    """Run one sequence of a harvest's length, so that a model without so many positions
    is known at the door.

    Raises SpecError, or ModelError where there is no room for it.
    """
    tokens = random_tokens(1, context, vocabulary, device_of(module))
    try:
        with probing(
            f"{type(module).__name__} does not run on a context of {context} tokens",
            SpecError,
        ):
            call(tokens)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise ModelError(
            f"out of memory on {device_of(module)} with one sequence of {context}"
        ) from error


def out_of_memory(error: Exception) -> bool:
    """CUDA's own error, or the CPU allocator's, which is a RuntimeError with a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(
        error
    )


def random_tokens(n: int, length: int, vocabulary: int, device: torch.device) -> Tensor:
    """The same for the same arguments, int64 [n, length]."""
    draws = torch.randint(
        0, max(vocabulary, 2), (n, length), generator=torch.Generator().manual_seed(0)
    )
    return draws.to(device)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter lies."""
    first = next(module.parameters(), None)
    return first.device if first is not None else torch.device("cpu")
