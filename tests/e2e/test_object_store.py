"""The whole job with every URL in an object store: harvest, verify, train, resume
refused, evaluate, report.
"""

from __future__ import annotations

import pytest

import actstore
import trainer
from actstore.format.storage import Storage
from actstore.inspect.verify import verify
from schemas.train import TrainSpec
from trainer.reports.report import report
from trainer.training.train_group import train_group


@pytest.mark.parametrize("place", ["s3_url", "memory_url"])
def test_harvest_train_evaluate_report(
    request: pytest.FixtureRequest, place: str
) -> None:
    url = request.getfixturevalue(place)
    store = actstore.harvest(
        {
            "model": "builtin:mini",
            "corpus": "builtin:stdlib",
            "sites": "blocks.{0..1}.hook_mlp_out",
            "tokens": 4096,
            "context": 32,
        },
        f"{url}/store",
    )
    assert verify(store).problems == []
    spec = TrainSpec.model_validate(
        {
            "store": store.url,
            "sae": {"kind": "topk", "k": 4, "expansion": 4},
            "stream": {"batch": 128},
            "rows": 128 * 20,
            "checkpoint_every": 5,
        }
    )
    train_group(store, {f"{url}/run": spec})
    assert len(Storage(f"{url}/run").list("checkpoints")) == 2 * 5
    report([f"{url}/run"], f"{url}/report.html", latents=2, title="object store")
    assert b"latent-card" in Storage(url).read("report.html")
    assert trainer.load(f"{url}/run").sites == store.sites
