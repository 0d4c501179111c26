"""Turns the form for a new run into a submission, and messages into the form's own.

All defaults are those of the schemas: what is left empty is not in the spec.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import yaml

from actstore.errors import SpecError
from actstore.validation import validated
from schemas.sae import fields_of_sparsity
from schemas.service import ServiceRun, Submission
from schemas.stream import StreamSpec
from trainer.service.pages.page_context import Form
from trainer.service.pages.run_fields import changed_fields
from trainer.training.train_spec import USUAL_KIND

# Where in a spec the value of each field goes. That of `l0` is another for each kind.
PATHS = {
    "store": ("store",),
    "kind": ("sae", "kind"),
    "expansion": ("sae", "expansion"),
    "rescale": ("stream", "rescale"),
    "batch": ("stream", "batch"),
    "rows": ("rows",),
    "seed": ("seed",),
}
SITES = ("stream", "sites")
NAMES = (*PATHS, "l0", "name", "priority", "yaml")
OF_SWEEP = ("grid", "runs")
MOST_YAML = 20_000  # characters
MOST_DEPTH = 20
_KEY = re.compile(r"[0-9a-f]{32}")
# A field at the beginning of a sentence: `sae.k: wanted ...; rows: wanted ...`.
_PATH = re.compile(r"(?:^|(?<=; )|(?<=: ))([a-z]\w*(?:\.\w+)*): ")


@dataclass(frozen=True, slots=True)
class NewRunForm:
    """The form as it is shown.

    Attributes:
        values: What stands in its fields, as it was typed.
        sites: The sites that are ticked.
        key: Made when the form is first shown: sent twice, it starts its runs once.
        message: What is wrong, as the command line says it; empty for nothing.
        errors: The parts of that which are about a field, by the field.
    """

    values: dict[str, str]
    sites: tuple[str, ...] = ()
    key: str = ""
    message: str = ""
    errors: dict[str, str] = field(default_factory=dict)


def empty_form(store: str) -> NewRunForm:
    """Return the form before anything is typed."""
    rescale = StreamSpec.model_fields["rescale"].default
    chosen = {"store": store, "kind": USUAL_KIND, "rescale": rescale}
    values = {**dict.fromkeys(NAMES, ""), **chosen}
    return NewRunForm(values, key=secrets.token_hex(16))


def sent_form(sent: Form) -> NewRunForm:
    """Return the form as it was sent."""
    values = {name: sent.get(name, [""])[0].strip() for name in NAMES}
    # Indentation means something there.
    values["yaml"] = sent.get("yaml", [""])[0].replace("\r\n", "\n").rstrip()
    key = sent.get("key", [""])[0]
    key = key if _KEY.fullmatch(key) else secrets.token_hex(16)
    return NewRunForm(values, tuple(sent.get("sites", ())), key)


def form_like(run: ServiceRun) -> NewRunForm:
    """Return a form that would start the same run again."""
    left = changed_fields(run.spec)
    values = dict(empty_form(run.spec.store).values)
    kind = run.spec.sae.kind
    paths = {**PATHS, "l0": ("sae", _sparsity_field(kind))}
    for name, path in paths.items():
        value = _taken(left, path)
        if value is not None:
            values[name] = f"{value:g}" if isinstance(value, float) else str(value)
    sites = _taken(left, SITES) or ()
    left = {key: value for key, value in left.items() if value not in ({}, None)}
    # A kind that the form does not offer stands with its options in the YAML.
    if kind not in fields_of_sparsity():
        left["sae"] = {"kind": kind, **left.get("sae", {})}
    if left:
        values["yaml"] = yaml.safe_dump(left, sort_keys=False, allow_unicode=True)
    if run.priority:
        values["priority"] = str(run.priority)
    return NewRunForm(values, tuple(sites), secrets.token_hex(16))


def submission_of(form: NewRunForm) -> Submission:
    """Return what a form asks for.

    Raises:
        SpecError: The YAML cannot be read, or the name or the priority cannot be used.
    """
    spec: dict[str, Any] = {}
    for name, path in PATHS.items():
        if form.values[name]:
            _put(spec, path, form.values[name])
    if form.values["l0"]:
        _put(spec, ("sae", _sparsity_field(form.values["kind"])), form.values["l0"])
    if form.values["seed"]:
        # As `--seed` does: that of training, and that of the order of rows.
        _put(spec, ("stream", "seed"), form.values["seed"])
    if form.sites:
        _put(spec, SITES, list(form.sites))
    more = yaml_values(form.values["yaml"])
    sweep = {key: more.pop(key) for key in OF_SWEEP if key in more}
    spec = _merged(spec, more.pop("base", {}) if sweep else {})
    spec = _merged(spec, more)
    given = {name: form.values[name] for name in ("name", "priority")}
    fields = {name: text for name, text in given.items() if text}
    whole = {"base": spec, **sweep} if sweep else spec
    return validated(Submission, {"spec": whole, **fields}, "the form")


def yaml_values(text: str) -> dict[str, Any]:
    """Return what the field for YAML holds.

    Raises:
        SpecError: It is no YAML, or has no keys.
    """
    if len(text) > MOST_YAML:
        raise SpecError(f"yaml: wanted at most {MOST_YAML:,} characters")
    try:
        _check_events(text)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise SpecError(f"yaml: it cannot be read: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SpecError(
            "yaml: wanted fields of a spec, such as `optimiser: {lr: 1e-3}`"
        )
    return values


def _check_events(text: str) -> None:
    """Check, before anything is made of it, that YAML is of an ordinary form.

    Raises:
        SpecError: It is nested too deeply, which takes very long, or has references: a
            reference to a reference, and so on, would be of any size.
    """
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise SpecError(f"yaml: wanted at most {MOST_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise SpecError("yaml: references (`*name`) are not taken")


def errors_by_field(message: str, form: NewRunForm) -> dict[str, str]:
    """Return the parts of a message that are about a field of the form."""
    fields = {".".join(path): name for name, path in PATHS.items()}
    fields |= {".".join(SITES): "sites", "stream.seed": "seed"}
    fields |= {"sae.k": "l0", "sae.target_l0": "l0"}
    fields |= {name: name for name in ("name", "priority", "yaml")}
    starts = list(_PATH.finditer(message))
    ends = [start.start() for start in starts[1:]] + [len(message)]
    errors: dict[str, str] = {}
    for start, end in zip(starts, ends, strict=False):
        other = "yaml" if form.values["yaml"] else None
        name = fields.get(start[1], other)
        if name is not None:
            errors.setdefault(name, message[start.start() : end].rstrip("; "))
    first_word = message.partition(" ")[0].rstrip(":")
    if not errors and first_word in {"store", "name", "sites"}:
        errors[first_word] = message
    return errors


def _sparsity_field(kind: str) -> str:
    """Return the field that the number of active latents is, of a kind."""
    return "k" if "k" in fields_of_sparsity().get(kind, ()) else "target_l0"


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for name in parents:
        values = values.setdefault(name, {})
    values[last] = value


def _taken(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    """Take a value out of nested ones; None where there is none."""
    *parents, last = path
    for name in parents:
        values = values.get(name, {})
    return values.pop(last, None)


def _merged(below: dict[str, Any], above: Any) -> Any:
    """Return nested values with others laid over them."""
    if not isinstance(above, dict):
        return above
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) else value
    return merged
