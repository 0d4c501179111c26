"""The recipes that ship: every file is a sweep or a harvest that its schemas take; the
runner refuses others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import trainer.recipes
from actstore.console.counts import parse_count
from actstore.format.site_patterns import match_sites
from actstore.harvesting.harvest_spec import resolve_spec
from trainer.training.sweep import expand, groups
from trainer.training.train_spec import load_sweep

FOLDER = Path(trainer.recipes.__file__).parent
SITES = {"tiny": 6, "gpt2": 12}


@pytest.mark.parametrize("scale", sorted(SITES))
def test_the_sweeps_of_the_first_document(scale: str) -> None:
    """8 coefficients for each layer, in a pass for each layer; 4 rescalings x 3 rates x
    4 coefficients in one pass.
    """
    a = expand(load_sweep(str(FOLDER / f"sweep_a_{scale}.yaml"), "s"))
    assert [len(group) for group in groups(a)] == [8] * SITES[scale]
    layers = [f"blocks.{i}.hook_mlp_out" for i in range(SITES[scale])]
    assert [next(iter(group.values())).stream.sites for group in groups(a)] == [
        (layer,) for layer in layers
    ]
    b = expand(load_sweep(str(FOLDER / f"sweep_b_{scale}.yaml"), "s"))
    assert [len(group) for group in groups(b)] == [4 * 3 * 4]
    assert {one.stream.rescale for one in b.values()} == {
        "none",
        "sqrt",
        "log",
        "linear",
    }
    raw = yaml.safe_load((FOLDER / f"harvest_{scale}.yaml").read_text())
    spec = resolve_spec({**raw, "tokens": parse_count(raw["tokens"])})
    assert match_sites(spec.sites, layers) == layers
    assert all(one.rows is not None and one.rows <= spec.tokens for one in a.values())


def test_a_recipe_that_is_none_is_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "trainer.recipes", "sweep_c", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "got sweep_c; there are sweep_a_gpt2" in done.stderr
    assert not (tmp_path / "out").exists()
