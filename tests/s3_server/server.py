"""A real S3 server for tests and benchmarks: Ceph's RADOS Gateway on the loopback.

`start.sh` and `stop.sh` beside this file do the work. Another server is used instead
where `ACTSTORE_TEST_S3_BUCKET` names a bucket there (with the usual AWS environment).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
NEEDS = ("ceph-mon", "ceph-osd", "radosgw")
OTHER_BUCKET = "ACTSTORE_TEST_S3_BUCKET"


def missing() -> str | None:
    """Say why no server can be started here; None: it can."""
    absent = [program for program in NEEDS if shutil.which(program) is None]
    if absent:
        return (
            f"no real S3 server: {', '.join(absent)} not installed; on Debian:"
            " apt-get install --no-install-recommends ceph-mon ceph-osd radosgw"
        )
    return None


@contextlib.contextmanager
def server(
    store: str = "memstore", bucket: str = "test-bucket"
) -> Iterator[dict[str, str]]:
    """Run a server; yield the environment that its clients need.

    store: `memstore` (in memory) or `bluestore` (a sparse file; for benchmarks, since
    memstore gives deleted space back only after a minute). bucket: one that is there.
    """
    # Not in pytest's folder: Ceph's sockets want short paths.
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        environment = {
            **os.environ,
            "S3_SERVER_DIR": f"{folder}/ceph",
            "S3_SERVER_PORT": "auto",
            "S3_SERVER_STORE": store,
            "S3_SERVER_BUCKET": bucket,
        }
        started = subprocess.run(
            ["bash", str(HERE / "start.sh")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if started.returncode:
            raise RuntimeError(f"the S3 server did not start: {started.stderr}")
        try:
            yield dict(line.split("=", 1) for line in started.stdout.splitlines())
        finally:
            stop = ["bash", str(HERE / "stop.sh"), "--wipe"]
            subprocess.run(stop, env=environment, check=True)
