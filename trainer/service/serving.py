"""Runs the service in one process: queue, supervisor and web application.

SIGINT and SIGTERM end it in good order: no request is taken any more, passes save and
end, and their runs go on when the service is started again. After a SIGKILL the passes
go on by themselves, and the next service finds them.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from actstore.errors import SpecError
from schemas.service import SlotState
from trainer.passes.executor import SubprocessExecutor
from trainer.passes.places_file import write_places
from trainer.passes.supervisor import Supervisor
from trainer.queue.database import NAME
from trainer.queue.queue import Queue
from trainer.queue.slots import Slot
from trainer.service.doors import Door
from trainer.service.service import Places, Service
from trainer.service.tokens import Tokens

NEEDED = ("fastapi", "prometheus_client", "uvicorn")
MOST_CONNECTIONS = 2000
MOST_HEAD_BYTES = 16 << 10
KEEP_S = 15  # a connection without a request
END_S = 5  # for requests under way, when the service ends


class Serving(NamedTuple):
    """What a service is started with.

    Attributes:
        places: Where its runs and stores lie.
        state: Its folder of state.
        door: Where it listens.
        slots: Where passes are trained.
        engine: What places passes on other machines; None: this machine trains them.
    """

    places: Places
    state: Path
    door: Door
    slots: Sequence[Slot]
    engine: str | None = None


def serve(
    serving: Serving, made_by: str, started: Callable[[str, str | None], None]
) -> None:
    """Serve until a signal comes.

    Args:
        serving: What the service is started with.
        made_by: The command line that makes a token, for messages.
        started: Is told the address, and a token that was made for this process where
            there was none, once the service can be reached.

    Raises:
        SpecError: It may not listen there, or cannot.
        ServiceError: Another service uses the same folder of state, or it is damaged.
    """
    check_installed()
    tokens = Tokens(serving.state)
    serving.door.check(tokens, made_by)
    with Queue(serving.state / NAME) as queue:
        supervisor = Supervisor(
            queue,
            serving.slots,
            SubprocessExecutor(serving.state, serving.engine),
            serving.state,
        )
        try:
            write_places(serving.state, serving.places.stores)
            states = [_slot_state(slot) for slot in serving.slots]
            service = Service(
                serving.places, queue, states, trouble=lambda: supervisor.trouble
            )
            supervisor.start()
            _listen(service, tokens, serving.door, started)
        finally:
            supervisor.close()


def check_installed() -> None:
    """Check that what the service needs is installed.

    Raises:
        SpecError: It is not; says how to install it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"the service needs {' and '.join(missing)}, which is not installed;"
            " install it with `pip install 'actstore[serve]'`"
        )


def _listen(
    service: Service,
    tokens: Tokens,
    door: Door,
    started: Callable[[str, str | None], None],
) -> None:
    """Answer requests until a signal comes."""
    import uvicorn

    from trainer.service.app import make_app
    from trainer.service.from_proxy import FromProxy
    from trainer.service.patient_protocol import PatientProtocol

    with door.open() as listening:
        port = listening.getsockname()[1]
        app: Any = make_app(service, tokens, hosts=door.hosts(port), tls=door.has_tls)
        if door.proxies:
            app = FromProxy(app, door.proxies)
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            timeout_keep_alive=KEEP_S,
            timeout_graceful_shutdown=END_S,
            ssl_certfile=door.certificate,
            ssl_keyfile=door.key,
        )
        _load(config)
        token = None
        if door.is_of_this_machine and not tokens.has_any():
            token = tokens.make_for_process("admin", "admin")
        started(door.url(port), token)
        uvicorn.Server(config).run(sockets=[listening])


def _load(config: Any) -> None:
    """Read the certificate and its key, if there are some.

    Raises:
        SpecError: They cannot be read, or do not go together.
    """
    try:
        config.load()
    except OSError as error:  # ssl's errors are some
        raise SpecError(
            f"--tls-cert {config.ssl_certfile} and --tls-key {config.ssl_keyfile}:"
            f" cannot be used ({error})"
        ) from None


def _slot_state(slot: Slot) -> SlotState:
    return SlotState(
        name=slot.name, device=slot.device, memory_bytes=slot.memory_bytes, runs=[]
    )


def log_to_stderr() -> None:
    """Write the service's log to standard error, a line for each request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (
        ("trainer.service", logging.INFO),
        # it logs each connection that breaks the rules, too
        ("uvicorn.error", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
