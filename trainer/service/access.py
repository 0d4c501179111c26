"""Who asks, and whether they may: by a bearer token, or by the page's session."""

from __future__ import annotations

from starlette.requests import Request

from trainer.service.limits import address_of
from trainer.service.rates import Rate, RateLimit
from trainer.service.sessions import COOKIE, Session, Sessions, is_csrf_token
from trainer.service.tokens import Tokens, User

READS = Rate(50, 200)  # of one token
CHANGES = Rate(2, 60)
FAILURES = Rate(0.1, 10)  # of one address: wrong tokens
SAFE_METHODS = {"GET", "HEAD"}


class RefusedError(Exception):
    """A request that is answered with a status and a sentence.

    Attributes:
        status: The status.
        detail: The sentence.
        retry_after_s: When the same may be asked again, in seconds.
    """

    def __init__(
        self, status: int, detail: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class Access:
    """The door of the service.

    Attributes:
        tokens: The tokens.
        sessions: The sessions of pages.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.sessions = Sessions(tokens)
        self._reads = RateLimit(READS)
        self._changes = RateLimit(CHANGES)
        self._failures = RateLimit(FAILURES)

    def user(self, request: Request) -> User:
        """Return who asks.

        Raises:
            RefusedError: Nobody whom the service knows (401), without the session's
                CSRF token (403), or too often (429).
        """
        user = self._of_token(request) or self._of_session(request)
        if user is None:
            raise RefusedError(
                401,
                "give a token as `Authorization: Bearer TOKEN`; `trainer token make`"
                " makes one",
            )
        self.check_rate(request, user)
        return user

    def check_rate(self, request: Request, user: User) -> None:
        """Check that a user does not ask too often.

        Raises:
            RefusedError: It does (429).
        """
        safe = request.method in SAFE_METHODS
        wait_s = (self._reads if safe else self._changes).wait_s(user.token)
        if wait_s:
            raise RefusedError(429, "too many requests by this token", wait_s)

    def submitter(self, request: Request) -> User:
        """Return who asks, where it may start runs.

        Raises:
            RefusedError: As `user` does; or the role is reader (403).
        """
        user = self.user(request)
        if not user.may_submit():
            raise RefusedError(
                403, f"{user.name} may read only; a submitter's token is needed"
            )
        return user

    def session(self, request: Request) -> tuple[User, Session] | None:
        """Return the session that a request's cookie names; None where none counts."""
        cookie = request.cookies.get(COOKIE)
        return None if cookie is None else self.sessions.find(cookie)

    def log_in(self, request: Request, token: str) -> tuple[str, Session]:
        """Begin a session; return the cookie's value, and the session.

        Raises:
            RefusedError: The token does not count (401), or there were too many such
                (429).
        """
        begun = self.sessions.begin(token)
        if begun is None:
            raise self._failure(request)
        return begun

    def _of_token(self, request: Request) -> User | None:
        """Return whose bearer token a request has; None where it has none."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        user = self.tokens.user(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise self._failure(request)
        return user

    def _of_session(self, request: Request) -> User | None:
        found = self.session(request)
        if found is None:
            return None
        user, session = found
        given = request.headers.get("x-csrf-token")
        if request.method not in SAFE_METHODS and not is_csrf_token(session, given):
            raise RefusedError(
                403, "the page's X-CSRF-Token is missing or old; load the page again"
            )
        return user

    def _failure(self, request: Request) -> RefusedError:
        """Count a wrong token; return what to say.

        A right one is never refused for the wrong ones of others at its address: nobody
        can guess one, so all that wrong ones cost is work.
        """
        wait_s = self._failures.wait_s(address_of(request.scope))
        if wait_s:
            return RefusedError(429, "too many wrong tokens from this address", wait_s)
        return RefusedError(
            401, "this token does not count: it is wrong, has expired or was revoked"
        )
