"""`start.sh` and `stop.sh`: data is kept, a port in use is refused, and any folder will
do.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.s3_server.server import HERE, missing

pytestmark = pytest.mark.real_s3


def script(
    name: str, folder: Path, *words: str, port: int | str = "auto"
) -> subprocess.CompletedProcess[str]:
    """One of the scripts, run to its end."""
    environment = {
        **os.environ,
        "S3_SERVER_DIR": os.path.relpath(folder, folder.parent),
        "S3_SERVER_PORT": str(port),
        "S3_SERVER_STORE": "bluestore",
        "S3_SERVER_SIZE": str(2 << 30),
    }
    return subprocess.run(
        ["bash", HERE / name, *words],
        env=environment,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a server, with a space in its name; nothing is left running."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    # Ceph's sockets want short paths, so it lies beside pytest's deep folder.
    path = tmp_path / "s 3"
    yield path
    script("stop.sh", path, "--wipe")


def bucket(started: subprocess.CompletedProcess[str]) -> tuple[s3fs.S3FileSystem, str]:
    """The file system of a server that was started, and its bucket."""
    assert started.returncode == 0, started.stderr
    names = dict(line.split("=", 1) for line in started.stdout.splitlines())
    files = s3fs.S3FileSystem(
        endpoint_url=names["AWS_ENDPOINT_URL"],
        key=names["AWS_ACCESS_KEY_ID"],
        secret=names["AWS_SECRET_ACCESS_KEY"],
        skip_instance_cache=True,
    )
    return files, names["S3_BUCKET"]


@pytest.mark.parametrize("how", [[], ["--kill"]])
def test_data_is_kept_over_a_stop(folder: Path, how: list[str]) -> None:
    files, name = bucket(script("start.sh", folder))
    files.pipe_file(f"{name}/x", b"kept")
    again = script("start.sh", folder)
    assert again.returncode != 0
    assert "already running" in again.stderr
    assert files.cat_file(f"{name}/x") == b"kept"
    assert script("stop.sh", folder, *how).returncode == 0
    files, name = bucket(script("start.sh", folder))
    assert files.cat_file(f"{name}/x") == b"kept"
    assert script("stop.sh", folder, "--wipe").returncode == 0
    assert not folder.exists()


def test_a_port_in_use_is_refused(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = script("start.sh", folder, port=port)
    assert refused.returncode != 0
    assert f"port {port} is in use" in refused.stderr
    assert not list((folder / "pid").iterdir())
