"""The door of the public functions: what cannot be used is a SpecError that names the
function and the argument, before anything is written.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
import trainer
from actstore import arguments
from actstore.console.user_warnings import warn
from actstore.errors import ActstoreError, HarvestWarning, SpecError
from actstore.store.store import Store
from tests.support import make_store
from trainer.errors import SaeError

HARVEST = {
    "model": "builtin:tiny",
    "corpus": "builtin:stdlib",
    "sites": "blocks.0.hook_mlp_out",
    "tokens": 512,
}
TRAIN = {"store": "no store", "sae": {"k": 2}, "rows": 512}
SWEEP = {"base": TRAIN, "grid": {"sae.k": [1, 2]}}

# Every public function, with arguments that are sound as far as the door can see.
FUNCTIONS: dict[Callable[..., Any], tuple[Any, ...]] = {
    actstore.harvest: (HARVEST, "out"),
    actstore.extend: ("no store",),
    actstore.open: ("no store",),
    actstore.import_activations: (np.ones((8, 4), np.float32), "out"),
    actstore.estimate: (HARVEST,),
    actstore.sites: ("builtin:tiny",),
    actstore.stores: ("no folder",),
    actstore.verify: ("no store",),
    actstore.copy: ("no store", "out"),
    actstore.publish: ("no store", "name"),
    actstore.unpublish: ("name",),
    actstore.published: (),
    actstore.remove: ("no store",),
    actstore.usage: ("no folder",),
    actstore.leftovers: ("no folder",),
    actstore.verify_deep: ("no store",),
    actstore.diff: ("no store", "no store"),
    actstore.examine: (),
    trainer.train: (TRAIN, "out"),
    trainer.sweep: (SWEEP, "out"),
    trainer.evaluate: ("no run",),
    trainer.evaluate_checkpoints: ("no run",),
    trainer.calibrate: ("no run",),
    trainer.explore: ("no run",),
    trainer.report: ("no run",),
    trainer.export: ("no run", "out"),
    trainer.import_sae: ("no folder", "out"),
    trainer.load: ("no run",),
}
# What the functions check by themselves, as it may be of many types.
OWN = {
    "harvest": {"spec", "tokens", "tokenizer"},
    "extend": {"source", "tokenizer"},
    "estimate": {"spec", "tokens", "tokenizer"},
    "verify": {"store"},
    "verify_deep": {"store", "model"},
    "diff": {"a", "b"},
    "import_activations": {"source", "tokens", "stored"},
    "train": {"spec"},
    "sweep": {"spec"},
    "import_sae": {"store"},
}
NAMES = [function.__name__ for function in FUNCTIONS]


class Strange:
    """A value that no argument takes."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_all_public_functions_are_held_to_this() -> None:
    public = [getattr(actstore, name) for name in actstore.__all__]
    public += [getattr(trainer, name) for name in trainer.__all__]
    functions = {one for one in public if inspect.isfunction(one)}
    assert functions == set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_every_argument_is_checked(function: Any) -> None:
    own = OWN.get(function.__name__, set())
    assert set(inspect.signature(function).parameters) == set(function.checks) | own
    assert not set(function.checks) & own


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_a_strange_value_is_refused_by_name_and_nothing_is_written(
    function: Any, tmp_path: Path
) -> None:
    positional = FUNCTIONS[function]
    signature = inspect.signature(function)
    for name in function.checks:
        given = signature.bind(*positional).arguments
        given[name] = Strange()
        with pytest.raises(SpecError) as caught:
            function(**given)
        assert str(caught.value).startswith(f"{function.__name__}: {name}: wanted ")
        assert str(caught.value).endswith("got Strange")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_none_is_taken_where_it_is_the_default_and_nowhere_else(function: Any) -> None:
    signature = inspect.signature(function)
    for name, check in function.checks.items():
        if signature.parameters[name].default is None:
            assert check(None) is None
        else:
            with pytest.raises(arguments.Refused):
                check(None)


@pytest.mark.parametrize(
    ("check", "taken", "refused"),
    [
        (
            arguments.folder,
            [("a", "a"), (Path("a/b"), "a/b"), ("s3://a/b", "s3://a/b")],
            ["", "  ", 3, b"a", "a\0b", ["a"]],
        ),
        (
            arguments.folders,
            [("a", ["a"]), (["a", Path("b")], ["a", "b"]), ((), [])],
            [3, [3], b"ab", {"a": 1}],
        ),
        (
            arguments.flag,
            [(True, True), (False, False), (np.True_, True)],
            ["no", "yes", 0, 1],
        ),
        (
            arguments.count,
            [(1, 1), ("50k", 50_000), (np.int64(7), 7), ("1e3", 1000)],
            [0, -1, True, 1.5, 2.0, "", "x", "-5", float("nan"), [1]],
        ),
        (arguments.count_from_0, [(0, 0), ("2k", 2000)], [-1, False, "3.5"]),
        (
            arguments.size,
            [("1MB", 10**6), (10**9, 10**9), ("1k", 1024)],
            [0, -5, "x", 1.5, True, ""],
        ),
        (
            arguments.positive,
            [(6, 6), (0.5, 0.5), (np.float64(2), 2.0)],
            [0, -1.0, float("inf"), float("nan"), True, "4"],
        ),
        (arguments.text, [("a b", "a b")], ["", " ", 3, b"a"]),
        (
            arguments.device,
            [("cpu", "cpu"), (torch.device("cpu"), "cpu")],
            ["", 0, ["cpu"]],
        ),
        (
            arguments.texts,
            [("a", ("a",)), (["a", "b"], ("a", "b")), ((), ())],
            [1, [1]],
        ),
        (arguments.names, [("a", ("a",)), (["a", "b"], ("a", "b"))], ["", [], [""], 3]),
        (arguments.choice("a", "b"), [("a", "a")], ["c", "", 1]),
        (
            arguments.mapping,
            [({}, {}), ({"anon": True}, {"anon": True})],
            [{1: 2}, [("a", 1)], "a=1"],
        ),
        (arguments.optional(arguments.count), [(None, None), (3, 3)], [0]),
    ],
)
def test_what_a_check_takes_and_refuses(
    check: arguments.Check, taken: list[tuple[Any, Any]], refused: list[Any]
) -> None:
    for value, result in taken:
        came = check(value)
        assert came == result
        assert type(came) is type(result) or isinstance(value, np.generic)
    for value in refused:
        with pytest.raises(arguments.Refused):
            check(value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: actstore.harvest(None, "out"), "dict of its fields, got NoneType"),  # type: ignore[arg-type]
        (lambda: actstore.harvest([1], "out"), "dict of its fields, got list"),  # type: ignore[arg-type]
        (lambda: actstore.harvest(HARVEST, "out", tokenizer="x"), "leave it out"),
        (lambda: actstore.harvest(HARVEST, "out", tokens="text"), "put a text into"),
        (lambda: actstore.harvest(HARVEST, "out", options={"a": 1}), "no options"),
        (lambda: actstore.harvest(HARVEST, "out", model="gpt2"), "goes into the spec"),  # type: ignore[arg-type]
        (lambda: trainer.train(None, "out"), "wanted a TrainSpec"),  # type: ignore[arg-type]
        (lambda: trainer.train(3, "out"), "wanted a TrainSpec"),  # type: ignore[arg-type]
        (lambda: trainer.train([], "out"), "wanted a TrainSpec"),  # type: ignore[arg-type]
        (lambda: trainer.train("", "out"), "wanted a TrainSpec"),
        (lambda: trainer.train(SWEEP, "out"), "keys of a sweep"),
        (
            lambda: trainer.train(Path("none.yaml"), "out"),
            "none.yaml: there is no such file",
        ),
        (
            lambda: trainer.train({"store": "x", "sae.k": 3, "rows": 10}, "out"),
            "keys are nested: {'sae': {'k': ...}}",
        ),
        (
            lambda: trainer.train(
                {**TRAIN, "stream": {"filter": {"exclude_token": [3]}}}, "out"
            ),
            "stream.filter.exclude_token: there is no such key; did you mean stream",
        ),
        (lambda: trainer.sweep(None, "out"), "wanted a SweepSpec"),  # type: ignore[arg-type]
        (lambda: trainer.sweep(3, "out"), "wanted a SweepSpec"),  # type: ignore[arg-type]
        (
            lambda: actstore.import_activations(
                np.ones((8, 4), np.float32), "out", site="a", tokens="ids.npy"
            ),
            "a path goes with files",
        ),
        (
            lambda: actstore.import_activations(
                np.ones((8, 4), np.float32),
                "out",
                site="a",
                sead=3,  # type: ignore[call-arg]
            ),
            "sead",
        ),
        (
            lambda: actstore.harvest({**HARVEST, "sites": "x"}, "out", device="meta"),
            "device: wanted a device",
        ),
        (
            lambda: actstore.estimate(HARVEST, batches=10**9),
            "batches: wanted a count from 1 to 1,000",
        ),
        (
            lambda: actstore.estimate(
                HARVEST, prices=actstore.Prices(storage=float("nan"))
            ),
            "prices: storage: wanted 0 or more",
        ),
        (
            lambda: actstore.harvest(
                {"model": "builtin:tiny", "sites": "a"}, "out", tokens=[[1, 2], [3]]
            ),
            "documents do not tell how many tokens",
        ),
        (lambda: actstore.sites("builtin:mini", revision="z"), "but revision belongs"),
        (lambda: actstore.verify(3), "verify: store: wanted a Store"),  # type: ignore[arg-type]
        (lambda: trainer.import_sae("none", "out", store=3), "wanted a Store"),  # type: ignore[arg-type]
    ],
)
def test_what_functions_check_themselves(
    call: Callable[[], Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ActstoreError, match=re.escape(words)):
        call()
    assert not list(tmp_path.iterdir())


def test_a_path_is_as_good_as_text(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    out = tmp_path / "store"
    assert actstore.import_activations(rows, out, site="a", rows="100").url == str(out)  # type: ignore[arg-type]
    assert actstore.open(out).manifest.n_rows == 100


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", n_units=24)


def test_a_store_refuses_what_it_does_not_know(store: Store) -> None:
    for call, words in (
        (lambda: store.rows("foo"), "rows: split: wanted train or held_out"),
        (lambda: store.units("foo"), "units: split: wanted train or held_out"),
        (lambda: store.stream(on_corrupt="maybe"), "on_corrupt: wanted error"),  # type: ignore[arg-type]
        (lambda: store.stream(threads=0), "threads: wanted a count"),
        (lambda: store.stream(rank=-1), "rank: wanted a count"),
        (lambda: store.stream(3), "wanted a StreamSpec"),  # type: ignore[arg-type]
        (lambda: store.stream({"bach": 3}), "did you mean batch"),
        (lambda: next(store.read_pieces("a", size=0)), "size: wanted a count"),
        (lambda: store.read(3), "no site 3 in this store"),  # type: ignore[arg-type]
        (lambda: store.stream(device="gpu"), "device 'gpu' cannot be used"),
        (lambda: store.stream(device="meta"), "device: wanted a device"),
    ):
        with pytest.raises(SpecError, match=re.escape(words)):
            call()


def test_a_dictionary_that_no_memory_holds_is_refused(
    store: Store, tmp_path: Path
) -> None:
    sae = {"kind": "topk", "k": 4, "n_latents": 10**12}
    with pytest.raises(SaeError, match=r"1,000,000,000,000 latents .* GB of weights"):
        trainer.train({"store": Path(store.url), "sae": sae, "rows": 4096}, "run")
    assert not (tmp_path / "run").exists()


def test_an_sae_refuses_what_is_no_layer(store: Store) -> None:
    spec = {"store": store.url, "sae": {"k": 2, "n_latents": 8}, "rows": 4096}
    sae = trainer.train(spec, "run")
    x = torch.zeros(3, sae.d)
    for wrong in (0.5, True, [0], "nowhere", 99):
        with pytest.raises(SaeError, match=r"layer|sites"):
            sae.encode(x, wrong)  # type: ignore[arg-type]
    assert sae.encode(x, 0).shape == (3, 8)


def test_a_stream_takes_its_spec_as_keys_and_values(store: Store) -> None:
    with store.stream({"batch": 64, "seed": 3}) as by_keys:
        assert (by_keys.spec.batch, by_keys.spec.seed) == (64, 3)
    with store.stream({"batch": 64}, seed=4) as both:
        assert (both.spec.batch, both.spec.seed) == (64, 4)
    with store.stream() as plain, pytest.raises(SpecError, match="a StreamState"):
        plain.restore(None)  # type: ignore[arg-type]


def test_python_is_told_arguments_and_the_command_line_options() -> None:
    message = "give --all-rows, or --split train; a dash -- stays, and so does x--y"
    told = "give all_rows, or split train; a dash -- stays, and so does x--y"
    assert arguments.for_caller(message) == told
    with arguments.options_are_known():
        assert arguments.for_caller(message) == message
    assert arguments.for_caller(message) == told


def test_an_error_from_deep_down_names_arguments() -> None:
    with pytest.raises(ActstoreError) as caught:
        trainer.evaluate("no run", trust_remote_code=True)
    assert str(caught.value).startswith("trust_remote_code: no model is run")
    with arguments.options_are_known(), pytest.raises(ActstoreError) as caught:
        trainer.evaluate("no run", trust_remote_code=True)
    assert str(caught.value).startswith("--trust-remote-code: no model is run")
    with arguments.options_are_known(), pytest.raises(SpecError) as caught:
        trainer.evaluate("no run", all_rows=3)  # type: ignore[arg-type]
    assert str(caught.value) == "--all-rows: wanted True or False, got 3"


def test_a_warning_shows_the_line_of_the_users_code() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("a word", HarvestWarning)
        rows = np.ones((130, 4))  # float64, which is narrowed
        rows[:, 0] = np.arange(130)
        actstore.import_activations(rows, "narrowed", site="a")
    assert [Path(one.filename) for one in caught] == [Path(__file__)] * len(caught)
    assert len(caught) == 2


def test_a_users_own_schemas_is_told(tmp_path: Path) -> None:
    (tmp_path / "schemas.py").write_text("A = 1\n")
    (tmp_path / "script.py").write_text("import actstore\n")
    root = Path(actstore.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(tmp_path / "schemas.py") in last
    assert "give that file another name" in last
