"""Training while the store is still being harvested, and training on past chunks that
cannot be read.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import actstore
import trainer
from actstore.errors import CorruptError
from actstore.stream.stream import StreamWarning
from schemas.train import TrainSpec
from tests.cli.conftest import Cli, cli  # noqa: F401 (a fixture)
from tests.stream.test_follow import Growing
from tests.support import make_store
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.exports.export import export
from trainer.exports.export_origin import read_origin
from trainer.training.train_group import Progress, train_group

BATCH = 64


class StoppedError(Exception):
    """Stands for the end of a process between two steps."""


def spec(url: str) -> TrainSpec:
    stream = {
        "follow": True,
        "batch": BATCH,
        "window_chunks": 4,
        "lanes": 2,
        "rescale": "linear",
        "center": True,
    }
    sae = {"kind": "topk", "k": 3, "expansion": 4}
    raw = {
        "store": url,
        "sae": sae,
        "stream": stream,
        "checkpoint_every": 10,
        "log_every": 7,
    }
    return TrainSpec.model_validate(raw)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ends_after", [None, 23])
def test_training_follows_a_harvest_and_goes_on_behind_its_end(
    tmp_path: Path, ends_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A harvest in a thread: it is slower than training, and the corpus may end before
    what was planned.
    """
    monkeypatch.setattr(
        "trainer.training.init_from_data.FIT_ROWS", 256
    )  # the harvest has little more than the usual 4,096
    growing = Growing(tmp_path / "store", ends_after=ends_after)
    growing.commit(5)
    seen: list[tuple[int, int]] = []

    def harvest() -> None:
        while growing.done <= growing.last:
            time.sleep(0.02)
            growing.commit()
        growing.writer.finish()
        growing.writer.close()

    def report(now: Progress) -> None:
        seen.append((now.step, growing.done))

    thread = threading.Thread(target=harvest)
    store = actstore.open(growing.url, follow=True)
    store.poll_s = 0.01
    thread.start()
    one = spec(growing.url)
    live, cut = str(tmp_path / "live"), str(tmp_path / "cut")
    train_group(store, {live: one}, report=report)
    thread.join()
    assert seen[0][1] <= growing.last, "training began when the harvest had ended"
    steps = seen[-1][0]
    finished = actstore.open(growing.url)
    assert steps == -(-len(finished.rows("train")) * len(finished.sites) // BATCH)
    assert trainer.load(live).record.steps == steps

    def stop(now: Progress) -> None:
        if now.step == 23:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_group(actstore.open(growing.url, follow=True), {cut: one}, report=stop)
    train_group(actstore.open(growing.url, follow=True), {cut: one}, resume=True)
    last = f"checkpoints/step-{steps:08d}/optimiser.safetensors"
    for name in ("sae.safetensors", "sae.json", last):
        assert (Path(cut) / name).read_bytes() == (Path(live) / name).read_bytes(), name
    record, _ = evaluate_rows(trainer.load(live), finished)
    assert record.pooled.fvu < 0.9
    export(live, str(tmp_path / "out"), "safetensors", growing.url)
    assert read_origin(live).manifest == finished.manifest


@pytest.mark.timeout(300)
def test_the_command_follows(tmp_path: Path, cli: Cli) -> None:  # noqa: F811
    growing = Growing(tmp_path / "store")
    thread = threading.Thread(target=growing.finish)
    thread.start()
    words = [
        "trainer",
        "train",
        "--store",
        growing.url,
        "--out",
        str(tmp_path / "run"),
        "--follow",
        "--batch",
        "64",
    ]
    code, out, err = cli(*words, "--k", "2")
    thread.join()
    assert code == 0, err
    assert "run: " in out
    assert trainer.load(str(tmp_path / "run")).record.content_id.startswith("followed-")
    assert (tmp_path / "run" / "journal.jsonl").exists()
    code, _, err = cli(
        "trainer",
        "train",
        "--store",
        str(tmp_path),
        "--out",
        str(tmp_path / "r"),
        "--follow",
    )
    assert code == 1
    assert "no harvest has begun there" in err


def test_corrupt_chunks_are_skipped_on_request_and_told_in_one_line(
    tmp_path: Path,
    cli: Cli,  # noqa: F811
) -> None:
    store = make_store(tmp_path / "store", n_units=24)
    path = tmp_path / "store" / "acts/blocks.1.hook_mlp_out/c/3/0"
    data = bytearray(path.read_bytes())
    data[20] ^= 4
    path.write_bytes(data)
    words = ["trainer", "train", "--store", store.url, "--batch", "64", "--k", "2"]
    code, _, err = cli(*words, "--out", str(tmp_path / "error"))
    assert code == 1
    assert "checksum" in err
    code, _, err = cli(*words, "--out", str(tmp_path / "skip"), "--on-corrupt", "skip")
    assert code == 0, err
    [line] = [line for line in err.splitlines() if "skipped" in line]
    assert line.startswith("note: skipped 1 chunks that cannot be read, 16 rows so far")
    assert "blocks.1.hook_mlp_out" in line
    assert "StreamWarning" not in err
    rows = len(store.rows("train")) * len(store.sites) - 16
    assert trainer.load(str(tmp_path / "skip")).record.rows == rows, (
        "rows that were trained on"
    )
    last = json.loads(
        (tmp_path / "skip" / "journal.jsonl").read_text().splitlines()[-1]
    )
    assert last["rows"] == rows
    code, _, err = cli(*words, "--out", str(tmp_path / "r"), "--on-corrupt", "ignore")
    assert (code, "wanted error or skip" in err) == (1, True)


def test_batches_of_lost_rows_are_no_steps(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n_units=6)
    for site in store.sites:
        for unit in (2, 3, 5):
            (tmp_path / "store" / "acts" / site / "c" / str(unit) / "0").unlink()
    sae = {"kind": "topk", "k": 2, "n_latents": 32}
    raw = {
        "store": store.url,
        "sae": sae,
        "stream": {"batch": 4},
        "rows": 4 * 300,
        "checkpoint_every": 50,
    }
    one = TrainSpec.model_validate(raw)
    with pytest.raises((CorruptError, actstore.errors.ObjectError)):
        train_group(store, {str(tmp_path / "error"): one})

    def stop(now: Progress) -> None:
        if now.step == 120:
            raise StoppedError

    with pytest.warns(StreamWarning, match="skipped"):
        train_group(store, {str(tmp_path / "whole"): one}, on_corrupt="skip")
    with pytest.warns(StreamWarning, match="skipped"), pytest.raises(StoppedError):
        train_group(store, {str(tmp_path / "cut"): one}, on_corrupt="skip", report=stop)
    with pytest.warns(StreamWarning, match="skipped"):
        train_group(store, {str(tmp_path / "cut"): one}, on_corrupt="skip", resume=True)
    whole, cut = (tmp_path / name / "sae.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    records = [trainer.load(str(tmp_path / name)).record for name in ("whole", "cut")]
    assert records[0].steps == 300
    assert 300 < records[0].rows == records[1].rows < 4 * 300


def test_options_for_pairs_and_aligned_rows(tmp_path: Path, cli: Cli) -> None:  # noqa: F811
    store = make_store(tmp_path / "store", n_units=24)
    words = [
        "trainer",
        "train",
        "--store",
        store.url,
        "--batch",
        "64",
        "--rows",
        "640",
        "--k",
        "2",
        "--expansion",
        "2",
    ]
    first = ["--sites", "blocks.0.hook_mlp_out"]
    code, _, err = cli(
        *words,
        *first,
        "--pairs-with",
        "blocks.1.hook_mlp_out",
        "--out",
        str(tmp_path / "t"),
    )
    assert code == 0, err
    sae = trainer.load(str(tmp_path / "t"))
    assert (sae.spec.kind, sae.sites, sae.record.targets) == (
        "transcoder",
        (store.sites[0],),
        (store.sites[1],),
    )
    assert sae.spec.model_dump()["inner"]["k"] == 2
    assert sae.n_latents == 32
    code, _, err = cli(
        *words, "--aligned", "--inner", "batch_topk", "--out", str(tmp_path / "c")
    )
    assert code == 0, err
    sae = trainer.load(str(tmp_path / "c"))
    assert (sae.spec.kind, sae.sites) == ("crosscoder", store.sites)
    assert sae.spec.model_dump()["inner"]["kind"] == "batch_topk"
    code, _, err = cli(*words, "--sae", "crosscoder", "--out", str(tmp_path / "r"))
    assert (code, "--aligned" in err) == (1, True)
    code, _, err = cli(
        *words, "--sae", "topk", "--aligned", "--out", str(tmp_path / "r")
    )
    assert (code, "trains on mixed rows" in err) == (1, True)
    code, _, err = cli(
        *words, "--pairs-with", "blocks.1.hook_mlp_out", "--out", str(tmp_path / "r")
    )
    assert (code, "a target for each site" in err) == (1, True)
    assert not (tmp_path / "r").exists()
