"""`make serve-demo`: it opens nothing to the network, and trains from a link to a run."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.client.service_client import ServiceClient

LOOPBACK = "0100007F"  # 127.0.0.1 as the system's table of sockets has it
LISTENS = "0A"
needs_proc = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="there is no /proc/net"
)


def processes_of(root: int) -> set[int]:
    """A process, and all that it began, directly or by way of others."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text(errors="replace").rpartition(")")[2].split()
            parents[int(status.parent.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def sockets_of(pids: set[int]) -> set[str]:
    """The inodes of the sockets that processes have open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    link = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
                    if link is not None:
                        found.add(link[1])
    return found


def listening(root: int) -> dict[str, set[str]]:
    """Where a process and all that it began listen, and what else they have open to
    others: local addresses of TCP and UDP, by table.
    """
    own = sockets_of(processes_of(root))
    found: dict[str, set[str]] = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        for fields in map(str.split, lines):
            is_open = table.startswith("udp") or fields[3] == LISTENS
            if is_open and fields[9] in own:
                found.setdefault(table, set()).add(fields[1])
    return found


@contextlib.contextmanager
def demo(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The demo as `make serve-demo` starts it, with its address and its token."""
    command = [sys.executable, "-m", "trainer.service_demo", str(folder), "--port", "0"]
    with (
        (folder.parent / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            lines = (
                re.match(r"service: (\S+/)login#token=(\w+)", line)
                for line in process.stdout
            )
            link = next(filter(None, lines), None)
            assert link, (folder.parent / "log").read_text()
            yield process, link[1], link[2]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(90)


@needs_proc
@pytest.mark.slow
def test_the_demo_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    """While nothing is done, while it trains, and while it makes a report."""
    with (
        demo(tmp_path / "demo") as (process, url, token),
        ServiceClient(url, token=token) as service,
    ):
        port = int(url.rstrip("/").rpartition(":")[2])
        only = {"tcp": {f"{LOOPBACK}:{port:04X}"}}
        assert listening(process.pid) == only
        assert len(processes_of(process.pid)) == 1
        [run] = service.submit(tmp_path / "demo" / "run.yaml", name="demo")
        seen = 0
        while service.run(run.id).ended is None:
            assert listening(process.pid) == only
            seen = max(seen, len(processes_of(process.pid)))
            time.sleep(0.2)
        assert seen > 1, "no process that trains was seen"
        assert service.run(run.id).state == "completed"
        assert "<html" in service.report(run.id)
        assert listening(process.pid) == only
    assert process.returncode in {0, 130}
    log = (tmp_path / "log").read_text()
    assert token not in log
    assert "Traceback" not in log
    assert "127.0.0.1:0 " not in log
