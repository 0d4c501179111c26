"""Writes an SAE from the middle of training: what its run would end with then."""

from __future__ import annotations

import torch
from safetensors.torch import save as save_tensors

from actstore.format.storage import Storage
from trainer.distributed.learner_protocol import Tensors
from trainer.runs.kept_weights import ROWS, snapshot_key
from trainer.saes.build import Sae
from trainer.training.learner import Learner


def save(storage: Storage, learner: Learner) -> None:
    """Write the snapshot of the learner's step; of several processes the lead does."""
    tensors = tensors_of(learner, learner.result())
    if not learner.parallel.world.lead:
        return
    tensors[ROWS] = torch.tensor(int(learner.seen))
    storage.put(snapshot_key(learner.step), save_tensors(tensors))


def tensors_of(learner: Learner, result: Sae) -> Tensors:
    """Return the tensors of `sae.safetensors`, [...] by name, on the host.

    Only the lead gets all of them; all processes call it.

    Args:
        learner: It has the rescaling.
        result: The weights; of a split dictionary this process's part.
    """
    tensors = {}
    for name, value in learner.parallel.whole(result.state_dict()).items():
        tensors[name] = value.detach().cpu().contiguous()
    # with the weights, so that an SAE takes activations in original units
    tensors["scale"] = learner.scale.cpu()
    if learner.mean is not None:
        tensors["mean"] = learner.mean.cpu()
    if learner.scale_out is not learner.scale:  # a transcoder has its targets' own
        tensors["scale_out"] = learner.scale_out.cpu()
        if learner.mean_out is not None:
            tensors["mean_out"] = learner.mean_out.cpu()
    return tensors
