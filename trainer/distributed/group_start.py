"""How a group of runs begins in several processes: who streams what, and the same
weights in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from actstore.stream.stream import Stream
from schemas.train import TrainSpec
from trainer.distributed.data_parallel import DataParallel
from trainer.distributed.parallel import Parallel
from trainer.distributed.processes import World
from trainer.distributed.split_dictionary import SplitDictionary
from trainer.errors import SaeError
from trainer.saes.build import build, initialise_from
from trainer.saes.ops import ScaledRows
from trainer.training.init_from_data import CENTRES, first_rows, initialise, rows_of
from trainer.training.learner import Learner


@dataclass(frozen=True)
class Together:
    """The processes of a group of runs, and whether they split the dictionary rather
    than the batches.
    """

    world: World
    shard_dictionary: bool = False
    skips: bool = False  # whether rows that cannot be read are left out

    @property
    def part(self) -> tuple[int, int]:
        """Which part of each batch this process streams: (rank, world) of a Stream."""
        return (0, 1) if self.shard_dictionary else (self.world.rank, self.world.size)

    def parallel(
        self, spec: TrainSpec, d: int, n_sites: int, d_out: int | None = None
    ) -> Parallel:
        """How the processes share one SAE; d_out: as in `build`. Raises SaeError where
        a dictionary cannot be split.
        """
        if not self.shard_dictionary:
            return DataParallel(self.world, spec, self.skips)
        if self.skips:
            raise SaeError(
                "on_corrupt: a process that skips rows would go on with other batches"
                " than the rest, which a split dictionary cannot; leave"
                " --on-corrupt out"
            )
        return SplitDictionary(self.world, spec, d, n_sites, d_out)

    def initialise(self, stream: Stream, learners: Sequence[Learner]) -> None:
        """The lead reads the first rows (of whole batches) and computes; the others are
        given the result.
        """
        if self.shard_dictionary:
            for learner in learners:
                assert learner.parallel is not None
                start = partial(_whole_start, stream, learner)
                own = learner.parallel.own(start)
                learner.sae.load_state_dict(own)
                learner.start_average()
            return
        if self.world.lead:
            with Stream(stream.store, stream.spec, device=stream.device) as whole:
                initialise(whole, learners)
        for learner in learners:
            for value in learner.sae.state_dict().values():
                self.world.broadcast_(value)
            learner.start_average()


def _whole_start(stream: Stream, learner: Learner) -> dict[str, Tensor]:
    """State of the whole dictionary's SAE as one process would begin, in the host's
    memory.
    """
    spec = learner.spec
    sae = build(spec.sae, stream.d, spec.seed, len(stream.sites), stream.d_target)
    rows = rows_of(learner, first_rows(stream, sae.n_latents))
    layer, norm, target = (
        value if value is None else value.cpu()
        for value in (rows.layer, rows.norm, rows.target)
    )
    initialise_from(
        sae,
        ScaledRows(rows.x.cpu(), layer, norm, target),
        CENTRES[spec.center_init],
        spec.init == "data",
    )
    state: dict[str, Tensor] = sae.state_dict()
    return {name: torch.as_tensor(value) for name, value in state.items()}
