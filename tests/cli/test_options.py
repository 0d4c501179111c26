"""Help, defaults, tab completion, and refusals of options: through the command lines
themselves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import actstore.cli
import trainer.cli
from actstore.validation import fields_at
from schemas.sae import CrosscoderInner, FlatSpec, TranscoderInner
from schemas.stream import Rescale
from schemas.train import TrainSpec
from tests.cli.conftest import Cli, command_group
from trainer.training.train_options import FIELDS
from trainer.training.train_spec import OF_LATENTS, from_options, load_spec

APPS = {"actstore": actstore.cli.app, "trainer": trainer.cli.app}
COMMANDS = [
    (name, command)
    for name, app in APPS.items()
    for command in command_group(app).commands
]
KINDS = [one.model_fields["kind"].default for one in get_args(FlatSpec)]


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 1, (out, err)
    assert err.startswith("error: ")
    for word in words:
        assert word in err, f"{word!r} not in {err!r}"


@pytest.mark.parametrize(("program", "command"), COMMANDS)
@pytest.mark.parametrize("width", [80, 70])
def test_help_shows_every_default_in_lines_that_fit(
    program: str, command: str, width: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = cli(program, command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", out).split())
    assert "…" not in text
    assert "None" not in text.replace("(none", "")
    params = command_group(APPS[program]).commands[command].params
    optional = [one for one in params if not one.required and one.name != "help"]
    assert text.count("[default:") == len(optional)


@pytest.mark.parametrize(
    ("program", "command"), [*COMMANDS, *((name, "") for name in APPS)]
)
def test_help_names_no_types_of_python(program: str, command: str, cli: Cli) -> None:
    code, out, _ = cli(program, *filter(None, [command]), "--help")
    assert code == 0
    assert not re.search(r"<[a-z]|None", out.replace("(none", ""))


def test_help_offers_what_a_command_line_can_use(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for command in ("harvest", "plan"):
        _, out, _ = cli("actstore", command, "--help")
        assert "One of auto, builtin, text, jsonl, parquet, dataset, hub." in out
        line = next(line for line in out.splitlines() if "--separator " in line)
        assert "bos, eos, sep, none, or a token id. [default: auto]" in line
        assert "One of" not in line
        assert "planned, from --memory" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--corpus-kind", "memory"],
            ["--corpus-kind memory: documents in memory", "`tokens=`", "jsonl"],
        ),
        (["--corpus-kind", "imported"], ["--corpus-kind imported: `actstore import`"]),
        (
            ["--corpus-kind", "jsnl"],
            ["--corpus-kind: there is no 'jsnl' (did you mean jsonl?)", "hub\n"],
        ),
        (
            ["--separator", "moon"],
            [
                "--separator: wanted auto, bos, eos, sep, none or a token id, got 'moon'\n"
            ],
        ),
    ],
)
def test_what_no_command_line_can_harvest_is_refused(
    options: list[str], words: list[str], cli: Cli
) -> None:
    harvest = [
        "harvest", "--model", "builtin:mini", "--corpus", "builtin:stdlib", "--sites", "a", "--tokens", "1k",
        "--out", "nothing",
    ]  # fmt: skip
    refused(cli("actstore", *harvest, *options), *words)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["trainer", "train", "--k", "x"], "'--k': wanted a whole number, got 'x'"),
        (["trainer", "train", "--k", "1.5"], "'--k': wanted a whole number, got '1.5'"),
        (["trainer", "train", "--expansion", "x"], "'--expansion': wanted a number, got 'x'"),
        (["actstore", "info", "s", "--batch", "0"], "'--batch': wanted 1 or more, got '0'"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_refused_in_plain_words(
    words: list[str], refusal: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, _, err = cli(*words)
    assert code == 2
    assert refusal in err


def test_defaults_in_the_help_are_the_schemas(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = cli("trainer", "train", "--help")
    schema = TrainSpec.model_json_schema()
    for name, path in FIELDS.items():
        nodes = fields_at(schema, path)
        assert nodes, path
        line = next(
            line for line in out.splitlines() if f"--{name.replace('_', '-')} " in line
        )
        default = nodes[0].get("default")
        if (
            name not in {"sae", "inner"}
            and default is not None
            and default is not True
            and default is not False
        ):
            assert (
                f"[default: {default:g}]" in line or f"[default: {default}]" in line
                if isinstance(default, float)
                else f"[default: {default}]" in line
            )
    for kind in KINDS:
        assert kind in out
    assert "steered to --target-l0" in out


def completions(program: str, *words: str) -> list[str]:
    """What bash is told when Tab is pressed behind the words."""
    env = {
        **os.environ,
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join([program, *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = (
        f"import sys; sys.argv = [{program!r}]; from {program}.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_tab_completes_commands_options_and_values() -> None:
    assert completions("trainer", "tra") == ["train"]
    assert "--target-l0" in completions("trainer", "train", "--ta")
    assert set(completions("trainer", "train", "--sae", "")) == {
        *KINDS,
        "transcoder",
        "crosscoder",
    }
    assert completions("trainer", "train", "--rescale", "lo") == ["log", "log1p"]
    assert completions("trainer", "train", "--device", "cu") == ["cuda"]
    assert completions("actstore", "harvest", "--codec", "") == ["lz4", "zstd", "raw"]
    assert completions("actstore", "harvest", "--dtype", "b") == ["bfloat16"]
    assert completions("actstore", "harvest", "--separator", "b") == ["bos"]
    assert "memory" not in completions("actstore", "harvest", "--corpus-kind", "")


def test_the_shell_can_be_told() -> None:
    code = "import sys; sys.argv = ['trainer', '--show-completion', 'bash']; from trainer.cli import main; main()"
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert "_TRAINER_COMPLETE=complete_bash" in done.stdout, done.stderr


RUN = ("trainer", "train", "--store", "nowhere", "--out", "nothing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sae", "topk", "--l1", "1"], ["topk has no l1; its sparsity is k"]),
        (
            ["--sae", "topk", "--target-l0", "9"],
            ["topk has no target_l0; its sparsity is k"],
        ),
        (
            ["--sae", "relu_l1", "--k", "1"],
            ["relu_l1 has no k; its sparsity is l1 or target_l0"],
        ),
        (
            ["--sae", "jumprelu", "--l1", "1"],
            ["jumprelu has no l1; its sparsity is l0 or target_l0"],
        ),
        (
            ["--sae", "transcoder", "--inner", "gated", "--k", "1"],
            ["gated has no k; its sparsity is l1"],
        ),
        (["--aligned", "--l1", "1"], ["topk has no l1"]),
        (["--sae", "topk", "--inner", "gated"], ["topk has no inner"]),
        (["--sae", "tokp"], ["--sae: there is no 'tokp'", "did you mean topk?"]),
        (
            ["--rescale", "lg"],
            ["--rescale: there is no 'lg'", "did you mean log?", *get_args(Rescale)],
        ),
        (["--lr", "fast"], ["--lr: wanted auto or a number above 0, got 'fast'"]),
        (["--rows", "1.5"], ["--rows: '1.5' is not a whole count"]),
        (["--dead-rows", "0"], ["--dead-rows: wanted auto or a count above 0"]),
        (["--warmup", "2"], ["--warmup: wanted a number from 0 to 1, got 2"]),
        (
            ["--sae", "relu_l1", "--l1", "1", "--target-l0", "3"],
            ["--l1 and --target-l0 exclude each other"],
        ),
        (["--l1", "1", "--l0", "1"], ["--l1 and --l0 exclude each other"]),
        (
            ["--aligned", "--pairs-with", "a"],
            ["--aligned and --pairs-with exclude each other"],
        ),
        (["--name", ""], ["--name: wanted text of 1 to 120 characters"]),
    ],
)
def test_an_option_that_does_not_act_is_refused_by_name(
    options: list[str], words: list[str], cli: Cli
) -> None:
    refused(cli(*RUN, *options), *words)


def test_options_and_files_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "sae: {kind: topk, l1: 3}\nstream: {rescal: log}\noptimizer: {lr: 1}\nrows: many\n"
    )
    result = cli(*RUN, "--spec", str(spec), "--batch", "0")
    refused(
        result,
        "error: --batch: wanted a count above 0",
        f"; {spec}: ",
        "topk has no l1; its sparsity is k",
    )
    refused(
        result,
        "did you mean stream.rescale?",
        "did you mean optimiser?",
        "rows: 'many' is not a count",
    )
    for text, words in {
        "sae: topk": ["sae: wanted keys and values, got 'topk'"],
        "stream: 3": ["stream: wanted keys and values, got 3"],
        "lr: 0.1": ["lr: there is no such key; did you mean optimiser.lr?"],
        "- a": ["wanted keys and values, got list"],
    }.items():
        spec.write_text(text)
        refused(cli(*RUN, "--spec", str(spec)), str(spec), *words)
    sweep = tmp_path / "sweep.yaml"
    for text, words in {
        "base: {store: x, sae: {kind: topk}}\ngrid: {sae.l1: [1, 2]}": [
            "run l1=1",
            "topk has no l1",
        ],
        "base: {store: x, sae: topk}\ngrid: {sae.k: [1, 2]}": ["sae.k", "'topk'"],
        "base: {store: x}\ngird: {sae.k: [1, 2]}": [
            "gird: there is no such key; did you mean grid?"
        ],
    }.items():
        sweep.write_text(text)
        refused(
            cli("trainer", "sweep", str(sweep), "--out", str(tmp_path / "out")),
            str(sweep),
            *words,
        )


def test_every_option_of_a_field_gets_there(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "store": "s", "name": "n", "sae": "relu_l1", "expansion": 4.0, "target_l0": 20.0, "sites": ["a", "b"],
        "follow": True, "rescale": "log", "center": False, "batch": "1k", "rows": "1M", "lr": "auto", "warmup": 0.1,
        "init": "random", "dead_rows": "500k", "seed": 0, "precision": "bfloat16", "checkpoint_every": "2k",
        "checkpoint_minutes": 1.5, "log_every": "10", "snapshots": 3,
    }  # fmt: skip
    made = load_spec(None, from_options(given))
    flat = {
        **made.model_dump(),
        **{f"sae.{k}": v for k, v in made.sae.model_dump().items()},
    }
    flat |= {f"stream.{k}": v for k, v in made.stream.model_dump().items()}
    flat["optimiser.lr"], flat["optimiser.warmup"] = (
        made.optimiser.lr,
        made.optimiser.warmup,
    )
    wanted = {
        "batch": 1000,
        "rows": 10**6,
        "dead_rows": 500_000,
        "checkpoint_every": 2000,
        "log_every": 10,
        "snapshots": 3,
    }
    for name, value in {**given, **wanted, "sites": ("a", "b")}.items():
        assert flat[FIELDS[name]] == value, name
    left = {"k", "l1", "l0", "alpha", "inner", "pairs_with"}
    assert set(FIELDS) == {*given, *left}
    assert (
        load_spec(
            None, from_options({"store": "s", "sae": "nsae", "alpha": 0.0})
        ).sae.alpha
        == 0
    )
    paired = load_spec(
        None,
        from_options(
            {"store": "s", "pairs_with": ["b"], "sites": ["a"], "k": 3, "seed": 7}
        ),
    )
    assert (paired.sae.kind, paired.sae.inner.k, paired.stream.mode) == (
        "transcoder",
        3,
        "pairs",
    )
    assert (paired.seed, paired.stream.seed) == (7, 7)
    assert {path.removeprefix("sae.") for path in OF_LATENTS} <= {
        field
        for one in (
            *get_args(TranscoderInner),
            *get_args(CrosscoderInner),
            *get_args(FlatSpec),
        )
        for field in one.model_fields
    }


def test_yaml_reads_counts_and_sizes_as_options_do(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "store: s\nsae: {kind: relu_l1, l1: 0.4}\nrows: 1M\ndead_rows: 500k\n"
        "stream: {memory: 20GB, limit_rows: 1e6, batch: 4k, sites: a.*}\nresample: {every: 50M}\n"
    )
    # takes the place of the file's weight
    made = load_spec(str(path), {"sae.target_l0": 16.0})
    assert (made.rows, made.dead_rows, made.stream.memory) == (
        10**6,
        500_000,
        20 * 10**9,
    )
    assert (made.stream.limit_rows, made.stream.batch, made.stream.sites) == (
        10**6,
        4000,
        ("a.*",),
    )
    assert (made.sae.l1, made.sae.target_l0) == (None, 16)
    again = yaml.safe_load(made.to_json())
    assert (again["rows"], again["stream"]["memory"], again["resample"]["every"]) == (
        10**6,
        20 * 10**9,
        50_000_000,
    )
    assert TrainSpec.model_validate(again) == made


def test_help_leaves_a_command_as_it_was() -> None:
    """Defaults that help shows are a spec's, and would override those of a file."""
    command: Any = command_group(trainer.cli.app).commands["train"]

    def described() -> list[tuple[Any, ...]]:
        return [
            (param.name, param.default, param.metavar, param.help)
            for param in command.params
        ]

    before = described()
    command.get_help(command.make_context("train", [], resilient_parsing=True))
    assert described() == before
