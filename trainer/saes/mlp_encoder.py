"""An SAE whose encoder has a hidden layer (docs/methods.md, section 5).

f = ReLU(ReLU((x - b_dec) W_hidden + b_hidden) W_enc + b_enc), x' = f W_dec + b_dec,
loss = |x - x'|^2 + l1 * sum f, decoder rows at norm 1, as in `relu_l1`. Where the
hidden layer is 2 d wide or wider it begins as (x, -x), from which the usual linear
encoder can be read: a start no worse than linear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.sae import MlpEncoder
from trainer.saes.centres import Centre, mean
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.encoder_init import begin_at, first_l0, limits
from trainer.saes.flat_sae import FlatSae
from trainer.saes.registry import Kind, StepMemory, register
from trainer.saes.scaled_rows import Layer, ScaledRows
from trainer.saes.shape import Shape
from trainer.saes.step import Penalty, Step, firings, squared_error
from trainer.saes.unit_rows import unit_rows


class MlpEncoderSae(FlatSae):
    """An SAE whose latents are made of a hidden layer of h units.

    Attributes:
        W_hidden: [d, h].
        b_hidden: [h].
        W_enc: [h, m].
        b_enc: [m].
        W_dec: [m, d].
        b_dec: [d], or [n_sites, d] with `per_layer_bias`.
    """

    def __init__(self, spec: MlpEncoder, shape: Shape) -> None:
        super().__init__(spec, shape)
        width = max(1, round(spec.hidden * self.d))
        self.W_hidden = _columns(self.d, width)
        self.b_hidden = nn.Parameter(torch.zeros(width))
        self.W_enc = _columns(width, self.n_latents)
        self.b_enc = self.zeros()
        self.b_dec = self.decoder_bias()
        self._linear_start()

    @property
    def encoder(self) -> Tensor:
        """The weights of the hidden layer, [d, h]."""
        return self.W_hidden

    @property
    def encoder_bias(self) -> Tensor:
        """The bias of the hidden layer, [h]."""
        return self.b_hidden

    def activate(self, pre: Tensor, layer: Layer = None) -> Tensor:  # noqa: ARG002 (the same for all layers)
        """Return latents [B, m] of the hidden layer's pre-activations [B, h]."""
        return self._from_hidden(pre.relu()).relu()

    def margins(self, x: Tensor, layer: Layer = None) -> Tensor:
        """Return by how much latents' own pre-activations are above 0: [B, m].

        Args:
            x: [B, d].
            layer: The layer of the rows.
        """
        return self._from_hidden(self.pre_activations(x, layer).relu())

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
        # all processes have the whole hidden layer; latents begin after it
        hidden = self.pre_activations(rows.x, rows.layer).relu()
        latents = self._from_hidden(parts.shared(hidden)).relu()
        reconstruction = self.dense_reconstruction(latents, rows, parts)
        l1 = latents.sum(dim=-1).mean()
        terms = {
            "mse": squared_error(rows.wanted, reconstruction),
            "l1": parts.summed(l1),
        }
        loss = terms["mse"] + penalty * terms["l1"]
        fired = firings(latents)
        l0 = parts.count(fired.sum()) / len(rows.x)
        return Step(loss, reconstruction, fired, l0, terms)

    def latent_inputs(self, rows: ScaledRows) -> Tensor:
        """Return the hidden layer [B, h], which a latent's weights multiply."""
        return self.pre_activations(rows.x, rows.layer).relu()

    @torch.no_grad()
    def initialise(
        self, rows: ScaledRows, centre: Centre = mean, from_data: bool = True
    ) -> None:
        """Set the decoder's bias, directions, thresholds and the encoder's length."""
        _, fit = begin_at(rows, self.W_dec, None, self.b_dec, centre, from_data)
        self._linear_start()
        # biases before the length: it is fitted to the latents that then fire
        threshold = limits(self.pre_on, fit, first_l0(self.spec)).threshold
        self.b_enc.sub_(threshold)
        scale = self.fitted(torch.relu, fit)
        self.lengthen_encoder(scale)

    def pre_on(self, rows: ScaledRows) -> Tensor:
        """Return the latents' own pre-activations [n, m] of rows."""
        return self.margins(rows.x, rows.layer)

    def _from_hidden(self, hidden: Tensor) -> Tensor:
        assert self.W_enc is not None
        return hidden @ self.W_enc + self.b_enc

    @torch.no_grad()
    def _linear_start(self) -> None:
        """Make the hidden layer (x, -x), and the encoder the decoder's transpose on it.

        ReLU(x) - ReLU(-x) = x, so the encoder has the decoder for the first half and
        its opposite for the second. With d = 1, a row 3 has the hidden layer (3, 0), a
        row -3 has (0, 3), and a latent of direction v gets 3 v and -3 v.
        """
        d = self.d
        # a narrower layer cannot hold both, and keeps its random columns
        if len(self.b_hidden) < 2 * d:
            return
        assert self.W_enc is not None
        identity = torch.eye(d)
        both = torch.cat([identity, -identity], dim=1)
        both = both.to(self.W_hidden)
        self.W_hidden[:, : 2 * d] = both
        self.W_enc[: 2 * d] = both.T @ self.W_dec.T
        # hidden units beyond these keep their columns, but begin without a say
        self.W_enc[2 * d :] = 0


def _columns(n_in: int, n_out: int) -> nn.Parameter:
    """Return weights [n_in, n_out] of random columns of norm 1."""
    columns = unit_rows(torch.randn(n_out, n_in))
    return nn.Parameter(columns.T.contiguous())


register(
    Kind(
        MlpEncoder,
        MlpEncoderSae,
        learning_rate=8e-3,
        starting_penalty=0.15,
        step_memory=lambda _: StepMemory(3.6),
        no_saelens_because="its encoder has more than one layer",
    )
)
