"""The functions that the kill tests run in their workers.

Workers are started from a fork server that has the libraries loaded.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import actstore
import actstore.model.hugging_face_tap
from actstore.errors import HarvestWarning, OthersUnfinishedError
from actstore.format.storage import Storage
from actstore.harvesting import block_reader, token_blocks
from actstore.harvesting.block_source import BlockSource, Commit

# by the fork server, not by every worker
LOADED = (transformers.PreTrainedModel, actstore.model.hugging_face_tap)
VOCABULARY, WIDTH = 500, 16
SPEC: dict[str, Any] = {
    "sites": ("embed", "mix"),
    "context": 16,
    "tokens": 40 * 3 * 16,
    "batch": 2,
    "unit_sequences": 3,
    "chunk_rows": 16,
    "dtype": "float32",
    "skip_first": 1,
}


class Model(nn.Module):
    """Every row says which token it is: `embed` is the token's own vector. Slow enough
    to be killed at work.
    """

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g)
        self.seconds = 0.0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        mixed: torch.Tensor = self.mix(self.embed(tokens))
        return mixed


def corpus(path: Path) -> list[list[int]]:
    """Documents of token ids, written as JSON lines; some empty."""
    g = torch.Generator().manual_seed(1)
    documents = [
        torch.randint(
            1, VOCABULARY, (int(torch.randint(0, 90, (1,), generator=g)),), generator=g
        ).tolist()
        for _ in range(70)
    ]
    path.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in documents))
    return documents


def spec(path: Path) -> dict[str, Any]:
    return {
        **SPEC,
        "corpus": {"name": str(path), "kind": "jsonl", "token_column": "ids"},
    }


def work(path: str, out: str, worker: str | None, seconds: float) -> None:
    """One worker's life."""
    torch.set_num_threads(1)
    model = Model()
    model.seconds = seconds
    with contextlib.suppress(OthersUnfinishedError), warnings.catch_warnings():
        warnings.simplefilter("ignore", HarvestWarning)
        actstore.harvest(spec(Path(path)), out, model=model, worker=worker)


def read_slowly(path: str, out: str, worker: str) -> None:
    """One worker's life, in which eight token blocks are committed at a time, as over a
    network, each in a time of its own.
    """
    commit = BlockSource.commit

    def slowly(*arguments: Any) -> Commit:
        time.sleep(random.uniform(0, 0.1))
        return commit(*arguments)

    BlockSource.commit = slowly  # type: ignore[method-assign, assignment]
    block_reader._commits_at_once = lambda *_: 8
    token_blocks.PATIENCE_S = 0.1
    work(path, out, worker, 0.0)


def objects(store: Path) -> dict[str, bytes]:
    """Every object of a store."""
    storage = Storage(str(store))
    return {key: storage.read(key) for key in storage.list()}
