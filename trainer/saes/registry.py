"""The kinds of SAE that there are, and what other places ask about each of them.

An architecture's file registers itself with one call of `register`; `build` imports the
files. A kind that is not in the union of `schemas.sae` is added to what specs may hold.

No other file asks of which kind an SAE is, so that another architecture is one file and
one line of `build`. What such a file ends with, for an architecture "softplus":

    register(Kind(Softplus, SoftplusSae, learning_rate=5e-3, step_memory=...))

It then trains on mixed rows, and an export for SAELens is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas.sae import every_spec, inner_of, kind_name, register_spec

if TYPE_CHECKING:
    from trainer.saes.flat_sae import FlatSae
    from trainer.saes.wrapper_sae import WrapperSae


@dataclass(frozen=True)
class StepMemory:
    """The number of float32 [B, m] in memory at the peak of a dense kind's step.

    Measured as peaks of resident memory over a step on a CPU: what autograd keeps,
    gradients, masks.
    """

    tensors: float
    """How many there are where autograd makes each of them whole."""
    in_cache: float | None = None
    """All told on a CPU, where the kind's kernel works block by block in cache."""


@dataclass(frozen=True)
class Kind:
    """One architecture, as `sae.kind` names it."""

    spec: type[Any]
    """The schema of its options; the default of its field `kind` is its name."""
    sae: type[FlatSae | WrapperSae]
    """The module."""
    learning_rate: float | None = None
    """The best for 1,024 latents, 4,096 rows and 250 updates; None: that of `inner`."""
    starting_penalty: float | None = None
    """Where a steered penalty begins: it gave an L0 of about 32 on rows with a mean
    square of 1. None for kinds that have no penalty."""
    step_memory: Callable[[Any], StepMemory] | None = None
    """From its spec; None for sparse kinds, whose step takes memory by nonzeros."""
    stream_mode: Literal["mixed", "pairs", "aligned"] = "mixed"
    """The rows it trains on, as `stream.mode` names them."""
    wanted_rows: str = ""
    """Those rows in words; "" for mixed ones."""
    mode_advice: str = ""
    """The fields to set where a spec has another mode; "" for mixed rows."""
    not_attachable: str | None = None
    """Why it cannot replace a site of a model; None where it can."""
    saelens: str | None = None
    """SAELens' name of the architecture that computes the same; None: there is none."""
    saelens_holds: Callable[[Any], bool] | None = None
    """From its spec, whether that architecture can hold it; None: it always can."""
    no_saelens_because: str = "no counterpart is known"
    """Why there is none, or why not for some specs."""
    imported: bool = False
    """True where SAEs of that architecture are imported as this kind. Several kinds may
    be exported as one architecture (batch_topk and jumprelu as jumprelu); one of them
    has this."""

    @property
    def name(self) -> str:
        """Its name in `sae.kind`."""
        return kind_name(self.spec)

    @property
    def of_all_sites(self) -> bool:
        """True if a row holds the activations of all sites of a token."""
        return self.stream_mode == "aligned"

    @property
    def to_other_site(self) -> bool:
        """True if it reconstructs another site than it reads."""
        return self.stream_mode == "pairs"

    @property
    def has_inner(self) -> bool:
        """True if its latents, and their options, are those of an inner kind."""
        return "inner" in self.spec.model_fields

    def counterpart(self, spec: Any) -> str | None:
        """Return SAELens' architecture for an SAE of that spec; None: there is none."""
        if self.saelens_holds is not None and not self.saelens_holds(spec):
            return None
        return self.saelens

    @property
    def crosscoder_options(self) -> dict[str, object]:
        """The options that a crosscoder sets in the spec of its inner kind."""
        return self.sae.crosscoder_options

    @property
    def sparse(self) -> bool:
        """True if k sets its active latents, and sparse kernels compute it."""
        return self.sae.sparse

    @property
    def selects_over_batch(self) -> bool:
        """True if its training step selects over all rows of a batch."""
        return self.sae.selects_over_batch


_kinds: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Add a kind, by which specs, training, estimates and exports know it."""
    _kinds[kind.name] = kind
    register_spec(kind.spec)


def kind_of(spec: Any) -> Kind:
    """Return the kind that a spec is of."""
    return _kinds[spec.kind]


def latents_kind(spec: Any) -> Kind:
    """Return the kind of a spec's latents: that inside a transcoder or crosscoder."""
    return _kinds[inner_of(spec).kind]


def named(name: str) -> Kind:
    """Return the kind of a name that `sae.kind` has."""
    return _kinds[name]


def find(name: str) -> Kind | None:
    """Return the kind of a name that a user gave; None where none has it."""
    return _kinds.get(name)


def every_kind() -> Iterator[Kind]:
    """Return all kinds, in the order in which help and messages name them."""
    for spec in every_spec():
        yield _kinds[kind_name(spec)]


def kind_trained_on(stream_mode: str) -> Kind | None:
    """Return the kind that a stream's mode calls for.

    None for mixed rows, which most kinds train on, and for what is no mode.
    """
    if stream_mode == "mixed":
        return None
    kinds = (kind for kind in every_kind() if kind.stream_mode == stream_mode)
    return next(kinds, None)


def kind_importing(architecture: str) -> Kind | None:
    """Return the kind that one of SAELens' architectures is imported as, if any."""
    for kind in every_kind():
        if kind.imported and kind.saelens == architecture:
            return kind
    return None
