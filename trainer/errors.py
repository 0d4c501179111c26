"""The errors of the trainer.

ActstoreError
└── TrainerError
    ├── RunError         a run's folder is missing, unfinished, or there already
    │   └── RunLockedError  another process trains it
    ├── SaeError         an SAE spec does not suit this store, or weights their spec
    ├── ExchangeError    an SAE does not fit another project's format, or back
    ├── HubError         the hub cannot be reached, or refuses
    ├── KernelError      kernels cannot run on this machine
    ├── PeerError        processes of one run can no longer work together
    ├── DivergedError    the loss is no longer a number
    └── ServiceError     the training service cannot do what was asked
        ├── ConflictError    a run is not in the state that it must be in for that
        ├── UnknownRunError  the service has no such run
        ├── ForbiddenError   the user's role does not allow it
        ├── BusyError        the service has too much to do
        ├── TokenError       there is no token, or none that counts
        └── UnreachableError the service does not answer
"""

from __future__ import annotations

from actstore.errors import ActstoreError


class TrainerError(ActstoreError):
    """The base of the trainer's own errors."""


class RunError(TrainerError):
    """A folder is no run, or holds one that is unfinished or that is there already."""


class RunLockedError(RunError):
    """Another process trains the run."""


class SaeError(TrainerError):
    """An SAE cannot be built from its spec for this store, or weights do not fit it."""


class ExchangeError(TrainerError):
    """Another project's format cannot hold this SAE, or its folder cannot be read."""


class HubError(TrainerError):
    """The hub cannot be reached, or refuses what was asked."""


class KernelError(TrainerError):
    """Kernels were asked for that cannot run on this machine."""


class PeerError(TrainerError):
    """Processes that train one SAE lost each other, or cannot be placed on devices."""


class DivergedError(TrainerError):
    """The loss is no longer a number; the message names the last good checkpoint."""


class ServiceError(TrainerError):
    """The training service, or its queue, cannot do what was asked."""


class ConflictError(ServiceError):
    """A run, or a key, is not in the state that it must be in for what was asked."""


class UnknownRunError(ServiceError):
    """The service has no run of this id."""


class ForbiddenError(ServiceError):
    """The user's role does not allow what was asked."""


class BusyError(ServiceError):
    """The service has too much to do just now; the same may be asked again later."""


class TokenError(ServiceError):
    """No token was given, or the service does not know the one that was."""


class UnreachableError(ServiceError):
    """The service does not answer, or something else answers in its place."""


class TrainerWarning(UserWarning):
    """Something that a user should know although it is no error."""
