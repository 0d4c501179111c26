"""What a foreign folder says, before it becomes a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from actstore.format.json_records import parsed_json
from trainer.errors import ExchangeError
from trainer.export.neutral_form import PlainSae


class Foreign(NamedTuple):
    """An SAE of another project, on its own input.

    site: the hook name it was trained at, if the folder says so; model: likewise;
    sqrt_d: its input is an activation scaled to mean norm sqrt(d), by a factor that the
    folder does not hold; config: the folder's own, as it was; notes: what the user
    should know; target: the hook name that a transcoder reconstructs.
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
    """A JSON object, or ExchangeError."""
    raw = parsed_json(data, where, ExchangeError)
    if not isinstance(raw, dict):
        raise ExchangeError(
            f"{where}: wanted keys and values, got {type(raw).__name__}"
        )
    return raw
