"""`actstore sites`: every name it lists can be harvested, with the width it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actstore.format.site_patterns import match_sites
from actstore.model.load_model import wrap_module
from actstore.model.open_tap import open_tap
from actstore.model.site_list import condensed, list_sites
from tests.cli.conftest import Cli
from tests.model.test_classes import module


@pytest.mark.parametrize(
    "kind",
    [
        "GPT2LMHeadModel",
        "BertModel",
        "OPTForCausalLM",
        "T5ForConditionalGeneration",
        "XLNetLMHeadModel",
    ],
)
def test_what_is_listed_can_be_harvested(kind: str) -> None:
    model = wrap_module(module(kind))
    found = list_sites(model)
    assert ("no adapter for XLNetLMHeadModel" in found.why) == kind.startswith("XLNet")
    hooks = {
        site.name: site.d
        for site in found.sites
        if site.kind == "hook" and site.d is not None
    }
    modules = {
        site.name: site.d
        for site in found.sites
        if site.kind == "module" and site.d is not None
    }
    assert modules
    for widths in (hooks, modules):
        if widths:
            tap = open_tap(model, widths)
            assert {site.name: site.d for site in tap.sites} == widths
            tap.close()


def test_the_patterns_are_of_the_names_they_stand_for() -> None:
    found = list_sites(wrap_module(module("T5ForConditionalGeneration"))).sites
    names = [site.name for site in found]
    patterns = condensed(found)
    assert len(patterns) < len(names)
    assert sorted(match_sites([site.name for site in patterns], names)) == sorted(names)
    assert "decoder_blocks.{0..1}.hook_mlp_out" in [site.name for site in patterns]


def test_lines_for_people_and_json_for_scripts(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("actstore", "sites", "--model", "builtin:mini")
    assert code == 0
    assert "blocks.{0..5}.hook_mlp_out               d 16" in out
    assert "transformer.h.{0..5}.mlp.c_fc            d 64" in out
    assert (
        "blocks.{0..5}.attn.hook_pattern          [2, 2, 11, 11]"
        in out.partition("not one vector per token")[2]
    )
    code, out, _ = cli("actstore", "sites", "--model", "builtin:mini", "--json")
    sites = {site["name"]: site for site in json.loads(out)["sites"]}
    assert sites["blocks.5.hook_mlp_out"] == {
        "name": "blocks.5.hook_mlp_out", "kind": "hook", "d": 16, "shape": [2, 11, 16]
    }  # fmt: skip
    assert sites["blocks.0.attn.hook_pattern"]["d"] is None
    module("ElectraModel").save_pretrained(tmp_path / "electra")
    code, out, _ = cli("actstore", "sites", "--model", str(tmp_path / "electra"))
    assert code == 0
    assert "encoder.layer.{0..1}.output.dense" in out
    assert "no hook names: TransformerLens has no adapter for ElectraModel" in out


def test_a_model_of_images_is_refused_by_every_command(
    cli: Cli, tmp_path: Path
) -> None:
    folder = str(tmp_path / "vit")
    module("ViTModel").save_pretrained(folder)
    harvest = (
        "--sites",
        "encoder.layer.0",
        "--corpus",
        "builtin:stdlib",
        "--tokens",
        "1k",
    )
    for words in (
        ("sites",),
        ("plan", *harvest),
        ("harvest", *harvest, "--out", str(tmp_path / "s")),
    ):
        code, _, err = cli("actstore", *words, "--model", folder)
        assert code == 1
        assert "ViTModel takes pixel_values" in err or "tokenizer" in err
        assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_mistakes_are_told(cli: Cli) -> None:
    code, _, err = cli(
        "actstore", "sites", "--model", "builtin:mini", "--revision", "main"
    )
    assert code == 1
    assert "revision (--revision) belongs to a model on the hub" in err
