"""What leaves the machine says what things are called, not where they lie on it."""

from __future__ import annotations

from pathlib import PurePosixPath

from schemas.harvest import HarvestSpec
from schemas.records import EvalRecord, RunRecord

_LOCAL = ("/", "~", "file:", ".")


def name(url: str) -> str:
    """The last part of a path on this machine; hub names and URLs of elsewhere are as
    they are.
    """
    return PurePosixPath(url).name or url if url.startswith(_LOCAL) else url


def record(run: RunRecord) -> RunRecord:
    """A run's record for others: stores are told by content id, so that nothing is
    lost.
    """
    return run.model_copy(
        update={"store": name(run.store), "store_path": None, "model": name(run.model)}
    )


def evaluation(found: EvalRecord) -> EvalRecord:
    """A run's evaluation for others."""
    return found.model_copy(update={"run": name(found.run), "store": name(found.store)})


def harvest(spec: HarvestSpec) -> HarvestSpec:
    """A store's spec for others."""
    model = spec.model.model_copy(update={"name": name(spec.model.name)})
    return spec.model_copy(
        update={
            "model": model,
            "corpus": spec.corpus.model_copy(update={"name": name(spec.corpus.name)}),
        }
    )
