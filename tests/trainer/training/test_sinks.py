"""Records go to TensorBoard, Weights & Biases, trackio and MLflow where they are asked
for, and training stays the same.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.service import JournalSinks
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.cli import app
from trainer.errors import TrainerError, TrainerWarning
from trainer.runs.journal import read
from trainer.training.journal_sinks import sinks_for
from trainer.training.sink_values import values
from trainer.training.train_group import Progress, train_group


class FakeWriter:
    made: list[FakeWriter] = []

    def __init__(self, log_dir: str, purge_step: int) -> None:
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.scalars: dict[str, dict[int, float]] = {}
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, {})[step] = value

    def close(self) -> None:
        self.closed = True


class FakeRun:
    made: list[FakeRun] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: dict[int, dict[str, float]] = {}
        self.finished = False
        FakeRun.made.append(self)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged[step] = figures

    def finish(self) -> None:
        self.finished = True


class FakeTrackio:
    made: list[FakeTrackio] = []

    def __init__(self, **options: Any) -> None:
        print("* told to whoever reads standard output")
        self.options = options
        self.logged: dict[int, dict[str, float]] = {}
        self.finished = False
        FakeTrackio.made.append(self)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged[step] = figures

    def finish(self) -> None:
        self.finished = True


class FakeMlflow:
    """A tracking server, as MlflowClient shows it."""

    runs: dict[str, dict[str, Any]] = {}
    refuses = False

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, places: list[str], text: str) -> list[Any]:
        assert places == ["7"]
        return [
            types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))
            for run_id, run in self.runs.items()
            if run["tags"]["actstore_run"] == text.split("'")[1]
        ]

    def create_run(self, place: str, tags: dict[str, str], run_name: str) -> Any:
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = {"tags": tags, "name": run_name, "logged": {}, "params": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["ended"] = status != "RUNNING"

    def log_param(self, run_id: str, name: str, value: Any) -> None:
        self.runs[run_id]["params"][name] = value

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        if self.refuses:
            raise RuntimeError("no route\nand more")
        for name, value, _, step in metrics:
            self.runs[run_id]["logged"].setdefault(step, {})[name] = value

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id]["ended"] = True


@pytest.fixture
def local_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    trackio, mlflow = types.ModuleType("trackio"), types.ModuleType("mlflow")
    members: dict[str, Any] = {
        "MlflowClient": FakeMlflow,
        "entities": types.SimpleNamespace(Metric=lambda *values: values),
        "exceptions": types.SimpleNamespace(MlflowException=RuntimeError),
    }
    monkeypatch.setattr(trackio, "init", FakeTrackio, raising=False)
    for name, member in members.items():
        monkeypatch.setattr(mlflow, name, member, raising=False)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    FakeTrackio.made, FakeMlflow.runs, FakeMlflow.refuses = [], {}, False


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    board = types.ModuleType("torch.utils.tensorboard")
    wandb = types.ModuleType("wandb")
    settings = types.SimpleNamespace(mode="online")
    setup = types.SimpleNamespace(settings=settings)
    members: dict[str, Any] = {
        "init": FakeRun,
        "setup": lambda: setup,
        "login": lambda prompt: True,
        "errors": types.SimpleNamespace(Error=RuntimeError),
    }
    monkeypatch.setattr(board, "SummaryWriter", FakeWriter, raising=False)
    for name, member in members.items():
        monkeypatch.setattr(wandb, name, member, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    FakeWriter.made, FakeRun.made = [], []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", n_units=24)


def spec(store: Store, **more: Any) -> TrainSpec:
    raw = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 3, "expansion": 4},
        "stream": {"batch": 128},
    }
    return TrainSpec.model_validate(
        {**raw, "rows": 128 * 20, "log_every": 5, "checkpoint_every": 10, **more}
    )


@pytest.mark.usefixtures("fakes")
def test_both_get_what_the_journal_gets_and_the_weights_are_the_same(
    store: Store, tmp_path: Path
) -> None:
    plain, run = str(tmp_path / "plain"), str(tmp_path / "run")
    train_group(store, {plain: spec(store)})
    train_group(
        store,
        {run: spec(store)},
        sinks=sinks_for([run], JournalSinks(tensorboard=True, wandb="mine")),
    )
    assert (tmp_path / "plain/sae.safetensors").read_bytes() == (
        tmp_path / "run/sae.safetensors"
    ).read_bytes()
    records = read(Storage(run))
    assert [record.step for record in records] == [5, 10, 15, 20]
    [writer], [there] = FakeWriter.made, FakeRun.made
    assert (writer.log_dir, writer.purge_step, writer.closed) == (
        f"{run}/tensorboard",
        1,
        True,
    )
    assert there.options["project"] == "mine"
    assert there.options["name"] == "run"
    assert there.options["resume"] == "allow"
    assert there.options["config"]["sae"]["k"] == 3
    assert there.finished
    for record in records:
        wanted = values(record)
        assert {
            "loss",
            "l0",
            "fvu",
            "dead",
            "rows_per_s",
            "stall",
            "loss/mse",
            "lr",
        } <= wanted.keys()
        assert {f"fvu/{site}" for site in store.sites} <= wanted.keys()
        assert there.logged[record.step] == wanted
        assert {
            name: written[record.step] for name, written in writer.scalars.items()
        } == wanted


@pytest.mark.usefixtures("fakes")
def test_a_resumed_run_goes_on_with_the_same_one(store: Store, tmp_path: Path) -> None:
    run = str(tmp_path / "run")

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 13:
            raise StopError

    sinks = sinks_for([run], JournalSinks(tensorboard=True, wandb="mine"))
    with pytest.raises(StopError):
        train_group(store, {run: spec(store)}, sinks=sinks, report=stop)
    assert FakeWriter.made[0].closed
    assert FakeRun.made[0].finished
    train_group(store, {run: spec(store)}, sinks=sinks, resume=True)
    assert FakeWriter.made[1].purge_step == 11
    assert FakeRun.made[0].options["id"] == FakeRun.made[1].options["id"]
    assert sorted(FakeRun.made[1].logged) == [15, 20]


@pytest.mark.usefixtures("fakes")
def test_each_run_of_a_sweep_has_its_own(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"base: {{store: '{store.url}', rows: 1280, log_every: 5, stream: {{batch: 128}}}}\ngrid: {{sae.k: [2, 4]}}\n"
    )
    words = [
        "sweep",
        str(path),
        "--out",
        str(tmp_path / "s"),
        "--tensorboard",
        "--wandb",
        "mine",
    ]
    path.write_text(
        path.read_text().replace("base: {", "base: {sae: {kind: topk, expansion: 4}, ")
    )
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert [one.options["name"] for one in FakeRun.made] == ["k=2", "k=4"]
    assert len({one.options["id"] for one in FakeRun.made}) == 2
    assert len({one.log_dir for one in FakeWriter.made}) == 2


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("torch.utils.tensorboard", ["--tensorboard"], "tensorboard"),
        ("wandb", ["--wandb", "mine"], "wandb"),
        ("trackio", ["--trackio", "mine"], "trackio"),
        ("mlflow", ["--mlflow", "mine"], "mlflow"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    options: list[str],
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    failed = CliRunner().invoke(
        app, ["train", "--store", store.url, "--out", str(tmp_path / "r"), *options]
    )
    assert isinstance(failed.exception, TrainerError)
    assert f"pip install 'actstore[{extra}]'" in str(failed.exception)
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("fakes")
def test_tensorboard_wants_a_local_folder() -> None:
    with pytest.raises(TrainerError, match=r"must be local, got memory://x"):
        sinks_for(["memory://x"], JournalSinks(tensorboard=True))
    assert sinks_for(["memory://x"], JournalSinks()) is None


def test_tensorboard_itself_reads_what_was_written(
    store: Store, tmp_path: Path
) -> None:
    loading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    run = str(tmp_path / "run")
    train_group(
        store,
        {run: spec(store)},
        sinks=sinks_for([run], JournalSinks(tensorboard=True)),
    )
    found = loading.EventAccumulator(f"{run}/tensorboard")
    found.Reload()
    wanted = {record.step: record.loss for record in read(Storage(run))}
    assert {one.step: one.value for one in found.Scalars("loss")} == pytest.approx(
        wanted
    )


@pytest.mark.usefixtures("fakes")
def test_without_a_key_nothing_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = sys.modules["wandb"]
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    run = tmp_path / "run"
    words = ["train", "--store", store.url, "--out", str(run), "--wandb", "mine"]
    failed = CliRunner().invoke(app, words)
    assert isinstance(failed.exception, TrainerError)
    assert "WANDB_API_KEY" in str(failed.exception)
    assert not run.exists()
    # Offline it needs none.
    offline = types.SimpleNamespace(settings=types.SimpleNamespace(mode="offline"))
    monkeypatch.setattr(wandb, "setup", lambda: offline)
    assert sinks_for([str(run)], JournalSinks(wandb="mine")) is not None


@pytest.mark.usefixtures("fakes")
def test_what_weights_and_biases_refuses_is_told_in_a_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("permission denied\nand more")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    run = str(tmp_path / "run")
    sinks = sinks_for([run], JournalSinks(wandb="mine"))
    with pytest.raises(TrainerError, match="cannot begin a run: permission denied;"):
        train_group(store, {run: spec(store)}, sinks=sinks)
    # The run goes on without it.
    train_group(store, {run: spec(store)}, resume=True)
    assert (Path(run) / "sae.json").exists()


@pytest.mark.usefixtures("local_fakes")
def test_trackio_and_mlflow_get_the_journal_and_go_on_with_a_resumed_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 13:
            raise StopError

    sinks = sinks_for([run], JournalSinks(trackio="mine", mlflow="mine"))
    with pytest.raises(StopError):
        train_group(store, {run: spec(store)}, sinks=sinks, report=stop)
    [first], [there] = FakeTrackio.made, FakeMlflow.runs.values()
    assert first.finished
    assert there["ended"]
    train_group(store, {run: spec(store)}, sinks=sinks, resume=True)
    [_, second], [there] = FakeTrackio.made, FakeMlflow.runs.values()
    assert first.options["name"] == second.options["name"]
    assert second.options["resume"] == "allow"
    assert second.finished
    assert there["ended"]
    assert there["params"]["sae.k"] == 3
    wanted = {record.step: values(record) for record in read(Storage(run))}
    assert first.logged | second.logged == wanted
    assert there["logged"] == wanted
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert not capsys.readouterr().out  # a script reads it


@pytest.mark.usefixtures("local_fakes")
def test_each_run_of_a_sweep_is_one_of_trackio_and_of_mlflow(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"base: {{store: '{store.url}', rows: 1280, log_every: 5, stream: {{batch: 128}}, sae: {{kind: topk, expansion: 4}}}}\ngrid: {{sae.k: [2, 4]}}\n"
    )
    words = ["sweep", str(path), "--out", str(tmp_path / "s")]
    done = CliRunner().invoke(app, [*words, "--trackio", "mine", "--mlflow", "mine"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert {one.options["project"] for one in FakeTrackio.made} == {"mine"}
    names = [one.options["name"].rpartition(" ")[0] for one in FakeTrackio.made]
    assert names == ["k=2", "k=4"]
    assert [run["name"] for run in FakeMlflow.runs.values()] == ["k=2", "k=4"]


@pytest.mark.usefixtures("local_fakes")
def test_training_goes_on_where_mlflow_refuses(store: Store, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    FakeMlflow.refuses = True
    sinks = sinks_for([run], JournalSinks(mlflow="mine"))
    with pytest.warns(TrainerWarning, match="takes no more records .no route.; the"):
        train_group(store, {run: spec(store)}, sinks=sinks)
    assert [record.step for record in read(Storage(run))] == [5, 10, 15, 20]


@pytest.mark.filterwarnings("ignore")  # what their own code is warned of
def test_trackio_itself_keeps_each_run_of_a_pass(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    runs = [str(tmp_path / name) for name in ("a", "b")]
    sinks = sinks_for(runs, JournalSinks(trackio="mine"))
    train_group(store, {run: spec(store) for run in runs}, sinks=sinks)
    kept = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    found = {
        run.name[0]: kept.get_logs("mine", run.name)
        for run in trackio.Api().runs("mine")
    }
    for run in runs:
        wanted = {record.step: record.loss for record in read(Storage(run))}
        logged = {one["step"]: one["loss"] for one in found[Path(run).name]}
        assert logged == pytest.approx(wanted)


@pytest.mark.filterwarnings("ignore")  # what their own code is warned of
def test_mlflow_itself_keeps_a_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = str(tmp_path / "run")
    sinks = sinks_for([run], JournalSinks(mlflow="mine"))
    train_group(store, {run: spec(store)}, sinks=sinks)
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("mine").experiment_id
    [found] = client.search_runs([place])
    assert found.info.status == "FINISHED"
    wanted = {record.step: record.loss for record in read(Storage(run))}
    logged = client.get_metric_history(found.info.run_id, "loss")
    assert {one.step: one.value for one in logged} == pytest.approx(wanted)
