"""Tests of the display of training, on terminals of all widths and in a log."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from trainer.training import progress_display
from trainer.training.learner import Interval
from trainer.training.train_group import Progress


def progress(step: int = 120, n: int = 1) -> Progress:
    now = Progress(step, 245, 1234567.8, 0.0123)
    for i in range(n):
        now.last[f"run {i}"] = Interval(
            640, 1234.5, 1.0, 32.25, 0.1234 + i, 12345, [], {}
        )
    return now


def drawn(width: int, step_s: float = 100.0, n: int = 1) -> str:
    """The bar behind step 120, of so many seconds each."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None
    )
    clock = [0.0]
    with progress_display.bar(console) as (bar, report):
        bar.get_time = bar.tasks[0]._get_time = lambda: clock[0]
        for step in range(1, 121):
            clock[0] += step_s
            report(progress(step, n))
        found = bar.get_renderable()
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(found)
    return out.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("step_s", [0.001, 1.0, 100.0])
def test_a_narrow_terminal_keeps_bar_percentage_and_time_left(
    width: int, step_s: float
) -> None:
    line = drawn(width, step_s)
    assert line.count("\n") == 1
    assert len(line) <= width + 1
    assert "━━━━" in line
    assert "49 %" in line
    assert re.search(r"\d:\d\d\b", line), line
    assert "…" not in line, "figures are left out, not cut"


def test_figures_are_left_out_from_the_least() -> None:
    assert "L0 32.2, FVU 0.123, 1,234,568 rows/s" in drawn(80)
    one = progress()
    assert (
        progress_display.figures(one)
        == "loss 1234, L0 32.2, FVU 0.123, dead 12345, 1,234,568 rows/s, stall 1.2%"
    )
    assert progress_display.figures(one, 20) == "L0 32.2, FVU 0.123"
    assert progress_display.figures(one, 3) == ""
    assert (
        progress_display.figures(progress(n=3))
        == "3 SAEs, FVU 0.123 to 2.123, 1,234,568 rows/s, stall 1.2%"
    )
    assert progress_display.figures(progress(n=0)) == ""


def test_without_a_terminal_there_is_a_line_now_and_then_whatever_training_is_at() -> (
    None
):
    out = io.StringIO()
    console = Console(file=out, width=80)
    with progress_display.lines(console, every_s=0.05) as report:
        time.sleep(0.12)  # before the first step
        report(progress(1, 0))
        time.sleep(0.02)
        report(progress(120))
        time.sleep(0.12)  # a step that takes long
        report(progress(245))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("training: before the first step, 0 s")
    assert "training: step 1/245 (0%)" in lines
    some = [
        line
        for line in lines
        if line.startswith(
            "training: step 120/245 (49%), loss 1234, L0 32.2, FVU 0.123"
        )
    ]
    assert len(some) >= 2
    assert re.fullmatch(r".*rows/s, stall 1.2%, \d+:\d\d left", some[0])
    assert lines[-1].startswith("training: step 245/245 (100%), loss 1234")
    assert len(lines) == len([line for line in lines if line.startswith("training: ")])


def test_lines_come_at_least_every_half_minute() -> None:
    assert progress_display.LINE_EVERY_S <= 30


def test_a_quiet_console_shows_nothing() -> None:
    out = io.StringIO()
    console = Console(file=out, quiet=True)
    with progress_display.shown(console) as report:
        report(progress())
    assert out.getvalue() == ""


def test_durations() -> None:
    assert [progress_display.duration(s) for s in (0, 61, 3723.4)] == [
        "0:00",
        "1:01",
        "1:02:03",
    ]
