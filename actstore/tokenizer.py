"""The tokenizer that a store keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actstore.errors import CorruptError


def tokenizer_from(files: Mapping[str, bytes], url: str) -> Any:
    """A tokenizer (transformers) from its files by name; code that comes with them is never run.

    Raises CorruptError where it cannot be read.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise CorruptError(f"{url}: the tokenizer in it cannot be read: {error}") from error
