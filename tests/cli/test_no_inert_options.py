"""No option is inert: for every option of every command there is a command line whose
outcome it changes.

The tables name each option once. A new one that is in no table fails
`test_every_option_is_in_a_table`.
"""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import actstore
import actstore.cli
import trainer.cli
from actstore.console.shared_options import SHARED
from actstore.errors import SpecError
from actstore.harvesting import estimate
from actstore.harvesting.harvest_options import FIELDS as OF_HARVEST
from actstore.harvesting.harvest_options import spec_options
from actstore.inspect import verify
from actstore.store.norms_of_sites import compute_norms
from schemas.train import TrainSpec
from tests.cli.conftest import Cli, command_group
from tests.support import make_store
from trainer.analysis.evidence import write_evidence
from trainer.exports.export import export
from trainer.training.train_group import train_group
from trainer.training.train_options import FIELDS as OF_TRAINING
from trainer.training.train_spec import from_options, load_spec

Outcome = tuple[int, str, dict[str, bytes]]
ROOT = Path(__file__).parent.parent
SITE, OTHER = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"

HARVEST_VALUES: dict[str, Any] = {
    "model": "m", "corpus": "c", "sites": ["a"], "tokens": "2k", "model_dtype": "bfloat16", "revision": "r",
    "autocast": "bfloat16", "compiled": True, "batch": 3, "context": 9, "pack": False, "prepend_bos": True,
    "corpus_kind": "text", "corpus_revision": "r", "corpus_config": "c", "split": "test", "text_column": "t",
    "token_column": "t", "separator": "eos", "trust_remote_code": True, "exclude_special_tokens": True, "skip_first": 1, "exclude_tokens": "ids.txt", "dtype": "int8",
    "codec": "raw", "seed": 1, "memory": "1GB", "unit_sequences": 5, "chunk_rows": 7,
}  # fmt: skip
TRAIN_VALUES: dict[str, Any] = {
    "store": "t", "sae": "matryoshka", "expansion": 3.0, "k": 5, "sites": ["a"], "follow": True, "rescale": "log",
    "center": False, "batch": "1k", "rows": "1M", "lr": "0.1", "warmup": 0.5, "init": "random", "dead_rows": "5k",
    "seed": 3, "precision": "bfloat16", "checkpoint_every": "5", "checkpoint_minutes": 1.0, "log_every": "3", "snapshots": 2,
    "name": "n", "pairs_with": ["b"],
}  # fmt: skip
OF_OTHER_KINDS: dict[str, tuple[str, Any]] = {  # option: the kind that has it, a value
    "target_l0": ("relu_l1", 5.0), "l1": ("relu_l1", 0.1), "l0": ("jumprelu", 0.1), "alpha": ("nsae", 0.1),
    "inner": ("transcoder", "relu_l1"),
}  # fmt: skip

# Without an engine the others are refused; tests/engines has what each does with one.
OF_ENGINES = {
    "--engine": "--engine nosuch", "--workers": "--workers 2", "--partition": "--partition p", "--time": "--time 90",
    "--account": "--account a",
}  # fmt: skip
# (program and command, words that it takes) -> option: words that change its exit code,
# its output or what it writes
CHANGES: dict[tuple[str, str], dict[str, str]] = {
    ("actstore harvest", f"--model builtin:mini --corpus builtin:stdlib --sites {SITE} --tokens 512 --context 32 --out o"): {
        "--out": "--out p", "--device": "--device nosuch", "--worker": "--worker 1/2", "--json": "--json",
        **OF_ENGINES,
    },
    ("actstore extend", f"m --sites {OTHER}"): {
        "--sites": "--sites blocks.0.hook_resid_post", "--tokens": "--tokens 512", "--device": "--device nosuch",
        "--worker": "--worker 1/2", "--json": "--json", "--trust-remote-code": "--trust-remote-code",
    },
    ("actstore sites", "--model builtin:mini"): {
        "--model": "--model builtin:tiny", "--revision": "--revision main", "--json": "--json",
        "--trust-remote-code": "--trust-remote-code",
    },
    ("actstore import", "x.safetensors --key a --token-key ids --out o"): {
        "--out": "--out p", "--site": "--site z", "--format": "--format npy", "--key": "--key b", "--tokens": "--tokens t.npy",
        "--token-key": "--token-key b", "--context": "--context 8", "--rows": "--rows 32", "--model": "--model gpt",
        "--dtype": "--dtype float32", "--codec": "--codec raw", "--seed": "--seed 1", "--memory": "--memory 64KiB",
        "--unit-sequences": "--unit-sequences 16", "--chunk-rows": "--chunk-rows 16", "--json": "--json",
    },
    ("actstore toy", "--rows 400 --dims 8 --features 16 --l0 2 --out o"): {
        "--out": "--out p", "--rows": "--rows 300", "--dims": "--dims 9", "--features": "--features 17", "--l0": "--l0 1",
        "--exponent": "--exponent 0.3", "--topics": "--topics 2", "--boost": "--boost 2", "--trees": "--trees 99",
        "--noise": "--noise 0.5", "--seed": "--seed 1", "--dtype": "--dtype float32", "--json": "--json",
    },
    ("actstore info", "s"): {"--json": "--json", "--shuffle": "--shuffle", "--batch": "--batch 128"},
    ("actstore info", "s --shuffle"): {"--batch": "--batch 128", "--json": "--json"},
    ("actstore norms", "s"): {"--json": "--json", "--plot": "--plot p.html"},
    ("actstore verify", "s"): {"--json": "--json"},
    ("actstore diff", "s s"): {"--json": "--json"},
    ("actstore ls", "."): {"--json": "--json"},
    ("actstore rm", "s --yes"): {"--json": "--json"},
    ("actstore du", "s"): {"--json": "--json"},
    ("actstore gc", "."): {"--json": "--json", "--older-than": "--older-than 0.5"},
    ("actstore cp", "s c"): {"--sites": f"--sites {OTHER}", "--units": "--units 0:2", "--json": "--json"},
    ("actstore pull", "s c"): {"--sites": f"--sites {OTHER}", "--units": "--units 0:2", "--json": "--json"},
    ("trainer train", "--store s --out o --sae topk --k 3 --expansion 2 --batch 128 --rows 256"): {
        "--out": "--out p", "--spec": "--spec spec.yaml", "--aligned": "--aligned", "--device": "--device nosuch",
        "--on-corrupt": "--on-corrupt nosuch", "--shard-dictionary": "--shard-dictionary",
    },
    ("trainer sweep", "sweep.yaml --out o"): {
        "--out": "--out p", "--store": "--store s2", "--device": "--device nosuch", "--on-corrupt": "--on-corrupt nosuch",
        "--shard-dictionary": "--shard-dictionary", **OF_ENGINES,
    },
    ("trainer eval", "r"): {
        "--store": "--store s2", "--split": "--split train", "--rows": "--rows 100", "--all-rows": "--all-rows",
        "--trust-remote-code": "--trust-remote-code",
        "--device": "--device nosuch", "--json": "--json", "--sequences": "--sequences 2",
    },
    ("trainer eval", "plain"): {
        "--all-rows": "--all-rows", "--ce": "--ce --sequences 2", "--checkpoints": "--checkpoints",
    },
    ("trainer eval", "plain --ce --sequences 2"): {"--sequences": "--sequences 1", "--model": "--model builtin:tiny"},
    ("trainer calibrate", "r"): {
        "--store": "--store s2", "--l0": "--l0 2", "--all-rows": "--all-rows", "--device": "--device nosuch",
    },
    ("trainer calibrate", "plain"): {"--all-rows": "--all-rows"},
    ("trainer report", "r --out page.html"): {
        "--out": "--out p.html", "--store": "--store s2", "--latents": "--latents 0", "--title": "--title T",
        "--text": "--text T", "--with": "--with evidence",
        "--trust-remote-code": "--trust-remote-code",
    },
    ("trainer explore", "plain --page page.html"): {
        "--page": "--page p.html", "--beside": "--beside plain", "--store": "--store s2", "--split": "--split train",
        "--rows": "--rows 8", "--contexts": "--contexts 1", "--no-logits": "--no-logits", "--out": "--out e",
        "--model": "--model builtin:tiny", "--device": "--device nosuch", "--trust-remote-code": "--trust-remote-code",
        "--memory": "--memory none",
    },
    ("trainer export", "r o"): {"--to": "--to safetensors", "--store": "--store s2", "--private": "--private"},
    ("trainer import", f"theirs/{SITE} --out o"): {
        "--out": "--out p", "--site": "--site z", "--store": "--store s", "--scale": "--scale 2",
    },
}  # fmt: skip
CLIENT = "cli/test_client_commands.py::"
# What a command line in this process cannot show: where it is tested.
ELSEWHERE: dict[str, dict[str, str]] = {
    "actstore plan": {
        "--device": "cli/test_plan.py::test_mistakes_are_named_before_anything_is_run",
        "--json": "cli/test_plan.py::test_prices_change_the_money_as_arithmetic_says",
        "--batches": "cli/test_no_inert_options.py::test_batches_of_a_plan",
        "--bandwidth": "cli/test_plan.py::test_slow_storage_bounds_the_reading_and_may_never_pay",
        **{f"--{name}": "cli/test_plan.py::test_prices_change_the_money_as_arithmetic_says"
           for name in ("storage-price", "put-price", "get-price", "egress-price", "device-price", "months")},
    },
    "actstore verify": {
        "--repair": "store/test_verify.py::test_zarr_json_is_repaired_and_nothing_else_is",
        "--threads": "cli/test_no_inert_options.py::test_threads_of_verify",
        "--deep": "cli/test_verify_deep.py::test_the_command",
        **{f"--{name}": "cli/test_verify_deep.py::test_each_option_changes_what_is_looked_at"
           for name in ("rows", "all", "seed", "model", "device", "trust-remote-code")},
    },
    "actstore ls": {
        f"--{name}": "catalog/test_listing.py::test_stores_are_filtered" for name in ("name", "model", "corpus", "site")
    },
    "actstore runs": {
        f"--{name}": "catalog/test_listing.py::test_runs_are_filtered_and_sorted"
        for name in ("name", "model", "site", "sae", "sort", "json")
    },
    "actstore rm": {"--yes": "catalog/test_remove.py::test_a_store_that_runs_need_is_not_removed"},
    "actstore gc": {"--delete": "catalog/test_leftovers.py::test_an_abandoned_harvest_goes_and_others_stay"},
    "actstore unpublish": {
        "--kind": "catalog/test_remove.py::test_a_store_and_a_run_may_have_one_name",
        "--json": "catalog/test_remove.py::test_names_are_taken_out_one_by_one",
    },
    **{command: {"--threads": "sharing/test_commands.py::test_threads", "--verify": "sharing/test_commands.py::test_verify_of_a_copy"}
       for command in ("actstore cp", "actstore pull")},
    "actstore push": {"--threads": "sharing/test_commands.py::test_threads",
                      **{f"--{name}": "sharing/test_commands.py::test_options_of_push" for name in ("sites", "units", "verify", "json")}},
    "actstore publish": {  # what it writes has the time in it
        "--by": "catalog/test_publish.py::test_who_published_it_is_recorded_or_left_out",
        "--anonymous": "catalog/test_publish.py::test_who_published_it_is_recorded_or_left_out",
        "--json": "catalog/test_publish.py::test_who_published_it_is_recorded_or_left_out",
    },
    "actstore diff": {"--rows": "cli/test_diff.py::test_the_command", "--seed": "cli/test_diff.py::test_the_command"},
    "actstore doctor": {"--json": "cli/test_doctor.py::test_a_round_trip_in_a_folder_leaves_nothing"},
    "trainer train": {
        "--resume": "trainer/runs/test_stores.py::test_training_goes_on_with_its_own_store_only",
        "--tensorboard": "trainer/training/test_sinks.py::test_what_is_missing_is_named_before_anything_is_written",
        "--wandb": "trainer/training/test_sinks.py::test_what_is_missing_is_named_before_anything_is_written",
        "--mlflow": "trainer/training/test_sinks.py::test_what_is_missing_is_named_before_anything_is_written",
        "--trackio": "trainer/training/test_sinks.py::test_what_is_missing_is_named_before_anything_is_written",
    },
    "trainer explore": {
        "--again": "trainer/explorer/test_files.py::test_what_is_there_is_used_and_what_does_not_fit_is_refused",
        "--port": "trainer/explorer/test_files.py::test_only_get_and_only_our_names",
        "--no-open": "trainer/explorer/test_files.py::test_the_command_serves_until_it_is_told_to_stop",
        # Besides being refused: what it bounds.
        "--memory": "trainer/explorer/test_memory.py::test_memory_is_bounded_whatever_the_dictionary",
    },
    "trainer serve": {
        f"--{name}": "service/test_serve_command.py::test_each_option_changes_what_is_served"
        for name in ("runs", "state", "stores", "host", "port", "tls-cert", "tls-key", "behind-proxy", "proxy", "slots",
                     "device", "executor")
    },
    "trainer sweep": {
        "--resume": "trainer/runs/test_stores.py::test_training_goes_on_with_its_own_store_only",
        "--tensorboard": "trainer/training/test_sinks.py::test_each_run_of_a_sweep_has_its_own",
        "--wandb": "trainer/training/test_sinks.py::test_each_run_of_a_sweep_has_its_own",
        "--mlflow": "trainer/training/test_sinks.py::test_each_run_of_a_sweep_is_one_of_trackio_and_of_mlflow",
        "--trackio": "trainer/training/test_sinks.py::test_each_run_of_a_sweep_is_one_of_trackio_and_of_mlflow",
        "--memory": "trainer/training/test_sweep.py::test_the_command_prints_its_plan_and_resumes_what_is_left",
    },
    **{f"trainer {command}": {
        "--service": f"{CLIENT}test_each_says_which_service_and_whose_token",
        "--token-file": f"{CLIENT}test_each_says_which_service_and_whose_token",
        "--json": f"{CLIENT}{shows}",
        **{f"--{name}": f"{CLIENT}{test}" for name, test in more.items()},
    } for command, shows, more in (
        ("submit", "test_submit", {
            "name": "test_submit", "priority": "test_submit", "dry-run": "test_a_dry_run_tells_what_it_would_take",
            "follow": "test_submit_follows_and_tells_of_a_failure"}),
        ("runs", "test_runs", dict.fromkeys(("state", "user", "sweep", "text", "most"), "test_runs")),
        ("logs", "test_logs_cancel_and_resume", {"follow": "test_logs_cancel_and_resume"}),
        ("cancel", "test_logs_cancel_and_resume", {}),
        ("resume", "test_logs_cancel_and_resume", {}),
    )},
}  # fmt: skip
# Options that many commands have through one table: what each changes, and that it is
# refused where it would change nothing.
SHARED_BY_MANY: dict[str, tuple[str, ...]] = {
    "--storage-options": (
        "cli/test_shared_options.py::test_it_holds_for_the_command_only",
        "cli/test_shared_options.py::test_where_it_would_change_nothing_it_is_refused",
    ),
    "--cache": ("cli/test_cache_options.py::test_training_fills_a_cache",),
    "--cache-size": ("cli/test_cache_options.py::test_training_fills_a_cache",),
    "--catalog": ("catalog/test_names.py::test_the_option_says_which_catalog",),
}
FIELDS = {
    "actstore harvest": OF_HARVEST,
    "actstore plan": OF_HARVEST,
    "trainer train": OF_TRAINING,
}
NAMES = {"compiled": "compile"}  # parameters whose option is called otherwise


def commands() -> dict[str, list[str]]:
    """The options of every command."""
    apps = {"actstore": actstore.cli.app, "trainer": trainer.cli.app}
    return {
        f"{program} {name}": [
            one.opts[0]
            for one in command.params
            if one.opts[0].startswith("--") and one.name != "help"
        ]
        for program, app in apps.items()
        for name, command in command_group(app).commands.items()
    }


def test_every_option_is_in_a_table() -> None:
    for command, options in commands().items():
        known = {
            f"--{NAMES.get(name, name).replace('_', '-')}"
            for name in FIELDS.get(command, ())
        }
        known |= set(ELSEWHERE.get(command, ()))
        known |= set(SHARED_BY_MANY)
        for (of, _), changes in CHANGES.items():
            known |= set(changes) if of == command else set()
        assert set(options) <= known, (
            f"{command}: no table says what {sorted(set(options) - known)} change"
        )
    assert set(SHARED_BY_MANY) == {shared.name for shared in SHARED}
    assert set(OF_HARVEST) == set(HARVEST_VALUES)
    assert set(OF_TRAINING) == {*TRAIN_VALUES, *OF_OTHER_KINDS}


@pytest.mark.parametrize(
    "where",
    sorted(
        {one for of in ELSEWHERE.values() for one in of.values()}
        | {one for of in SHARED_BY_MANY.values() for one in of}
    ),
)
def test_what_is_tested_elsewhere_is_there(where: str) -> None:
    file, _, name = where.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("name", HARVEST_VALUES)
def test_an_option_of_a_harvest_is_in_its_spec(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("7\n")
    base: dict[str, Any] = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": [SITE],
        "tokens": "1k",
    }
    assert spec_options(**{**base, name: HARVEST_VALUES[name]}) != spec_options(**base)


@pytest.mark.parametrize("name", OF_TRAINING)
def test_an_option_of_training_is_in_its_spec(name: str) -> None:
    kind, value = OF_OTHER_KINDS.get(name) or (None, TRAIN_VALUES[name])
    base = {
        "store": "s",
        **({"sae": kind} if kind else {}),
        **({"pairs_with": ["c"]} if kind == "transcoder" else {}),
    }
    assert load_spec(None, from_options({**base, name: value})) != load_spec(
        None, from_options(base)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands take: stores s, s2 (synthetic) and m (of a
    model), runs, arrays, files.
    """
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stores = [
            make_store(name, n_units=21, seed=seed)
            for name, seed in (("s", 0), ("s2", 1))
        ]
        what = {
            "model": "builtin:mini",
            "corpus": "builtin:stdlib",
            "sites": SITE,
            "context": 32,
            "unit_sequences": 2,
        }
        of_model = actstore.harvest({**what, "tokens": 32 * 42}, "m")
        sae = {"kind": "batch_topk", "k": 3, "expansion": 2}
        stream = {"batch": 128, "filter": {"positions": [4, 32]}}
        train_group(
            stores[0],
            {
                "r": TrainSpec.model_validate(
                    {"store": "", "sae": sae, "stream": stream, "rows": 256}
                )
            },
        )
        plain = TrainSpec.model_validate(
            {"store": "", "sae": sae, "stream": {"batch": 128}, "rows": 256}
        )
        train_group(of_model, {"plain": plain})
        export("r", "theirs", "saelens")
        norms = compute_norms(stores[0])
        write_evidence(norms, "evidence")
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    ids = np.arange(64, dtype=np.int32)
    save_file({"a": x, "b": x + 1, "ids": ids}, folder / "x.safetensors")
    np.save(folder / "t.npy", ids)
    (folder / "spec.yaml").write_text("optimiser: {weight_decay: 0.1}\n")
    (folder / "sweep.yaml").write_text(
        "base: {store: s, sae: {kind: topk, k: 3, expansion: 2}, stream: {batch: 128}, rows: 256}\ngrid: {seed: [1]}\n"
    )
    return folder


OUTCOMES: dict[tuple[str, str], Outcome] = {}
STORE_OF = {"r": "s", "plain": "m", "sweep.yaml": "s"}


def copy_of_what_is_named(made: Path, at: Path, words: str) -> Path:
    """A folder with what the words name, and the stores that runs need: all of it would
    be a thousand files for each command line.
    """
    named = {word.split("/")[0] for word in words.split()}
    named |= {STORE_OF[name] for name in named & STORE_OF.keys()}
    folder = at / str(len(list(at.iterdir()))) / "here"
    folder.mkdir(parents=True)
    for path in made.iterdir():
        if path.name in named or "." in named:
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / path.name)
    return folder


def is_as_it_was(path: Path, before: Path) -> bool:
    """Whether a copy is what was copied: by the time of writing, which copies keep, or
    by every byte.
    """
    if not before.is_file():
        return False
    one, other = path.stat(), before.stat()
    if (one.st_mtime_ns, one.st_size) == (other.st_mtime_ns, other.st_size):
        return True
    return path.read_bytes() == before.read_bytes()


def outcome(
    made: Path, at: Path, cli: Cli, patch: pytest.MonkeyPatch, command: str, words: str
) -> Outcome:
    """Exit code, output, and the files that are new or changed, of a command in a copy
    of the folder.
    """
    folder = copy_of_what_is_named(made, at, words)
    patch.chdir(folder)
    code, out, _ = cli(*command.split(), *words.split())
    files = {}
    for path in (one for one in folder.rglob("*") if one.is_file()):
        # times, and the process' random state
        if (
            path.name in {"journal.jsonl", "machine.json"}
            or "checkpoints" in path.parts
        ):
            continue
        name = str(path.relative_to(folder))
        if not is_as_it_was(path, made / name):
            files[name] = path.read_bytes().replace(str(folder).encode(), b"HERE")
    return code, out.replace(str(folder), "HERE"), files


def without_options(
    made: Path, at: Path, cli: Cli, patch: pytest.MonkeyPatch, command: str, words: str
) -> Outcome:
    """The outcome of the words alone, which succeed."""
    if (command, words) not in OUTCOMES:
        OUTCOMES[command, words] = outcome(made, at, cli, patch, command, words)
    assert OUTCOMES[command, words][0] == 0
    return OUTCOMES[command, words]


@pytest.mark.parametrize(
    ("command", "words", "option"),
    [(*key, option) for key, options in CHANGES.items() for option in options],
)
def test_an_option_changes_what_comes_of_a_command(
    command: str,
    words: str,
    option: str,
    made: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = without_options(made, tmp_path, cli, monkeypatch, command, words)
    words = f"{words} {CHANGES[command, words][option]}"
    assert outcome(made, tmp_path, cli, monkeypatch, command, words) != without


@pytest.mark.parametrize(
    ("command", "words"), [key for key in CHANGES if key[0] != "trainer report"]
)
def test_without_it_the_outcome_is_always_the_same(
    command: str,
    words: str,
    made: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the test above can fail. The page of a report has names of figures that
    are drawn.
    """
    without = without_options(made, tmp_path, cli, monkeypatch, command, words)
    assert outcome(made, tmp_path, cli, monkeypatch, command, words) == without


def test_batches_of_a_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*_: Any, batches: int, **__: Any) -> None:
        raise SpecError(f"{batches} batches")

    monkeypatch.setattr(estimate, "estimate", told)
    words = [
        "--model",
        "builtin:mini",
        "--corpus",
        "builtin:stdlib",
        "--sites",
        SITE,
        "--tokens",
        "1k",
    ]
    assert cli("actstore", "plan", *words)[2] == "error: 3 batches\n"
    assert cli("actstore", "plan", *words, "--batches", "7")[2] == "error: 7 batches\n"


def test_threads_of_verify(
    made: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int, *rest: Any, **more: Any) -> None:
            seen.append(threads)
            super().__init__(threads, *rest, **more)

    monkeypatch.setattr(verify, "ThreadPoolExecutor", Pool)
    assert cli("actstore", "verify", str(made / "s"), "--threads", "3")[0] == 0
    assert cli("actstore", "verify", str(made / "s"))[0] == 0
    assert seen == [3, 4]


@pytest.mark.parametrize("device", ["nosuch", "auto", "cuda:99", "meta"])
def test_a_device_that_is_none_is_refused(
    device: str, made: Path, tmp_path: Path, cli: Cli
) -> None:
    run, out = str(made / "r"), str(tmp_path / "o")
    for words in (
        ["train", "--store", str(made / "s"), "--out", out],
        ["sweep", str(made / "sweep.yaml"), "--out", out],
        ["eval", run],
        ["calibrate", run],
    ):
        code, _, err = cli("trainer", *words, "--device", device)
        assert code == 1
        assert re.search(rf"^error: (--)?device.*'{device}'", err), err
    assert not (tmp_path / "o").exists()
