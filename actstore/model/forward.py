"""Call a model on token ids, with what else it must be given.

The encoder of an encoder–decoder model sees the tokens, and its decoder the same tokens
shifted right by one, after the model's start token. So the decoder's row at a position
has seen the tokens before that position, as in training on the text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from actstore.errors import ActstoreError, ModelError, SpecError, first_line

# Runs a model on tokens, a mask (1 where there is a token, None for everywhere) and
# positions (None: the model's own); int64 [b, t] each.
Call = Callable[[Tensor, Tensor | None, Tensor | None], Any]
INPUT = "input_ids"

_LONGEST_ERROR = 300  # characters of an error that a model's own code raised


def forward_of(module: Any, *, body: bool = False) -> Call:
    """Return the call that runs a model in memory.

    Args:
        module: The model.
        body: Whether to run it without its head, so that no logits are computed.
    """
    target = module.base_model if body else module
    accepted = inspect.signature(target.forward).parameters
    takes_input_ids = INPUT in accepted
    # A cache of keys and values would only take memory: no token is generated.
    fixed_options = {"use_cache": False} if "use_cache" in accepted else {}

    def call(
        tokens: Tensor, mask: Tensor | None, positions: Tensor | None = None
    ) -> Any:
        wanted_options = {
            "attention_mask": mask,
            "position_ids": positions,
            **decoder_inputs(module, tokens, mask),
        }
        options = {
            name: value
            for name, value in wanted_options.items()
            if value is not None and name in accepted
        }
        if takes_input_ids:
            return target(**{INPUT: tokens}, **options, **fixed_options)
        return target(tokens, **options, **fixed_options)

    return call


def decoder_inputs(
    module: Any, tokens: Tensor, mask: Tensor | None
) -> dict[str, Tensor | None]:
    """Return what an encoder–decoder model's decoder is given, by the names of options.

    Empty for any other model.

    Args:
        module: The model.
        tokens: int64 [b, t].
        mask: int64 [b, t], 1 where there is a token; None for everywhere.

    Raises:
        ModelError: The model does not say what its decoder begins with.
    """
    config = getattr(module, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return {}
    start = _decoder_start(module, config)
    if start is None:
        raise ModelError(
            f"{type(module).__name__}: its configuration has no decoder_start_token_id,"
            " so what its decoder begins with is not known; set it in config.json"
        )
    return {
        "decoder_input_ids": shifted_right(tokens, mask, start),
        "decoder_attention_mask": mask,
    }


def _decoder_start(module: Any, config: Any) -> int | None:
    """Return the token that a decoder begins with, from where a model may name it."""
    configs = (
        config,
        getattr(module, "generation_config", None),
        getattr(config, "text_config", None),
    )
    # As transformers does it: BOS where no start token is named, and padding, with
    # which T5 begins, where there is no BOS.
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        for one_config in configs:
            token: int | None = getattr(one_config, name, None)
            if token is not None:
                return token
    return None


def shifted_right(tokens: Tensor, mask: Tensor | None, start: int) -> Tensor:
    """Return every token one position later, after a start token; int64 [b, t].

    With start 0, [5, 6, 7] becomes [0, 5, 6]. The start token is where the first token
    was: [pad, 5, 6] becomes [_, 0, 5].

    Args:
        tokens: int64 [b, t].
        mask: int64 [b, t], 1 where there is a token; None for everywhere.
        start: The token that the decoder begins with.
    """
    shifted = tokens.roll(1, dims=1)
    if mask is None:
        first_token = torch.zeros_like(tokens)
    else:
        first_token = mask.long().argmax(1, keepdim=True).expand_as(tokens)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(positions == first_token, start, shifted)


def takes(module: nn.Module, option: str) -> bool:
    """Return whether a module's forward has an argument of this name."""
    return option in inspect.signature(module.forward).parameters


def check_takes_tokens(module: Any) -> None:
    """Check that a model reads token ids.

    Raises:
        ModelError: It reads something else (pixels, sound).
    """
    accepted = list(inspect.signature(module.forward).parameters)
    if INPUT not in accepted:
        raise ModelError(
            f"{type(module).__name__} takes {', '.join(accepted[:3])}, not token ids:"
            " only models that read text can be harvested; its activations can be"
            " stored with `actstore import`"
        )


@contextmanager
def probing(what: str, kind: type[ActstoreError] = ModelError) -> Iterator[None]:
    """Turn whatever a model's own code raises when it is tried into one error.

    Args:
        what: The beginning of the message, which says what was tried.
        kind: The kind of the error.

    Raises:
        ActstoreError: An error of `kind`. Errors of ours, and those that say that
            memory is short, pass through.
    """
    try:
        yield
    except ActstoreError:
        raise
    except Exception as error:  # a model's code may raise anything
        if out_of_memory(error):
            raise
        # KeyError("") and the like have no first line.
        text = first_line(error)[:_LONGEST_ERROR] if str(error).strip() else ""
        raise kind(f"{what}: {type(error).__name__}: {text}") from error


def check_context(
    module: nn.Module, call: Callable[[Tensor], Any], context: int, vocabulary: int
) -> None:
    """Run one sequence of a harvest's length, before the harvest begins.

    Args:
        module: The model.
        call: Runs it on tokens, int64 [1, context].
        context: Tokens of a sequence.
        vocabulary: Token ids are below it; 0: not known.

    Raises:
        SpecError: The model has fewer positions than `context`.
        ModelError: There is no memory for it.
    """
    device = device_of(module)
    tokens = random_tokens(1, context, vocabulary, device)
    try:
        with probing(
            f"{type(module).__name__} does not run on a context of {context} tokens",
            SpecError,
        ):
            call(tokens)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise ModelError(
            f"out of memory on {device} with one sequence of {context}"
        ) from error


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory is short, on a GPU or on the host."""
    # The CPU's allocator raises a plain RuntimeError, which only its text tells apart.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(
        error
    )


def random_tokens(n: int, length: int, vocabulary: int, device: torch.device) -> Tensor:
    """Return random tokens, int64 [n, length]; the same for the same arguments."""
    # Where the vocabulary is not known (0), 0 and 1 are tokens of any model.
    highest = max(vocabulary, 2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, highest, (n, length), generator=generator)
    return tokens.to(device)


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's first parameter lies; the CPU where it has none."""
    first_parameter = next(module.parameters(), None)
    if first_parameter is None:
        return torch.device("cpu")
    return first_parameter.device
