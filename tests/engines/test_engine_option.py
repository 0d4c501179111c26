"""What is asked of an engine, and what is refused before one is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import actstore
import trainer
from actstore.engines.engine_option import Engine, engine_options, parse_engine
from actstore.engines.ray_engine import connected
from actstore.engines.work_error import as_raised, work_error
from actstore.errors import EngineError, FullError, SpecError
from schemas.engines import WorkError
from tests.cli.conftest import Cli
from trainer.errors import RunLockedError

HARVEST = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": "blocks.0.hook_mlp_out",
    "tokens": 512,
}
WORDS = [
    *("harvest", "--model", "builtin:mini", "--corpus", "builtin:stdlib"),
    *("--sites", "blocks.0.hook_mlp_out", "--tokens", "512", "--out", "o"),
]


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("ray", Engine("ray")),
        ("ray:auto", Engine("ray", "auto")),
        ("ray:10.0.0.1:6379", Engine("ray", "10.0.0.1:6379")),
        ("ray:ray-head.svc:6379", Engine("ray", "ray-head.svc:6379")),
        ("ray:[fd00::2]:6379", Engine("ray", "[fd00::2]:6379")),
        ("slurm", Engine("slurm")),
        ("slurm:local", Engine("slurm", "local")),
    ],
)
def test_engines(text: str, engine: Engine) -> None:
    assert parse_engine(text) == engine


@pytest.mark.parametrize(
    "text",
    [
        *("", "Ray", "ray:", "rays", "slurm:", "slurm:x", ":", "dask"),
        # Places of Ray's own, which would not be this machine's alone, or nowhere.
        *("ray:ray://h:1", "ray:local", "ray:h", "ray:h:", "ray:h:0", "ray:h:65536"),
        *("ray:-h:1", "ray:h:1:2", "ray: h:1", "ray:[h]:1", "ray:h:1\n"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"--engine .*: wanted"):
        parse_engine(text)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--workers 2", "--workers: there is no engine"),
        ("--partition p", "--partition: there is no engine"),
        ("--engine ray --time 90", "--time is an option of Slurm"),
        ("--engine slurm --time soon", "--time 'soon': wanted minutes"),
        ("--engine slurm --partition p;rm", "--partition 'p;rm': wanted a name"),
        ("--engine ray --workers 100000", "each is a process of this machine"),
        ("--engine slurm:local --workers 100000", "each is a process of this machine"),
        ("--engine ray --worker 1/2", "--worker: an engine shares the work by itself"),
        ("--engine ray --device cuda:1", "wanted cpu or cuda"),
        ("--engine ray --device auto", "wanted cpu or cuda"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    words: str, why: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, told = cli("actstore", *WORDS, *words.split(" "))
    assert code == 1
    assert why in told
    assert not list(tmp_path.iterdir())


def test_what_is_in_memory_does_not_go_to_other_machines() -> None:
    with pytest.raises(SpecError, match="tokens: with an engine"):
        actstore.harvest(
            HARVEST, "o", tokens=torch.zeros(2, 8, dtype=torch.int64), engine="ray"
        )


def test_a_dictionary_in_parts_is_torchruns() -> None:
    spec = {"base": {"store": "s", "sae": {"k": 2}}, "grid": {"sae.k": [1]}}
    with pytest.raises(SpecError, match="the processes of torchrun share"):
        trainer.sweep(spec, "o", engine="ray", shard_dictionary=True)


def test_without_ray_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    options = engine_options("ray", None, None, device="cpu")
    assert options is not None
    with (
        pytest.raises(EngineError, match=r"pip install 'actstore\[ray\]'"),
        connected(options, 1),
    ):
        pass


def test_nothing_loads_ray_unless_it_is_asked_for() -> None:
    code = (
        "import sys, actstore.cli, trainer.cli, actstore.harvesting.harvest,"
        " trainer.training.train, actstore.harvesting.harvest_on_ray;"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_of_workers_come_as_they_were() -> None:
    for error in (FullError("full"), RunLockedError("locked")):
        crossed = work_error(error)
        assert crossed.is_users
        assert type(as_raised(crossed)) is type(error)
        assert str(as_raised(crossed)) == str(error)
    crossed = work_error(KeyError("x"))
    assert not crossed.is_users
    assert str(as_raised(crossed)) == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("module", "kind"), [("os", "system"), ("actstore.errors", "first_line")]
)
def test_no_other_class_is_raised_on_a_workers_word(module: str, kind: str) -> None:
    error = WorkError(kind=kind, module=module, text="t", is_users=True)
    assert type(as_raised(error)) is EngineError
