"""Decide which tokens stand between documents and at the beginning of contexts.

A spec's `separator` and `prepend_bos` and the model's tokenizer together give
`BoundaryTokens`, which `actstore/text/sequences.py` puts in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actstore.console.user_warnings import warn
from actstore.errors import HarvestWarning, SpecError
from schemas.harvest import Separator


@dataclass(frozen=True, slots=True)
class BoundaryTokens:
    """The tokens that are put in at the boundaries of documents and of contexts.

    Attributes:
        bos: The model's BOS, or else its CLS; None where none is put in anywhere.
        every_context: Whether each context begins with `bos`.
        every_document: Whether each document begins with `bos`.
        document_end: The token that each document ends with; None for no such token.
    """

    bos: int | None
    every_context: bool
    every_document: bool = True
    document_end: int | None = None

    @property
    def document_begin(self) -> int | None:
        """The token that each document begins with; None for no such token."""
        return self.bos if self.every_document else None


def boundary_tokens(
    tokenizer: Any, prepend_bos: bool | None, separator: Separator = "auto"
) -> BoundaryTokens:
    """Return what `prepend_bos` and `separator` of a spec mean for a tokenizer.

    Args:
        tokenizer: The model's tokenizer; None: there is none, and no token is put in
            unasked.
        prepend_bos: As in a spec; None: whatever the tokenizer itself does.
        separator: As in a spec.

    Raises:
        SpecError: A token is asked for that the tokenizer does not have.
    """
    bos, every_context = _context_begin(tokenizer, prepend_bos)
    if isinstance(separator, int):
        return BoundaryTokens(
            bos, every_context, every_document=False, document_end=separator
        )
    if separator in {"eos", "sep"}:
        asked_token = _asked_token(tokenizer, separator)
        return BoundaryTokens(
            bos, every_context, every_document=False, document_end=asked_token
        )
    if separator == "none":
        return BoundaryTokens(bos, every_context, every_document=False)
    if separator == "bos" and bos is None:
        if prepend_bos is False:
            reason = "prepend_bos is false"
        else:
            reason = "the model's tokenizer has no BOS token"
        raise SpecError(
            f"separator (--separator) bos: {reason}; choose eos, sep, none or a token"
            " id, or leave it out"
        )
    document_end = None
    if separator == "auto" and tokenizer is not None and tokenizer.bos_token_id is None:
        # Models without BOS (BERT, T5, Qwen) have seen texts end with EOS or SEP.
        document_end = _token_id(tokenizer, "eos")
        if document_end is None:
            document_end = _token_id(tokenizer, "sep")
    return BoundaryTokens(bos, every_context, document_end=document_end)


def warn_of_separator(
    boundaries: BoundaryTokens, tokenizer: Any, separator: Separator
) -> None:
    """Warn (HarvestWarning) of a separator that nobody asked for, or of having none."""
    if separator != "auto" or tokenizer is None or tokenizer.bos_token_id is not None:
        return
    begin = boundaries.document_begin
    end = boundaries.document_end
    if end is not None:
        name = "EOS" if end == _token_id(tokenizer, "eos") else "SEP"
        text = f"each document ends with its {name} (token {end})"
        if begin is not None:
            text += f" and begins with its CLS (token {begin})"
        text += "; --separator chooses another token, or none"
    elif begin is not None:
        text = f"each document begins with its CLS (token {begin})"
    else:
        text = (
            "and no EOS or SEP, so nothing stands between documents; --separator ID"
            " puts a token there"
        )
    warn(f"the model's tokenizer has no BOS: {text}", HarvestWarning)


def check_separator(token: int | None, vocabulary: int) -> None:
    """Check that the model knows the separator.

    Args:
        token: The separator; None: there is none.
        vocabulary: How many tokens the model knows; 0: not known.

    Raises:
        SpecError: The token is not among them.
    """
    if token is not None and vocabulary and token >= vocabulary:
        raise SpecError(
            f"separator (--separator) {token}: the model's vocabulary has the tokens 0"
            f" to {vocabulary - 1}"
        )


def _context_begin(tokenizer: Any, prepend_bos: bool | None) -> tuple[int | None, bool]:
    """Return BOS, or else CLS, and whether every context begins with it."""
    bos = None
    if tokenizer is not None:
        bos = tokenizer.bos_token_id
        if bos is None:
            bos = tokenizer.cls_token_id
    if prepend_bos is False:
        return None, False
    if prepend_bos and bos is None:
        raise SpecError(
            "prepend_bos: the model's tokenizer has no BOS token; leave the option out"
        )
    if prepend_bos is None and bos is not None:
        # Llama's tokenizer makes [BOS, a] of a text, GPT-2's only [a]. One token alone
        # is a text that happens to be BOS.
        ids = tokenizer("a", add_special_tokens=True)["input_ids"]
        return bos, len(ids) > 1 and ids[0] == bos
    return bos, bool(prepend_bos)


def _asked_token(tokenizer: Any, name: str) -> int:
    """Return the id of "eos" or "sep". Raises SpecError where there is none."""
    token = None if tokenizer is None else _token_id(tokenizer, name)
    if token is None:
        if tokenizer is None:
            missing = "nothing to find it with: it has no tokenizer"
        else:
            missing = f"no {name.upper()} token"
        raise SpecError(
            f"separator (--separator) {name}: the model has {missing}; give a token id,"
            " or leave it out"
        )
    return token


def _token_id(tokenizer: Any, name: str) -> int | None:
    return getattr(tokenizer, f"{name}_token_id", None)
