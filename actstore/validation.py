"""Says in sentences for users what is wrong with a spec.

They say which field, what it takes, what came instead, and the nearest name for a wrong
one.

pydantic tells what failed and where. What a field takes is read from its JSON schema
and put in the project's own words.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from actstore.errors import SpecError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    Model = TypeVar("Model", bound=BaseModel)

Node = dict[str, Any]
"""A JSON schema, or a part of one: that of a field, or of one kind of a field."""
Options = Mapping[str, str]
"""The option of a command that gave a field its value, by the field's dotted path."""
SHOWN = 80  # characters of a value that a message repeats
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
EXAMPLES = {"count": "500k", "size": "4GiB"}


class FieldLocation(NamedTuple):
    """A field of a spec in which something is wrong.

    Attributes:
        path: The field's dotted path, as a user writes it: `sae.k`.
        node: The field's schema.
        parent: The schema that the field stands in.
    """

    path: str
    node: Node
    parent: Node


def validated(
    schema: type[Model], values: Any, where: str, options: Options | None = None
) -> Model:
    """Return a schema's instance made of values.

    Args:
        schema: The schema.
        values: A dict, as YAML or a Python caller gives it.
        where: The file or the like that values come from.
        options: The options of a command that gave some of them, by dotted path:
            {"sae.k": "--k"}.

    Raises:
        SpecError: Values do not fit; the message says so in sentences.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise SpecError(sentences(error, schema, where, options)) from error


def validated_json(schema: type[Model], data: bytes, where: str) -> Model:
    """Return a schema's instance made of the JSON that a file holds.

    Raises:
        SpecError: It does not fit; the message says so in sentences.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise SpecError(sentences(error, schema, where)) from error


@functools.cache
def json_schema(schema: type[BaseModel]) -> Node:
    """Return a schema's JSON schema, which is made only once."""
    return schema.model_json_schema()


def sentences(
    error: ValidationError,
    schema: type[BaseModel] | None = None,
    where: str = "",
    options: Options | None = None,
) -> str:
    """Return pydantic's error as sentences, one for each field.

    Args:
        error: What pydantic raised.
        schema: The schema; None: the one of ours whose name the error has.
        where: The file or the like that values come from.
        options: As in `validated`. What an option gave is told first, under the
            option's name, and without the file.
    """
    schema = schema or _loaded_schemas().get(error.title)
    root: Node = {} if schema is None else json_schema(schema)
    option_names = options or {}
    by_path: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        field = _locate(root, problem["loc"])
        if problem["type"] in {"union_tag_not_found", "union_tag_invalid"}:
            field = field._replace(path=f"{field.path}.kind")
        # A field with several alternatives has a problem for each: the first will do.
        if field.path not in by_path:
            by_path[field.path] = _sentence(root, field, problem, option_names)
    of_options = [text for path, text in by_path.items() if path in option_names]
    of_file = [text for path, text in by_path.items() if path not in option_names]
    if not of_file:
        return "; ".join(of_options)
    prefix = f"{where}: " if where else ""
    return "; ".join([*of_options, prefix + "; ".join(of_file)])


def _sentence(
    root: Node, field: FieldLocation, problem: Any, option_names: Options
) -> str:
    """Return one problem of pydantic's as a sentence."""
    if problem["type"] == "extra_forbidden":
        return _unknown_key(root, field)
    text = _complaint(root, field.node, problem)
    if not field.path:
        return text
    return f"{option_names.get(field.path, field.path)}: {text}"


def _complaint(root: Node, node: Node, problem: Any) -> str:
    """Return what is wrong with a value, without the name of its field."""
    came = problem["input"]
    details = problem.get("ctx", {})
    wanted = wanted_by(root, node)
    text = f"wanted {wanted or 'another value'}, got {_shown(came)}"
    match problem["type"]:
        case "missing":
            text = f"missing; wanted {wanted}" if wanted else "missing"
        case "union_tag_not_found":
            text = f"missing; there are {', '.join(_kinds(node))}"
        case "union_tag_invalid":
            text = _no_such(details.get("tag"), _kinds(node))
        case "value_error" if details.get("error"):
            text = str(details["error"])
        case "json_invalid":
            text = f"not valid JSON: {details.get('error')}"
        case "literal_error" if isinstance(came, str):
            choices = _choices(root, node)
            text = _no_such(came, choices) if choices else text
    return text


def _unknown_key(root: Node, field: FieldLocation) -> str:
    """Return a sentence on a key that does not exist.

    It tells what this kind of SAE has instead, or the nearest name, or where a key of
    that name stands.
    """
    above, _, key = field.path.rpartition(".")
    properties = field.parent.get("properties", {})
    near = difflib.get_close_matches(key, properties, 1, 0.6)
    if "const" in properties.get("kind", {}):
        return _not_of_this_kind(root, field.path, properties, near)
    suggestion = ""
    if near:
        suggestion = f"{above}.{near[0]}" if above else near[0]
    else:
        # Fields of a transcoder's latents repeat those of an SAE's.
        every_path = [
            path for path, _ in _every_field(root, root) if ".inner." not in path
        ]
        elsewhere = [path for path in every_path if path.rpartition(".")[2] == key]
        elsewhere = elsewhere or difflib.get_close_matches(key, every_path, 1, 0.6)
        if elsewhere:
            suggestion = elsewhere[0]
    hint = f"did you mean {suggestion}?" if suggestion else "check its spelling"
    if suggestion == field.path:
        # A dotted path, as a sweep and the messages here write it, for a key.
        nested = ": {".join(repr(name) for name in suggestion.split("."))
        hint = f"keys are nested: {{{nested}: ...{'}' * (suggestion.count('.') + 1)}"
    return f"{field.path}: there is no such key; {hint}"


def _not_of_this_kind(root: Node, path: str, properties: Node, near: list[str]) -> str:
    """Return a sentence on a key that this kind of SAE does not have.

    Args:
        root: The whole schema.
        path: The key's dotted path.
        properties: The fields that the kind has.
        near: The field's name that is most like the key, if there is one.
    """
    from schemas.sae import fields_of_sparsity

    above, _, key = path.rpartition(".")
    kind = properties["kind"]["const"]
    kinds_with_key = kinds_with(root, key)
    verb = "has" if len(kinds_with_key) == 1 else "have"
    others_have_it = f"{', '.join(kinds_with_key)} {verb} {key}"
    if kinds_with_key and "inner" in properties:
        return f"{kind} has no {key}; that is of its latents: {above}.inner.{key}"
    sparsity = fields_of_sparsity()
    sets_sparsity = any(key in names for names in sparsity.values())
    if sets_sparsity and kind in sparsity:
        return (
            f"{kind} has no {key}; its sparsity is {' or '.join(sparsity[kind])}"
            f" ({others_have_it})"
        )
    if kinds_with_key:
        hint = others_have_it
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"it has {', '.join(properties)}"
    return f"{path}: {kind} has no {key}; {hint}"


def kinds_with(root: Node, key: str) -> list[str]:
    """Return the kinds of SAE that have a field of that name."""
    kinds = []
    for part in root.get("$defs", {}).values():
        properties = part.get("properties", {})
        if key in properties and "const" in properties.get("kind", {}):
            kinds.append(properties["kind"]["const"])
    return kinds


def fields_at(root: Node, path: str) -> list[Node]:
    """Return the fields of a JSON schema at a dotted path.

    Where several kinds of SAE have one there, that of each.
    """
    return [node for known, node in _every_field(root, root) if known == path]


def kind_of(node: Node) -> str:
    """Return `count`, `size` or the JSON type of a field, whatever it takes besides."""
    for alternative in node.get("anyOf", (node,)):
        if "const" not in alternative:
            kind: str = alternative.get("format") or alternative.get("type", "")
            if kind != "null":
                return kind
    return ""


def choices_of(root: Node, path: str) -> tuple[str, ...]:
    """Return the values of a field that has a fixed set of them; none for other fields.

    They are in the schema's order.
    """
    nodes = fields_at(root, path)
    # `kind` has one value in each kind of SAE.
    choices = [str(node["const"]) for node in nodes if "const" in node]
    if not choices and nodes:
        choices = _choices(root, nodes[0])
    return tuple(dict.fromkeys(choices))


def wanted_by(root: Node, node: Node) -> str:
    """Return what a part of a JSON schema takes: `auto or a number above 0`."""
    node = _resolved(root, node)
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    alternatives = node.get("anyOf") or node.get("oneOf")
    if alternatives:
        words = [wanted_by(root, alternative) for alternative in alternatives]
        return " or ".join(dict.fromkeys(word for word in words if word))
    kind: str = node.get("format") or node.get("type") or ""
    length = ""
    if kind == "array":
        length = _length_of_list(root, node)
    elif kind == "string" and "maxLength" in node:
        length = (
            f" of {node.get('minLength', 0)} to {node['maxLength']} characters, on one"
            " line"
        )
    example = f", such as {EXAMPLES[kind]}" if kind in EXAMPLES else ""
    return f"{WORDS.get(kind, '')}{length}{_bounds(node)}{example}"


def _length_of_list(root: Node, node: Node) -> str:
    """Return how long a list is to be, and what its elements are: ` of 2, each ...`."""
    elements = node.get("items", node.get("prefixItems", [{}])[0])
    wanted = wanted_by(root, elements)
    length = f" of {node['maxItems']}" if "maxItems" in node else ""
    return f"{length}, each {wanted}" if wanted else length


def _bounds(node: Node) -> str:
    """Return a number's bounds: ` from 0 to 1`, ` above 0`."""
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']:g} to {node['maximum']:g}"
    words = {
        "exclusiveMinimum": "above",
        "gt": "above",
        "minimum": "from",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {node[name]:g}" for name, word in words.items() if name in node]
    return f" {' and '.join(bounds)}" if bounds else ""


def _locate(root: Node, location: tuple[int | str, ...]) -> FieldLocation:
    """Return the field at pydantic's location.

    pydantic names, on the way, the alternative of a union that it tried. That is no
    part of the path that a user writes: ("sae", "topk", "k") is `sae.k`, and
    ("lr", "constrained-float") is `lr`.
    """
    node = root
    parent = root
    path: list[str] = []
    for step in location:
        inner = _node_inside(root, node, step)
        if inner is not None:
            parent = _alternative_with(root, node, step)
            node = inner
            path.append(str(step))
            continue
        kinds = _resolved(root, node).get("discriminator", {}).get("mapping", {})
        if step in kinds:
            node = {"$ref": kinds[step]}
            continue
        parent = _with_fields(root, node)
        # A key that is unknown, or any key where the schema is not known.
        if "properties" in parent or not root:
            path.append(str(step))
    return FieldLocation(".".join(path), node, parent)


def _node_inside(root: Node, node: Node, step: int | str) -> Node | None:
    """Return the schema of a key, or of a list's element; None where there is none."""
    resolved = _alternative_with(root, node, step)
    if step in resolved.get("properties", {}):
        field: Node = resolved["properties"][step]
        return field
    for part in (resolved, *resolved.get("anyOf", ())):
        fixed = part.get("prefixItems", ())  # a list whose elements each have a schema
        if isinstance(step, int) and step < len(fixed):
            element: Node = fixed[step]
            return element
        name = "items" if isinstance(step, int) else "additionalProperties"
        elements = part.get(name)
        if isinstance(elements, dict) and elements:
            return elements
    return None


def _alternative_with(root: Node, node: Node, key: int | str) -> Node:
    """Return the alternative of a schema that has the key, or else the schema."""
    resolved = _resolved(root, node)
    for part in resolved.get("anyOf", ()):
        alternative = _resolved(root, part)
        if key in alternative.get("properties", {}):
            return alternative
    return resolved


def _with_fields(root: Node, node: Node) -> Node:
    """Return the alternative of a schema that has fields, or else the schema."""
    resolved = _resolved(root, node)
    for part in resolved.get("anyOf", ()):
        alternative = _resolved(root, part)
        if "properties" in alternative:
            return alternative
    return resolved


def _resolved(root: Node, node: Node) -> Node:
    """Return the schema itself, where a node only refers to it."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        referred: Node = root["$defs"][name]
        return referred
    return node


def _every_field(root: Node, node: Node, above: str = "") -> Iterator[tuple[str, Node]]:
    """Yield the dotted path and schema of all fields, and of those inside them.

    Args:
        root: The whole schema.
        node: The part of it whose fields are wanted.
        above: What their paths begin with, such as `sae.`.
    """
    resolved = _resolved(root, node)
    alternatives = (
        resolved,
        *resolved.get("anyOf", ()),
        *resolved.get("oneOf", ()),
    )
    for alternative in alternatives:
        properties = _resolved(root, alternative).get("properties", {})
        for name, field in properties.items():
            path = f"{above}{name}"
            yield path, field
            yield from _every_field(root, field, f"{path}.")


def _loaded_schemas() -> dict[str, type[BaseModel]]:
    """Return those of our schemas that are loaded, by name."""
    from schemas.base import Schema

    by_name: dict[str, type[BaseModel]] = {}
    left: list[type[BaseModel]] = [Schema]
    while left:
        schema = left.pop()
        by_name[schema.__name__] = schema
        left += schema.__subclasses__()
    return by_name


def _kinds(node: Node) -> list[str]:
    """Return the kinds of a union, as its key `kind` names them."""
    return list(node.get("discriminator", {}).get("mapping", {}))


def _choices(root: Node, node: Node) -> list[str]:
    """Return the values of a field that has a fixed set of them; none for others."""
    resolved = _resolved(root, node)
    choices: list[str] = []
    for part in resolved.get("anyOf", (resolved,)):
        choices += map(str, _resolved(root, part).get("enum", ()))
    return choices


def _no_such(came: Any, choices: list[str]) -> str:
    near = difflib.get_close_matches(str(came), choices, 1, 0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no {_shown(came)}{hint}; there are {', '.join(choices)}"


def _shown(value: Any) -> str:
    """Return a value as a message repeats it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
