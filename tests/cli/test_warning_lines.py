"""A warning on a command line is one line, without the code of whoever called."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from actstore.console.warning_lines import warning_lines
from actstore.errors import CacheWarning
from tests.support import make_store

WORDS = "--sae topk --k 2 --expansion 2 --batch 64 --rows 128 --cache /dev/null/x"


def test_a_cache_that_cannot_be_used_is_told_in_one_line(
    s3_url: str, tmp_path: Path
) -> None:
    make_store(f"{s3_url}/store")
    words = ["--store", f"{s3_url}/store", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "train", *WORDS.split(), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "arning" in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("warning: ")
    assert "reading goes on without it" in lines[0]
    assert "CacheWarning" not in done.stderr


def test_warnings_of_libraries_go_their_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: list[str] = []
    shown = lambda message, *_, **__: theirs.append(str(message))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", shown)
        with warning_lines():
            for text in ("one", "one", "two"):
                warnings.warn(text, CacheWarning, stacklevel=1)
            warnings.warn("theirs", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"
    assert theirs == ["theirs"]
