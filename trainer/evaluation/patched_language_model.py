"""The language model that SAEs are patched into: checked, and run with hooks at sites.

Cross-entropy of the next token means something only where a model gives, at every
token, logits over its vocabulary that no later token changes. A class's name does not
say whether it does, so it is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from actstore.model.bridge import bridge_over_copy
from actstore.model.forward import Call, forward_of
from actstore.model.load_model import LoadedModel
from actstore.model.padding import positions_of
from actstore.model.probe import probe_tokens
from trainer.errors import RunError
from trainer.runs.module_patching import Hook, patched


class Subject:
    """Runs a causal language model with the outputs of some sites replaced.

    Sites that are TransformerLens' hook names are replaced on its bridge, sites that
    are names of modules on the model itself.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[str]) -> None:
        """Check a model, and put TransformerLens' bridge over it where sites need it.

        Raises:
            RunError: The model does not predict the next token, or the sites are of
                both sorts.
        """
        check_predicts_next(loaded)
        modules = dict(loaded.module.named_modules())
        of_modules = [site for site in sites if site in modules]
        of_hooks = [site for site in sites if site not in modules]
        if of_modules and of_hooks:
            raise RunError(
                f"sites {of_modules[0]!r} and {of_hooks[0]!r}: one is a module of the"
                " model and one is TransformerLens' hook; CE is measured with sites of"
                " one kind (leave out --ce)"
            )
        self._bridge = None if of_modules else bridge_over_copy(loaded.module).bridge
        self._module = loaded.module
        self._call = forward_of(loaded.module)

    @property
    def running(self) -> nn.Module:
        """The model that `logits` runs, which holds the modules that are called."""
        model: nn.Module = self._module
        if self._bridge is not None:
            model = self._bridge.original_model
        return model

    @torch.no_grad()
    def logits(
        self, ids: Tensor, mask: Tensor | None, hooks: Sequence[tuple[str, Hook]]
    ) -> Tensor:
        """Return the logits of tokens while hooks replace the outputs of sites.

        Args:
            ids: Token ids, int64 [b, t].
            mask: 1 where there is a token, int64 [b, t]; None for everywhere.
            hooks: Pairs of a site and what replaces its output.

        Returns:
            Logits [b, t, vocabulary].
        """
        if self._bridge is not None:
            options = {} if mask is None else {"attention_mask": mask}
            bridge_logits: Tensor = self._bridge.run_with_hooks(
                ids,
                return_type="logits",
                fwd_hooks=list(hooks),
                prepend_bos=False,
                **options,
            )
            return bridge_logits
        # Only padding before the tokens moves their positions.
        positions = None
        if mask is not None and bool((mask[:, 0] == 0).any()):
            positions = positions_of(mask)
        with patched(self._module, hooks):
            logits: Tensor = self._call(ids, mask, positions).logits
        return logits


def check_predicts_next(loaded: LoadedModel) -> None:
    """Check that a model gives logits at every token that depend on no later token.

    Raises:
        RunError: It does not; the message says why.
    """
    name = loaded.info.architecture
    vocabulary = loaded.info.vocabulary

    def refusal(why: str) -> RunError:
        return RunError(
            f"{name}: the cross-entropy of the next token is not defined for it: {why};"
            " leave out --ce"
        )

    config = getattr(loaded.module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(
            "it is an encoder–decoder model, whose encoder sees the whole text"
        )
    # Two texts that differ in their second half only must give the same logits in
    # their first half.
    tokens = probe_tokens(loaded)
    half = tokens.shape[1] // 2
    other_half = (tokens[:, half:] + 1) % max(vocabulary, 2)
    other_tokens = torch.cat([tokens[:, :half], other_half], dim=1)
    call = forward_of(loaded.module)
    logits = _logits(call, tokens)
    other_logits = _logits(call, other_tokens)
    if (
        logits is None
        or other_logits is None
        or logits.shape != (*tokens.shape, vocabulary)
    ):
        raise refusal(
            "it gives no logits over its vocabulary at every token (a model without a"
            " head, or with another)"
        )
    relative = 1e-5 if logits.dtype == torch.float32 else 1e-2
    tolerance = relative * float(logits.abs().max())
    first_halves_agree = torch.allclose(
        logits[:, :half].float(),
        other_logits[:, :half].float(),
        rtol=0,
        atol=tolerance,
    )
    if not first_halves_agree:
        raise refusal(
            "it is not causal, later tokens change what it says of earlier ones"
        )


@torch.no_grad()
def _logits(call: Call, tokens: Tensor) -> Tensor | None:
    """Return a model's logits; None where it gives none for tokens alone."""
    with suppress(Exception):
        logits = getattr(call(tokens, None, None), "logits", None)
        return logits if isinstance(logits, Tensor) else None
    return None
