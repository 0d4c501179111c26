"""`actstore doctor`: what it finds, what it says of places that cannot be used, and
that it leaves nothing.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

import actstore.inspect.doctor as doctor
from actstore.format.storage import Storage

Cli = Callable[..., tuple[int, str, str]]
STEPS = ["write", "read", "ranged read", "conditional create", "delete"]


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_BYTES", 1 << 20)


def examined(cli: Cli, *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    code, out, err = cli("actstore", "doctor", *words, "--json")
    assert "Traceback" not in out + err
    assert err == ""
    return code, {check["name"]: check for check in json.loads(out)}


def test_without_a_place_it_speaks_of_the_machine(cli: Cli) -> None:
    code, found = examined(cli)
    assert code == 0
    assert set(found) == {"python", *doctor.PACKAGES, "GPU", "machine", "bfloat16"}
    assert "write" not in found
    code, out, _ = cli("actstore", "doctor")
    assert code == 0
    assert len(out.splitlines()) == len(found)


@pytest.mark.parametrize("there", [True, False])
def test_a_round_trip_in_a_folder_leaves_nothing(
    there: bool, cli: Cli, tmp_path: Path
) -> None:
    place = tmp_path / "new" / "stores" if not there else tmp_path
    code, found = examined(cli, str(place))
    assert code == 0
    assert list(found)[-6:] == ["free space", *STEPS]
    assert all(found[name]["status"] == "ok" for name in STEPS)
    assert "MB/s" in found["write"]["text"]
    assert not list(tmp_path.iterdir())


def test_what_lies_there_stays(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    assert examined(cli, str(tmp_path / "store"))[0] == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["store", "manifest.json"]


def test_object_stores(cli: Cli, memory_url: str, s3_url: str) -> None:
    for url in (memory_url, s3_url):
        code, found = examined(cli, url)
        assert code == 0
        assert all(found[name]["status"] in {"ok", "warn"} for name in STEPS), found
        assert found["read"]["status"] == "ok"
        assert "free space" not in found
        assert not Storage(url).list()


def test_places_that_cannot_be_used(cli: Cli, tmp_path: Path, s3_server: str) -> None:
    (tmp_path / "file").write_text("x")
    places = {
        str(tmp_path / "file"): ("write", "file"),
        "nosuch://x/y": ("storage", "nosuch"),
        "http://127.0.0.1:9/x": ("write", "127.0.0.1:9"),
        "s3://there-is-no-such-bucket": ("write", "there-is-no-such-bucket"),
    }
    for url, (step, word) in places.items():
        code, found = examined(cli, url)
        assert code == 1, url
        assert found[step]["status"] == "fail", url
        assert word in found[step]["text"]
        assert list(found)[-1] == step  # nothing is tried behind it
    assert (tmp_path / "file").read_text() == "x"


def test_no_permission(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tests run as root, whom no mode stops."""

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        code, out, err = cli("actstore", "doctor", str(tmp_path / "a" / "b"))
    assert code == 1
    assert "Traceback" not in out + err
    assert out.splitlines()[-1].startswith("fail  write")
    assert "Permission denied" in out
    assert not list(tmp_path.iterdir())


def test_a_disk_that_loses_bytes(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read", lambda *_: b"other")
        code, found = examined(cli, str(tmp_path))
    assert code == 1
    assert found["read"] == {
        "name": "read",
        "status": "fail",
        "text": "what was read is not what was written",
    }
    assert not list(tmp_path.iterdir())


def test_a_place_without_conditional_create_is_a_warning(
    cli: Cli, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "create", lambda *_: True)
        code, found = examined(cli, memory_url)
    assert code == 0
    assert found["conditional create"]["status"] == "warn"
    assert "one worker write at a time" in found["conditional create"]["text"]
    assert not fsspec.filesystem("memory").find(memory_url.removeprefix("memory://"))


def test_an_old_package_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.MINIMUM, "zarr", (99, 0))
    monkeypatch.setattr(doctor, "PACKAGES", ("zarr", "no-such-package"))
    code, found = examined(cli)
    assert code == 1
    assert "wanted 99.0 or newer" in found["zarr"]["text"]
    assert "not installed" in found["no-such-package"]["text"]


def test_what_is_too_old_is_what_the_package_does_not_install_with() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wanted = {}
    for line in project["project"]["dependencies"]:
        name, _, version = line.partition(">=")
        wanted[name] = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    for name, version in doctor.MINIMUM.items():
        assert (*wanted[name], 0)[:2] == version, name
