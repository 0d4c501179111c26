"""Several processes train as one does: real ones, with gloo on 127.0.0.1."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import StepRecord
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from tests.support import make_store
from tests.trainer.distributed.distributed_worker import DEAD_EVERY, half_done, values
from trainer.distributed.launch import under_torchrun
from trainer.errors import PeerError
from trainer.runs.journal import read
from trainer.training import learner
from trainer.training.checkpoint import steps
from trainer.training.train_group import train_group

USERS_DEAD_EVERY = learner.DEAD_EVERY

ROOT = Path(__file__).parents[3]
STEPS, BATCH = 24, 96
DEAD = {"dead_rows": 2 * BATCH}
RESAMPLE = {
    "every": 6 * BATCH,
    "silent_rows": BATCH // 2,
    "times": 3,
    "candidates": 4 * BATCH,
}
# of 272 latents 256 are compared
SIMILAR = {"expansion": 17, "decoder_similarity": 0.5, "similar_above": 0.1}
SAES: dict[str, dict[str, Any]] = {
    "relu_l1": {"sae": {"kind": "relu_l1", "l1": 0.05}, "ema": 0.9},
    "topk": {
        "sae": {"kind": "topk", "k": 2, "aux_k": 4, "aux_coefficient": 1 / 32},
        **DEAD,
        "resample": RESAMPLE,
    },
    "batch_topk": {
        "sae": {
            "kind": "batch_topk",
            "k": 2,
            "aux_k": 4,
            "aux_coefficient": 1 / 32,
            "per_layer_threshold": True,
        },
        **DEAD,
    },
    "jumprelu": {
        "sae": {
            "kind": "jumprelu",
            "l0": 0.05,
            "per_layer_threshold": True,
            "per_layer_bias": True,
        }
    },
    "matryoshka": {
        "sae": {"kind": "matryoshka", "k": 2, "aux_k": 4, "aux_coefficient": 1 / 32},
        **DEAD,
        "accumulate": 3,
    },
    "micro": {"sae": {"kind": "gated", "l1": 0.05}, "accumulate": 3},
    "nsae": {"sae": {"kind": "nsae", "alpha": 0.05, "noise": 0.3}, "accumulate": 2},
    "mlp_encoder": {"sae": {"kind": "mlp_encoder", "l1": 0.05, "per_layer_bias": True}},
    "tied": {
        "sae": {"kind": "relu_l1", "l1": 0.05, "tied": True, **SIMILAR},
        "init": "random",
    },
    "sparse_bias": {
        "sae": {
            "kind": "topk",
            "k": 2,
            "aux_k": 4,
            "aux_coefficient": 1 / 32,
            "per_layer_bias": True,
        },
        **DEAD,
        "accumulate": 2,
    },
    "crosscoder": {
        "sae": {"kind": "crosscoder", "inner": {"kind": "batch_topk", "k": 2}},
        "stream": {"batch": 48, "mode": "aligned"},
        "accumulate": 2,
    },
    "transcoder": {
        "sae": {
            "kind": "transcoder",
            "inner": {"kind": "jumprelu", "l0": 0.05},
            "skip": True,
        },
        "stream": {
            "batch": 48,
            "mode": "pairs",
            "sites": ["*.0.*", "*.1.*"],
            "targets": ["*.1.*", "*.2.*"],
        },
    },
    "crosscoder_l1": {
        "sae": {"kind": "crosscoder", "inner": {"kind": "relu_l1", "l1": 0.05}},
        "stream": {"batch": 48, "mode": "aligned"},
    },
    "transcoder_nested": {
        "sae": {
            "kind": "transcoder",
            "inner": {"kind": "matryoshka", "k": 2, "prefixes": [0.2, 0.5, 0.7, 1.0]},
        },
        "stream": {
            "batch": 48,
            "mode": "pairs",
            "sites": ["*.0.*"],
            "targets": ["*.2.*"],
        },
    },
    "steered": {"sae": {"kind": "relu_l1", "target_l0": 3}, **DEAD},
    "steered_jumps": {
        "sae": {"kind": "jumprelu", "target_l0": 3, "per_layer_threshold": True},
        "accumulate": 2,
    },
    # all in one process
    "few_rows": {"sae": {"kind": "batch_topk", "k": 2}, "stream": {"batch": 2}},
    "few_micro": {
        "sae": {"kind": "batch_topk", "k": 2},
        "stream": {"batch": 2},
        "accumulate": 2,
    },
}
SHARDED = tuple(name for name in SAES if not name.startswith("few_"))
RESUMED = ("topk", "batch_topk", "nsae", "transcoder_nested")


def spec_of(name: str, store: Store) -> TrainSpec:
    raw = {
        "store": store.url,
        "stream": {"batch": BATCH, "rescale": "log", "seed": 3},
        "optimiser": {"lr": 0.005, "eps": 1e-4},
        "checkpoint_every": STEPS // 2,
        "keep": 9,
        "log_every": 1,
        **SAES[name],
    }
    if "inner" not in raw["sae"]:
        raw["sae"] = {"expansion": 4.1, **raw["sae"]}  # 66 latents: parts of 33
    return TrainSpec.model_validate({**raw, "rows": STEPS * raw["stream"]["batch"]})


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    numbers = {name: str(value) for name, value in places.items()}
    return {
        **os.environ,
        **numbers,
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(*words: list[str]) -> list[subprocess.Popen[str]]:
    """A process for each list of words, all of one world."""
    port, size = free_port(), len(words)
    return [
        subprocess.Popen(
            [sys.executable, *own],
            cwd=ROOT,
            env=environment(rank, size, port),
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank, own in enumerate(words)
    ]


def ended(
    processes: list[subprocess.Popen[str]], seconds: float = 120
) -> list[tuple[int, str]]:
    """Exit status and messages of each."""
    try:
        out = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        (process.returncode, text) for process, text in zip(processes, out, strict=True)
    ]


class Trained:
    """Every run, by one process and by two."""

    def __init__(self, at: Path) -> None:
        self.at, self.store = at, make_store(at / "store", n_units=24, unit_sequences=8)
        for name in SAES:
            self.one(at / "one" / name, name)
        plan = [self.planned("two", name) for name in SAES]
        plan += [self.planned("split", name) for name in SHARDED]
        for name in RESUMED:
            plan += [
                self.planned(f"{first}-then-{way}", name)
                for way in ("two", "split")
                for first in ("one", way)
            ]
        self.stream = {"batch": 100, "seed": 5, "limit_rows": 1000}
        text = {"store": self.store.url, "runs": plan, "stream": self.stream}
        (at / "plan.json").write_text(json.dumps(text))
        results = ended(
            start(
                *[
                    [
                        "-m",
                        "tests.trainer.distributed.distributed_worker",
                        str(at / "plan.json"),
                    ]
                ]
                * 2
            ),
            250,
        )
        assert [status for status, _ in results] == [0, 0], results
        self.found = [
            json.loads((at / f"found-{rank}.json").read_text()) for rank in range(2)
        ]

    def planned(self, folder: str, name: str) -> dict[str, Any]:
        """A run of the two processes; `folder` says how: two, split, or one of these
        behind half a run of another.
        """
        first, _, way = folder.rpartition("-then-")
        spec, half = (
            spec_of(name, self.store).model_dump(mode="json"),
            str(self.at / first / name) if first else None,
        )
        out = str(self.at / folder / name)
        return {
            "out": out,
            "spec": spec,
            "shard": way == "split",
            "half_of": half,
            "step": STEPS,
        }

    def one(self, out: Path, name: str, resume: bool = False) -> Path:
        train_group(
            self.store, {str(out): spec_of(name, self.store)}, resume=resume, threads=1
        )
        return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "DEAD_EVERY", DEAD_EVERY)
        yield Trained(tmp_path_factory.mktemp("distributed"))
    torch.set_num_threads(threads)


def records(run: Path) -> list[StepRecord]:
    return read(Storage(str(run)))


def difference(a: Path, b: Path) -> tuple[float, float]:
    """Largest relative difference of a step's figures, and of weights over the tensor's
    largest.
    """
    figures, every = 0.0, (records(a), records(b))
    assert (
        [one.step for one in every[0]]
        == [one.step for one in every[1]]
        == list(range(1, STEPS + 1))
    )
    for one, two in zip(*every, strict=True):
        assert one.parts.keys() == two.parts.keys()
        assert one.dead == two.dead
        assert (one.density is None) == (two.density is None)
        if one.density is not None and two.density is not None:
            assert one.density.rows == two.density.rows
            assert sum(one.density.counts) == sum(two.density.counts)
            moved = [
                abs(x - y)
                for x, y in zip(one.density.counts, two.density.counts, strict=True)
            ]
            # rounding may move a latent at the edge of a bin
            assert sum(moved) <= 0.1 * sum(one.density.counts)
        pairs = [
            (one.loss, two.loss),
            (one.l0, two.l0),
            (one.mse, two.mse),
            (one.fvu, two.fvu),
        ]
        pairs += [(one.parts[name], two.parts[name]) for name in one.parts]
        figures = max(figures, *(abs(x - y) / max(abs(x), 1e-6) for x, y in pairs))
    tensors = [load_file(run / "sae.safetensors") for run in (a, b)]
    assert tensors[0].keys() == tensors[1].keys()
    apart = [
        (x - tensors[1][name]).abs().max() / x.abs().max().clamp_min(1e-6)
        for name, x in tensors[0].items()
    ]
    return figures, float(max(apart))


def test_losses_and_weights_are_those_of_one_process(trained: Trained) -> None:
    for way, names in (("two", tuple(SAES)), ("split", SHARDED)):
        for name in names:
            figures, weights = difference(
                trained.at / "one" / name, trained.at / way / name
            )
            assert figures < 1e-5, (way, name)
            assert weights < 2e-5, (way, name)
    dead = [record.dead for record in records(trained.at / "two/topk")]
    assert max(dead) > 0, "AuxK had nothing to do"
    at = f"checkpoints/step-{STEPS // 2:08d}/latents.safetensors"
    silent = {
        name: load_file(trained.at / "two" / name / at)["silent_rows"]
        for name in ("topk", "sparse_bias")
    }
    assert (
        silent["sparse_bias"].max() > RESAMPLE["silent_rows"] > silent["topk"].max()
    ), "nothing was resampled"
    assert (
        max(record.parts["similarity"] for record in records(trained.at / "split/tied"))
        > 1e-4
    )
    assert any("aux" in record.parts for record in records(trained.at / "split/topk"))


def test_a_run_goes_on_with_another_number_of_processes(trained: Trained) -> None:
    for name in RESUMED:
        whole = trained.at / "one" / name
        for way in ("one-then-two", "one-then-split"):
            assert max(difference(whole, trained.at / way / name)) < 2e-5, (way, name)
        for way in ("two", "split"):
            out = trained.at / f"{way}-then-one" / name
            half_done(trained.at / way / name, out, STEPS)
            trained.one(out, name, resume=True)
            assert max(difference(whole, out)) < 2e-5, (way, name)
            # with as many it is the same run
            again = trained.at / f"{way}-then-{way}" / name
            for file in (
                "sae.safetensors",
                f"checkpoints/step-{STEPS:08d}/optimiser.safetensors",
            ):
                assert (again / file).read_bytes() == (
                    trained.at / way / name / file
                ).read_bytes(), (way, name)


def test_checkpoints_do_not_tell_how_many_processes_there_were(
    trained: Trained,
) -> None:
    for name in SHARDED:
        for file in ("weights", "optimiser", "latents", "sums"):
            one, *others = (
                load_file(
                    trained.at
                    / way
                    / name
                    / f"checkpoints/step-{STEPS // 2:08d}/{file}.safetensors"
                )
                for way in ("one", "two", "split")
            )
            shapes = {key: (value.shape, value.dtype) for key, value in one.items()}
            assert all(
                {k: (v.shape, v.dtype) for k, v in other.items()} == shapes
                for other in others
            ), (name, file)
        assert (trained.at / "split" / name / "spec.json").read_bytes() == (
            trained.at / "one" / name / "spec.json"
        ).read_bytes()


def test_processes_share_the_batches_of_one(trained: Trained) -> None:
    with trained.store.stream(StreamSpec(**trained.stream), threads=1) as stream:
        whole = [
            sorted(
                f"{site} {row}"
                for site, row in zip(
                    batch.layer.tolist(), batch.row.tolist(), strict=True
                )
            )
            for batch in stream
        ]
    parts = [found["rows"] for found in trained.found]
    assert len(whole) == 10
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == whole
    assert all(parts[0])
    assert all(parts[1])


def test_selections_over_processes_are_exact(trained: Trained) -> None:
    for case in range(4):
        every = [values(case, rank).tolist() for rank in range(2)]
        pooled = sorted(
            (-math.inf if v != v else -v, rank, at)
            for rank in range(2)
            for at, v in enumerate(every[rank])
        )
        for i, n in enumerate((1, 5, 13)):
            chosen = {
                (rank, at)
                for rank in range(2)
                for at, one in enumerate(trained.found[rank]["kept"][case][i])
                if one
            }
            if case == 3:  # NaN and inf are as one in this reference
                assert len(chosen) == n
                assert {v for v in chosen if v[1] == 3} >= (
                    {(0, 3), (1, 3)} if n > 1 else {(0, 3)}
                )
            else:
                assert chosen == {(rank, at) for _, rank, at in pooled[:n]}, (case, n)


def test_processes_stay_alike_and_resample_as_one(trained: Trained) -> None:
    alike = trained.found[0]["alike"]
    assert len(alike) == 16
    for rank in range(2):
        assert all(one[0] == 0 for one in trained.found[rank]["alike"].values())
    far = {name: one[1] for name, one in alike.items()}
    assert max(far.values()) < 1e-4, {
        name: value for name, value in far.items() if value >= 1e-4
    }


def test_what_cannot_be_split_is_refused(trained: Trained) -> None:
    said = list(trained.found[1]["refused"].values())
    assert "k is 99, but the dictionary has 25 latents" in said[0]
    assert "1 latents cannot be split over 2 processes" in said[1]
    assert "leave `compile` out" in said[2]


def test_one_process_cannot_split_a_dictionary() -> None:
    with (
        pytest.raises(PeerError, match="torchrun --nproc-per-node"),
        under_torchrun("cpu", True),
    ):
        pass


def test_a_process_that_fails_ends_the_others(trained: Trained, tmp_path: Path) -> None:
    """One that raises an error has the only message, so has one of several that raise
    the same; one that is killed is missed by the other.
    """
    common = [
        "-m",
        "trainer",
        "train",
        "--sae",
        "topk",
        "--k",
        "2",
        "--batch",
        "96",
        "--rows",
        "900M",
    ]
    common += ["--checkpoint-every", "5", "--out"]
    lost = [*common, str(tmp_path / "lost"), "--store"]
    kept = [*common, str(tmp_path / "killed"), "--store", trained.store.url]
    failing, killed = (
        start([*lost, trained.store.url], [*lost, str(tmp_path / "nowhere")]),
        start(kept, kept),
    )
    (status, text), (other, message) = ended(failing)
    assert (status, other) == (1, 1)
    assert text.strip() == ""
    assert message.startswith("error: ")
    assert "wanted a store" in message
    deadline = time.monotonic() + 60
    while (
        not list(tmp_path.glob("killed/checkpoints/*/state.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    killed[1].kill()
    (status, text), (other, _) = ended(killed)
    assert (status, other) == (1, -9)
    assert [
        line for line in text.splitlines() if not line.startswith("training: ")
    ] == [
        (
            "error: another process of this run has ended or cannot be reached, and this one ends too; look for its "
            "message, then start all of them again with --resume"
        )
    ]


def test_torchrun_starts_it_and_a_loss_that_is_no_number_is_told_once(
    trained: Trained, tmp_path: Path
) -> None:
    port = str(free_port())
    words = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        port,
    ]
    words += [
        "-m",
        "trainer",
        "train",
        "--store",
        trained.store.url,
        "--sae",
        "relu_l1",
        "--lr",
        "1e30",
        "--batch",
        "96",
    ]
    words += [
        "--log-every",
        "1",
        "--checkpoint-every",
        "1",
        "--shard-dictionary",
        "--out",
        str(tmp_path / "run"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(  # its status is looked at
        [sys.executable, *words],
        check=False,
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "the loss is" in told[0] or "are not finite" in told[0]


def test_a_signal_to_one_process_ends_all_at_one_step_and_one_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes look for dead latents as users' do, not as often as other tests here:
    # AuxK would begin at another step.
    monkeypatch.setattr(learner, "DEAD_EVERY", USERS_DEAD_EVERY)
    store = make_store(tmp_path / "store", n_units=24, unit_sequences=8)
    raw = spec_of("batch_topk", store).model_dump(mode="json")
    raw |= {"rows": 400 * BATCH, "checkpoint_every": 10_000, "log_every": 5}
    # at higher rates the last bits of sums grow over 400 updates
    raw["optimiser"] |= {"lr": 1e-3, "eps": 1e-4}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw))
    words = ["train", "--spec", str(tmp_path / "spec.yaml"), "--out"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    processes = start(*[["-m", "trainer", *words, str(run)]] * 2)
    deadline = time.monotonic() + 60
    while not (run / "journal.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    found = ended(processes)
    assert [status for status, _ in found] == [143, 143], found
    [step] = [
        int(at)
        for at in re.findall(
            r"stopped and saved at step (\d+) of 400; go on with", found[0][1]
        )
    ]
    assert (
        f"torchrun --nproc-per-node=2 -m trainer {' '.join(words)} {run} --resume"
        in found[0][1]
    )
    assert "go on with" not in found[1][1], "the lead speaks"
    assert steps(Storage(str(run))) == [step]
    spec = TrainSpec.model_validate(raw)
    for out in (run, whole):
        train_group(store, {str(out): spec}, resume=True, threads=1)
    weights = [load_file(out / "sae.safetensors") for out in (run, whole)]
    for name, wanted in weights[1].items():
        assert torch.allclose(weights[0][name], wanted, atol=1e-2), name
