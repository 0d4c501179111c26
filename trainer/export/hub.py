"""The hub: `hf://user/name`, with a folder or a revision if wanted:
`hf://user/name@main/folder`.

All files go up in one commit. The token comes from the environment (HF_TOKEN) and from
nowhere else; HF_ENDPOINT names another hub. huggingface_hub comes with transformers.
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


class HubPlace(NamedTuple):
    """A folder ("" is the root) of a model repository."""

    repo: str
    revision: str | None
    folder: str


def is_hub(url: str) -> bool:
    return url.startswith(PROTOCOL)


def parse(url: str) -> HubPlace:
    """Where a URL points. Raises HubError for anything but a model repository."""
    found = _URL.fullmatch(url)
    if found is None or found["repo"].split("/")[0] in {
        "datasets",
        "spaces",
        "buckets",
    }:
        raise HubError(
            f"{url}: wanted hf://user/name (a model repository), with a folder behind"
            " it if you like"
        )
    return HubPlace(found["repo"], found["revision"], found["folder"] or "")


def push(
    files: dict[str, bytes],
    url: str,
    message: str,
    private: bool = False,
    api: HfApi | None = None,
) -> str:
    """Put files (by path) into a repository in one commit, and make the repository if
    there is none: the commit's URL.

    Raises HubError where there is no token, no network, or no permission.
    """
    place = parse(url)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=_token(url))
    from huggingface_hub import CommitOperationAdd

    prefix = f"{place.folder}/" if place.folder else ""
    adds = [CommitOperationAdd(f"{prefix}{name}", data) for name, data in files.items()]
    try:
        api.create_repo(place.repo, private=private, exist_ok=True)
        commit = api.create_commit(
            place.repo, adds, commit_message=message, revision=place.revision
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
    """A HubError for what the hub or the network says; anything else is a bug and stays
    what it is.
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
        advice = {
            401: "the token in HF_TOKEN is not valid",
            403: "the token in HF_TOKEN may not write there",
            404: (
                "there is no such repository or revision, or the token in HF_TOKEN may"
                " not see it"
            ),
        }.get(status or 0, "try again, or see the hub's status")
        return HubError(
            f"{url}: the hub answered {status}:"
            f" {error.server_message or str(error).strip()}; {advice}"
        )
    if isinstance(error, OSError) or type(error).__module__.startswith(
        ("httpx", "httpcore", "requests")
    ):
        return HubError(
            f"{url}: the hub cannot be reached: {error}; check the network and"
            " HF_ENDPOINT"
        )
    return error
