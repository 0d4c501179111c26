"""Tells what an error of an S3 client means: try again, renew credentials, or give up.

Two clients report the same answers of a server in different words: botocore (through
s3fs) has them in exceptions, obstore in a text. That text repeats a server's whole
answer, in which some servers put parts of the request that were signed, a session
token among them. So only its code and message are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "again",
    "unreached",
    "expired",
    "not valid",
    "missing",
    "exists",
    "no create",
    "no",
]

_AGAIN_STATUS = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 522, 524}
# Codes that come with a status of an error for good, and pass nevertheless.
_AGAIN_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
# What servers say of credentials that were replaced, or are wrong.
_NOT_VALID_CODES = {
    "InvalidAccessKeyId",
    "InvalidToken",
    "InvalidTokenId",
    "SignatureDoesNotMatch",
}
_OBSTORE_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")
_OBSTORE_KIND = re.compile(r"\bkind: (\w+)")


class Failure(NamedTuple):
    """The meaning of a client's error.

    Attributes:
        kind: `again`: it may pass. `unreached`: nobody answers at that address.
            `expired`: the credentials have. `not valid`: nobody has these credentials,
            or not any more. `missing`: there is no such object.
            `exists`: there is one already. `no create`: the server knows no conditional
            create. `no`: it will not pass.
        name: What a summary calls it: `SlowDown`, `timeouts`.
        status: The HTTP status of the answer; None: there was none.
        code: The answer's code, such as `AccessDenied`, or "".
        message: The answer's message, or what a client says, without secrets.
    """

    kind: Kind
    name: str
    status: int | None = None
    code: str = ""
    message: str = ""

    @property
    def is_of_s3(self) -> bool:
        """True where a server of S3 has answered, as far as can be told.

        A 500 without a code may come from anything, and botocore makes one of a page
        that is no XML.
        """
        return self.status is not None and (self.kind != "again" or bool(self.code))


def failure_of(error: BaseException) -> Failure | None:
    """Return what an error means; None: it does not come from a client of S3."""
    if type(error).__module__.startswith("obstore"):
        return _of_obstore(str(error))
    if isinstance(error, FileNotFoundError) and "Debug source" in str(error):
        return _of_obstore(str(error))
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return _of_answer(response)
    for cause in _causes(error):
        found = _of_connection(cause)
        if found is not None:
            return found
    if isinstance(error, FileNotFoundError):
        return Failure("missing", "missing objects")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _of_answer(response: dict[str, Any]) -> Failure:
    """Return what a server's answer means, as botocore has it."""
    told = response["Error"]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = str(told.get("Code") or "")
    # botocore gives the status as code where the answer has no body
    code = "" if code.isdigit() else code
    return answered(status, code, str(told.get("Message") or ""))


def answered(status: int | None, code: str, message: str) -> Failure:
    """Return what a server's answer means."""
    kind: Kind = "no"
    if code in EXPIRED_CODES:
        kind = "expired"
    elif code in _NOT_VALID_CODES or status == 401:
        kind = "not valid"
    elif code in _AGAIN_CODES or status in _AGAIN_STATUS:
        kind = "again"
    elif code == "PreconditionFailed" or status == 412:
        kind = "exists"
    elif code == "NotImplemented" or status == 501:
        kind = "no create"
    elif code == "NoSuchKey" or (status == 404 and code in {"", "NotFound"}):
        kind = "missing"
    return Failure(kind, code or f"status {status}", status, code, message)


def _of_obstore(text: str) -> Failure:
    """Return what an error of obstore means, from its text."""
    told, _, details = text.partition("\n\nDebug source")
    status = _OBSTORE_STATUS.search(told)
    if status is not None:
        code, message = _CODE.search(told), _MESSAGE.search(told)
        return answered(
            int(status[1]), code[1] if code else "", message[1] if message else ""
        )
    kinds = set(_OBSTORE_KIND.findall(details))
    for words, meaning in _BY_WORDS:
        if words in text.lower():
            return meaning
    if "Connect" in kinds:
        return _REFUSED if "ConnectionRefused" in kinds else _NOBODY
    for signs, meaning in _BY_KIND:
        if signs & kinds:
            return meaning
    first = told.splitlines()[0] if told else ""
    return Failure("no", "errors", message=first[:300])


_NO_NAME = Failure("unreached", "names not found", message="no such host")
_NOBODY = Failure("unreached", "failed connections", message="nobody answers")
_REFUSED = Failure("unreached", "refused connections", message="connection refused")
_LATE = Failure("again", "timeouts", message="it took too long")
_TRUNCATED = Failure("again", "truncated answers", message="the answer broke off")
_BROKEN = Failure("again", "broken connections", message="the connection broke")
_CERTIFICATE = Failure("no", "SSLError", code="SSLError", message="no certificate")
# What S3 answers to who asks in another region than the bucket's.
_REDIRECT = Failure("no", "redirects", 301, "PermanentRedirect")
# Words in the text of an error of obstore, and what they mean. No key has them.
_BY_WORDS = (
    ("received redirect without", _REDIRECT),
    ("error following redirect", _REDIRECT),
    ("invalid peer certificate", _CERTIFICATE),
    ("invalidcertificate(", _CERTIFICATE),
    ("dns error", _NO_NAME),
)
# Kinds of errors that obstore's text names, and what they mean; the first that fits.
_BY_KIND = (
    ({"Timeout"}, _LATE),
    ({"Body", "Decode", "UnexpectedEof"}, _TRUNCATED),
    ({"Interrupted", "ConnectionReset", "Request", "Http"}, _BROKEN),
)
# Errors of the libraries below s3fs, and what they mean.
_BY_NAME: dict[str, Failure] = {
    "BrokenPipeError": _BROKEN,
    "ClientConnectorDNSError": _NO_NAME,
    "ClientConnectorError": _REFUSED,
    "ClientOSError": _BROKEN,
    "ClientPayloadError": _TRUNCATED,
    "ConnectTimeoutError": _NOBODY,
    "ConnectionClosedError": _BROKEN,
    "ConnectionRefusedError": _REFUSED,
    "ConnectionResetError": _BROKEN,
    "ConnectionTimeoutError": _NOBODY,
    "FSTimeoutError": _LATE,
    "HTTPClientError": _BROKEN,
    "IncompleteRead": _TRUNCATED,
    "IncompleteReadError": _TRUNCATED,
    "ReadTimeoutError": _LATE,
    # botocore asks for a bucket's region, and is sent away again, without end
    "RecursionError": _REDIRECT,
    "ResponseParserError": _TRUNCATED,
    "ResponseStreamingError": _TRUNCATED,
    "SSLError": _CERTIFICATE,
    "ServerDisconnectedError": _BROKEN,
    "ServerTimeoutError": _LATE,
    "TimeoutError": _LATE,
}


def _of_connection(error: BaseException) -> Failure | None:
    """Return what an error means that came without an answer; None: another error."""
    name = type(error).__name__
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    if name == "EndpointConnectionError":
        # So botocore calls a reset too; what it was raised for tells them apart.
        inner = getattr(error, "kwargs", {}).get("error")
        return _BY_NAME.get(type(inner).__name__, _NOBODY)
    if type(error).__module__.startswith(("botocore", "aiobotocore")):
        return Failure("no", name, code=name, message=str(error)[:300])
    return None
