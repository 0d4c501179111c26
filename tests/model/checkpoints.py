"""Small models in folders, damaged or with code of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
GPT2 = {
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 2,
    "vocab_size": 50,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGURATION = "from transformers import GPT2Config\nclass OwnConfig(GPT2Config):\n    model_type = 'own'\n"
MODELING = """
import pathlib
from transformers import GPT2LMHeadModel
from .configuration import OwnConfig
pathlib.Path({mark!r}).touch()
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
class GPT2LMHeadModel(OwnModel):
    pass
"""


def same(state: State) -> State:
    return state


def gpt2(kind: Any = transformers.GPT2LMHeadModel, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(transformers.GPT2Config(**{**GPT2, **options}))


def saved(
    model: Any, folder: Path, edit: Callable[[State], State] = same, **config: Any
) -> Path:
    """A model's folder, with an edited checkpoint and other values in config.json."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    transformers.utils.logging.enable_progress_bar()
    file = folder / "model.safetensors"
    state = {key: value.clone() for key, value in edit(load_file(file)).items()}
    save_file(state, file, metadata={"format": "pt"})
    rewrite(folder / "config.json", **config)
    return folder


def rewrite(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **values}))


def with_own_code(folder: Path, mark: Path, name: str = "OwnModel") -> Path:
    """A model of a type that only code beside it knows; running that makes the file
    `mark`.
    """
    auto_map = {
        "AutoConfig": "configuration.OwnConfig",
        "AutoModelForCausalLM": f"modeling.{name}",
    }
    saved(gpt2(), folder, model_type="own", architectures=[name], auto_map=auto_map)
    (folder / "configuration.py").write_text(CONFIGURATION)
    (folder / "modeling.py").write_text(MODELING.format(mark=str(mark)))
    return folder
