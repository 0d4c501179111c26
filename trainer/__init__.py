"""Train sparse autoencoders from activation stores, and show what they do.

    spec = trainer.TrainSpec(store="store", sae=trainer.TopK(k=32), rows=1_000_000)
    sae = trainer.train(spec, "runs/topk")
    latents = sae.encode(x, "blocks.3.hook_mlp_out")
    trainer.evaluate("runs/topk").pooled.fvu

What the commands of `trainer` do, these functions do: `train`, `sweep`, `evaluate`,
`evaluate_checkpoints`, `calibrate`, `report`, `explore`, `export`, `import_sae`; `load`
gives a trained SAE, and `ServiceClient` asks the training service of a team. The specs
that they take, and the records that they return, are here too. Importing this package
loads nothing heavy; a name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actstore.machine.stop_signals import Stopped
    from schemas.records import CheckpointEval, EvalRecord, RunRecord
    from schemas.sae import (
        BatchTopK,
        Crosscoder,
        Gated,
        JumpRelu,
        Matryoshka,
        MlpEncoder,
        Nsae,
        ReluL1,
        TopK,
        Transcoder,
    )
    from schemas.stream import RowFilter, StreamSpec
    from schemas.train import Optimiser, Resampling, SweepSpec, TrainSpec
    from trainer.client.service_client import ServiceClient
    from trainer.evaluation.calibrate import calibrate
    from trainer.evaluation.evaluate import evaluate
    from trainer.evaluation.evaluate_checkpoints import evaluate_checkpoints
    from trainer.explorer.explore import explore
    from trainer.exports.export import export
    from trainer.imports.import_sae import import_sae
    from trainer.reports.report import report
    from trainer.runs.trained_sae import TrainedSae, load
    from trainer.training.train import sweep, train

__all__ = [
    "BatchTopK",
    "CheckpointEval",
    "Crosscoder",
    "EvalRecord",
    "Gated",
    "JumpRelu",
    "Matryoshka",
    "MlpEncoder",
    "Nsae",
    "Optimiser",
    "ReluL1",
    "Resampling",
    "RowFilter",
    "RunRecord",
    "ServiceClient",
    "Stopped",
    "StreamSpec",
    "SweepSpec",
    "TopK",
    "TrainSpec",
    "TrainedSae",
    "Transcoder",
    "calibrate",
    "evaluate",
    "evaluate_checkpoints",
    "explore",
    "export",
    "import_sae",
    "load",
    "report",
    "sweep",
    "train",
]

# The module that each name comes from.
_WHERE = {
    "train": "trainer.training.train",
    "sweep": "trainer.training.train",
    "evaluate": "trainer.evaluation.evaluate",
    "evaluate_checkpoints": "trainer.evaluation.evaluate_checkpoints",
    "calibrate": "trainer.evaluation.calibrate",
    "report": "trainer.reports.report",
    "explore": "trainer.explorer.explore",
    "export": "trainer.exports.export",
    "import_sae": "trainer.imports.import_sae",
    "load": "trainer.runs.trained_sae",
    "ServiceClient": "trainer.client.service_client",
    "TrainedSae": "trainer.runs.trained_sae",
    "CheckpointEval": "schemas.records",
    "EvalRecord": "schemas.records",
    "RunRecord": "schemas.records",
    "Stopped": "actstore.machine.stop_signals",
    "TrainSpec": "schemas.train",
    "SweepSpec": "schemas.train",
    "Optimiser": "schemas.train",
    "Resampling": "schemas.train",
    "StreamSpec": "schemas.stream",
    "RowFilter": "schemas.stream",
    "BatchTopK": "schemas.sae",
    "Crosscoder": "schemas.sae",
    "Gated": "schemas.sae",
    "JumpRelu": "schemas.sae",
    "Matryoshka": "schemas.sae",
    "MlpEncoder": "schemas.sae",
    "Nsae": "schemas.sae",
    "ReluL1": "schemas.sae",
    "TopK": "schemas.sae",
    "Transcoder": "schemas.sae",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """Name what the package offers, so that it can be completed before it is loaded."""
    return sorted({*globals(), *__all__})
