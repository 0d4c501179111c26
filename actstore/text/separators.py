"""What stands between documents, and at the beginning of contexts: from a spec and the
model's tokenizer.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from actstore.errors import HarvestWarning, SpecError
from schemas.harvest import Separator


@dataclass(frozen=True, slots=True)
class Bos:
    """token: the model's BOS or CLS, where it is put in at all; every: whether each
    context begins with it.

    documents: whether each document begins with it. after: the token that each document
    ends with, or none.
    """

    token: int | None
    every: bool
    documents: bool = True
    after: int | None = None

    @property
    def before(self) -> int | None:
        """The token that each document begins with, or none."""
        return self.token if self.documents else None


def bos_of(tokenizer: Any, prepend: bool | None, separator: Separator = "auto") -> Bos:
    """What `prepend_bos` and `separator` mean for a tokenizer (None: there is none, and
    nothing is put in).

    Raises SpecError where a token is asked for that the tokenizer does not have.
    """
    found = _beginning(tokenizer, prepend)
    if isinstance(separator, int):
        return Bos(found.token, found.every, documents=False, after=separator)
    if separator in {"eos", "sep"}:
        return Bos(
            found.token,
            found.every,
            documents=False,
            after=_asked(tokenizer, separator),
        )
    if separator == "none":
        return Bos(found.token, found.every, documents=False)
    if separator == "bos" and found.token is None:
        why = (
            "prepend_bos is false"
            if prepend is False
            else "the model's tokenizer has no BOS token"
        )
        raise SpecError(
            f"separator (--separator) bos: {why}; choose eos, sep, none or a token id,"
            " or leave it out"
        )
    if separator == "auto" and tokenizer is not None and tokenizer.bos_token_id is None:
        after = next(
            (
                one
                for one in (_id(tokenizer, "eos"), _id(tokenizer, "sep"))
                if one is not None
            ),
            None,
        )
        return Bos(found.token, found.every, after=after)
    return found


def tell(bos: Bos, tokenizer: Any, separator: Separator) -> None:
    """Warns (HarvestWarning) of a separator that nobody asked for, or of there being
    none.
    """
    if separator != "auto" or tokenizer is None or tokenizer.bos_token_id is not None:
        return
    if bos.after is not None:
        name = "EOS" if bos.after == _id(tokenizer, "eos") else "SEP"
        end = f"each document ends with its {name} (token {bos.after})"
        begin = (
            f" and begins with its CLS (token {bos.before})"
            if bos.before is not None
            else ""
        )
        text = f"{end}{begin}; --separator chooses another token, or none"
    elif bos.before is not None:
        text = f"each document begins with its CLS (token {bos.before})"
    else:
        text = (
            "and no EOS or SEP, so nothing stands between documents; --separator ID"
            " puts a token there"
        )
    warnings.warn(
        f"the model's tokenizer has no BOS: {text}", HarvestWarning, stacklevel=3
    )


def check_known(token: int | None, vocabulary: int) -> None:
    """Raises SpecError for a separator that the model does not know (vocabulary 0: its
    size is not known).
    """
    if token is not None and vocabulary and token >= vocabulary:
        raise SpecError(
            f"separator (--separator) {token}: the model's vocabulary has the tokens 0"
            f" to {vocabulary - 1}"
        )


def _beginning(tokenizer: Any, prepend: bool | None) -> Bos:
    token = None
    if tokenizer is not None:
        token = (
            tokenizer.bos_token_id
            if tokenizer.bos_token_id is not None
            else tokenizer.cls_token_id
        )
    if prepend is False:
        return Bos(None, every=False)
    if prepend and token is None:
        raise SpecError(
            "prepend_bos: the model's tokenizer has no BOS token; leave the option out"
        )
    if prepend is None and token is not None:
        ids = tokenizer("a", add_special_tokens=True)["input_ids"]
        return Bos(token, every=bool(ids) and ids[0] == token and len(ids) > 1)
    return Bos(token, every=bool(prepend))


def _asked(tokenizer: Any, name: str) -> int:
    found = None if tokenizer is None else _id(tokenizer, name)
    if found is None:
        has = (
            f"no {name.upper()} token"
            if tokenizer is not None
            else "nothing to find it with: it has no tokenizer"
        )
        raise SpecError(
            f"separator (--separator) {name}: the model has {has}; give a token id, or"
            " leave it out"
        )
    return found


def _id(tokenizer: Any, name: str) -> int | None:
    return getattr(tokenizer, f"{name}_token_id", None)
