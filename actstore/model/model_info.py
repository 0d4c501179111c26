"""Describe a model in memory: sizes, longest context, digests of what it is made of.

A store keeps the digests of the weights and of the tokenizer, to know the model again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from actstore.errors import ModelError, first_line
from actstore.format.object_records import files_digest
from actstore.model.checkpoint_files import mend_auto_map
from schemas.harvest import ModelInfo


def model_info(
    module: nn.Module, config: Any, tokenizer: Any, missing: Iterable[str]
) -> ModelInfo:
    """Return what a store keeps of a model.

    Args:
        module: The model.
        config: The model's configuration; None if it has none.
        tokenizer: The model's tokenizer; None if it has none.
        missing: Parameters that no file gave.
    """
    tokenizer_digest = None
    if tokenizer is not None:
        tokenizer_digest = files_digest(tokenizer_files(tokenizer))
    special_tokens = set(getattr(tokenizer, "all_special_ids", ()))
    # Each number has one name in transformers and another in TransformerLens.
    return ModelInfo(
        architecture=type(module).__name__,
        n_layers=config_integer(config, "num_hidden_layers", "n_layers") or 0,
        d_model=config_integer(config, "hidden_size", "d_model") or 0,
        vocabulary=config_integer(config, "vocab_size", "d_vocab") or 0,
        weights_digest=_weights_digest(module, missing),
        tokenizer_digest=tokenizer_digest,
        bos_token=getattr(tokenizer, "bos_token_id", None),
        special_tokens=tuple(sorted(special_tokens)),
    )


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Return a tokenizer as the files that a store keeps of it, by their names."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            tokenizer.save_pretrained(name)
        except Exception as error:  # tokenizers raises Exception itself: a full disk
            raise ModelError(
                f"the model's tokenizer cannot be saved in {name}: {first_line(error)}"
            ) from error
        mend_auto_map(folder / "tokenizer_config.json")
        return {
            path.name: path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.is_file()
        }


def config_integer(config: Any, *names: str) -> int | None:
    """Return the first of these numbers that a configuration has; None for none.

    A model made of several is asked for the number of its text model, if it has none
    of its own.
    """
    text_config = getattr(config, "text_config", None)
    encoder_config = getattr(config, "encoder", None)
    for part in (config, text_config, encoder_config):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int):
                return value
    return None


def longest_context(module: nn.Module, config: Any) -> int | None:
    """Return how many tokens a context may have; None where nothing limits it."""
    limits = [config_integer(config, "max_position_embeddings", "n_ctx")]
    for name, part in module.named_modules():
        is_position_table = (
            isinstance(part, nn.Embedding)
            and part.padding_idx is not None
            and "position" in name.rpartition(".")[2]
        )
        if is_position_table:
            # RoBERTa's table of 514 positions has padding at 1, and its tokens begin
            # at 2: there is room for 512.
            limits.append(part.num_embeddings - part.padding_idx - 1)
    return min((n for n in limits if n is not None and n > 0), default=None)


def _weights_digest(module: nn.Module, missing: Iterable[str]) -> str:
    """Return a digest of all weights but those that no file gave.

    Those are random numbers, which would differ from one run to the next.
    """
    state = blake3()
    left_out = set(missing)
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor) and name not in left_out:
            state.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            # As bytes, since NumPy has no bfloat16.
            state.update(flat.view(torch.uint8).numpy().data)
    return str(state.hexdigest())
