"""Choose the class of transformers, or of the model's own code, that loads a model."""

from __future__ import annotations

from typing import Any

from actstore.errors import ModelError
from actstore.store.tokenizer_files import needs_code
from schemas.source import ModelSource

# Classes that choose by the type of a configuration, those with a language model's head
# first.
_WITH_LANGUAGE_HEAD = (
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
)


def model_class(config: Any, source: ModelSource) -> Any:
    """Return the class that loads a model.

    It is the one that the configuration names, or, where the user trusts it, that of
    the model's own code.

    Args:
        config: The model's configuration, as transformers read it.
        source: Says whether code of the model's own may run.

    Raises:
        ModelError: The class needs code that is not trusted, transformers has none of
            that name, or it is of another family than the configuration.
    """
    import transformers

    named = getattr(config, "architectures", None) or ()
    names = [named] if isinstance(named, str) else list(named)
    custom_classes = _custom_classes(config)
    if source.trust_remote_code and custom_classes:
        return getattr(transformers, _best_auto_class(custom_classes, names))
    if not names and not custom_classes:
        return _usual_class(config)
    for name in names:
        if hasattr(transformers, name):
            found = getattr(transformers, name)
            break
    else:
        if custom_classes:
            raise needs_code(source.name, "architecture")
        raise ModelError(
            f"model {source.name!r}: its config.json names the architectures {names},"
            f" and transformers {transformers.__version__} has none of them"
        )
    if not _is_of_family(config, found):
        raise ModelError(
            f"model {source.name!r}: its config.json names the architecture"
            f" {found.__name__}, and says that the model is of type"
            f" {config.model_type!r}, which is another family; get the config.json of"
            " this model"
        )
    return found


def _custom_classes(config: Any) -> dict[str, str]:
    """Return the classes of the model's own code, by the auto class that loads them."""
    import transformers

    auto_map = getattr(config, "auto_map", None) or {}
    return {
        auto_class: str(path).rpartition(".")[2]
        for auto_class, path in auto_map.items()
        if auto_class.startswith("AutoModel") and hasattr(transformers, auto_class)
    }


def _best_auto_class(custom_classes: dict[str, str], names: list[str]) -> str:
    """Return the auto class to load a model of its own code with.

    First comes one that gives a class which the configuration names, then one with a
    head for the next token.
    """

    def preference(auto_class: str) -> tuple[bool, bool, str]:
        is_not_named = custom_classes[auto_class] not in names
        return is_not_named, auto_class != "AutoModelForCausalLM", auto_class

    return min(custom_classes, key=preference)


def _usual_class(config: Any) -> Any:
    """Return what transformers has for a type of model, with a head if there is one."""
    import transformers

    for name in _WITH_LANGUAGE_HEAD:
        auto_class = getattr(transformers, name)
        if type(config) in auto_class._model_mapping:
            return auto_class
    return transformers.AutoModel


def _is_of_family(config: Any, found: Any) -> bool:
    """Return whether a class is of the configuration's family.

    That is so if it takes this configuration, or that of one of its parts (the text
    model of one that also sees), or if transformers lists it for the type.
    """
    from transformers.models.auto import modeling_auto

    wanted = getattr(found, "config_class", None)
    part_configs = (getattr(type(config), "sub_configs", None) or {}).values()
    if wanted is None or isinstance(config, wanted) or wanted in part_configs:
        return True
    for name, table in vars(modeling_auto).items():
        if not name.endswith("_MAPPING_NAMES"):
            continue
        listed = table.get(config.model_type, ())
        if isinstance(listed, str):
            listed = [listed]
        if found.__name__ in listed:
            return True
    return False
