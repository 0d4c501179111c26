"""A run finds its own store from anywhere, and takes no other one of the same name for
it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import actstore
import trainer
from actstore.errors import ActstoreError
from actstore.format.content_id import content_ids
from actstore.format.storage import Storage
from actstore.harvesting.extend import extend
from actstore.store.store import Store
from schemas.records import EvalRecord, RunRecord, StoreOrigin
from schemas.train import TrainSpec
from tests.support import SITES, grow, make_store
from trainer.cli import app
from trainer.errors import RunError
from trainer.evaluation.cross_entropy_and_kl import model_metrics
from trainer.exports.export import export
from trainer.imports.import_sae import import_sae
from trainer.recipes.__main__ import main as run_recipes
from trainer.reports.report import report
from trainer.training.train_group import train_group

TRAIN = (
    "--sae",
    "batch_topk",
    "--k",
    "3",
    "--expansion",
    "2",
    "--rows",
    "512",
    "--batch",
    "128",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two projects side by side, `one` and `two`: in each a store of the same name, and
    in `one` a run, whose store was given as a path from there.
    """
    folder = tmp_path_factory.mktemp("projects")
    make_store(folder / "one/demo/store", n_units=24)
    make_store(folder / "two/demo/store", n_units=24, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "one")
        said("train", "--store", "demo/store", "--out", "runs/a", *TRAIN)
    return folder


@pytest.fixture
def projects(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, seen from `two`: the folder `../one` has moved since the run was
    trained.
    """
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "two")
    return tmp_path


def said(*words: str) -> str:
    """What a command prints. Raises the error it ends with."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def evaluation(run: str | Path) -> EvalRecord:
    return EvalRecord.model_validate_json(Path(run, "eval.json").read_bytes())


def content_id(store: str | Path) -> str:
    return actstore.open(str(store)).manifest.content_id


def changed(run: str, **update: Any) -> RunRecord:
    """The run's record with other values, and nothing of what is newer than it, as runs
    of earlier versions are.
    """
    record = json.loads(Path(run, "sae.json").read_text())
    Path(run, "sae.json").write_text(
        json.dumps({**record, "store_path": None, **update})
    )
    Path(run, "store.json").unlink(missing_ok=True)
    return trainer.load(run).record


def test_a_record_says_where_its_store_is(made: Path) -> None:
    url, path, own = (
        str(made / "one/demo/store"),
        "../../demo/store",
        content_id(made / "one/demo/store"),
    )
    record = trainer.load(str(made / "one/runs/a")).record
    assert (record.store, record.store_path, record.content_id) == (url, path, own)
    origin = StoreOrigin.model_validate_json(
        (made / "one/runs/a/store.json").read_bytes()
    )
    assert origin == StoreOrigin(store=url, store_path=path, content_id=own)
    assert (
        TrainSpec.model_validate_json(
            (made / "one/runs/a/spec.json").read_bytes()
        ).store
        == url
    )


@pytest.mark.parametrize(
    "command", [("eval",), ("calibrate",), ("report", "--out", "page.html")]
)
def test_the_runs_own_store_is_used_and_not_the_one_of_that_name_here(
    projects: Path, command: tuple[str, ...]
) -> None:
    said(command[0], "../one/runs/a", *command[1:])
    if command[0] == "calibrate":
        return
    found = evaluation("../one/runs/a")
    assert (found.store, found.content_id) == (
        str(projects / "one/demo/store"),
        content_id("../one/demo/store"),
    )
    if command[0] == "report":
        assert content_id("../one/demo/store") in Path("page.html").read_text()


def test_where_the_run_alone_has_moved_its_store_is_where_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "one/runs/a", tmp_path / "b")
    monkeypatch.chdir(made / "two")
    said("eval", str(tmp_path / "b"))
    assert evaluation(tmp_path / "b").store == str(made / "one/demo/store")


def test_another_store_in_its_place_is_refused_and_nothing_is_written(
    projects: Path,
) -> None:
    said("eval", "../one/runs/a")
    before = Path("../one/runs/a/eval.json").read_bytes()
    shutil.rmtree("../one/demo/store")
    shutil.copytree("demo/store", "../one/demo/store")
    changed(
        "../one/runs/a",
        store=str(projects / "gone/store"),
        store_path="../../demo/store",
    )
    other = content_id("demo/store")
    for words in (("eval",), ("calibrate",), ("report", "--out", "page.html")):
        with pytest.raises(RunError) as error:
            said(words[0], "../one/runs/a", *words[1:])
        message = str(error.value)
        assert (
            f"{projects / 'one/demo/store'}: another store, of content id {other}"
            in message
        )
        assert f"{projects / 'gone/store'}: no store" in message
        assert "Give --store URL" in message
    assert Path("../one/runs/a/eval.json").read_bytes() == before
    assert not Path("page.html").exists()


def test_runs_of_earlier_versions_have_a_path_from_anywhere(
    projects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed("../one/runs/a", store="demo/store")
    with pytest.raises(RunError) as error:
        said("eval", "../one/runs/a")
    assert f"{projects / 'one/runs/a/demo/store'}: no store" in str(error.value)
    assert f"{projects / 'two/demo/store'}: another store" in str(error.value)
    monkeypatch.chdir(projects / "one")
    said("eval", "runs/a")
    assert evaluation("runs/a").store == str(projects / "one/demo/store")
    changed("runs/a", store="../../demo/store")
    monkeypatch.chdir(projects)
    said("eval", "one/runs/a")


def test_another_store_is_used_where_it_is_asked_for_and_that_is_said(
    projects: Path,
) -> None:
    own, other = content_id("../one/demo/store"), content_id("demo/store")
    for words in (("eval",), ("calibrate",), ("report", "--out", "page.html")):
        text = " ".join(
            said(words[0], "../one/runs/a", "--store", "demo/store", *words[1:]).split()
        )
        assert (
            f"--store demo/store is another store than the run's; its content id is {other}"
            in text
        )
        assert own in text
        if words[0] != "calibrate":
            found = evaluation("../one/runs/a")
            assert (found.store, found.content_id) == (
                str(projects / "two/demo/store"),
                other,
            )
    assert "note: ../one" not in said(
        "eval", "../one/runs/a", "--store", "../one/demo/store"
    )


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"blocks.0.hook_mlp_out": 16, "a": 16}, "no site blocks.1.hook_mlp_out"),
        (dict.fromkeys(SITES, 8), "is of d 8"),
    ],
)
def test_a_store_with_other_sites_is_refused_even_then(
    projects: Path, sites: dict[str, int], message: str
) -> None:
    make_store("other", sites, n_units=21)
    for command in ("eval", "calibrate", "report"):
        with pytest.raises(RunError, match=message):
            said(command, "../one/runs/a", "--store", "other")


def test_a_store_that_has_grown_is_still_the_runs(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=21)
    run = str(tmp_path / "run")
    said("train", "--store", store.url, "--out", run, *TRAIN)
    first = store.manifest.content_id
    more = {"blocks.3.hook_mlp_out": 16}
    grown = grow(grow(store, more, 21, "bfloat16"), SITES | more, 22, "bfloat16")
    assert content_ids(grown.manifest)[0] == grown.manifest.content_id
    assert content_ids(grown.manifest)[2] == first
    said("eval", run)
    assert evaluation(run).content_id == grown.manifest.content_id
    shutil.rmtree(store.url)
    make_store(store.url, n_units=21)
    said("train", "--store", store.url, "--out", run, "--resume", *TRAIN)
    said("eval", run)
    assert evaluation(run).content_id == first


def test_training_goes_on_with_its_own_store_only(projects: Path) -> None:
    run, own = "../one/runs/a", ("--store", "../one/demo/store")
    spec = TrainSpec.model_validate_json(Path(run, "spec.json").read_bytes())
    with pytest.raises(RunError, match="this run is of the store of content id"):
        said("train", "--store", "demo/store", "--out", run, "--resume", *TRAIN)
    assert "it had ended before" in said(
        "train", *own, "--out", run, "--resume", *TRAIN
    )
    Path(run, "sae.json").unlink()  # now it has not ended
    shutil.rmtree(Path(run, "checkpoints"))  # nor was anything saved
    with pytest.raises(RunError, match="this run is of the store of content id"):
        train_group(actstore.open("demo/store"), {run: spec}, resume=True)
    sweep = {
        "base": spec.model_dump(exclude={"store", "seed"}, mode="json"),
        "grid": {"seed": [0, 1]},
    }
    Path("sweep.yaml").write_text(json.dumps(sweep))
    said("sweep", "sweep.yaml", "--out", "runs", *own)
    with pytest.raises(RunError, match="this run is of the store of content id"):
        said(
            "sweep", "sweep.yaml", "--out", "runs", "--store", "demo/store", "--resume"
        )


def test_a_runs_own_spec_trains_from_its_own_store(projects: Path) -> None:
    said(
        "train",
        "--spec",
        "../one/runs/a/spec.json",
        "--out",
        "runs/again",
        "--rows",
        "256",
    )
    record = trainer.load("runs/again").record
    assert (record.store, record.store_path) == (
        str(projects / "one/demo/store"),
        "../../../one/demo/store",
    )
    shutil.rmtree("../one/demo/store")
    changed("../one/runs/a", store="demo/store")
    with pytest.raises(
        RunError, match=r"its store, of content id .*, is not found; looked at"
    ):
        said("train", "--spec", "../one/runs/a/spec.json", "--out", "runs/more")


def test_each_run_of_a_report_is_shown_with_its_own_store(projects: Path) -> None:
    said("train", "--store", "demo/store", "--out", "runs/b", *TRAIN)
    report(["../one/runs/a", "runs/b"], "page.html", latents=2, title="Two stores")
    assert evaluation("../one/runs/a").content_id == content_id("../one/demo/store")
    assert evaluation("runs/b").content_id == content_id("demo/store")
    text = Path("page.html").read_text()
    assert "Evaluated on another store, so compare with care: b." in text
    assert str(projects) not in text


def test_on_an_object_store(memory_url: str) -> None:
    store = make_store(f"{memory_url}/store", n_units=21)
    said("train", "--store", store.url, "--out", f"{memory_url}/run", *TRAIN)
    record = trainer.load(f"{memory_url}/run").record
    assert (record.store, record.store_path) == (store.url, None)
    said("eval", f"{memory_url}/run")
    storage = Storage(f"{memory_url}/store")
    for key in storage.list():
        storage.delete(key)
    with pytest.raises(RunError, match=f"looked at {memory_url}/store: no store. "):
        said("eval", f"{memory_url}/run")
    make_store(store.url, n_units=21, seed=5)
    with pytest.raises(RunError, match="another store, of content id"):
        said("eval", f"{memory_url}/run")


def test_an_imported_sae_holds_its_store_likewise(projects: Path) -> None:
    site = next(iter(SITES))
    sae = {"kind": "topk", "k": 3, "expansion": 2}
    spec = {
        "store": "",
        "sae": sae,
        "stream": {"batch": 128, "sites": site},
        "rows": 256,
    }
    train_group(
        actstore.open("../one/demo/store"), {"runs/one": TrainSpec.model_validate(spec)}
    )
    export("runs/one", "out", "saelens")
    import_sae(f"out/{site}", "runs/back", store=actstore.open("../one/demo/store"))
    record = trainer.load("runs/back").record
    assert (record.store, record.store_path) == (
        str(projects / "one/demo/store"),
        "../../../one/demo/store",
    )
    import_sae(f"out/{site}", "runs/bare")
    with pytest.raises(
        RunError, match="imported without a store; say which one with --store"
    ):
        said("eval", "runs/bare")
    assert "note: runs" not in said("eval", "runs/bare", "--store", "demo/store"), (
        "it is of no store"
    )


@pytest.mark.parametrize("form", ["saelens", "safetensors"])
def test_an_export_does_not_tell_where_things_lie_on_this_machine(
    projects: Path, form: str
) -> None:
    said("eval", "../one/runs/a")
    changed(
        "../one/runs/a",
        model="/home/someone/models/my-gpt2",
        store=str(projects / "one/demo/store"),
    )
    export("../one/runs/a", "out", form)
    files = {
        path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()
    }
    assert not [
        path
        for path, data in files.items()
        if str(projects).encode() in data or b"/home/" in data
    ]
    assert b"my-gpt2" in files[Path("out/README.md")]
    assert content_id("../one/demo/store").encode() in files[Path("out/README.md")]
    assert b"synthetic, contexts of 32 tokens" in files[Path("out/README.md")], (
        "the store was found"
    )
    if form == "safetensors":
        shutil.move("out", "../one/demo/out")
        with pytest.raises(RunError, match="is not found"):
            said("eval", "../one/demo/out")
        said("eval", "../one/demo/out", "--store", "../one/demo/store")


def test_another_model_of_the_same_name_is_refused(
    projects: Path, store_of_a_model: Store
) -> None:
    """The store's model is a path from where it was harvested."""
    spec = {
        "store": store_of_a_model.url,
        "sae": {"kind": "topk", "k": 3, "expansion": 1},
        "stream": {"batch": 64},
        "rows": 128,
    }
    train_group(store_of_a_model, {"run": TrainSpec.model_validate(spec)})
    sae = trainer.load("run")
    # not what was harvested: that is mini
    shutil.copytree(Path(actstore.__file__).parent / "builtin/tiny", "models/m")
    with pytest.raises(
        RunError,
        match=rf"models/m \({projects}/two/models/m\): its weights are not those",
    ):
        model_metrics(sae, store_of_a_model, n_sequences=2)
    with pytest.raises(
        ActstoreError,
        match=rf"models/m \({projects}/two/models/m\) is not the one harvested",
    ):
        extend(store_of_a_model.url, sites="blocks.1.hook_mlp_out")


@pytest.fixture(scope="module")
def store_of_a_model(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("of_a_model")
    shutil.copytree(
        Path(actstore.__file__).parent / "builtin/mini", folder / "models/m"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        what = {
            "model": "models/m",
            "corpus": "builtin:stdlib",
            "sites": "blocks.0.hook_mlp_out",
            "context": 32,
        }
        return actstore.open(
            str(folder / Path(actstore.harvest({**what, "tokens": 2048}, "store").url))
        )


def test_a_recipe_takes_no_other_store(tmp_path: Path) -> None:
    make_store(tmp_path / "store_tiny", n_units=2)
    with pytest.raises(
        RunError,
        match=r"store_tiny: wanted what `actstore harvest --model builtin:tiny",
    ):
        run_recipes(["multi_layer", str(tmp_path)])
