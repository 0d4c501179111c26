"""The beginning of a group of runs, in one process or in several.

It settles which part of each batch a process streams, and brings the same first weights
to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actstore.stream.stream import Stream
from schemas.train import TrainSpec
from trainer.distributed.learner_protocol import Parallel
from trainer.distributed.single_process import SINGLE_PROCESS
from trainer.distributed.world_of_one import ONE_WORLD, OneWorld
from trainer.errors import SaeError
from trainer.saes.build import build, initialise_from
from trainer.saes.scaled_rows import ScaledRows
from trainer.training.init_from_data import CENTRES, first_rows, initialise, rows_of
from trainer.training.learner import Learner

if TYPE_CHECKING:
    from trainer.distributed.processes import World


@dataclass(frozen=True)
class GroupProcesses:
    """The processes of a group of runs."""

    world: World | OneWorld = ONE_WORLD
    shard_dictionary: bool = False
    """True where they split the dictionary rather than the batches."""
    skips: bool = False
    """True where rows that cannot be read are left out."""

    @property
    def lead(self) -> bool:
        """True in the one process that writes and reports."""
        return self.world.lead

    @property
    def batch_part(self) -> tuple[int, int]:
        """The part of each batch that this process streams, as (rank, world)."""
        # all of them need all rows, of which each computes its latents
        if self.shard_dictionary:
            return 0, 1
        return self.world.rank, self.world.size

    def device(self, asked: str) -> str:
        """Return where this process computes, from the device that was asked for."""
        if isinstance(self.world, OneWorld):
            return asked
        return str(self.world.device)

    def parallel(
        self,
        spec: TrainSpec,
        d: int,
        n_sites: int,
        d_out: int | None = None,
    ) -> Parallel:
        """Return how the processes share one SAE.

        Args:
            spec: The spec of its run.
            d: Width of an activation.
            n_sites: Sites of a mixture or of a crosscoder's row.
            d_out: Width of a transcoder's target.

        Raises:
            SaeError: Its dictionary cannot be split.
        """
        if isinstance(self.world, OneWorld):
            return SINGLE_PROCESS
        if not self.shard_dictionary:
            # imported where it is needed: it loads torch's distributed code
            from trainer.distributed.data_parallel import DataParallel

            return DataParallel(self.world, self.skips)
        if self.skips:
            raise SaeError(
                "on_corrupt: a process that skips rows would go on with other batches"
                " than the rest, which a split dictionary cannot; leave"
                " --on-corrupt out"
            )
        from trainer.distributed.split_dictionary import SplitDictionary

        return SplitDictionary(self.world, spec, d, n_sites, d_out)

    def initialise(self, stream: Stream, learners: Sequence[Learner]) -> None:
        """Set the weights of new learners from the first rows, the same in all.

        The lead reads these (of whole batches) and computes; the others are given the
        result.
        """
        if isinstance(self.world, OneWorld):
            initialise(stream, learners)
        elif self.shard_dictionary:
            for learner in learners:
                start = partial(_whole_start, stream, learner)
                learner.sae.load_state_dict(learner.parallel.own(start))
                learner.start_average()
        else:
            if self.lead:
                # its own stream has only a part of each batch
                with Stream(stream.store, stream.spec, device=stream.device) as whole:
                    initialise(whole, learners)
            for learner in learners:
                for value in learner.sae.state_dict().values():
                    self.world.broadcast_(value)
                # the average that was begun with the SAE has its random weights
                learner.start_average()


def _whole_start(stream: Stream, learner: Learner) -> dict[str, Tensor]:
    """Return the first weights of the whole dictionary, in the host's memory.

    They are those with which one process alone would begin.
    """
    spec = learner.spec
    n_sites = len(stream.sites)
    sae = build(spec.sae, stream.d, spec.seed, n_sites, stream.d_target)
    first = first_rows(stream, sae.n_latents)
    rows = rows_of(learner, first)
    # no device need hold the whole dictionary
    on_host = ScaledRows(
        rows.x.cpu(),
        None if rows.layer is None else rows.layer.cpu(),
        None if rows.norm is None else rows.norm.cpu(),
        None if rows.target is None else rows.target.cpu(),
    )
    centre = CENTRES[spec.center_init]
    initialise_from(sae, on_host, centre, from_data=spec.init == "data")
    state = sae.state_dict()
    return {name: torch.as_tensor(value) for name, value in state.items()}
