"""Writes docs/architectures.md: `python -m tests.model_types [MODEL_TYPE...]` (with
types: prints their lines).
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path

import transformers

from tests.model_types.small import language_models
from tests.model_types.survey import page, surveyed

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    types = language_models()
    chosen = sys.argv[1:] or list(types)
    lines = []
    for one in chosen:
        began = time.monotonic()
        lines.append(surveyed(one, types[one]))
        print(f"{lines[-1].markdown()} {time.monotonic() - began:.1f} s", flush=True)
    if not sys.argv[1:]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
