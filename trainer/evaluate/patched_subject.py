"""The language model that SAEs are patched into: loaded, checked, and run with hooks at
sites.

Cross-entropy of the next token means something only where a model gives, at every
token, logits over its vocabulary that no later token changes. Whether it does is tried,
for a class's name does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from actstore.model.bridge import bridge_over_copy
from actstore.model.forward import Call, forward_of
from actstore.model.load_model import LoadedModel
from actstore.model.padding import positions_of
from actstore.model.probe import probe_tokens
from trainer.errors import RunError
from trainer.runs.patched_model import Hook, patched


class Subject:
    """Runs a causal language model with sites replaced: TransformerLens' names on its
    bridge, modules' on the model.

    Raises RunError where the cross-entropy of the next token is not defined for the
    model.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[str]) -> None:
        check_predicts_next(loaded)
        modules = dict(loaded.module.named_modules())
        own = [site for site in sites if site in modules]
        if own and len(own) < len(set(sites)):
            raise RunError(
                f"sites {own[0]!r} and"
                f" {next(site for site in sites if site not in modules)!r}: one is a"
                " module of the model and one is TransformerLens' hook; CE is measured"
                " with sites of one kind (leave out --ce)"
            )
        self._bridge = None if own else bridge_over_copy(loaded.module).bridge
        self._module, self._call = loaded.module, forward_of(loaded.module)

    @torch.no_grad()
    def logits(
        self, ids: Tensor, mask: Tensor | None, hooks: Sequence[tuple[str, Hook]]
    ) -> Tensor:
        """ids, mask (1 where there is a token, None for everywhere): int64 [b, t];
        returns [b, t, vocabulary].
        """
        if self._bridge is not None:
            given = {} if mask is None else {"attention_mask": mask}
            out: Tensor = self._bridge.run_with_hooks(
                ids,
                return_type="logits",
                fwd_hooks=list(hooks),
                prepend_bos=False,
                **given,
            )
            return out
        before = mask is not None and bool((mask[:, 0] == 0).any())
        with patched(self._module, hooks):
            found: Tensor = self._call(
                ids, mask, positions_of(mask) if before and mask is not None else None
            ).logits
        return found


def check_predicts_next(loaded: LoadedModel) -> None:
    """Raises RunError unless logits at every token depend on no later one."""
    name, vocabulary = loaded.info.architecture, loaded.info.vocabulary

    def refusal(why: str) -> RunError:
        return RunError(
            f"{name}: the cross-entropy of the next token is not defined for it: {why};"
            " leave out --ce"
        )

    if getattr(getattr(loaded.module, "config", None), "is_encoder_decoder", False):
        raise refusal(
            "it is an encoder–decoder model, whose encoder sees the whole text"
        )
    tokens = probe_tokens(loaded)
    half = tokens.shape[1] // 2
    other = torch.cat(
        [tokens[:, :half], (tokens[:, half:] + 1) % max(vocabulary, 2)], dim=1
    )
    call = forward_of(loaded.module)
    seen, changed = (_logits(call, one) for one in (tokens, other))
    if seen is None or changed is None or seen.shape != (*tokens.shape, vocabulary):
        raise refusal(
            "it gives no logits over its vocabulary at every token (a model without a"
            " head, or with another)"
        )
    tolerance = (1e-5 if seen.dtype == torch.float32 else 1e-2) * float(
        seen.abs().max()
    )
    if not torch.allclose(
        seen[:, :half].float(), changed[:, :half].float(), rtol=0, atol=tolerance
    ):
        raise refusal(
            "it is not causal, later tokens change what it says of earlier ones"
        )


@torch.no_grad()
def _logits(call: Call, tokens: Tensor) -> Tensor | None:
    # a head that wants more than tokens gives no logits of them
    with suppress(Exception):
        found = getattr(call(tokens, None, None), "logits", None)
        return found if isinstance(found, Tensor) else None
    return None
