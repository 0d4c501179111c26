"""Fixtures that several folders use: an S3 server on the loopback, and a clean memory
file system.
"""

from __future__ import annotations

import os

# Before torch comes: on tests' small tensors a second thread costs a quarter more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import gc
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import server

# A file system in memory, and the bytes that must be free there and in all: a whole run
# writes less, and most of that goes when a test has passed.
IN_MEMORY = Path("/dev/shm")
ENOUGH = 4 << 30
# They take half a minute or more each, and one of them at the end would be waited for.
FIRST = (
    "tests/trainer/distributed/test_distributed.py",
    "tests/stream/test_closing.py",
    "tests/harvesting/test_harvest.py",
    "tests/recomputing/test_verify_deep.py",
    "tests/harvesting/test_faulty_stores.py",
    "tests/cli/test_no_inert_options.py",
    "tests/fuzz/test_fuzz.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Tests write many small files, and wait for the disk: they have them in memory
    where there is enough of it. What is slow or has a real server keeps to the disk.

    A shell's background job ignores SIGINT, and so would the commands that tests stop.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "not real_s3" in config.option.markexpr and _has_room(IN_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others stay in their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def _has_room(folder: Path) -> bool:
    try:
        free = shutil.disk_usage(folder).free
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    # "MemAvailable:   23456789 kB"
    available = [int(line.split()[1]) << 10 for line in lines if "MemAvail" in line]
    return min([free, *available]) > ENOUGH


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's S3 server on 127.0.0.1; the environment points every client at it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication
    from moto.server import ThreadedMotoServer

    names = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    # At each request moto looks through its services' folders and patterns, which is
    # half of the time that one takes.
    found_once = functools.cache(DomainDispatcherApplication.get_backend_for_host)
    patch = pytest.MonkeyPatch()
    patch.setattr(DomainDispatcherApplication, "get_backend_for_host", found_once)
    server.start()
    host, port = server.get_host_and_port()
    names["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield names["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    server.stop()
    patch.undo()


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """A bucket of its own."""
    import s3fs

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(endpoint_url=s3_server).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def real_s3_server() -> Iterator[dict[str, str]]:
    """A real S3 server; the environment points every client at it.

    Yields the variables; `S3_BUCKET` is a bucket there.
    """
    bucket = os.environ.get(server.OTHER_BUCKET)
    if bucket is not None:
        yield {"S3_BUCKET": bucket}
        return
    why = server.missing()
    if why is not None:
        pytest.skip(why)
    with server.server() as names, pytest.MonkeyPatch.context() as environment:
        for name, value in names.items():
            environment.setenv(name, value)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield names


@pytest.fixture
def real_s3_url(real_s3_server: dict[str, str]) -> str:
    """A folder of its own in the real server's bucket."""
    return f"s3://{real_s3_server['S3_BUCKET']}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def memory_url() -> str:
    """A folder of its own in fsspec's memory file system."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def no_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody is asked whether to run custom code; what is run is kept in a folder of
    this session (transformers imports it as one package, so a test that needs a model
    of its own gives its folder a name of its own).
    """
    cache = tmp_path_factory.getbasetemp() / "modules"
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache)
    )
    monkeypatch.setattr(
        "builtins.input", lambda *_: pytest.fail("a question was asked")
    )


def pytest_collection_finish() -> None:
    """Some tests look at all objects for what was left: not at those of the suite."""
    gc.collect()
    gc.freeze()
