"""One process of several: what `test_distributed` looks at afterwards. `python -m ...
PLAN.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import actstore
from actstore.stream.rescale import Rescaling
from actstore.stream.stream import Batch, Stream
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from trainer.distributed.data_parallel import DataParallel
from trainer.distributed.learner_protocol import Parallel
from trainer.distributed.processes import World, started
from trainer.distributed.single_process import SINGLE_PROCESS
from trainer.distributed.split_dictionary import SplitDictionary
from trainer.errors import SaeError
from trainer.kernels.select_across_processes import largest_of_all
from trainer.saes.build import build
from trainer.training import learner as learner_module
from trainer.training.learner import Learner
from trainer.training.resample_dead import resample
from trainer.training.train_group import train_group

D, M, SITES = 8, 25, 3
DEAD_EVERY = 5  # the runs are short
TOGETHER: dict[str, dict[str, Any]] = {
    "relu_l1": {"l1": 0.1},
    "topk": {"k": 3, "aux_k": 4, "aux_coefficient": 0.5},
    "batch_topk": {"k": 3, "aux_k": 4, "aux_coefficient": 0.5},
    "jumprelu": {"l0": 0.1, "threshold": 0.5, "bandwidth": 0.6},
    "matryoshka": {"k": 3},
    "gated": {"l1": 0.1},
    "mlp_encoder": {"l1": 0.1},
    "nsae": {"alpha": 0.01, "noise": 0.3},
}


def main(path: Path) -> None:
    learner_module.DEAD_EVERY = DEAD_EVERY
    plan = json.loads(path.read_text())
    torch.set_num_threads(1)
    store = actstore.open(plan["store"])
    with started("cpu") as world:
        for run in plan["runs"]:
            if run["half_of"] and world.lead:
                half_done(Path(run["half_of"]), Path(run["out"]), run["step"])
            world.barrier()
            group = {run["out"]: TrainSpec.model_validate(run["spec"])}
            train_group(
                store,
                group,
                resume=bool(run["half_of"]),
                threads=1,
                world=world,
                shard_dictionary=run["shard"],
            )
        with Stream(
            store,
            StreamSpec(**plan["stream"]),
            threads=1,
            rank=world.rank,
            world=world.size,
        ) as stream:
            pairs = [
                zip(batch.layer.tolist(), batch.row.tolist(), strict=True)
                for batch in stream
            ]
        found = {
            "rows": [[f"{site} {row}" for site, row in batch] for batch in pairs],
            "kept": kept(world),
            "refused": refused(world),
            "alike": {
                f"{kind} {way}": alike(world, kind, way == "split")
                for way in ("rows", "split")
                for kind in TOGETHER
            },
        }
        (path.parent / f"found-{world.rank}.json").write_text(json.dumps(found))


def half_done(whole: Path, into: Path, step: int) -> Path:
    """A run as it was when it had only its first checkpoint, not that of its last step."""
    shutil.copytree(whole, into)
    shutil.rmtree(into / f"checkpoints/step-{step:08d}")
    (into / "sae.safetensors").unlink()
    (into / "sae.json").unlink()
    return into


def values(case: int, rank: int) -> Tensor:
    """A process's values above 0 of one case: plain, of a few numbers only, wide, and
    with NaN and inf.
    """
    g = torch.Generator().manual_seed(10 * case + rank)
    made = torch.rand([400, 300, 7, 50][case] * (rank + 1), generator=g) + 1e-3
    if case == 1:
        made = torch.randint(1, 6, made.shape, generator=g).float()
    if case == 2:
        made = torch.exp(80 * (made - 0.5))
    if case == 3:
        made[3], made[7] = torch.nan, torch.inf
    return made


def kept(world: World) -> list[list[list[bool]]]:
    """Which of this process's values are chosen, for each case and several n."""
    return [
        [
            largest_of_all(values(case, world.rank), n, world).tolist()
            for n in (1, 5, 13)
        ]
        for case in range(4)
    ]


def refused(world: World) -> dict[str, str]:
    """What a dictionary that cannot be split says."""
    out = {}
    for sae in (  # the last is compiled
        {"kind": "topk", "k": 99},
        {"n_latents": 1},
        {"kind": "nsae"},
    ):
        raw = {
            "store": "",
            "sae": {"kind": "topk", "n_latents": M, **sae},
            "compile": sae == {"kind": "nsae"},
        }
        spec = TrainSpec.model_validate(raw)
        try:
            SplitDictionary(world, spec, D, SITES)
        except SaeError as error:
            out[str(sae)] = str(error)
    return out


def alike(world: World, kind: str, split: bool) -> list[float]:
    """Steps with resampling on random rows, other ones in each process: how far the
    processes' weights are apart, and how far they are from those of one process that
    has the rows of all in the order of processes.
    """
    raw = {"kind": kind, "n_latents": M, **TOGETHER[kind]}
    plan = {"every": 200, "silent_rows": 45, "times": 3, "candidates": 80}
    spec = TrainSpec.model_validate(
        {
            "store": "",
            "sae": raw,
            "stream": {"batch": 40},
            "dead_rows": 50,
            "resample": plan,
            "seed": 4,
        }
        | {"optimiser": {"lr": 0.01, "eps": 1e-4}}
    )
    parallel: Parallel = (
        SplitDictionary(world, spec, D, SITES) if split else DataParallel(world)
    )
    one, whole = learner(spec, parallel), learner(spec, SINGLE_PROCESS)
    one.sae.load_state_dict(
        parallel.own(lambda: build(spec.sae, D, spec.seed, SITES).state_dict())
    )
    bias = bias_name(one)
    off = {bias: torch.arange(M) % 5 == 2}
    own_off, g = parallel.own(lambda: dict(off)), torch.Generator().manual_seed(1)
    for step in range(12):
        x, layer = (
            torch.randn(40, D, generator=g) + 0.5,
            torch.randint(0, SITES, (40,), generator=g),
        )
        first = 40 if step == 3 else 23  # once the second process has no rows at all
        own = (
            slice(None)
            if split
            else slice(first * world.rank, first if world.lead else 40)
        )
        if step in {0, 6}:
            silence(one, own_off[bias])
            silence(whole, off[bias])
        place = torch.arange(40)
        one.update(x[own], layer[own], batch_position=place[own])
        whole.update(x, layer)
        row = torch.arange(40 * step, 40 * step + 40)
        part = Batch(x[own], layer[own], row[own], None, place[own])
        resample(cast("Stream", Same(part)), [one])
        resample(cast("Stream", Same(Batch(x, layer, row, None, place))), [whole])
    assert bias_of(whole).min() > -100, "nothing was resampled"
    tensors = {
        name: value
        for name, value in one.sae.state_dict().items()
        if value.is_floating_point()
    }
    apart = 0.0
    for name, value in tensors.items():
        if not split or name in {
            "b_dec",
            "threshold",
            "updates",
            "W_hidden",
            "b_hidden",
        }:
            every = world.gather(value)
            apart = max(apart, float((every - every[0]).abs().max()))
    joined = parallel.whole(tensors | {"silent_rows": one.silent_rows})
    if not world.lead:
        return [apart, 0.0]
    wanted = whole.sae.state_dict() | {"silent_rows": whole.silent_rows}
    far = [
        float((value - wanted[name]).abs().max() / wanted[name].abs().max())
        for name, value in joined.items()
    ]
    return [apart, max(far)]


class Same:
    """A stream of one batch again and again, of this process's rows of it."""

    spec, sites, rows_per_epoch = StreamSpec(batch=40), ("a", "b", "c"), 10**6

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch


def bias_name(one: Learner) -> str:
    return "b_enc" if hasattr(one.sae, "b_enc") else "b_gate"


def bias_of(one: Learner) -> Tensor:
    bias: Tensor = getattr(one.sae, bias_name(one)).data
    return bias


def silence(one: Learner, latents: Tensor) -> None:
    """Make latents unable to fire."""
    bias_of(one)[latents] = -1e3


def learner(spec: TrainSpec, parallel: Parallel) -> Learner:
    sae = build(spec.sae, D, spec.seed, SITES, latents_here=parallel.latents_here)
    rescale = Rescaling(np.array([1.0, 0.5, 2.0]), None)
    norms = torch.tensor([1.0, 2.0, 0.5])
    return Learner(
        spec,
        sae,
        rescale,
        torch.ones(SITES),
        100,
        torch.device("cpu"),
        norms,
        parallel=parallel,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
