"""Options of a place, such as credentials, that hold for a whole process.

`ACTSTORE_STORAGE_OPTIONS` has them as JSON, or the path of a JSON file;
`--storage-options` of the command lines sets it. A key with `://` in it
has the options of URLs that begin so:

    {"anon": true, "s3://ours/": {"profile": "ours"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actstore.console.options_json import parse_options
from actstore.machine import command_values


def options_for(url: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a URL's options: those given, and for other keys those of the process.

    Raises:
        SpecError: The process' options cannot be read.
    """
    text = command_values.use(command_values.STORAGE_OPTIONS)
    if text is None:
        return dict(given or {})
    of_process = parse_options(text, command_values.STORAGE_OPTIONS)
    options = {key: value for key, value in of_process.items() if "://" not in key}
    prefixes = [key for key in of_process if "://" in key and url.startswith(key)]
    # the longest comes last, and counts most
    for prefix in sorted(prefixes, key=len):
        options.update(of_process[prefix])
    return {**options, **(given or {})}
