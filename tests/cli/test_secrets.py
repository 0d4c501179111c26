"""No secret comes into a store, a run, a report, a log or an error, whatever happens.

A secret key and a token are planted in the environment and in --storage-options; every
byte that is written or printed afterwards is searched for them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import actstore
from actstore.format.storage import Storage
from tests.cli.conftest import Cli
from tests.s3_server.faulty_proxy import faulty

KEY, SECRET, TOKEN = "PLANTEDKEYID", "planted/secret+0123456789", "planted-token-abcdef"
# in the forms that a URL, JSON or a repr would give them
FORMS = [SECRET, TOKEN, SECRET.replace("/", "%2F"), SECRET.replace("/", "\\/")]
HARVEST = [
    "harvest",
    "--model",
    "builtin:mini",
    "--corpus",
    "builtin:stdlib",
    "--sites",
    "blocks.{0..1}.hook_mlp_out",
    "--tokens",
    "1024",
    "--context",
    "32",
    "--out",
]
TRAIN = (
    *("--sae", "topk", "--k", "3", "--expansion", "2"),
    *("--batch", "64", "--rows", "512"),
)


def assert_clean(where: str, data: bytes) -> None:
    for form in FORMS:
        assert form.encode() not in data, f"a secret in {where}"


class Shell:
    """Runs command lines with planted secrets, and looks at all that they print."""

    def __init__(self, home: Path, endpoint: str, given: str) -> None:
        self.home = home
        options: dict[str, object] = {"endpoint_url": endpoint}
        self.environment = {**os.environ, "ACTSTORE_DEBUG": "1", "HOME": str(home)}
        if given == "environment":
            self.environment |= {
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_SESSION_TOKEN": TOKEN,
            }
        else:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                self.environment.pop(name, None)
            options |= {"key": KEY, "secret": SECRET, "token": TOKEN}
        self.options = home / "options.json"
        self.options.write_text(json.dumps(options))

    def run(self, program: str, *words: str, options: bool = True) -> tuple[int, str]:
        more = ["--storage-options", str(self.options)] if options else []
        done = subprocess.run(
            [sys.executable, "-m", program, *words, *more],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            check=False,
        )
        printed = done.stdout + done.stderr
        assert_clean(f"what `{program} {' '.join(words)}` printed", printed)
        return done.returncode, printed.decode()

    def look_at_files(self) -> int:
        """Search every file of the home but that with the options."""
        files = [path for path in self.home.rglob("*") if path.is_file()]
        files.remove(self.options)
        for path in files:
            assert_clean(str(path), path.read_bytes())
        return len(files)


def look_at_objects(url: str) -> None:
    """Search every object of a bucket."""
    storage = Storage(url)
    keys = storage.list()
    assert len(keys) > 20
    for key in keys:
        assert_clean(key, key.encode() + storage.read(key))


def test_a_store_and_a_run_have_no_secret(
    cli: Cli,
    s3_url: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same as below in this process, which need not load everything anew."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    shell = Shell(tmp_path, s3_server, "options")
    store, run = f"{s3_url}/store", f"{s3_url}/run"
    for words in (
        ("actstore", *HARVEST, store),
        ("actstore", "info", store),
        ("trainer", "train", "--store", store, *TRAIN, "--out", run),
        ("trainer", "report", run, "--out", "page.html"),
    ):
        code, *printed = cli(*words, "--storage-options", str(shell.options))
        assert code == 0, printed
        assert_clean(" ".join(words), "".join(printed).encode())
    assert shell.look_at_files() > 0
    monkeypatch.setenv("ACTSTORE_STORAGE_OPTIONS", str(shell.options))
    look_at_objects(s3_url)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["environment", "options"])
def test_the_whole_job_leaves_no_secret(
    given: str, s3_url: str, s3_server: str, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, s3_server, given)
    store = f"{s3_url}/store"
    for words in (
        ("actstore", *HARVEST, store),
        ("actstore", "verify", store),
        ("actstore", "doctor", store),
        ("trainer", "train", "--store", store, *TRAIN, "--out", f"{s3_url}/run"),
        ("trainer", "train", "--store", store, *TRAIN, "--out", "run"),
        ("trainer", "eval", "run"),
        ("trainer", "report", "run", "--out", "page.html"),
    ):
        code, printed = shell.run(*words)
        assert code == 0, printed
    assert shell.look_at_files() > 5
    look_at_objects(s3_url)


# an answer about a signature repeats what was signed; the others are short
SHORT = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("denied", "skew", "expired")
]


@pytest.mark.parametrize("fault", [*SHORT, "signature"])
def test_failures_repeat_no_secret(
    fault: str, s3_url: str, s3_server: str, tmp_path: Path
) -> None:
    with faulty(s3_server, lambda _: fault) as proxy:
        for given in ("environment", "options"):
            home = tmp_path / given
            home.mkdir()
            shell = Shell(home, proxy.url, given)
            code, printed = shell.run("actstore", "info", f"{s3_url}/store")
            assert code == 1
            assert "StorageError" in printed  # a traceback was asked for
            shell.look_at_files()


def test_what_holds_options_does_not_show_them(s3_url: str, s3_server: str) -> None:
    options = {"key": KEY, "secret": SECRET, "token": TOKEN, "endpoint_url": s3_server}
    store = actstore.harvest(
        {
            "model": "builtin:mini",
            "corpus": "builtin:stdlib",
            "sites": "blocks.0.hook_mlp_out",
            "tokens": 1024,
        },
        f"{s3_url}/store",
        options=options,
    )
    for shown in (store, store.storage, store.storage._there, store.storage.child("a")):
        assert_clean(type(shown).__name__, (repr(shown) + str(shown)).encode())
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(store.storage)
