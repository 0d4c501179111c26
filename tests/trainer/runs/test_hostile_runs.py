"""Runs from someone else: whatever is wrong with a file is a typed error that names it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trainer
from actstore.errors import ActstoreError, CorruptError
from actstore.format.storage import Storage
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.errors import RunError
from trainer.evaluation.metrics_of_rows import evaluate_rows, write_evaluation
from trainer.exports.export_origin import read_origin
from trainer.runs import journal
from trainer.runs.run_data import read_run
from trainer.training import checkpoint
from trainer.training.train_group import train_group

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "k": 3, "expansion": 4},
    "relu_l1": {"kind": "relu_l1", "l1": 0.1, "expansion": 2},
    "crosscoder": {
        "kind": "crosscoder",
        "inner": {"kind": "topk", "k": 3, "expansion": 2},
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated run with a checkpoint."""
    folder = tmp_path_factory.mktemp("hostile")
    store = make_store(folder / "store", {"a": 8, "b": 8}, n_units=21, unit_sequences=2)
    spec = {
        "store": store.url,
        "sae": KINDS["topk"],
        "stream": {"batch": 64, "rescale": "log"},
        "rows": 64 * 4,
    }
    out = folder / "run"
    train_group(
        store,
        {
            str(out): TrainSpec.model_validate(
                {**spec, "checkpoint_every": 2, "log_every": 1}
            )
        },
    )
    record, firings = evaluate_rows(trainer.load(str(out)), store)
    write_evaluation(str(out), record, firings)
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


READERS: dict[str, Callable[[str], Any]] = {
    "load": trainer.load,
    "report": read_run,
    "export": read_origin,
    "journal": lambda url: journal.read(Storage(url)),
    "resume": lambda url: checkpoint.stream_state(
        Storage(url), max(checkpoint.steps(Storage(url)))
    ),
}
READ = {
    "sae.json": ("load", "report", "export"),
    "eval.json": ("report", "export"),
    "journal.jsonl": ("report", "journal"),
    "sae.safetensors": ("load",),
    "latents.safetensors": ("report", "export"),
    "state.json": ("resume",),
}
BYTES = {
    "empty": b"\n\n",
    "text": b"not what it should be\n",
    "a list": b"[]\n",
    "other keys": b'{"a": 1}\n',
    "deep": DEEP + b"\n",
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}\n",
    "no UTF-8": b'{"\xff": 1}\n',
}


@pytest.mark.parametrize("what", sorted(BYTES))
@pytest.mark.parametrize("name", sorted(READ))
def test_a_file_of_something_else(run: Path, name: str, what: str) -> None:
    path = run / name if name != "state.json" else max(run.rglob(name))
    path.write_bytes(BYTES[what])
    for reader in READ[name]:
        with pytest.raises(ActstoreError, match=name):
            READERS[reader](str(run))


@pytest.mark.parametrize("name", ["sae.safetensors", "latents.safetensors"])
def test_a_file_that_is_cut_short(run: Path, name: str) -> None:
    data = (run / name).read_bytes()
    for n in (0, 7, 8, 100, len(data) - 1):
        (run / name).write_bytes(data[:n])
        for reader in READ[name]:
            with pytest.raises(RunError, match=f"{name}: not a safetensors file"):
                READERS[reader](str(run))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("scale"), "no tensor scale"),
        (lambda t: t.update(scale=torch.ones(3)), r"scale is \[3\], wanted \[2\]"),
        (
            lambda t: t.update(mean=torch.ones(2, 9)),
            r"mean is \[2, 9\], wanted \[2, 8\]",
        ),
        (lambda t: t.pop("W_dec"), "do not fit its record"),
        (
            lambda t: t.update(W_dec=t["W_dec"].T.contiguous()),
            r"W_dec: \[8, 32\], wanted \[32, 8\]",
        ),
        (lambda t: t.update(more=torch.ones(1)), "do not fit its record"),
    ],
)
def test_weights_that_do_not_fit(
    run: Path, change: Callable[[dict[str, torch.Tensor]], Any], words: str
) -> None:
    tensors = load_file(run / "sae.safetensors")
    change(tensors)
    save_file(tensors, run / "sae.safetensors")
    with pytest.raises(RunError, match=words):
        trainer.load(str(run))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("field", "value"),
    [("d", 1 << 40), ("d", -1), ("d", 0), ("d", 1 << 70), ("sites", ["a"])],
)
def test_a_record_of_other_sizes_takes_no_memory(
    run: Path, kind: str, field: str, value: Any
) -> None:
    """2^40 x 2^42 weights are not made to find that they are not there."""
    record = json.loads((run / "sae.json").read_text())
    (run / "sae.json").write_text(
        json.dumps({**record, "sae": KINDS[kind], field: value})
    )
    with pytest.raises(ActstoreError):
        trainer.load(str(run))


@pytest.mark.parametrize("what", ["huge", "pipe"])
@pytest.mark.parametrize("name", sorted(READ))
def test_a_file_that_never_ends(run: Path, name: str, what: str) -> None:
    """A sparse file of 50 GB is not read, and a pipe is not waited for."""
    path = run / name if name != "state.json" else max(run.rglob(name))
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(50 << 30)
    for reader in {*READ[name], *(["export"] if name == "sae.safetensors" else [])}:
        with pytest.raises(
            CorruptError, match="regular file" if what == "pipe" else "wanted at most"
        ):
            READERS[reader](str(run))


def test_firings_of_other_latents(run: Path) -> None:
    save_file(
        {"firings": torch.ones(2, 5), "rows": torch.ones(2)},
        run / "latents.safetensors",
    )
    with pytest.raises(RunError, match=r"firings is \[2, 5\], wanted \[2, 32\]"):
        read_run(str(run))


def test_the_run_itself_is_read(run: Path) -> None:
    for reader in READERS.values():
        reader(str(run))
