"""Writes a file of the service to this machine; it gets its name once it is whole."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import BinaryIO

import httpx

from actstore.errors import ExistsError
from trainer.client.answers import refuse
from trainer.client.connection import PASSING, Connection, Waits, retry_after_s, whole
from trainer.errors import UnreachableError


def download(connection: Connection, where: str, path: Path) -> Path:
    """Write what the service has at a place into a file.

    Args:
        connection: The connection.
        where: The place, as a path of the service.
        path: The file.

    Returns:
        The file.

    Raises:
        ExistsError: Something is there.
        ServiceError: As the service says.
        UnreachableError: It does not answer, or stops in the middle again and again.
    """
    if path.exists():
        raise ExistsError(f"{path}: it is there already; give another place")
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with unfinished.open("xb") as file:
            _fill(connection, where, file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _fill(connection: Connection, where: str, file: BinaryIO) -> None:
    waits = Waits(connection)
    while True:
        file.seek(0)
        file.truncate()
        asked_s = 0.0
        broken: UnreachableError | None = None
        try:
            with connection.opened("GET", where) as response:
                if response.status_code < 300:
                    file.writelines(response.iter_bytes())
                    return
                answer = whole(response)
        except UnreachableError as error:
            if not isinstance(error.__cause__, httpx.HTTPError):
                raise
            broken = error
        else:
            if answer.status not in PASSING:
                refuse(answer)
            asked_s = retry_after_s(answer)
        if not waits.wait(asked_s):
            if broken is not None:
                raise broken
            refuse(answer)
