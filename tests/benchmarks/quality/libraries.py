"""Each library trains one case, by its own trainer, on the same rows in the same order."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.benchmarks.peers.link import HERE, PYTHONS, PeerError
from tests.benchmarks.quality.evaluate import Model, load
from tests.benchmarks.quality.records import Case
from tests.benchmarks.quality.rows import first_rows, stream_spec
from trainer.training.train_group import train_group

# Our kinds and what others call them. SAELens' standard and dictionary_learning's
# *_april weigh latents by decoder norms.
NAMES = {
    "saelens": {
        "relu_l1": "standard",
        "topk": "topk",
        "batch_topk": "batchtopk",
        "matryoshka": "matryoshka_batchtopk",
        "gated": "gated",
        "jumprelu": "jumprelu",
    },
    "dictionary_learning": {
        "relu_l1": "standard",
        "topk": "top_k",
        "batch_topk": "batch_top_k",
        "matryoshka": "matryoshka_batch_top_k",
        "gated": "gated",
        "jumprelu": "jumprelu",
    },
}
KINDS = tuple(NAMES["saelens"])
OF_K = ("topk", "batch_topk", "matryoshka")
WITH_THRESHOLD = ("batch_topk", "matryoshka")
WEIGHTS = {"relu_l1": "l1", "gated": "l1", "jumprelu": "l0"}
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of matryoshka, for all libraries
AGREES = 1e-3  # relative, of our evaluation of a peer's SAE with its own


class Trained(NamedTuple):
    """used_lr, used_penalty: as far as the library says."""

    model: Model
    version: str
    used_lr: float | None
    used_penalty: float | None


def train(
    case: Case, store: Store, batch: int, rows: Path | None, out: Path, threads: int
) -> Trained:
    """Train the case into the folder `out`, which is emptied. rows: the file that peers
    read. Raises PeerError where a peer fails or its SAE is read wrongly.
    """
    shutil.rmtree(out, ignore_errors=True)
    if case.library == "ours":
        return _ours(case, store, batch, out)
    assert rows is not None
    return _peer(case, store, batch, rows, out, threads)


def _ours(case: Case, store: Store, batch: int, out: Path) -> Trained:
    sae: dict[str, Any] = {"kind": case.kind, "n_latents": case.n_latents}
    if case.kind in OF_K:
        sae["k"] = round(case.l0)
    elif case.penalty is None:
        sae["target_l0"] = case.l0
    else:
        sae[WEIGHTS[case.kind]] = case.penalty
    if case.kind == "matryoshka":
        sae["prefixes"] = PREFIXES
    spec: dict[str, Any] = {
        "store": store.url,
        "sae": sae,
        "stream": stream_spec(batch, case.seed).model_dump(),
        "rows": case.rows,
        "seed": case.seed,
    }
    if case.lr is not None:
        spec["optimiser"] = {"lr": case.lr}
    train_group(store, {str(out): TrainSpec.model_validate(spec)})
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    lr = max((step["lr"] for step in _journal(out)), default=None)
    return Trained(load(str(out), ours=True), done.stdout.strip() or "?", lr, None)


def _journal(out: Path) -> list[dict[str, Any]]:
    path = out / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "lr" in line]


def _peer(
    case: Case, store: Store, batch: int, rows: Path, out: Path, threads: int
) -> Trained:
    python = os.environ.get(PYTHONS[case.library])
    if not python:
        raise PeerError(
            f"{case.library}: set {PYTHONS[case.library]} to the python of its environment"
        )
    out.mkdir(parents=True)
    asked = {
        **case.model_dump(),
        "kind": NAMES[case.library][case.kind],
        "k": round(case.l0),
        "d": store.site(store.sites[0]).d,
        "batch": batch,
        "rows": str(rows),
        "n_rows": case.rows,
        "prefixes": PREFIXES,
        "threads": threads,
    }
    (out / "case.json").write_text(json.dumps(asked))
    worker = HERE / f"quality_{case.library}_worker.py"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"PYTHONPATH", "PYTHONHOME"}
    }
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "TQDM_DISABLE": "1",
    }
    words = [python, "-W", "ignore", str(worker), str(out / "case.json"), str(out)]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PeerError(f"{case.library} {case.kind}: {done.stderr[-2000:]}")
    seen = json.loads((out / "seen.json").read_text())
    folder = out / "trainer_0" if case.library == "dictionary_learning" else out
    model = load(str(folder), ours=False)
    _check(model, seen, rows, batch, case)
    return Trained(model, seen["version"], seen["lr"], seen["penalty"])


@torch.no_grad()
def _check(
    model: Model, seen: dict[str, Any], rows: Path, batch: int, case: Case
) -> None:
    """That we compute what the peer computes with its own SAE."""
    x = torch.from_numpy(first_rows(rows, batch)[0])
    latents = model.encode(x, 0)
    ours = {
        "l0": float((latents > 0).sum() / len(x)),
        "error": float((model.decode(latents, 0) - x).square().sum()),
    }
    for name, value in ours.items():
        if not math.isclose(value, seen[name], rel_tol=AGREES, abs_tol=AGREES):
            raise PeerError(
                f"{case.library} {case.kind}: we see {name} {value:.6g} on the first rows, it {seen[name]:.6g}"
            )
