"""The proof: SAELens itself loads what we write, and we read what it writes; encode and
decode agree on rows.

It runs where the environment variable names a Python that has `sae-lens` (which may pin
other versions than ours).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import trainer
from actstore.format.storage import Storage
from tests.trainer.exchange import (
    SITES,
    SPECS,
    D,
    decode,
    encode,
    gap,
    make_run,
    random_state,
    rows,
)
from trainer.exports.export_origin import read_origin
from trainer.exports.neutral_form import PlainSae, folded, transcoder
from trainer.exports.saelens_format import VERSION, folder, saelens_files
from trainer.imports.import_sae import import_sae, read_folder
from trainer.runs.trained_sae import TrainedSae

PYTHON = os.environ.get("ACTSTORE_SAELENS_PYTHON")
SCRIPT = Path(__file__).with_name("in_saelens.py")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="ACTSTORE_SAELENS_PYTHON names no Python that has sae-lens"
)
ABOUT = {
    "sae_lens_version": VERSION,
    "actstore_run_id": "r",
    "model_from_pretrained_kwargs": {"fold_ln": False},
}


class Seen(NamedTuple):
    """Folders in which SAELens has left what it computed on x, and what they were
    written from.
    """

    at: Path
    version: str
    x: Tensor
    runs: dict[str, TrainedSae]
    plain: dict[str, PlainSae]

    def gaps(self, folder: str, latents: Tensor, again: Tensor) -> tuple[float, float]:
        seen = load_file(self.at / folder / "seen.safetensors")
        found = gap(latents, seen["latents"]), gap(again, seen["again"].flatten(1))
        print(
            f"sae-lens {self.version}, {folder}: encode {found[0]:.1e}, decode {found[1]:.1e}"
        )
        return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One SAELens process for all of it: it takes seconds to start."""
    at, x = tmp_path_factory.mktemp("saelens"), rows(500)
    runs = {
        name: trainer.load(make_run(str(at / f"{name}.run"), spec))
        for name, spec in SPECS.items()
    }
    for name, sae in runs.items():
        put(at / name, saelens_files(sae, read_origin(sae.url)._replace(run_id="r")))
    plain = _plain()
    for name, one in plain.items():
        site = "blocks.1.attn.hook_z" if name == "relu_l1" else "s"
        put(at / "plain" / name, folder(one, site, ABOUT | {"hook_name": site}))
    save_file({"x": x}, at / "rows.safetensors")
    folders = [at / name / site for name in runs for site in SITES] + [
        at / "plain" / name for name in plain
    ]
    command = [
        str(PYTHON),
        str(SCRIPT),
        str(at / "rows.safetensors"),
        str(at / "made"),
        *map(str, folders),
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return Seen(at, done.stdout.split()[-1], x, runs, plain)


def put(at: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        Storage(str(at)).put(name, data)


def _plain() -> dict[str, PlainSae]:
    """The architectures whose folding needs their tensors alone, with a scale and a
    mean.
    """
    mean = rows(1, seed=4)[0]
    states = {
        "jumprelu": random_state("W_enc", "W_dec", "b_dec", "b_enc", "threshold"),
        "batch_topk": random_state("W_enc", "W_dec", "b_dec", "b_enc")
        | {"threshold": torch.tensor(0.7)},
        "gated": random_state("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
        "relu_l1": random_state("W_enc", "W_dec", "b_dec", "b_enc"),
    }
    made = {kind: folded(kind, state, 0.37, mean) for kind, state in states.items()}
    between = random_state("W_enc", "b_enc", "W_dec", "b_dec", d_out=11)
    return made | {
        "transcoder": transcoder(between, 0.37, mean, 1.7, rows(1, 11, seed=6)[0])
    }


@pytest.mark.parametrize("name", SPECS)
def test_saelens_computes_what_the_run_does(seen: Seen, name: str) -> None:
    sae = seen.runs[name]
    for site in SITES:
        latents = sae.encode(seen.x, site)
        assert (
            max(seen.gaps(f"{name}/{site}", latents, sae.decode(latents, site))) < 1e-5
        )


@pytest.mark.parametrize(
    "name", ["jumprelu", "batch_topk", "gated", "relu_l1", "transcoder"]
)
def test_saelens_computes_what_the_formulas_say(seen: Seen, name: str) -> None:
    one = seen.plain[name]
    latents = encode(
        one.architecture, one.tensors, seen.x, subtract=name != "transcoder"
    )
    assert max(seen.gaps(f"plain/{name}", latents, decode(one.tensors, latents))) < 1e-5


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("variant", ["", "_other"], ids=["plain", "other"])
def test_what_saelens_writes_is_read(
    seen: Seen, architecture: str, variant: str, tmp_path: Path
) -> None:
    """`other`: b_dec stays out of the encoder; topk: latents are ranked by their
    decoder's norm.
    """
    name = f"made/{architecture}{variant}"
    foreign = read_folder(str(seen.at / name))
    assert foreign.site == SITES[1]
    assert foreign.plain.architecture == architecture
    latents = encode(architecture, foreign.plain.tensors, seen.x, foreign.plain.k)
    assert max(seen.gaps(name, latents, decode(foreign.plain.tensors, latents))) < 1e-5
    import_sae(str(seen.at / name), str(tmp_path / "run"))
    sae = trainer.load(str(tmp_path / "run"))
    assert sae.d == D
    latents = sae.encode(seen.x, SITES[1])
    assert max(seen.gaps(name, latents, sae.decode(latents, SITES[1]))) < 1e-5
