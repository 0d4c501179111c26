"""Looks at a submission as training would, before it is accepted.

The specs are read by the functions of the command line, and held against the store's
manifest by those of training, so that the messages are the same. Nothing is trained,
and no row is read.
"""

from __future__ import annotations

import re
import secrets
import warnings
from typing import NamedTuple

from actstore.errors import SpecError
from actstore.store.open_store import open as open_store
from actstore.store.store import Store
from actstore.stream.stream import Stream, StreamWarning
from schemas.service import SlotState, Submission
from schemas.train import TrainSpec
from trainer.errors import SaeError
from trainer.passes.allowed_stores import AllowedStores
from trainer.queue.queue_records import NewRun
from trainer.service.spec_values import check_number_of_runs, check_values
from trainer.training.inert_fields import check_acts
from trainer.training.memory_estimate import (
    check_weights_fit,
    estimate,
    fitting,
    state_bytes,
)
from trainer.training.run_stream import (
    check_l0,
    check_rows_fit,
    n_steps,
    shared_stream,
)
from trainer.training.sweep import expand, groups
from trainer.training.train_spec import load_spec, load_sweep

LONGEST_NAME = 200  # bytes of a folder's name
# A folder's name: no `/`, and no dot at its beginning, as the service's own has.
_NAME = re.compile(r"[\w=+{}*-][\w.,=+{}*-]*")


class PlannedPass(NamedTuple):
    """Runs that would share a pass.

    Attributes:
        names: The runs'.
        memory_bytes: What the pass takes.
    """

    names: tuple[str, ...]
    memory_bytes: int


class Accepted(NamedTuple):
    """A submission that can be trained.

    Attributes:
        runs: Its runs.
        sweep: The name of the sweep; None for a single run.
        passes: Which of them would share a pass, if all began now.
    """

    runs: list[NewRun]
    sweep: str | None
    passes: list[PlannedPass]


class Acceptance:
    """Accepts submissions, or says why not."""

    def __init__(
        self, runs_url: str, allowed: AllowedStores, slots: list[SlotState]
    ) -> None:
        """Set what submissions are held against.

        Args:
            runs_url: The folder of all runs.
            allowed: Where stores may lie.
            slots: Where passes are trained.
        """
        self._runs_url = runs_url.rstrip("/")
        self._allowed = allowed
        # What fits nowhere is refused, so the largest slot is what counts.
        self._slot = max(slots, key=lambda slot: slot.memory_bytes)

    def accept(self, submission: Submission) -> Accepted:
        """Return the runs that a submission asks for.

        Raises:
            SpecError: The spec is not valid, or names what the service does not read.
            SaeError: The spec does not fit its store, or no slot has the memory.
            StoreError: The store cannot be read.
        """
        specs, sweep = _specs(submission)
        runs = []
        passes = []
        stores: dict[str, Store] = {}
        for sharing in groups(specs):
            first = next(iter(sharing.values()))
            url = self._allowed.check(first.store)
            if url not in stores:
                stores[url] = open_store(url)
            new_runs, planned = self._group(sharing, stores[url], url)
            runs += new_runs
            passes += planned
        return Accepted(runs, sweep, passes)

    def _group(
        self, specs: dict[str, TrainSpec], store: Store, url: str
    ) -> tuple[list[NewRun], list[PlannedPass]]:
        """Return runs that read one stream, and the passes that they would take."""
        device, limit = self._slot.device, self._slot.memory_bytes
        first = next(iter(specs.values()))
        with warnings.catch_warnings():
            # it comes again when the stream is used
            warnings.simplefilter("ignore", StreamWarning)
            stream = Stream(store, shared_stream(first))
        try:
            runs = [self._run(name, spec, stream, url) for name, spec in specs.items()]
        finally:
            stream.close()
        passes = fitting(store, specs, limit, device)
        return runs, [
            PlannedPass(tuple(group.specs), group.memory.total) for group in passes
        ]

    def _run(self, name: str, spec: TrainSpec, stream: Stream, url: str) -> NewRun:
        """Return a run, held against its store."""
        device, limit = self._slot.device, self._slot.memory_bytes
        check_rows_fit(spec)
        _check_size(spec, stream.d)
        check_l0(spec, stream.d)
        n_latents = spec.sae.size(stream.d)
        check_weights_fit(n_latents, stream.d, device, limit)
        if spec.kernels == "triton" and not device.startswith("cuda"):
            raise SaeError(
                "kernels: triton needs CUDA, and this service trains on"
                f" {device}; leave it out"
            )
        steps = n_steps(spec, stream)
        check_acts(spec, len(stream.sites), steps)
        memory = estimate([spec], stream, device)
        if memory.total > limit:
            raise SaeError(
                f"{name}: training takes about {memory}, and {self._slot.name}, the"
                f" largest slot of this service, has {limit / 1e9:.2g} GB; take a"
                " smaller dictionary or batch"
            )
        return NewRun(
            name=name,
            url=f"{self._runs_url}/{name}",
            spec=spec,
            store_url=url,
            memory_bytes=memory.total,
            rows=stream.rows_in(steps),
            state_bytes=state_bytes(spec, stream),
        )


def _specs(submission: Submission) -> tuple[dict[str, TrainSpec], str | None]:
    """Return the spec of each run by its name, and the sweep's name if it is one."""
    raw = submission.spec
    check_values(raw)
    is_sweep = "base" in raw
    if is_sweep:
        check_number_of_runs(raw)
        of_sweep = expand(load_sweep(raw))
        name = _name(submission, "sweep")
        specs = {f"{name}/{_checked_name(run)}": of_sweep[run] for run in of_sweep}
    else:
        spec = load_spec(raw)
        name = _name(submission, spec.sae.kind)
        specs = {name: spec}
    for spec in specs.values():
        # A run of the service would hold a slot while it waits for a harvest.
        if spec.stream.follow:
            raise SpecError(
                "stream.follow: the service trains from finished stores; leave it out,"
                " or use `trainer train --follow`"
            )
    return specs, name if is_sweep else None


def _name(submission: Submission, kind: str) -> str:
    """Return the name of the folder of a submission."""
    if submission.name is None:
        return f"{kind}-{secrets.token_hex(4)}"
    return _checked_name(submission.name)


def _checked_name(name: str) -> str:
    """Return a name that a folder can have, in the runs' folder and not elsewhere.

    Raises:
        SpecError: It cannot be one.
    """
    too_long = len(name.encode("utf-8", "replace")) > LONGEST_NAME
    if too_long or _NAME.fullmatch(name) is None:
        raise SpecError(
            f"name {ascii(name)[:250]}: wanted letters, digits and `._,=+-`, not a `.`"
            f" first, at most {LONGEST_NAME} characters: it is that of a folder"
        )
    return name


def _check_size(spec: TrainSpec, d: int) -> None:
    """Raise SaeError where the dictionary's size is beyond all numbers, or is 0."""
    try:
        n_latents = spec.sae.size(d)
    except OverflowError:
        n_latents = 0
    if n_latents < 1:
        raise SaeError(f"sae: the dictionary's size cannot be used (d {d})")
