"""At which layer of an MLP-only residual network each datapoint is decided.

An experiment of its own, without any store (the fifth document, docs/methods.md,
section 5). Two one-hot vectors of width w go in; a learned map brings them to the w
numbers of the residual stream; L layers each add W_out GELU(W_in h + b) to it; the
stream is the logits. The network memorises random outputs of random pairs. The loss
after each layer is that of the stream there (the logit lens).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer.errors import TrainerError

STAGE = 17  # of the seed


class DecidingSpec(NamedTuple):
    """The sizes of the experiment.

    Attributes:
        width: Width of each one-hot vector, of the stream and of the output.
        layers: MLP layers, L.
        datapoints: How many pairs are memorised, in networks of their own.
        steps: Steps of training at most, with all datapoints in each.
        learned: Training ends when no datapoint's loss is above this.
        learning_rate: Of Adam.
        gradients: Datapoints whose gradients are looked at.
        seeds: How often all is done again.
        seed: The first seed.
    """

    width: int = 64
    layers: int = 8
    datapoints: tuple[int, ...] = (64, 256, 1024)
    steps: int = 2000
    learned: float = 0.05
    learning_rate: float = 3e-3
    gradients: int = 32
    seeds: int = 3
    seed: int = 0


QUICK = DecidingSpec(width=12, layers=3, datapoints=(8, 24), steps=400, gradients=4)


class Memorised(NamedTuple):
    """One network that was trained.

    Attributes:
        datapoints: How many pairs it memorised.
        seed: Its seed.
        steps: How many steps that took.
        loss: Cross-entropy of each datapoint before the first layer and after each,
            float32 [layers + 1, datapoints].
        gradient: Share of each layer in the norms of the gradients of the correct
            output, float32 [layers, n], of some datapoints.
    """

    datapoints: int
    seed: int
    steps: int
    loss: Tensor
    gradient: Tensor


class ResidualMlps(nn.Module):
    """The network.

    Attributes:
        embedding: One row for each input of either vector, [2 w, w].
        first: Weights of the layers' hidden units, [L, w, w].
        bias: Their biases, [L, w].
        second: What hidden units write, [L, w, w].
    """

    def __init__(self, width: int, layers: int, rng: np.random.Generator) -> None:
        super().__init__()

        def normal(*shape: int, scale: float) -> nn.Parameter:
            drawn = scale * rng.standard_normal(shape, dtype=np.float32)
            return nn.Parameter(torch.from_numpy(drawn.astype(np.float32)))

        self.embedding = normal(2 * width, width, scale=1.0)
        self.first = normal(layers, width, width, scale=width**-0.5)
        self.bias = nn.Parameter(torch.zeros(layers, width))
        # Small at the start, so that the depth does not decide the scale of the stream.
        self.second = normal(layers, width, width, scale=(layers * width) ** -0.5)

    def forward(self, pairs: Tensor) -> list[Tensor]:
        """Return the stream before the first layer and after each, [B, w] each.

        pairs: The places of the ones in both vectors, int64 [B, 2].
        """
        width = self.embedding.shape[1]
        stream = self.embedding[pairs[:, 0]] + self.embedding[width + pairs[:, 1]]
        streams = [stream]
        for first, bias, second in zip(self.first, self.bias, self.second, strict=True):
            hidden = nn.functional.gelu(stream @ first + bias)
            stream = stream + hidden @ second
            streams.append(stream)
        return streams


def memorise_all(spec: DecidingSpec) -> list[Memorised]:
    """Train a network for each number of datapoints and each seed.

    Raises:
        TrainerError: The sizes do not fit each other.
    """
    _check(spec)
    seeds = range(spec.seed, spec.seed + spec.seeds)
    return [memorise(spec, n, seed) for n in spec.datapoints for seed in seeds]


def memorise(spec: DecidingSpec, datapoints: int, seed: int) -> Memorised:
    """Train one network until it knows all its datapoints, or its steps are over."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, STAGE, datapoints]))
    network = ResidualMlps(spec.width, spec.layers, rng)
    pairs, wanted = _data(rng, spec.width, datapoints)
    optimiser = torch.optim.Adam(network.parameters(), lr=spec.learning_rate)
    steps = 0
    for _ in range(spec.steps):
        losses = nn.functional.cross_entropy(
            network(pairs)[-1], wanted, reduction="none"
        )
        if float(losses.detach().max()) <= spec.learned:
            break
        optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()
        optimiser.step()
        steps += 1
    loss = losses_by_layer(network, pairs, wanted)
    shown = slice(0, spec.gradients)  # datapoints come in no order
    shares = gradient_shares(network, pairs[shown], wanted[shown])
    return Memorised(datapoints, seed, steps, loss, shares)


@torch.no_grad()
def losses_by_layer(network: ResidualMlps, pairs: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss of each datapoint after each layer, float32 [layers + 1, B].

    pairs: int64 [B, 2]; wanted: the correct outputs, int64 [B].
    """
    losses = [
        nn.functional.cross_entropy(stream, wanted, reduction="none")
        for stream in network(pairs)
    ]
    return torch.stack(losses)


def gradient_shares(network: ResidualMlps, pairs: Tensor, wanted: Tensor) -> Tensor:
    """Return each layer's share of the gradient of the correct output.

    The gradient of a datapoint's correct logit with respect to both matrices of a
    layer has a norm; these are divided by their sum over layers.

    pairs: int64 [B, 2]; wanted: int64 [B].

    Returns:
        float32 [layers, B].
    """
    matrices = (network.first, network.second)
    shares = []
    for i in range(len(pairs)):
        logit = network(pairs[i : i + 1])[-1][0, wanted[i]]
        gradients = torch.autograd.grad(logit, matrices)
        squares = sum(one.square().sum(dim=(1, 2)) for one in gradients)
        assert isinstance(squares, Tensor)
        norms = squares.sqrt()
        shares.append(norms / norms.sum())
    return torch.stack(shares, dim=1)


def _data(
    rng: np.random.Generator, width: int, datapoints: int
) -> tuple[Tensor, Tensor]:
    """Return distinct pairs, int64 [datapoints, 2], and outputs, int64 [datapoints]."""
    places = rng.choice(width * width, datapoints, replace=False)
    pairs = np.column_stack(np.divmod(places, width))
    wanted = rng.integers(width, size=datapoints)
    return torch.from_numpy(pairs), torch.from_numpy(wanted)


def _check(spec: DecidingSpec) -> None:
    if spec.width < 2 or spec.layers < 1:
        raise TrainerError(
            "wanted a width of 2 or more and at least one layer, got width"
            f" {spec.width} and {spec.layers} layers"
        )
    most = spec.width**2
    if not spec.datapoints or not all(0 < n <= most for n in spec.datapoints):
        raise TrainerError(
            f"--datapoints: with a width of {spec.width} there are {most:,} pairs;"
            f" wanted numbers from 1 to that, got {spec.datapoints}"
        )
