"""The standard SAE: latents are a ReLU, and their sum is penalised.

f = ReLU((x - b_dec) W_enc + b_enc), x' = f W_dec + b_dec, loss = |x - x'|^2 + l1 * sum
f.

Decoder rows are kept at norm 1 (docs/methods.md, sections 2 and 3): the part of their
gradient that changes the norm is taken out before the optimiser's step, and they are
normalised after it. `tied` uses W_enc = W_dec transposed. With the penalty
`decoder_norm`, l1 * sum_i f_i |W_dec,i| leaves the norms free (Anthropic, Circuits
Updates, April 2024); in a crosscoder |W_dec,i| is the sum of the norms at its sites
(Lindsey et al. 2024).

`decoder_similarity` adds that weight times the mean over pairs of 256 sampled latents
of ReLU(cos - similar_above)^2.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from schemas.sae import ReluL1
from trainer.errors import SaeError
from trainer.kernels.dense_encoder import relu_codes
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import first_l0, limits
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import Kind, StepMemory, register
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.shape import Shape, first_encoder
from trainer.saes.step import Penalty, Step, squared_error
from trainer.saes.step_noise import Draws
from trainer.saes.unit_rows import unit_rows

SAMPLED = 256  # latents drawn at each update: 65,280 ordered pairs
STAGE = 31  # a part of the draws' key, so that no other draw shares it


class ReluL1Sae(FlatSae):
    """An SAE with an L1 penalty.

    Attributes:
        W_enc: [d, m]; None when tied.
        b_enc: [m].
        W_dec: [m, d_out].
        b_dec: [d_out], or [n_sites, d_out] with `per_layer_bias`.
    """

    crosscoder_options: ClassVar[dict[str, object]] = {"penalty": "decoder_norm"}

    def __init__(self, spec: ReluL1, shape: Shape, seed: int) -> None:
        super().__init__(spec, shape)
        self.W_enc = (
            None if spec.tied else nn.Parameter(first_encoder(self.W_dec, shape))
        )
        self.b_enc = self.zeros()
        self.b_dec = self.decoder_bias()
        self.draws = Draws(seed, STAGE) if spec.decoder_similarity else None

    @classmethod
    def of_seed(cls, spec: Any, shape: Shape, seed: int) -> Self:
        return cls(spec, shape, seed)

    @classmethod
    def check(cls, spec: Any, shape: Shape) -> None:
        if spec.tied and shape.d_out is not None:
            raise SaeError(
                "a transcoder's encoder and decoder are of different sites; set"
                " `tied` to false"
            )
        if spec.tied and spec.penalty == "decoder_norm":
            raise SaeError(
                "tied with penalty decoder_norm: latents grow with the decoder; use"
                " penalty l1, or untie"
            )

    @property
    def encoder(self) -> Tensor:
        """The matrix that rows are multiplied with, [d, m]; W_dec.T if it is tied."""
        return self.W_dec.T if self.W_enc is None else self.W_enc

    @property
    def unit_decoder(self) -> bool:
        """True if decoder rows are kept at norm 1."""
        return bool(self.spec.penalty == "l1")

    @property
    def latent_norms(self) -> Tensor:
        """Norm of each decoder row, summed over a crosscoder's sites: [m]."""
        by_site = self.W_dec.unflatten(1, (self.shape.sites_per_row, -1))
        norms: Tensor = by_site.norm(dim=2).sum(dim=1)
        return norms

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return latents [B, m] of pre-activations [B, m]."""
        return pre.relu()

    def training_step(
        self,
        rows: ScaledRows,
        penalty: Penalty,
        dead: Tensor,  # noqa: ARG002 (nothing for the dead)
        parts: Parts = ONE_PART,
    ) -> Step:
        """Return the loss on rows; `penalty` is the weight of its sparsity term.

        Arguments are those of `FlatSae.training_step`; `dead`, bool [m], is not used.
        """
        shift = self.shift_inputs()
        latents, l1, fired = relu_codes(
            rows.x,
            None if shift is None else parts.shared(shift),
            rows.layer,
            self.encoder,
            self.b_enc,
        )
        reconstruction = self.dense_reconstruction(latents, rows, parts)
        # otherwise latents could shrink, and free decoder rows grow, for nothing
        if self.spec.penalty == "decoder_norm":
            sums = (latents * self.latent_norms).sum(dim=-1)
            l1 = sums.mean()
        terms = {
            "mse": squared_error(rows.wanted, reconstruction),
            "l1": parts.summed(l1),
        }
        loss = terms["mse"] + penalty * terms["l1"]
        if self.draws is not None:
            compared = parts.rows_of(self.W_dec, self.sampled(self.draws))
            terms["similarity"] = self.similarity(compared)
            loss = loss + self.spec.decoder_similarity * terms["similarity"]
        l0 = parts.count(fired.sum()) / len(rows.x)
        return Step(loss, reconstruction, fired, l0, terms)

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        """Normalise the decoder where it is held; compare other latents next time."""
        super().after_update(step)
        if self.draws is not None:
            self.draws.advance()

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set the decoder's bias, directions, thresholds and the encoder's length."""
        _, fit = self.begin_at(rows, centre, from_data)
        threshold = limits(self.pre_on, fit, first_l0(self.spec)).threshold
        # ReLU's threshold is 0, so that the bias takes what the limits found
        self.b_enc.sub_(threshold)
        # a tied encoder has the decoder's length, which is 1
        if self.W_enc is not None:
            scale = self.fitted(torch.relu, fit)
            self.lengthen_encoder(scale)

    def sampled(self, draws: Draws) -> Tensor:
        """Return the latents that this update compares, of the whole dictionary.

        int64 [n], n at most `SAMPLED`.
        """
        device = self.W_dec.device
        n_latents = self.spec.size(self.d)
        generator = draws.generator(device)
        order = torch.randperm(n_latents, generator=generator, device=device)
        return order[:SAMPLED]

    def similarity(self, rows: Tensor) -> Tensor:
        """Return the mean over pairs of decoder rows of ReLU(cos - similar_above)^2.

        rows: [n, d_out].
        """
        unit = unit_rows(rows)
        n = len(rows)
        cosines = unit @ unit.T
        above: Tensor = (cosines - self.spec.similar_above).relu().square()
        # a row is as similar to itself as can be, which is no pair
        total: Tensor = above.sum() - above.diagonal().sum()
        n_pairs = n * (n - 1)
        return total / max(1, n_pairs)


def _step_memory(spec: ReluL1) -> StepMemory:
    # free norms weigh every latent: one more [B, m]
    if spec.penalty == "decoder_norm":
        return StepMemory(4.5)
    # 1.6 to 3.6 in cache, as the gaps of the heap fall
    return StepMemory(3.5, in_cache=3.6)


register(
    Kind(
        ReluL1,
        ReluL1Sae,
        learning_rate=1.15e-2,
        starting_penalty=0.2,
        step_memory=_step_memory,
        saelens="standard",
        imported=True,
    )
)
