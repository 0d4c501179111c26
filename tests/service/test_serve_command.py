"""`trainer serve` and `trainer token` as processes: training end to end, signals, and
where it does not listen.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from actstore.errors import ActstoreError
from tests.service.served import SAE
from tests.support import make_store
from trainer.cli import app
from trainer.service.doors import Door
from trainer.service.serve_options import serving_from
from trainer.service.serving import Serving, serve

COMMAND = [sys.executable, "-m", "trainer"]


def command(folder: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


class Running:
    """A service in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str, token: str | None):
        self.process = process
        self.url = url
        self.token = token

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@contextmanager
def running(folder: Path, *words: str, runs: str = "runs") -> Iterator[Running]:
    """Start it, and end it with a SIGTERM unless the test has ended it."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--runs", runs, "--port", "0", "--device", "cpu", *words],
            cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"service: (\S+?/)(login#token=(\w+))?\n", line)
        assert found, (folder / "log").read_text()
        wait_until(lambda: _answers(found[1]))
        yield Running(process, found[1], found[3])
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(90)
        if process.stdout is not None:
            process.stdout.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url + "health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(true: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def state_of_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(str(tmp_path / "store"))
    return tmp_path


def spec(**more: Any) -> dict[str, Any]:
    return {"store": "store", "sae": SAE, "rows": 2000, **more}


def test_from_a_token_to_a_trained_run(folder: Path) -> None:
    with running(folder) as service, service.client() as client:
        assert service.token is not None
        (run,) = client.post("/runs", json={"spec": spec(), "name": "first"}).json()

        def state() -> str:
            found: str = client.get(f"/runs/{run['id']}").json()["state"]
            return found

        wait_until(lambda: state() in {"completed", "failed"})
        assert state() == "completed", client.get(f"/runs/{run['id']}").text
        assert (folder / "runs" / "first" / "sae.json").exists()
        events = client.get(f"/runs/{run['id']}/events").text
        assert "event: completed" in events
        dry = {"spec": spec(), "dry_run": True}
        assert client.post("/runs", json=dry).json()["seconds"] > 0
        # a second service does not take the same folder
        told = command(folder, "serve", "--runs", "runs", "--port", "0", code=1)
        assert "another service" in told
    assert service.process.returncode == 143
    log = (folder / "log").read_text()
    assert f"GET /runs/{run['id']} 200" in log
    assert service.token not in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_signal_saves_and_the_next_service_goes_on(folder: Path) -> None:
    with running(folder) as service, service.client() as client:
        long = spec(rows=100_000_000, stream={"batch": 256, "epochs": None})
        (run,) = client.post("/runs", json={"spec": long, "name": "long"}).json()
        url = f"/runs/{run['id']}"
        wait_until(lambda: client.get(url).json()["progress"] is not None)
        with httpx.stream(
            "GET", f"{service.url}{url[1:]}/events", headers=dict(client.headers)
        ):
            service.process.send_signal(signal.SIGINT)
            assert service.process.wait(60) == 130
    assert list((folder / "runs" / "long" / "checkpoints").iterdir())
    with running(folder) as again, again.client() as client:
        found = client.get(url).json()
        assert found["state"] in {"queued", "running"}
        wait_until(lambda: client.get(url).json()["attempts"] == 2)
        client.post(f"{url}/cancel")
        wait_until(lambda: client.get(url).json()["state"] == "cancelled")


def test_tokens_by_the_command_line(folder: Path) -> None:
    def token(*words: str) -> Any:
        return CliRunner().invoke(
            app, ["token", *words, "--runs", str(folder / "runs")]
        )

    def refusal(*words: str) -> str:
        return str(token(*words).exception)

    one = ("make", "--user", "ada", "--role")
    made = token(*one, "reader", "--days", "7").stdout.strip()
    with running(folder) as service:
        assert service.token is None  # there is one already
        with service.client(made) as client:
            assert client.get("/session").json()["user"] == "ada"
            (info,) = json.loads(token("ls", "--json").stdout)
            assert (info["role"], info["revoked"]) == ("reader", False)
            token("revoke", info["id"])
            assert client.get("/session").status_code == 401
    assert "revoked" in token("ls").stdout
    assert "there is no token" in refusal("revoke", "x")
    assert "--days" in refusal(*one, "reader", "--days", "0")
    assert "role" in refusal(*one, "root")
    told = CliRunner().invoke(app, ["token", "ls"]).exception
    assert "which service?" in str(told)


REFUSED = {
    "--host 0.0.0.0 --stores .": "--behind-proxy",
    "--host 0.0.0.0": "which stores",
    "--host 0.0.0.0 --stores . --behind-proxy": "token make",
    "--behind-proxy --stores .": "token make",
    "--tls-cert x": "go together",
    "--tls-cert x --tls-key y": "cannot be used",
    "--tls-cert x --tls-key y --behind-proxy --stores .": "exclude each other",
    "--proxy 10.0.0.1": "--behind-proxy",
    "--behind-proxy --proxy nobody": "--proxy nobody",
    "--stores http://x/y": "--stores http://x/y",
    "--runs s3://key:secret@b/x": "password",
    "--state s3://b/x": "local disk",
    "--host 192.0.2.1 --stores . --behind-proxy": "token make",
    "--device tpu": "--device tpu",
    "--executor nobody": "nobody",
    "--executor slurm": "Slurm's command sbatch is not here",
    "--executor slurm:local": "wanted local, ray, ray:ADDRESS or slurm",
}


def nobody(*_: object) -> None:
    pytest.fail("it has begun")


def serving(folder: Path, words: str) -> Serving:
    """What `trainer serve` with these options is started with."""
    given: dict[str, Any] = {
        "runs": "runs", "state": None, "stores": [], "host": "127.0.0.1", "port": 0, "tls_cert": None,
        "tls_key": None, "behind_proxy": False, "proxies": [], "n_slots": None, "device": "cpu", "executor": "local",
    }  # fmt: skip
    names = {"--proxy": "proxies", "--slots": "n_slots"}
    for option, value in re.findall(r"(--[\w-]+)(?: (?!--)(\S+))?", words):
        name = names.get(option, option[2:].replace("-", "_"))
        given[name] = [value] if isinstance(given[name], list) else (value or True)
    given["n_slots"] = given["n_slots"] and int(given["n_slots"])
    with contextlib.chdir(folder):
        return serving_from(**given)


@pytest.mark.parametrize("words", REFUSED)
def test_where_it_does_not_begin(folder: Path, words: str) -> None:
    with pytest.raises(ActstoreError, match=REFUSED[words]) as refused:
        serve(serving(folder, words), "trainer token make", nobody)
    assert "key:secret" not in str(refused.value)
    assert Door("::1", 0).is_of_this_machine
    assert not Door("127.0.0.1.example.org", 0).is_of_this_machine


CHANGES = (
    "--runs others", "--state here", "--stores store", "--host ::1", "--port 8000", "--tls-cert x", "--tls-key x",
    "--stores . --behind-proxy", "--slots 2", "--executor ray",
)  # fmt: skip


def test_each_option_changes_what_is_served(folder: Path) -> None:
    usual = serving(folder, "")
    found = [serving(folder, words) for words in CHANGES]
    assert all(one != usual for one in found)
    named = serving(folder, "--stores . --behind-proxy --proxy 10.0.0.1")
    assert named.door.proxies == ("10.0.0.1",)
    with pytest.raises(ActstoreError, match="no GPU"):
        serving(folder, "--device cuda")
    remote = serving(folder, "--runs s3://bucket/runs --stores .")
    assert remote.state.is_relative_to(folder / "state-home")


@pytest.mark.slow
def test_tls(folder: Path) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("there is no openssl")
    token = command(
        folder, "token", "make", "--runs", "runs", "--user", "a", "--role", "reader"
    ).strip()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--runs", "runs", "--port", "0", "--host", "0.0.0.0", "--stores", ".", "--device", "cpu",
         "--tls-cert", "cert.pem", "--tls-key", "key.pem"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip().rstrip("/").rpartition(":")[2]
        trusted = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        with httpx.Client(
            verify=trusted, base_url=f"https://127.0.0.1:{port}"
        ) as client:
            wait_until(lambda: client.get("/health").status_code == 200)
            begun = client.post("/session", json={"token": token})
            assert "Secure" in begun.headers["set-cookie"]
            assert client.get("/state").status_code == 200
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def test_it_says_what_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ("fastapi", "nosuch_package")
    monkeypatch.setattr("trainer.service.serving.NEEDED", needed)
    with pytest.raises(ActstoreError, match=r"nosuch.*pip install 'actstore\[serve\]'"):
        serve(serving(folder, ""), "", nobody)
