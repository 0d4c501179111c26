"""The contents of another project's SAE folder, before it becomes a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from actstore.format.json_records import parsed_json
from trainer.errors import ExchangeError
from trainer.exports.neutral_form import PlainSae


class Foreign(NamedTuple):
    """An SAE of another project, on its own input.

    Attributes:
        plain: The SAE.
        form: The project that wrote it.
        site: The hook name that it was trained at, if the folder says so.
        model: The language model, "unknown" where the folder does not say.
        sqrt_d: Whether its input is an activation scaled to a mean norm of sqrt(d), by
            a factor that the folder does not hold.
        config: The folder's own configuration, as it was.
        notes: What the user should know.
        target: The hook name that a transcoder reconstructs; None for other kinds.
    """

    plain: PlainSae
    form: str
    site: str | None
    model: str
    sqrt_d: bool
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    target: str | None = None


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ExchangeError: It is no JSON, or no object.
    """
    # A file of somebody else's: a list, say, is valid JSON and no configuration.
    raw = parsed_json(data, where, ExchangeError)
    if not isinstance(raw, dict):
        raise ExchangeError(
            f"{where}: wanted keys and values, got {type(raw).__name__}"
        )
    return raw
