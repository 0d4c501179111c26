"""Tests of the warning that half precision is slower here, and of doing as told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import actstore
from actstore.errors import SpecError
from actstore.machine import half_precision
from actstore.machine.half_precision import Speed, measured, sentence, slow_here
from tests.cli.test_plan import words
from tests.support import make_store

Cli = Callable[..., tuple[int, str, str]]
SLOW, FAST = Speed(12e9, 76e9, 6.3), Speed(180e9, 90e9, 0.5)
SAID = "bfloat16 is 6.3 times slower than float32 on this processor"
FIGURES = "measured: 12 against 76 GFLOP/s"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "measured", lambda _: SLOW)


def said(text: str) -> bool:
    flat = " ".join(text.split())
    return SAID in flat and FIGURES in flat


def test_it_is_measured_in_pairs() -> None:
    found = measured("bfloat16")
    assert found.half > 0
    assert found.ratio == pytest.approx(found.full / found.half, rel=0.9)


def test_only_what_is_slower_is_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def slowly(dtype: str) -> Speed:
        asked.append(dtype)
        return SLOW

    monkeypatch.setattr(half_precision, "measured", slowly)
    for dtype, device in (
        ("float32", "cpu"),
        (None, "cpu"),
        ("bfloat16", "cuda:1"),
        ("bfloat16", "auto"),
    ):
        assert slow_here(dtype, device) is None
    assert not asked, "it was measured for nothing"
    assert said(slow_here("bfloat16", "cpu") or "")
    assert "float16 is 6.3" in (slow_here("float16", "cpu") or "")
    for ratio in (0.5, 1.0, 1.1):  # what may be chance is not said
        monkeypatch.setattr(
            half_precision,
            "measured",
            lambda _, ratio=ratio: Speed(1e9, 1e9 * ratio, ratio),
        )
        assert slow_here("bfloat16", "cpu") is None
    assert (
        sentence("bfloat16", FAST)
        == "bfloat16 is 2.0 times as fast as float32 on this processor (180 against 90 GFLOP/s)"
    )


@pytest.mark.usefixtures("slow")
def test_plan_says_it_before_it_computes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate(*_: object, **__: object) -> None:
        raise SpecError("it computes now")

    monkeypatch.setattr("actstore.harvesting.estimate.estimate", estimate)
    code, _, err = cli(*words("plan", "--json", "--model-dtype", "bfloat16"))
    assert code
    assert err.startswith("note: --model-dtype bfloat16: ")
    assert said(err.partition("it computes now")[0])
    assert not said(cli(*words("plan"))[2])


@pytest.mark.usefixtures("slow")
def test_harvest_says_it_first_and_does_as_told(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli(
        *words(
            "harvest",
            "--out",
            str(tmp_path / "store"),
            tokens="2k",
            autocast="bfloat16",
        )
    )
    assert code == 0
    assert err.startswith("note: --autocast bfloat16: ")
    assert said(err)
    assert actstore.open(tmp_path / "store").manifest.spec.autocast == "bfloat16"


def test_doctor_says_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for speed, status in ((SLOW, "warn"), (FAST, "ok")):
        monkeypatch.setattr(half_precision, "measured", lambda _, speed=speed: speed)
        code, out, _ = cli("actstore", "doctor")
        line = next(line for line in out.splitlines() if " bfloat16 " in line)
        assert code == 0
        assert line.startswith(status)
        assert said(line) == (status == "warn")


@pytest.mark.usefixtures("slow")
def test_training_says_it_first_and_does_as_told(cli: Cli, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    for wanted in ("bfloat16", "float32"):
        spec = {
            "store": store.url,
            "sae": {"kind": "topk", "k": 2, "expansion": 2},
            "stream": {"batch": 64},
            "rows": 128,
            "optimiser": {"lr": 0.001},
            "dead_rows": 1000,
            "precision": wanted,
        }
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        run = tmp_path / wanted
        code, _, err = cli(
            "trainer", "train", "--spec", str(tmp_path / "spec.yaml"), "--out", str(run)
        )
        assert code == 0
        assert said(err) == (wanted == "bfloat16")
        assert (run / "sae.safetensors").exists()
