"""Signals and the clock decide when a run is saved, never what comes of it. Signals are
real, raised in this process.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save as save_tensors

import actstore
from actstore.format.storage import Storage
from actstore.machine import stop_signals
from actstore.machine.stop_signals import Stopped, signals
from actstore.store.store import Store
from schemas.train import TrainSpec
from tests.stream.test_follow import Growing
from tests.support import make_store
from trainer.training import checkpoint, group_processes
from trainer.training.train_group import Progress, train_group

BATCH, STEPS = 64, 60
Report = Callable[[Progress], None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stopping") / "s", n_units=24)


@pytest.fixture(scope="module")
def whole(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train_group(store, {str(run): spec(store.url)})
    return run


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals are all apart; and none is ignored, as in a suite that runs in the
    background.
    """
    monkeypatch.setattr(stop_signals, "TOGETHER_S", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def spec(url: str, **more: Any) -> TrainSpec:
    raw = {
        "store": url,
        "sae": {
            "kind": "topk",
            "k": 2,
            "expansion": 4,
            "aux_k": 4,
            "aux_coefficient": 1 / 32,
        },
        "stream": {"batch": BATCH},
        "optimiser": {"lr": 2e-3},
        "resample": {"every": 20 * BATCH, "times": 2, "silent_rows": BATCH},
        "dead_rows": 4 * BATCH,
        "ema": 0.9,
        "rows": STEPS * BATCH,
        "log_every": 7,
    }
    return TrainSpec.model_validate({**raw, **more})


def at(step: int, number: int = signal.SIGTERM) -> Report:
    """Raises a signal behind a step."""

    def report(now: Progress) -> None:
        if now.step == step:
            signal.raise_signal(number)

    return report


def journal(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    return [
        {
            key: value
            for key, value in line.items()
            if key not in {"rows_per_s", "stall"}
        }
        for line in lines
    ]


def same(run: Path, other: Path) -> None:
    last = max((other / "checkpoints").iterdir()).name
    names = ("sae.safetensors", "sae.json", f"checkpoints/{last}/optimiser.safetensors")
    for name in names:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert journal(run) == journal(other)


def test_checkpoints_by_time_change_nothing(
    store: Store, tmp_path: Path, whole: Path
) -> None:
    assert [path.name for path in (whole / "checkpoints").iterdir()] == [
        f"step-{STEPS:08d}"
    ]
    saved: list[list[int]] = []

    def report(now: Progress) -> None:
        saved.append(checkpoint.steps(Storage(str(tmp_path / "often"))))

    often = spec(store.url, checkpoint_minutes=1e-9, keep=3)
    train_group(store, {str(tmp_path / "often"): often}, report=report)
    assert saved[9] == [7, 8, 9], "behind every step, and the last are kept"
    same(tmp_path / "often", whole)


def test_the_clock_counts_from_the_last_checkpoint(
    store: Store, tmp_path: Path, monkeypatch: Any
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    steps: dict[str, list[int]] = {"a": [], "b": []}
    real = checkpoint.save

    def save(storage: Any, learner: Any, *more: Any) -> None:
        steps[Path(storage.url).name].append(learner.step)
        real(storage, learner, *more)

    def report(progress: Progress) -> None:
        now[0] += 10.0

    monkeypatch.setattr(checkpoint, "save", save)
    one = spec(store.url, checkpoint_every=25, checkpoint_minutes=2.0)
    two = one.model_copy(update={"seed": 3})
    train_group(
        store, {str(tmp_path / "a"): one, str(tmp_path / "b"): two}, report=report
    )
    assert steps["a"] == [12, 24, 25, 37, 49, 50, 60]
    assert steps["b"] == steps["a"], "all runs of a group are saved together"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_behind_the_step_and_it_goes_on_from_there(
    store: Store,
    tmp_path: Path,
    whole: Path,
    number: signal.Signals,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "cut"
    with (
        signals() as stop,
        pytest.raises(Stopped, match="stopped and saved at step 17 of 60") as stopped,
    ):
        train_group(
            store, {str(run): spec(store.url)}, report=at(17, number), stop=stop
        )
    assert stopped.value.code == 128 + number
    assert f"{number.name}: ending after this step" in capfd.readouterr().err
    assert [path.name for path in run.glob("checkpoints/*")] == ["step-00000017"]
    assert [line["step"] for line in journal(run)] == [7, 14]
    assert not (run / "sae.json").exists()
    train_group(store, {str(run): spec(store.url)}, resume=True)
    same(run, whole)


def test_one_more_signal_ends_it_while_it_saves_and_no_part_is_taken_for_whole(
    store: Store, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "cut"
    made = spec(store.url, checkpoint_every=10)  # which changes nothing

    def interrupted(tensors: Any) -> bytes:
        if (run / "checkpoints/step-00000017/weights.safetensors").exists():
            signal.raise_signal(signal.SIGINT)
        return save_tensors(tensors)

    with monkeypatch.context() as patch, signals() as stop:
        patch.setattr(checkpoint, "save_tensors", interrupted)
        with pytest.raises(Stopped) as stopped:
            train_group(store, {str(run): made}, report=at(17), stop=stop)
    assert (stopped.value.number, stopped.value.saved) == (signal.SIGINT, "")
    assert (run / "checkpoints/step-00000017/weights.safetensors").exists()
    assert checkpoint.steps(Storage(str(run))) == [10]
    assert not list(run.rglob(".tmp-*"))
    train_group(store, {str(run): made}, resume=True)
    same(run, whole)
    left = sorted(
        path.name for path in run.glob("checkpoints/*/*") if "00000017" in str(path)
    )
    assert left == [], "what was half-written goes with the next checkpoint"


def test_a_signal_before_the_first_step_ends_it_at_once(
    store: Store, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "cut"

    def initialise(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch, signals() as stop:
        patch.setattr(group_processes, "initialise", initialise)
        with pytest.raises(Stopped, match="interrupted"):
            train_group(store, {str(run): spec(store.url)}, stop=stop)
    assert sorted(path.name for path in run.iterdir()) == [
        "machine.json",
        "spec.json",
        "store.json",
    ]
    train_group(store, {str(run): spec(store.url)}, resume=True)
    same(run, whole)


def test_a_group_of_which_one_run_has_ended(store: Store, tmp_path: Path) -> None:
    short, long = spec(store.url, rows=25 * BATCH), spec(store.url, seed=4)
    runs = {str(tmp_path / "cut/short"): short, str(tmp_path / "cut/long"): long}
    with signals() as stop, pytest.raises(Stopped, match="at step 33 of 60"):
        train_group(store, runs, report=at(33), stop=stop)
    assert [path.name for path in (tmp_path / "cut/short/checkpoints").iterdir()] == [
        "step-00000025"
    ]
    assert [path.name for path in (tmp_path / "cut/long/checkpoints").iterdir()] == [
        "step-00000033"
    ]
    train_group(store, runs, resume=True)
    whole = {url.replace("cut", "whole"): one for url, one in runs.items()}
    train_group(store, whole)
    for name in ("short", "long"):
        same(tmp_path / "cut" / name, tmp_path / "whole" / name)


@pytest.mark.timeout(200)
def test_a_signal_ends_the_wait_for_a_harvest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainer.training.init_from_data.FIT_ROWS", 256
    )  # else it would wait for more before its first step
    growing = Growing(tmp_path / "store")
    growing.commit(11)
    stream = {"follow": True, "batch": BATCH, "window_chunks": 4, "lanes": 2}
    one = spec(growing.url, stream=stream, rows=None, resample=None)
    seen: list[tuple[float, int]] = []

    def wait_and_end() -> None:
        while not seen or time.monotonic() - seen[-1][0] < 0.4:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_end, daemon=True).start()
    with signals() as stop, pytest.raises(Stopped, match="stopped and saved at step"):
        train_group(
            actstore.open(growing.url, follow=True),
            {str(tmp_path / "cut"): one},
            report=lambda now: seen.append((time.monotonic(), now.step)),
            stop=stop,
        )
    assert (tmp_path / f"cut/checkpoints/step-{seen[-1][1]:08d}/state.json").exists()
    growing.finish()
    train_group(
        actstore.open(growing.url, follow=True),
        {str(tmp_path / "cut"): one},
        resume=True,
    )
    train_group(actstore.open(growing.url, follow=True), {str(tmp_path / "whole"): one})
    same(tmp_path / "cut", tmp_path / "whole")


def test_what_is_ignored_stays_ignored_and_handlers_are_put_back() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGTERM)
    with signals() as stop:
        signal.raise_signal(signal.SIGINT)
        with stop.held():
            signal.raise_signal(signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            with pytest.raises(Stopped), stop.released():
                raise AssertionError("it waited")
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == before
    result: list[object] = []
    thread = threading.Thread(
        target=lambda: result.append(signals().__enter__().number)
    )
    thread.start()
    thread.join()
    assert result == [None], "in another thread there are no signals, and no error"


def test_a_signal_that_torchrun_passes_on_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop_signals, "TOGETHER_S", 60.0)
    with signals() as stop, stop.held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stop.number == signal.SIGINT
