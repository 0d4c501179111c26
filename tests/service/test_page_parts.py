"""What the pages are made of: texts, forms, curves, figures, and files of others."""

from __future__ import annotations

import hashlib
import re
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actstore.errors import SpecError
from schemas.sae import fields_of_sparsity
from schemas.train import TrainSpec
from tests.service.page_support import record, service_run
from trainer.service.pages import page_text
from trainer.service.pages.new_run_form import (
    empty_form,
    errors_by_field,
    form_like,
    sent_form,
    submission_of,
    yaml_values,
)
from trainer.service.pages.page_context import own_address
from trainer.service.pages.page_figures import (
    by_layer,
    curves,
    drawn_run,
    scatter,
    told_apart,
)
from trainer.service.pages.run_curves import MOST_POINTS, curves_of
from trainer.service.pages.run_fields import changed_fields, compared_fields
from trainer.service.pages.runs_page import chosen
from trainer.service.pages.static_files import OWN, static_files

# As npm has them: `npm pack htmx.org@4.0.1 uplot@1.6.32`, dist/ and LICENSE.
OF_NPM = {
    "htmx-4.0.1.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "htmx-LICENSE.txt": "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38",
    "uplot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uplot-1.6.32.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot-LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
STATIC = files("trainer.service.pages") / "static"
TEMPLATES = files("trainer.service.pages") / "templates"


def test_files_of_others_are_as_npm_has_them() -> None:
    for name, digest in OF_NPM.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name
    assert "Copyright" in (STATIC / "uplot-LICENSE.txt").read_text()
    assert "Zero-Clause BSD" in (STATIC / "htmx-LICENSE.txt").read_text()


def test_every_static_file_is_served_and_none_is_forgotten() -> None:
    there = {one.name for one in STATIC.iterdir()}
    assert there == set(OWN)
    assert all(file.data for file in static_files().values())


def test_the_wheel_has_them() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["trainer"]
    for folder in (STATIC, TEMPLATES):
        for one in folder.iterdir():
            path = f"service/pages/{folder.name}/{one.name}"
            assert any(fnmatch(path, pattern) for pattern in patterns), path


def test_templates_have_no_script_or_style_of_their_own() -> None:
    for template in TEMPLATES.iterdir():
        text = template.read_text()
        assert not re.search(r"\sstyle=|<style|\son\w+=|hx-on|javascript:", text), (
            template
        )
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script or 'type="application/json"' in script, template
        # What is not escaped is drawn by us, or JSON that no tag can end.
        marked = set(re.findall(r"\{\{\s*([\w.]+)\s*\|\s*safe", text))
        assert marked <= {"layers", "drawing", "legend"}, template
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", text), template


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3725, "1 h 2 min"),
        (90_061, "1 d 1 h"),
        (None, "–"),
        (float("inf"), "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert page_text.duration_text(seconds) == text


def test_numbers() -> None:
    assert page_text.short_count(999) == "999"
    assert page_text.short_count(999_900) == "1M"
    assert page_text.short_count(51_234.5) == "51.2k"
    assert page_text.size_text(1_234_567_890) == "1.23 GB"
    assert page_text.figure_text(0.123456) == "0.1235"
    assert page_text.figure_text(float("nan")) == "–"
    assert page_text.figure_text(1e-9) == "1.00e-09"
    assert page_text.share_text(0.031) == "3 %"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_is_shown(value: float) -> None:
    shown = (
        page_text.figure_text,
        page_text.short_count,
        page_text.share_text,
        page_text.duration_text,
    )
    for text in shown:
        assert 0 < len(text(value)) < 330


def test_time_left_is_by_speed() -> None:
    run = service_run(step=100, steps=400, rows=25_600, rows_per_s=25_600)
    assert page_text.seconds_left(run) == pytest.approx(3)
    assert (
        page_text.seconds_left(service_run(step=0, steps=400, rows=0, rows_per_s=0))
        is None
    )


@given(st.text(max_size=30))
def test_a_login_leads_to_this_service_only(text: str) -> None:
    for start in ("", "/", "//", "/\\", "https://", "/a?next=//", "\t/"):
        address = own_address(start + text)
        assert address.startswith("/")
        assert not address.startswith(("//", "/\\"))
        assert not re.search(r"[\x00-\x20]", address)


def test_what_differs_is_found() -> None:
    base = {"store": "s", "sae": {"kind": "topk", "k": 8}}
    one = TrainSpec.model_validate(base)
    other = TrainSpec.model_validate(
        {**base, "sae": {"kind": "relu_l1"}, "stream": {"sites": ["a", "b"]}}
    )
    fields = {field.path: field for field in compared_fields([one, other])}
    assert fields["sae.kind"].differs
    assert fields["sae.k"].values == [8, None]
    assert fields["stream.sites"].values == [None, ["a", "b"]]
    assert not fields["optimiser.lr"].differs
    assert changed_fields(one) == base
    assert changed_fields(other)["sae"] == {"kind": "relu_l1"}


def test_curves_are_thin_and_go_on() -> None:
    run = service_run()
    steps = [record(step) for step in range(1, 2001)]
    whole = curves_of(run, steps)
    assert whole.whole
    assert len(whole.rows) == MOST_POINTS
    assert whole.last_step == 2000
    assert all(len(values) == MOST_POINTS for values in whole.columns.values())
    more = curves_of(run, steps, after_step=1990)
    assert not more.whole
    assert more.rows == [step.rows for step in steps[1990:]]
    # A run that went on from a checkpoint begins anew.
    assert curves_of(run, steps[:50], after_step=1990).whole
    nan = steps[0].model_copy(update={"loss": float("nan")})
    assert curves_of(run, [nan]).columns["loss"] == [None]


def test_figures_say_which_rows_they_are_on() -> None:
    one = drawn_run(service_run(), [record(10)], None)
    other = one._replace(held_out=True)
    assert [run.label for run in told_apart([one, one])] == ["run", "run #2"]
    assert [run.label for run in told_apart([one, other])] == [
        "run (training rows)",
        "run",
    ]
    assert scatter([one]) is not None
    assert by_layer([one]) is not None
    assert len(curves([one])) == 3
    nothing = drawn_run(service_run(), [], None)
    assert scatter([nothing]) is None
    assert by_layer([nothing]) is None
    assert curves([nothing]) == []


def test_the_list_takes_any_address() -> None:
    assert chosen({"state": "<b>", "first": "-1"}).address() == "/"
    assert chosen({"state": "running", "text": "a&b", "first": "51"}).address() == (
        "/?state=running&text=a%26b&first=51"
    )


# The form


def typed(**values: str) -> dict[str, list[str]]:
    return {
        "store": ["s"],
        "kind": ["topk"],
        **{name: [text] for name, text in values.items()},
    }


def test_what_is_left_empty_is_left_to_the_schemas() -> None:
    submission = submission_of(sent_form(typed()))
    assert submission.spec == {"store": "s", "sae": {"kind": "topk"}}
    assert submission.name is None
    assert submission.priority == 0


@pytest.mark.parametrize("kind", sorted(fields_of_sparsity()))
def test_every_kind_of_the_form_can_be_trained(kind: str) -> None:
    form = sent_form(
        {**typed(l0="16", seed="3", rows="1M"), "kind": [kind], "sites": ["a", "b"]}
    )
    spec = TrainSpec.model_validate(submission_of(form).spec)
    assert spec.sae.kind == kind
    assert 16 in (spec.sae.latents_per_row, spec.sae.steered_l0)
    assert spec.stream.sites == ("a", "b")
    assert spec.seed == spec.stream.seed == 3


def test_yaml_counts_before_the_fields_and_makes_sweeps() -> None:
    spec = submission_of(
        sent_form(typed(rows="1M", yaml="rows: 2M\noptimiser: {lr: 1e-3}"))
    ).spec
    assert spec["rows"] == "2M"
    sweep = submission_of(
        sent_form(typed(rows="1M", yaml="grid: {sae.k: [1, 2]}\nseed: 5"))
    ).spec
    assert sweep["grid"] == {"sae.k": [1, 2]}
    assert sweep["base"] == {
        "store": "s",
        "sae": {"kind": "topk"},
        "rows": "1M",
        "seed": 5,
    }


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "a: [",
        "a: &x [1]\nb: *x",
        "1: 2",
        "x" * 20_001,
        "a: !!python/object:os.system {}",
        "{" * 5000,
    ],
)
def test_other_yaml_is_refused_at_its_field(text: str) -> None:
    form = sent_form(typed(yaml=text))
    with pytest.raises(SpecError, match=r"^yaml: ") as caught:
        submission_of(form)
    assert "yaml" in errors_by_field(str(caught.value), form)


def test_no_yaml_is_no_fields() -> None:
    assert yaml_values("# nothing") == {}


def test_messages_stand_at_their_fields() -> None:
    form = sent_form(typed(yaml="optimiser: {lr: -1}"))
    message = "the spec: sae.k: wanted a whole number above 0, got 'many'; rows: wanted a count, got 'x'; optimiser.lr: wanted more"
    errors = errors_by_field(message, form)
    assert errors == {
        "l0": "sae.k: wanted a whole number above 0, got 'many'",
        "rows": "rows: wanted a count, got 'x'",
        "yaml": "optimiser.lr: wanted more",
    }
    assert errors_by_field(
        "store /x: this service does not read from there", form
    ).keys() == {"store"}
    assert errors_by_field("it takes too much memory", form) == {}


@pytest.mark.parametrize(
    "keys",
    [
        {
            "sae": {"kind": "topk", "k": 8, "expansion": 2.5},
            "rows": 100_000,
            "seed": 2,
            "stream": {"seed": 2, "rescale": "log", "sites": ["a"]},
        },
        {
            "sae": {"kind": "relu_l1", "target_l0": 12},
            "optimiser": {"lr": 0.01},
            "ema": 0.9,
        },
        {
            "sae": {"kind": "crosscoder", "inner": {"kind": "topk", "k": 3}},
            "stream": {"mode": "aligned"},
        },
    ],
)
def test_another_run_like_it_has_the_same_spec(keys: dict[str, object]) -> None:
    spec = TrainSpec.model_validate({"store": "s", **keys})
    form = form_like(service_run(spec=spec))
    assert TrainSpec.model_validate(submission_of(form).spec) == spec


def test_an_empty_form_starts_what_the_command_line_does() -> None:
    spec = TrainSpec.model_validate(submission_of(empty_form("s")).spec)
    assert spec == TrainSpec.model_validate({"store": "s", "sae": {"kind": "topk"}})
    assert yaml.safe_load(page_text.yaml_text(spec)) == {
        "store": "s",
        "sae": {"kind": "topk"},
    }
