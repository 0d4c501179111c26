"""Errors of the trainer.

ActstoreError └── TrainerError
    ├── RunError         a run folder that is none, is unfinished, or already there ├──
    SaeError         an SAE spec that cannot be built for this store, or weights that do
    not fit it ├── ExchangeError    an SAE that another project's format cannot hold, or
    a foreign folder that cannot be read ├── HubError         the hub cannot be reached,
    or refuses ├── KernelError      kernels that cannot run on this machine ├──
    PeerError        processes of one run that cannot work together any more └──
    DivergedError    the loss is not a number any more
"""

from __future__ import annotations

from actstore.errors import ActstoreError


class TrainerError(ActstoreError):
    """The base of the trainer's own errors."""


class RunError(TrainerError):
    """A run folder that is none, is unfinished, or is already there."""


class SaeError(TrainerError):
    """An SAE spec that cannot be built for this store, or weights that do not fit their
    spec.
    """


class ExchangeError(TrainerError):
    """An SAE that another project's format cannot hold, or a folder of another project
    that cannot be read.
    """


class HubError(TrainerError):
    """The hub cannot be reached, or refuses what was asked."""


class KernelError(TrainerError):
    """Kernels were asked for that cannot run on this machine."""


class PeerError(TrainerError):
    """Processes that train one SAE together lost each other, or cannot be placed on
    devices.
    """


class DivergedError(TrainerError):
    """The loss is not a number any more; the message names the last good checkpoint."""
