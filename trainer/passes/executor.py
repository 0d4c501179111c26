"""Starts the process that trains a pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from actstore.engines.engine_option import Engine, parse_engine
from trainer.errors import ServiceError
from trainer.passes.pass_log import begin_log
from trainer.queue.queue_records import Lease
from trainer.queue.slots import Slot

MODULE = "trainer.passes.pass_process"
# What a process needs of the service's environment: where programs and files are, and
# how the storage is reached. Everything else, tokens above all, stays behind.
NEEDED = frozenset(
    {
        *("PATH", "HOME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH"),
        *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS"),
        *("ACTSTORE_STORAGE_OPTIONS", "ACTSTORE_CACHE", "ACTSTORE_CACHE_SIZE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        "GOOGLE_APPLICATION_CREDENTIALS",
    }
)
NEEDED_PREFIXES = ("AWS_", "LC_", "AZURE_STORAGE_", "CUDA_", "NVIDIA_")
# By which a process is let into a Ray cluster, or finds Slurm and its options.
OF_ENGINES = {"ray": ("RAY_AUTH_",), "slurm": ("SBATCH_", "SLURM_CONF")}


class PassProcess(Protocol):
    """A process that trains a pass."""

    pid: int

    def ended(self) -> str | None:
        """Return how it ended, in words; None while it runs."""


class Executor(Protocol):
    """Starts processes; how they are placed is its own affair."""

    def start(self, lease: Lease, slot: Slot) -> PassProcess:
        """Start the process of a pass, which then takes its lease.

        Raises:
            OSError: The system has no room for it.
        """


class SubprocessExecutor:
    """Starts a process on this machine, which outlives the service."""

    def __init__(self, state: Path, engine: str | None = None) -> None:
        """Begin.

        Args:
            state: The service's folder of state.
            engine: What places the training on other machines: `ray`, `ray:ADDRESS`,
                `slurm`; None where the process trains itself.

        Raises:
            SpecError: It is no engine.
            ServiceError: It is one that passes are not placed on.
        """
        if engine is not None:
            checked_engine(engine)
        self._state = state
        self._engine = engine

    def start(self, lease: Lease, slot: Slot) -> PassProcess:
        """Start the process of a pass; what it prints goes to its log."""
        command = [sys.executable, "-m", MODULE, str(self._state), lease.id]
        command += ["--device", slot.device]
        if self._engine is not None:
            command += ["--engine", self._engine]
        with begin_log(self._state, lease.id).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(os.environ, slot, self._engine),
                # its own: a Ctrl-C in the service's terminal is not for it
                start_new_session=True,
            )
        return _Subprocess(process)


def checked_engine(text: str) -> Engine:
    """Return the engine that is to place passes.

    Raises:
        SpecError: It is no engine.
        ServiceError: It is one that passes are not placed on.
    """
    engine = parse_engine(text)
    if engine.kind == "slurm" and engine.address is not None:
        raise ServiceError(
            f"--executor {text}: it is for trying commands; wanted local, ray,"
            " ray:ADDRESS or slurm"
        )
    return engine


class _Subprocess:
    """A child of the service."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"its process ended with exit code {code}"
        return f"its process was ended by {signal.Signals(-code).name}"


def environment(
    there: Mapping[str, str], slot: Slot, engine: str | None = None
) -> dict[str, str]:
    """Return the environment of a process that trains on a slot.

    Args:
        there: The service's.
        slot: The slot, whose variables are set.
        engine: What places the training; None: the process itself trains.
    """
    prefixes: tuple[str, ...] = NEEDED_PREFIXES
    if engine is not None:
        prefixes += OF_ENGINES[parse_engine(engine).kind]
    kept = {
        name: value
        for name, value in there.items()
        if name in NEEDED or name.startswith(prefixes)
    }
    return {**kept, **slot.environment}
