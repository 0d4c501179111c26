"""What is wrong with a spec, in sentences: the field, what it takes, what came; the
nearest name for a wrong one.

pydantic says what failed and where. What a field takes is told from its schema, in the
project's own words.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from actstore.errors import SpecError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    Model = TypeVar("Model", bound=BaseModel)

Node = dict[str, Any]  # a part of a JSON schema
# dotted path of a field as a user writes it; its schema; the schema that it stands in
Place = tuple[str, Node, Node]
Options = Mapping[str, str]  # dotted path -> the option that gave the value
SHOWN = 80
WORDS = {
    "boolean": "true or false",
    "string": "text",
    "null": "nothing",
    "object": "keys and values",
    "array": "a list",
    "integer": "a whole number",
    "number": "a number",
    "count": "a count",
    "size": "a size",
}


def validated(
    schema: type[Model], values: Any, where: str, options: Options | None = None
) -> Model:
    """The schema's instance. `where`: the file or the like that values come from;
    `options`: those that came as options of a command, by dotted path, such as
    {"sae.k": "--k"}. Raises SpecError in sentences.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise SpecError(sentences(error, schema, where, options)) from error


def validated_json(schema: type[Model], data: bytes, where: str) -> Model:
    """The schema's instance from JSON that a file holds. Raises SpecError in sentences
    that name the file.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise SpecError(sentences(error, schema, where)) from error


@functools.cache
def json_schema(schema: type[BaseModel]) -> Node:
    """A schema's JSON schema, made once."""
    return schema.model_json_schema()


def sentences(
    error: ValidationError,
    schema: type[BaseModel] | None = None,
    where: str = "",
    options: Options | None = None,
) -> str:
    """A ValidationError as sentences, one for each field; `schema` is found by its name
    if it is one of ours.
    """
    schema = schema or _known().get(error.title)
    whole: Node = {} if schema is None else json_schema(schema)
    names = options or {}
    found: dict[str, str] = {}
    for one in error.errors(include_url=False):
        path, node, parent = _place(whole, one["loc"])
        if one["type"] in {"union_tag_not_found", "union_tag_invalid"}:
            path = f"{path}.kind"
        found.setdefault(path, _sentence(whole, (path, node, parent), one, names))
    given = [sentence for path, sentence in found.items() if path in names]
    rest = "; ".join(sentence for path, sentence in found.items() if path not in names)
    return "; ".join(
        [*given, *([f"{where}: {rest}" if where else rest] if rest else [])]
    )


def _sentence(whole: Node, place: Place, one: Any, names: Options) -> str:
    path, node, parent = place
    kind, came, more = one["type"], one["input"], one.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(whole, path, parent)
    wanted = wanted_by(whole, node)
    choices = (
        _choices(whole, node)
        if kind == "literal_error" and isinstance(came, str)
        else []
    )
    told = {
        "missing": f"missing{f'; wanted {wanted}' if wanted else ''}",
        "union_tag_not_found": f"missing; there are {', '.join(_kinds(node))}",
        "union_tag_invalid": _no_such(more.get("tag"), _kinds(node)),
        "value_error": more.get("error"),
        "json_invalid": f"not valid JSON: {more.get('error')}",
        **({"literal_error": _no_such(came, choices)} if choices else {}),
    }
    sentence = (
        told.get(kind) or f"wanted {wanted or 'another value'}, got {_shown(came)}"
    )
    return f"{names.get(path, path)}: {sentence}" if path else f"{sentence}"


def _unknown(whole: Node, path: str, parent: Node) -> str:
    """A key that is not there: what the kind of SAE has instead, or the nearest name,
    or where it stands.
    """
    above, _, key = path.rpartition(".")
    properties = parent.get("properties", {})
    near = difflib.get_close_matches(key, properties, 1, 0.6)
    if "const" in properties.get("kind", {}):
        return _not_of(whole, path, properties, near)
    found = [f"{above}.{near[0]}" if above else near[0]] if near else []
    everywhere = [
        known for known, _ in _paths(whole, whole, "") if ".inner." not in known
    ]
    found = found or [known for known in everywhere if known.rpartition(".")[2] == key]
    found = found or difflib.get_close_matches(key, everywhere, 1, 0.6)
    return f"{path}: there is no such key; " + (
        f"did you mean {found[0]}?" if found else "check its spelling"
    )


def _not_of(whole: Node, path: str, properties: Node, near: list[str]) -> str:
    """A key that this kind of SAE does not have."""
    from schemas.sae import SPARSITY

    above, _, key = path.rpartition(".")
    kind = properties["kind"]["const"]
    every = [part.get("properties", {}) for part in whole.get("$defs", {}).values()]
    have = [
        other["kind"]["const"]
        for other in every
        if key in other and "const" in other.get("kind", {})
    ]
    elsewhere = f"{', '.join(have)} {'has' if len(have) == 1 else 'have'} {key}"
    if have and "inner" in properties:
        return f"{kind} has no {key}; that is of its latents: {above}.inner.{key}"
    if any(key in names for names in SPARSITY.values()) and kind in SPARSITY:
        return (
            f"{kind} has no {key}; its sparsity is {' or '.join(SPARSITY[kind])}"
            f" ({elsewhere})"
        )
    hint = (
        elsewhere
        if have
        else f"did you mean {near[0]}?"
        if near
        else f"it has {', '.join(properties)}"
    )
    return f"{path}: {kind} has no {key}; {hint}"


def fields_at(whole: Node, path: str) -> list[Node]:
    """The fields of a JSON schema at a dotted path: of a union, one for each kind that
    has it.
    """
    return [node for known, node in _paths(whole, whole, "") if known == path]


def kind_of(node: Node) -> str:
    """count, size, or the JSON type of a field, whatever else it takes besides."""
    kinds = [
        part.get("format") or part.get("type", "")
        for part in node.get("anyOf", (node,))
        if "const" not in part
    ]
    return next((kind for kind in kinds if kind != "null"), "")


def choices_of(whole: Node, path: str) -> tuple[str, ...]:
    """The values of a field that has a fixed set of them, in the schema's order; else
    none.
    """
    nodes = fields_at(whole, path)
    # the kinds of a union
    found = [str(node["const"]) for node in nodes if "const" in node]
    return tuple(
        dict.fromkeys(
            found or [one for node in nodes[:1] for one in _choices(whole, node)]
        )
    )


def wanted_by(whole: Node, node: Node) -> str:
    """What a part of a JSON schema takes, in words: `auto or a number above 0`."""
    node = _resolved(whole, node)
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    parts = node.get("anyOf") or node.get("oneOf")
    if parts:
        return " or ".join(
            dict.fromkeys(filter(None, (wanted_by(whole, part) for part in parts)))
        )
    kind: str = node.get("format") or node.get("type") or ""
    length = ""
    if kind == "array":
        items = wanted_by(whole, node.get("items", node.get("prefixItems", [{}])[0]))
        length = (f" of {node['maxItems']}" if "maxItems" in node else "") + (
            f", each {items}" if items else ""
        )
    if kind == "string" and "maxLength" in node:
        length = (
            f" of {node.get('minLength', 0)} to {node['maxLength']} characters, on one"
            " line"
        )
    such = {"count": ", such as 500k", "size": ", such as 4GiB"}.get(kind, "")
    return f"{WORDS.get(kind, '')}{length}{_bounds(node)}{such}"


def _bounds(node: Node) -> str:
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']:g} to {node['maximum']:g}"
    names = {
        "exclusiveMinimum": "above",
        "gt": "above",
        "minimum": "from",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {node[name]:g}" for name, word in names.items() if name in node]
    return f" {' and '.join(found)}" if found else ""


def _place(whole: Node, loc: tuple[int | str, ...]) -> Place:
    """Where pydantic's location is: its names of kinds and types within unions are no
    part of a user's path.
    """
    node = parent = whole
    path: list[str] = []
    for step in loc:
        inner = _step(whole, node, step)
        if inner is not None:
            node, parent = inner, _with_keys(whole, node, step)
            path.append(str(step))
            continue
        kinds = _resolved(whole, node).get("discriminator", {}).get("mapping", {})
        if step in kinds:
            node = {"$ref": kinds[step]}
            continue
        parent = _resolved(whole, node)
        # an unknown key; or a schema that is not known
        if "properties" in parent or not whole:
            path.append(str(step))
    return ".".join(path), node, parent


def _step(whole: Node, node: Node, step: int | str) -> Node | None:
    """The schema one step further in; None where there is none such."""
    at = _with_keys(whole, node, step)
    if step in at.get("properties", {}):
        found: Node = at["properties"][step]
        return found
    for part in (at, *at.get("anyOf", ())):
        if isinstance(step, int) and step < len(part.get("prefixItems", ())):
            item: Node = part["prefixItems"][step]
            return item
        inside = (
            part.get("items")
            if isinstance(step, int)
            else part.get("additionalProperties")
        )
        if isinstance(inside, dict) and inside:
            return inside
    return None


def _with_keys(whole: Node, node: Node, step: int | str) -> Node:
    """The schema itself, or the alternative of it that has the key."""
    at = _resolved(whole, node)
    for part in (_resolved(whole, one) for one in at.get("anyOf", ())):
        if step in part.get("properties", {}):
            return part
    return at


def _resolved(whole: Node, node: Node) -> Node:
    if "$ref" in node:
        found: Node = whole["$defs"][node["$ref"].rpartition("/")[2]]
        return found
    return node


def _paths(whole: Node, node: Node, above: str) -> Iterator[tuple[str, Node]]:
    """Dotted paths of all fields of a schema and of the schemas inside it."""
    at = _resolved(whole, node)
    for part in (at, *at.get("anyOf", ()), *at.get("oneOf", ())):
        for name, inner in _resolved(whole, part).get("properties", {}).items():
            yield f"{above}{name}", inner
            yield from _paths(whole, inner, f"{above}{name}.")


def _known() -> dict[str, type[BaseModel]]:
    """Our schemas that are loaded, by name."""
    from schemas.base import Schema

    found: dict[str, type[BaseModel]] = {}
    left: list[type[BaseModel]] = [Schema]
    while left:
        one = left.pop()
        found[one.__name__] = one
        left += one.__subclasses__()
    return found


def _kinds(node: Node) -> list[str]:
    return list(node.get("discriminator", {}).get("mapping", {}))


def _choices(whole: Node, node: Node) -> list[str]:
    at = _resolved(whole, node)
    parts = [_resolved(whole, part) for part in at.get("anyOf", (at,))]
    return [str(one) for part in parts for one in part.get("enum", ())]


def _no_such(came: Any, choices: list[str]) -> str:
    near = difflib.get_close_matches(str(came), choices, 1, 0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no {_shown(came)}{hint}; there are {', '.join(choices)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
