"""`trainer calibrate` and the warning of `trainer eval` where an SAE is not at the L0
that it was trained for.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from schemas.train import TrainSpec
from tests.support import make_store
from trainer.cli import app
from trainer.errors import RunError, SaeError
from trainer.training.train_group import train_group


def trained(tmp_path: Path, kind: str, **sae: object) -> tuple[str, str]:
    """A store and a short run on it."""
    store = make_store(str(tmp_path / "store"))
    spec = {
        "store": store.url,
        "sae": {"kind": kind, "n_latents": 64, **sae},
        "stream": {"batch": 256},
        "rows": 256 * 30,
        "optimiser": {"lr": 0.003},
    }
    run = str(tmp_path / "run")
    train_group(store, {run: TrainSpec.model_validate(spec)})
    return store.url, run


def evaluated(run: str, *more: str) -> tuple[float, str]:
    """Held-out L0 and what was said on stderr."""
    result = CliRunner().invoke(
        app, ["eval", run, "--json", *more], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["pooled"]["l0"], result.stderr


def shift(run: str, name: str, by: float) -> None:
    """Change a tensor of the SAE."""
    tensors = load_file(f"{run}/sae.safetensors")
    tensors[name] = tensors[name] + by
    save_file(tensors, f"{run}/sae.safetensors")


@pytest.mark.parametrize(
    ("kind", "sae", "name", "by"),
    [
        ("batch_topk", {"k": 4}, "threshold", 0.2),
        ("matryoshka", {"k": 4}, "threshold", 0.2),
        ("jumprelu", {"target_l0": 4}, "log_threshold", 0.5),
        ("relu_l1", {"target_l0": 4}, "b_enc", -0.05),
    ],
)
def test_an_sae_off_its_l0_is_told_and_set_right(
    tmp_path: Path, kind: str, sae: dict[str, float], name: str, by: float
) -> None:
    _, run = trained(tmp_path, kind, **sae)
    l0, said = evaluated(run)
    assert l0 == pytest.approx(4, rel=0.02)
    assert "warning" not in said
    shift(run, name, by)
    l0, said = evaluated(run)
    assert abs(l0 / 4 - 1) > 0.1
    assert "off the 4 that it is set for" in said
    assert f"trainer calibrate {run}" in said
    result = CliRunner().invoke(app, ["calibrate", run], catch_exceptions=False)
    assert result.exit_code == 0
    assert not Path(run, "eval.json").exists(), "figures of other thresholds"
    l0, said = evaluated(run)
    assert l0 == pytest.approx(4, rel=0.02)
    assert "warning" not in said


def test_another_l0_may_be_asked_for(tmp_path: Path) -> None:
    _, run = trained(tmp_path, "relu_l1", l1=0.1)
    CliRunner().invoke(app, ["calibrate", run, "--l0", "6"], catch_exceptions=False)
    assert evaluated(run)[0] == pytest.approx(6, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "sae", "words"),
    [
        ("topk", {"k": 4}, "topk has no threshold"),
        ("relu_l1", {"l1": 0.1}, "say which with --l0"),
    ],
)
def test_what_asks_for_no_l0_is_refused(
    tmp_path: Path, kind: str, sae: dict[str, float], words: str
) -> None:
    _, run = trained(tmp_path, kind, **sae)
    with pytest.raises(RunError, match=words):
        CliRunner().invoke(app, ["calibrate", run], catch_exceptions=False)


def test_an_l0_that_cannot_be_reached_is_refused_and_nothing_changes(
    tmp_path: Path,
) -> None:
    _, run = trained(tmp_path, "jumprelu", target_l0=4)
    before = Path(run, "sae.safetensors").read_bytes()
    # of 64 latents; jumprelu's pre-activations are rarely all above 0
    for l0 in ("64", "60"):
        with pytest.raises(RunError, match="cannot be reached"):
            CliRunner().invoke(
                app, ["calibrate", run, "--l0", l0], catch_exceptions=False
            )
    assert Path(run, "sae.safetensors").read_bytes() == before


def test_a_calibrated_l0_is_the_one_that_is_looked_for(tmp_path: Path) -> None:
    _, run = trained(tmp_path, "relu_l1", target_l0=4)
    CliRunner().invoke(app, ["calibrate", run, "--l0", "8"], catch_exceptions=False)
    l0, said = evaluated(run)
    assert l0 == pytest.approx(8, rel=0.02)
    assert "warning" not in said


def test_more_than_a_dictionary_can_give_is_refused_before_training(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        SaeError, match="target_l0 is 64, but the dictionary has 64 latents"
    ):
        trained(tmp_path, "relu_l1", target_l0=64)
    assert not (tmp_path / "run" / "spec.json").exists()


def test_a_schedule_of_a_steered_penalty_is_refused(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "store"))
    spec = {
        "store": store.url,
        "sae": {"kind": "relu_l1", "target_l0": 4},
        "optimiser": {"sparsity_warmup": 0.3},
    }
    with pytest.raises(
        SaeError, match="sparsity_warmup and sparsity_decay are of a given penalty"
    ):
        train_group(store, {str(tmp_path / "run"): TrainSpec.model_validate(spec)})
