"""Our end of the link to a peer: a process with the peer's own Python, asked by lines
of JSON (see `worker.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

HERE = Path(__file__).parent
PYTHONS = {
    "saelens": "ACTSTORE_SAELENS_PYTHON",
    "dictionary_learning": "ACTSTORE_DICTIONARY_LEARNING_PYTHON",
    "sparsify": "ACTSTORE_SPARSIFY_PYTHON",
}


class PeerError(RuntimeError):
    """A peer could not be started, or failed at what it was asked."""


class Rate(NamedTuple):
    """Rows, seconds by the clock, CPU seconds of all threads."""

    rows: int
    seconds: float
    cpu: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


class Peer:
    """A peer's process; it waits while it is not asked. Raises PeerError where it
    cannot be started.
    """

    def __init__(self, name: str, python: str) -> None:
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        environment = {
            key: value for key, value in os.environ.items() if key not in hidden
        }
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "TQDM_DISABLE": "1",
        }
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, str(HERE / f"{name}_worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise PeerError(f"{name}: {python} does not start: {error}") from error
        hello = self._answer()
        self.version = f"{hello['version']} (torch {hello['torch']})"

    def prepare(self, **case: Any) -> None:
        """Build the work of a case, in place of the one before."""
        self._ask({"do": "prepare", "case": case})

    def run(self, seconds: float, calls: int = 2) -> Rate:
        """Repeat the work for at least so long and so often."""
        answer = self._ask({"do": "run", "seconds": seconds, "calls": calls})
        return Rate(answer["rows"], answer["seconds"], answer["cpu"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = (
            json.loads(line)
            if line
            else {"error": "its process ended; stderr says why"}
        )
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer


def connect(name: str) -> Peer | None:
    """A peer, or None and a message that says why it is left out."""
    variable = PYTHONS[name]
    python = os.environ.get(variable)
    if not python:
        note(
            f"{name} is left out: set {variable} to the python of its environment (tests/benchmarks/README.md)"
        )
        return None
    try:
        peer = Peer(name, python)
    except PeerError as error:
        note(f"{name} is left out: {error}")
        return None
    note(f"{name} {peer.version}")
    return peer


def note(text: str) -> None:
    """To stderr, so that stdout holds records only."""
    print(text, file=sys.stderr, flush=True)
