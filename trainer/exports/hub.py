"""Pushes exports to the Hugging Face hub.

A place there is `hf://user/name`, with a revision or a folder if wanted:
`hf://user/name@main/folder`. All files go up in one commit. The token comes from the
environment variable HF_TOKEN and from nowhere else; HF_ENDPOINT names another hub. The
package huggingface_hub comes with transformers.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from trainer.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PROTOCOL = "hf://"
_URL = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<folder>.+?))?/?"
)
# The first part of a URL that is no model repository.
_OTHER_KINDS = {"datasets", "spaces", "buckets"}
# Advice for the user, by the status that the hub answered with.
_ADVICE = {
    401: "the token in HF_TOKEN is not valid",
    403: "the token in HF_TOKEN may not write there",
    404: (
        "there is no such repository or revision, or the token in HF_TOKEN may not see"
        " it"
    ),
}
# Packages whose errors mean that the network failed.
_NETWORK_PACKAGES = ("httpx", "httpcore", "requests")


class HubPlace(NamedTuple):
    """A folder of a model repository.

    Attributes:
        repo: The repository, `user/name`.
        revision: A branch or tag, or None for the usual one.
        folder: The folder; "" is the root.
    """

    repo: str
    revision: str | None
    folder: str


def is_hub(url: str) -> bool:
    """Return whether a URL is one of the hub."""
    return url.startswith(PROTOCOL)


def parse(url: str) -> HubPlace:
    """Return where a URL points.

    Raises:
        HubError: It is not the URL of a model repository.
    """
    match = _URL.fullmatch(url)
    if match is None or match["repo"].split("/")[0] in _OTHER_KINDS:
        raise HubError(
            f"{url}: wanted hf://user/name (a model repository), with a folder after it"
            " if you like"
        )
    return HubPlace(match["repo"], match["revision"], match["folder"] or "")


def push(
    files: dict[str, bytes],
    url: str,
    message: str,
    private: bool = False,
    api: HfApi | None = None,
) -> str:
    """Put files into a repository in one commit; the repository is made if needed.

    Args:
        files: Their bytes, by path.
        url: Where they go.
        message: The commit's message.
        private: A new repository is private.
        api: The hub's client; None for one that takes its token from HF_TOKEN.

    Returns:
        The commit's URL.

    Raises:
        HubError: There is no token, no network, or no permission.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    place = parse(url)
    if api is None:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=_token(url))
    prefix = f"{place.folder}/" if place.folder else ""
    additions = [
        CommitOperationAdd(f"{prefix}{name}", data) for name, data in files.items()
    ]
    try:
        api.create_repo(place.repo, private=private, exist_ok=True)
        commit = api.create_commit(
            place.repo, additions, commit_message=message, revision=place.revision
        )
    except Exception as error:
        raise _explained(error, url) from error
    return str(commit.commit_url)


def _token(url: str) -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise HubError(
            f"{url}: wanted a token with write access in the environment variable"
            " HF_TOKEN, but it is not set"
        )
    return token


def _explained(error: Exception, url: str) -> Exception:
    """Return a HubError for what the hub or the network says.

    Any other error is a bug, and is returned as it is.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, HFValidationError):
        return HubError(f"{url}: {error}")
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"{url}: HF_HUB_OFFLINE is set in the environment; unset it to push"
        )
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        advice = _ADVICE.get(status or 0, "try again, or see the hub's status")
        said = error.server_message or str(error).strip()
        return HubError(f"{url}: the hub answered {status}: {said}; {advice}")
    is_network = type(error).__module__.startswith(_NETWORK_PACKAGES)
    if isinstance(error, OSError) or is_network:
        return HubError(
            f"{url}: the hub cannot be reached: {error}; check the network and"
            " HF_ENDPOINT"
        )
    return error
