"""The Dockerfile, the compose file and the shell scripts, as far as a machine without
a container engine can check them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.support import APPS, DEPLOY, ROOT, check_command, tool
from tests.s3_server.server import OTHER_BUCKET

DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with lines that go on joined."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in pairs]


def stages() -> dict[str, str]:
    """The stages of the Dockerfile, and what each begins from."""
    found = [rest.split(" AS ") for name, rest in instructions() if name == "FROM"]
    return {name: base for base, name in found}


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def scripts() -> list[Path]:
    """The shell scripts that git knows, by their names or their first lines."""
    listed = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [
        path
        for path in paths
        if path.suffix == ".sh"
        or (not path.suffix and path.is_file() and is_shell(path))
    ]


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(64)
    return first.startswith(b"#!") and first.rstrip().endswith((b"bash", b"sh"))


def test_hadolint_finds_nothing() -> None:
    done = tool("hadolint", str(DOCKERFILE))
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp && pip install x\n")
    assert tool("hadolint", str(bad)).returncode != 0


def test_shellcheck_finds_nothing() -> None:
    found = scripts()
    if not found:
        pytest.skip("not a checkout of git")
    assert {"run", "wheel", "start.sh"} <= {path.name for path in found}
    done = tool("shellcheck", "--severity=warning", *map(str, found))
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_is_of_its_schema() -> None:
    schema = "vendor.compose-spec"
    done = tool("check-jsonschema", "--builtin-schema", schema, str(COMPOSE))
    assert done.returncode == 0, done.stdout


def test_compose_names_what_there_is() -> None:
    whole = compose()
    services = whole["services"]
    for name, service in services.items():
        for other, told in service.get("depends_on", {}).items():
            assert other in services, name
            wanted = "service_healthy" if "healthcheck" in services[other] else None
            wanted = wanted or "service_completed_successfully"
            assert told["condition"] == wanted
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in whole["volumes"]
        for config in service.get("configs", ()):
            assert config["source"] in whole["configs"]
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert (context, (context / service["build"]["dockerfile"])) == (
                ROOT,
                DOCKERFILE,
            )
    # Volumes that jobs write to are folders of the image, with the user as their owner.
    made = " ".join(rest for name, rest in instructions() if name == "RUN")
    for service in services.values():
        if "build" in service:
            target = service["build"]["target"]
            assert service["image"] == f"actstore:{target}"
            assert target in stages()
            for volume in service.get("volumes", ()):
                assert f" {volume.partition(':')[2]}" in made


def test_variables_are_in_the_example() -> None:
    example = dict(
        line.split("=", 1)
        for line in (DEPLOY / "env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    used = re.findall(r"\$\{(\w+)", COMPOSE.read_text())
    assert used
    assert set(used) == set(example)
    # With them the server's configuration is JSON.
    text = compose()["configs"]["s3-identities"]["content"]
    for name, value in example.items():
        text = text.replace(f"${{{name}:?}}", value)
    assert json.loads(text)["identities"][0]["credentials"][0]["secretKey"]
    assert ".env" in (ROOT / ".gitignore").read_text()


def test_every_line_is_explained() -> None:
    # Not: what only opens a level, program and command, and the text of a block.
    opens = re.compile(r" *(- )?[\w.-]+:( [&|].*)?|.*<<: \*job")
    words = {"- actstore", "- trainer", "- |"}
    words |= {f"- {name}" for name in ("harvest", "publish", "train", "serve")}
    unexplained = []
    block = 0
    for line in COMPOSE.read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or (block and indent >= block):
            continue
        block = indent + 1 if line.endswith("|") else 0
        if "# " not in line and not opens.fullmatch(line):
            unexplained.append(line.strip())
    assert set(unexplained) <= words
    for name in compose()["services"]:
        assert re.search(rf"^  {name}: # \w", COMPOSE.read_text(), re.MULTILINE), name


def test_images_are_pinned_and_keys_are_not_here() -> None:
    images = [
        service["image"]
        for service in compose()["services"].values()
        if "build" not in service
    ]
    arguments = [rest for name, rest in instructions() if name == "ARG"]
    images += [one.partition("=")[2] for one in arguments if one.startswith("BASE=")]
    # The other base is named in the file's first lines.
    images += re.findall(r"--build-arg BASE=(\S+)", DOCKERFILE.read_text())
    assert len(images) == 3
    # Every stage begins from that argument, or from another stage.
    assert set(stages().values()) <= {"${BASE}", *stages()}
    for image in images:
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", image), image
    for service in compose()["services"].values():
        for name, value in service.get("environment", {}).items():
            if "KEY" in name:
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value)
    assert "for trying only" in (DEPLOY / "env.example").read_text()


def command_lines() -> list[list[str]]:
    """The command lines of ours in the compose file, those in scripts of a shell too."""
    found = []
    for service in compose()["services"].values():
        words = service["command"]
        if words[0] == "sh":
            found += [shlex.split(line) for line in words[-1].splitlines()]
        elif words[0] in APPS:
            found.append(words)
    return [words for words in found if words[0] in APPS]


@pytest.mark.parametrize(
    "words", command_lines(), ids=lambda words: " ".join(words[:2])
)
def test_each_command_can_be_read(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_command(words, monkeypatch)


def test_what_is_published_is_for_this_machine_alone() -> None:
    published = [
        port
        for service in compose()["services"].values()
        for port in service.get("ports", ())
    ]
    assert len(published) == 2
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in published)
    command = compose()["services"]["service"]["command"]
    assert "--behind-proxy" in command
    assert f"--port={published[1].split(':')[1]}" in command


def in_order() -> list[str]:
    """Our jobs in the compose file, each after those that it waits for."""
    services = compose()["services"]
    order: list[str] = []

    def add(name: str) -> None:
        for other in services[name].get("depends_on", ()):
            add(other)
        if "build" in services[name] and name not in order:
            order.append(name)

    add("train")
    return order


@pytest.mark.real_s3
@pytest.mark.timeout(900)
def test_the_jobs_work_with_a_real_s3_server(
    real_s3_server: dict[str, str], tmp_path: Path
) -> None:
    if os.environ.get(OTHER_BUCKET):
        pytest.skip("a server of others may have no bucket that is called team")
    services = compose()["services"]
    jobs = {name for name in services if "build" in services[name]} - {"service"}
    assert set(in_order()) == jobs
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The service is called by a name, not by an address.
    endpoint = os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
    other = {
        "--rows=2M": "--rows=40k",
        "--cache=/cache": f"--cache={tmp_path}/cache",
        "--out=/runs/tiny": f"--out={tmp_path}/runs/tiny",
    }
    for name in in_order():
        environment["ACTSTORE_CATALOG"] = services[name]["environment"][
            "ACTSTORE_CATALOG"
        ]
        environment["AWS_ENDPOINT_URL"] = endpoint
        words = [other.pop(word, word) for word in services[name]["command"]]
        words = ["--tokens=60k" if word == "--tokens=1M" else word for word in words]
        done = subprocess.run(
            words,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (name, done.stdout, done.stderr)
    assert not other
    assert list((tmp_path / "runs" / "tiny").iterdir())
    assert list((tmp_path / "cache").iterdir())


def test_what_is_copied_is_there() -> None:
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    for source in [one for sources in copied for one in sources]:
        assert (ROOT / source).exists(), source


def without_index(words: list[str]) -> list[str]:
    """A command of pip's that takes torch from wherever this machine is told to."""
    if "--index-url" not in words:
        return words
    at = words.index("--index-url")
    assert words[at + 1] == "${TORCH_INDEX}"
    return words[:at] + words[at + 2 :]


def installs(steps: list[list[str]]) -> list[list[str]]:
    """Torch as the image has it, and then in one command all that its targets install.

    One environment for all targets: what they pin has to fit together, and each
    command would build our package anew.
    """
    torch, *others = [without_index(words) for words in steps]
    assert torch[-1] == "torch"
    constraints, asked = [], []
    for words in others:
        assert words[:2] == ["pip", "install"]
        rest = iter(word for word in words[2:] if word != "--no-cache-dir")
        for word in rest:
            if word == "--constraint":
                constraints.append(next(rest))
            else:
                asked.append(word)
    named = [part for file in dict.fromkeys(constraints) for part in ("-c", file)]
    return [torch, ["pip", "install", *named, *dict.fromkeys(asked)]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_image_runs_works_in_a_fresh_environment(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name, rest in instructions():
        if name != "COPY":
            continue
        for source in rest.split()[:-1]:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, app / source, ignore=ignored)
            else:
                shutil.copy(ROOT / source, app)
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    programs = environment / "bin"
    # Users, folders and what Debian installs are of the container.
    steps = [
        shlex.split(step.replace("/app/", f"{app}/").replace("/app[", f"{app}["))
        for name, rest in instructions()
        if name == "RUN" and not rest.startswith("if ")
        for step in rest.split("&&")
    ]
    assert {step[0] for step in steps} == {"pip", "useradd", "install", "ln", "python3"}
    for words in installs([step for step in steps if step[0] == "pip"]):
        subprocess.run([programs / words[0], *words[1:]], cwd=app, check=True)
    commands = [json.loads(rest) for name, rest in instructions() if name == "CMD"]
    assert len(commands) == len(stages()) - 1
    others = (["trainer", "--version"], ["actstore", "doctor"], ["ray", "--version"])
    for words in (commands[0], commands[1], *others):
        done = subprocess.run(
            [programs / words[0], *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
