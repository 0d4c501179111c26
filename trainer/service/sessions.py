"""Sessions of the page: a cookie in the place of a token, and a CSRF token beside it.

They are kept in memory: after a restart of the service users log in again. A session
counts as long as its token does.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from time import monotonic
from typing import NamedTuple

from trainer.service.tokens import Tokens, User

COOKIE = "actstore_session"
LASTS_S = 12 * 3600
MOST_SESSIONS = 10_000
_BYTES = 32


class Session(NamedTuple):
    """A session.

    Attributes:
        token: The id of the token that it was begun with.
        csrf_token: What the page sends with each request that changes something.
        ends: When it ends, by the monotonic clock.
    """

    token: str
    csrf_token: str
    ends: float


class Sessions:
    """The sessions of one service."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        # By the digest of the cookie: a look at the memory's keys gives no cookie away.
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def begin(self, token: str) -> tuple[str, Session] | None:
        """Begin a session.

        Returns the cookie's value and the session; None where the token does not count.
        """
        user = self._tokens.user(token)
        if user is None:
            return None
        cookie = secrets.token_hex(_BYTES)
        ends = monotonic() + LASTS_S
        session = Session(user.token, secrets.token_hex(_BYTES), ends)
        with self._lock:
            self._sessions[_digest(cookie)] = session
            while len(self._sessions) > MOST_SESSIONS:
                # the oldest one
                del self._sessions[next(iter(self._sessions))]
        return cookie, session

    def find(self, cookie: str) -> tuple[User, Session] | None:
        """Return whose session a cookie is; None where it counts no longer."""
        key = _digest(cookie)
        session = self._sessions.get(key)
        if session is None:
            return None
        user = self._tokens.user_of_id(session.token)
        if user is None or monotonic() > session.ends:
            with self._lock:
                self._sessions.pop(key, None)
            return None
        return user, session

    def end(self, cookie: str) -> None:
        """End a session; nothing happens where there is none."""
        with self._lock:
            self._sessions.pop(_digest(cookie), None)


def is_csrf_token(session: Session, given: str | None) -> bool:
    """Return whether what a page sent is its session's token."""
    # Bytes: a text that is not ASCII cannot be compared in constant time.
    sent = (given or "").encode("utf-8", "replace")
    return hmac.compare_digest(session.csrf_token.encode(), sent)


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).hexdigest()
