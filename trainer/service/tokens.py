"""Tokens that let users in: made, looked up at each request, revoked.

A token is `actstore_<id>_<secret>`. Its record, a file of its own, has the digest of
the secret and never the secret, which is 256 random bits: no slow hash is needed, since
nobody can try them all. The file is looked at for each request, so that a revoked token
counts no longer from then on, whichever process revoked it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from actstore.errors import ObjectError, SpecError
from actstore.format.json_records import parsed_record
from actstore.format.storage import Storage
from schemas.service import Role, TokenInfo, TokenRecord

FOLDER = "tokens"
MOST_DAYS = 3660
MOST_RECORD_BYTES = 4096
MOST_READ = 10_000  # records that are remembered
FileState = tuple[int, int, int]
"""Inode, time of change and size of a file."""
_ID_BYTES, _SECRET_BYTES = 6, 32
_TOKEN = re.compile(r"actstore_([0-9a-f]{12})_([0-9a-f]{64})")
_ID = re.compile(r"[0-9a-f]{12}")
_NOBODY = "0" * 64  # compared with where there is no such token


class User(NamedTuple):
    """Who asks.

    Attributes:
        name: The user's name.
        role: What it may do.
        token: The id of the token that it showed.
    """

    name: str
    role: Role
    token: str

    def may_submit(self) -> bool:
        """Return whether it may start runs."""
        return self.role in {"submitter", "admin"}


class Tokens:
    """The tokens of one service.

    Attributes:
        folder: The folder of their records.
    """

    def __init__(self, state: str | os.PathLike[str]) -> None:
        """Open the tokens of a service.

        Args:
            state: The service's folder of state, which need not be there yet.
        """
        self.folder = Path(state) / FOLDER
        self._storage = Storage(self.folder)
        self._of_process: dict[str, TokenRecord] = {}
        self._read: dict[str, tuple[FileState | None, TokenRecord | None]] = {}

    def make(self, user: str, role: Role, days: float | None = None) -> str:
        """Make a token; it is told once, and cannot be read again.

        Args:
            user: Whose it is.
            role: What it allows.
            days: How long it counts; None: until it is revoked.

        Raises:
            SpecError: The user's name or the days cannot be used.
        """
        record, token = _new(user, role, days)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._storage.put(_key(record.id), record.to_json().encode())
        return token

    def make_for_process(self, user: str, role: Role) -> str:
        """Make a token that counts in this process alone, and is written nowhere."""
        record, token = _new(user, role, None)
        self._of_process[record.id] = record
        return token

    def user(self, token: str) -> User | None:
        """Return whose token it is; None where it does not count."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        record = self._record(match[1])
        wanted = _NOBODY if record is None else record.sha256
        is_right = hmac.compare_digest(_digest(match[2]), wanted)
        if record is None or not is_right or not _counts(record):
            return None
        return User(record.user, record.role, record.id)

    def user_of_id(self, token_id: str) -> User | None:
        """Return whose token has an id; None where it counts no longer."""
        record = self._record(token_id)
        if record is None or not _counts(record):
            return None
        return User(record.user, record.role, record.id)

    def list(self) -> list[TokenInfo]:
        """Return all tokens that were made, without secrets, by the time of that."""
        found = []
        for key in self._storage.list():
            token_id = key.removesuffix(".json")
            record = self._record(token_id) if _ID.fullmatch(token_id) else None
            if record is not None:
                found.append(record.info())
        return sorted(found, key=lambda info: (info.created, info.id))

    def revoke(self, token_id: str) -> TokenInfo:
        """Let a token count no longer.

        Raises:
            SpecError: There is none of that id.
        """
        record = self._record(token_id) if _ID.fullmatch(token_id) else None
        if record is None:
            raise SpecError(
                f"there is no token {token_id!r}; `trainer token ls` lists them"
            )
        revoked = record.model_copy(update={"revoked": True})
        self._storage.put(_key(token_id), revoked.to_json().encode())
        return revoked.info()

    def has_any(self) -> bool:
        """Return whether a token was made that counts."""
        return any(
            _counts(record)
            for info in self.list()
            if (record := self._record(info.id)) is not None
        )

    def _record(self, token_id: str) -> TokenRecord | None:
        """Return the record of an id, which has the form of one."""
        if token_id in self._of_process:
            return self._of_process[token_id]
        path = self.folder / _key(token_id)
        try:
            status = path.lstat()
        except OSError:
            self._read.pop(token_id, None)
            return None
        # A record is replaced as a whole, by another file: what is the same file has
        # not changed.
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        state_then, record = self._read.get(token_id, (None, None))
        if state_then != state:
            record = self._read_record(token_id)
            if len(self._read) > MOST_READ:
                self._read.clear()
            self._read[token_id] = (state, record)
        return record

    def _read_record(self, token_id: str) -> TokenRecord | None:
        """Return a record; None where it cannot be read, which lets nobody in."""
        key = _key(token_id)
        try:
            data = self._storage.read(key, MOST_RECORD_BYTES)
            record = parsed_record(TokenRecord, data, f"{self.folder}/{key}")
        except ObjectError:  # CorruptError is one
            return None
        return record if record.id == token_id else None


def _new(user: str, role: Role, days: float | None) -> tuple[TokenRecord, str]:
    """Return a new token's record, and the token."""
    from actstore.validation import validated

    if days is not None and not 0 < days <= MOST_DAYS:
        raise SpecError(
            f"--days: wanted a number above 0, at most {MOST_DAYS}, got {days:g}"
        )
    now = datetime.now(UTC)
    expires = None if days is None else now + timedelta(days=days)
    token_id = secrets.token_hex(_ID_BYTES)
    secret = secrets.token_hex(_SECRET_BYTES)
    values = {
        "id": token_id,
        "sha256": _digest(secret),
        "user": user,
        "role": role,
        "created": time_text(now),
        "expires": None if expires is None else time_text(expires),
    }
    record = validated(TokenRecord, values, "the token")
    return record, f"actstore_{token_id}_{secret}"


def time_text(when: datetime) -> str:
    """Return a time in UTC as records have it, to the second."""
    return when.isoformat(timespec="seconds")


def _counts(record: TokenRecord) -> bool:
    """Return whether a token is neither revoked nor expired."""
    if record.revoked:
        return False
    return record.expires is None or record.expires > time_text(datetime.now(UTC))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(token_id: str) -> str:
    return f"{token_id}.json"
