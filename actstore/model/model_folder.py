"""Find the folder with a model's files.

It ships with the package, lies on this machine, or is downloaded from the hub.
"""

from __future__ import annotations

from pathlib import Path

from actstore.errors import ModelError, SpecError, first_line
from actstore.format.file_systems import windows_path
from schemas.source import ModelSource

BUILTIN = Path(__file__).parent.parent / "builtin"
BUILTIN_PREFIX = "builtin:"
# Files to download. Pickled weights are not among them, since they are never read.
_WANTED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")


def model_folder(source: ModelSource) -> Path:
    """Return the folder with a model's files, after a download where one is needed.

    Raises:
        ModelError: There is no such model, or it cannot be downloaded.
        SpecError: A revision is given for a model that is on this machine.
    """
    name = source.name
    if name.startswith(BUILTIN_PREFIX):
        folder = _builtin_folder(name)
        _check_no_revision(source)
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_no_revision(source)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: wanted a model in Hugging Face layout, but there is no"
                " config.json in it"
            )
        return folder
    # Names on the hub are `name` or `user/name`: anything else was meant as a path.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r}: there is no such folder")
    reason = windows_path(name)
    if reason is not None:
        raise ModelError(f"model {name!r}: {reason}")
    return _download(source)


def name_with_path(name: str) -> str:
    """Return the name of a model or corpus, with the whole path if it is relative.

    A relative path is looked up from the current folder, which the name alone does not
    tell: `gpt2` becomes `gpt2 (/home/ada/gpt2)` where there is such a folder.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_absolute():
        return f"{name} ({path.absolute()})"
    return name


def _builtin_folder(name: str) -> Path:
    folder = BUILTIN / name.removeprefix(BUILTIN_PREFIX)
    if (folder / "config.json").is_file():
        return folder
    configs = sorted(BUILTIN.glob("*/config.json"))
    names = ", ".join(f"{BUILTIN_PREFIX}{path.parent.name}" for path in configs)
    raise ModelError(f"there is no model {name!r}; those that ship are {names}")


def _check_no_revision(source: ModelSource) -> None:
    if source.revision is not None:
        raise SpecError(
            f"model {name_with_path(source.name)} is here, but revision (--revision)"
            " belongs to a model on the hub; leave it out"
        )


def _download(source: ModelSource) -> Path:
    """Download a model from the hub, or find what was downloaded before."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that it has

    wanted_files = list(_WANTED_FILES)
    if source.trust_remote_code:
        wanted_files.append("*.py")
    try:
        folder = huggingface_hub.snapshot_download(
            source.name,
            revision=source.revision,
            allow_patterns=wanted_files,
            tqdm_class=None,
        )
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        revision = f" at revision {source.revision!r}" if source.revision else ""
        raise ModelError(
            f"model {source.name!r}: no such folder here, and the hub does not give"
            f" it{revision}: {first_line(error)}. Check the name, the revision and the"
            " network, or give a local folder"
        ) from error
    return Path(folder)
