"""Errors of the trainer.

ActstoreError
└── TrainerError
    ├── RunError         a run folder that is none, is unfinished, or already there
    ├── SaeError         an SAE spec that cannot be built for this store, or weights that do not fit it
    └── DivergedError    the loss is not a number any more
"""

from __future__ import annotations

from actstore.errors import ActstoreError


class TrainerError(ActstoreError):
    """The base of the trainer's own errors."""


class RunError(TrainerError):
    """A run folder that is none, is unfinished, or is already there."""


class SaeError(TrainerError):
    """An SAE spec that cannot be built for this store, or weights that do not fit their spec."""


class DivergedError(TrainerError):
    """The loss is not a number any more; the message names the last good checkpoint."""
