"""The contents of another project's SAE folder, before it becomes a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from actstore.format.json_records import parsed_json
from trainer.errors import ExchangeError
from trainer.exports.neutral_form import PlainSae


class Foreign(NamedTuple):
    """An SAE of another project, in the units of input that it was trained on.

    Attributes:
        plain: The SAE.
        form: The project that wrote it.
        site: The hook name that it was trained at; None if the folder does not say.
        model: The language model; "unknown" if the folder does not say.
        sqrt_d: Whether the SAE was trained on activations that were scaled to a mean
            norm of sqrt(d). The factor is not in the folder: a store, or the user,
            has to give it.
        config: The folder's own configuration, unchanged.
        notes: Sentences for the user about what the import changes or leaves out.
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
    """Return the JSON object in the bytes of a configuration file.

    Args:
        data: The file's bytes.
        where: The file's name, for errors.

    Raises:
        ExchangeError: The bytes are not JSON, or not a JSON object.
    """
    # The file is somebody else's. A list, say, is valid JSON but no configuration.
    raw = parsed_json(data, where, ExchangeError)
    if not isinstance(raw, dict):
        raise ExchangeError(
            f"{where}: wanted keys and values, got {type(raw).__name__}"
        )
    return raw
