"""Mutations of a store.

Each is a value that JSON can hold, so that one that found a fault is kept.

Bytes (flipped, cut off, grown, another object's), JSON (any value set to a hostile one,
keys taken away or added, nested 100,000 deep), arrays and statistics (any element,
under a right checksum), shard indexes (under a right checksum), and what is no file at
all. A *sealed* mutation makes every digest, up to the content id, that of the changed
object: what someone does who wants to be believed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from actstore.format.shard import with_checksum
from tests.fuzz.stores import Objects

OUTSIDE = "{outside}"  # stands for a folder beside the store, which nothing may touch
DEEP = 100_000
NUMBERS: tuple[float, ...] = (
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**31 - 1,
    2**31,
    2**32,
    10**9,
    10**12,
    2**62,
    2**63,
    2**64,
    2**200,
    -(2**63),
    0.5,
    -0.5,
    1e308,
    -0.0,
)
STRINGS: tuple[str, ...] = (
    "",
    ".",
    "..",
    "../x",
    "../../outside/secret",
    OUTSIDE + "/secret",
    "/dev/zero",
    "C:\\x",
    "a/b",
    "a//b",
    "a\0b",
    "é" * 300,
    "x" * 300,
    "NaN",
    "Infinity",
    "0" * 64,
    "*",
    "[a]",
    "a::b",
    "file:///dev/zero",
    "acts/../../outside/secret",
    " ",
    "\n",
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, "NaN", "Infinity")
WORDS = (0, 1, -1, 2**31 - 1, -(2**31), 2**62, -(2**63), 100, 8)
INDEX_WORDS = (0, 1, 4, 5, 2**31, 2**47, 2**62, 2**64 - 1, 2**64 - 2)
NO_FILES = ("fifo", "folder", "/dev/zero", "secret", "itself", "..")


class Mutation(NamedTuple):
    """store: its kind; key: the object; change: a name of `CHANGES`, or "no file"; of:
    what the change is told.
    """

    store: str
    key: str
    change: str
    of: list[Any]
    sealed: bool = False

    def line(self) -> str:
        """As a line of the corpus."""
        return json.dumps(self._asdict())


def drawn(kind: str, objects: Objects, rng: np.random.Generator) -> Mutation:
    """A mutation of a store. Every sort of object has the same share, however many
    there are of it; what all the rest is read by has more.
    """
    sorts: dict[str, list[str]] = {}
    for key in objects:
        sorts.setdefault(sort_of(key), []).append(key)
    sort = (
        _one(rng, ("manifest.json  json", "plan.json  json"))
        if rng.random() < 0.2
        else _one(rng, sorted(sorts))
    )
    key = _one(rng, sorts[sort])
    change = _one(rng, _possible(key, objects[key]))
    sealed = bool(rng.random() < 0.5) and change != "no file"
    return Mutation(kind, key, change, _DRAWS[change](rng, key, objects), sealed)


def sort_of(key: str) -> str:
    """Keys of one sort hold the same thing for another unit or site: `acts/*/c/1/0` is
    of the sort `acts c`.
    """
    top = key.split("/", maxsplit=1)[0].split("-", maxsplit=1)[0]
    ending = (
        "zarr.json"
        if key.endswith("zarr.json")
        else "c"
        if "/c/" in key
        else key.rsplit(".", 1)[-1]
    )
    column = key.split("/")[1] if top == "columns" and key.count("/") > 1 else ""
    return f"{top} {column} {ending}"


def mutated(objects: Objects, mutation: Mutation) -> Objects:
    """The store with the mutation (a copy; the other objects are shared). "no file"
    leaves the object out.
    """
    changed = dict(objects)
    key = mutation.key
    if mutation.change in {"no file", "gone"}:
        del changed[key]
    elif mutation.change == "swapped":
        changed[key] = objects[mutation.of[0]]
    else:
        changed[key] = CHANGES[mutation.change](objects[key], *mutation.of)
    return sealed(changed) if mutation.sealed else changed


def _possible(key: str, data: bytes) -> list[str]:
    every = ["gone", "swapped", "cut", "grown", "flip", "flip", "patch", "no file"]
    if key.endswith(".json"):
        return (
            every
            + ["set"] * 12
            + ["taken away"] * 3
            + ["added"] * 2
            + ["twice", "nested", "other order"]
        )
    if key.startswith("acts/"):
        return every + ["index"] * 6 + ["index swapped"] * 4
    if key.endswith(".stats"):
        return every + ["word"] * 4
    if "/c/" in key:
        return every + ["element"] * 8
    return every


# --- changes of bytes


def _flip(data: bytes, bit: int) -> bytes:
    made = bytearray(data)
    made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


def _patch(data: bytes, at: int, what: str) -> bytes:
    return data[:at] + bytes.fromhex(what) + data[at + len(what) // 2 :]


def _word(data: bytes, i: int, value: int) -> bytes:
    """A 64-bit word of statistics, which have no checksum of their own."""
    return data[: 8 * i] + (value % 2**64).to_bytes(8, "little") + data[8 * i + 8 :]


def _element(data: bytes, i: int, value: int) -> bytes:
    """A 32-bit element of a plain array, under a right checksum."""
    return with_checksum(
        data[: 4 * i] + (value % 2**32).to_bytes(4, "little") + data[4 * i + 4 : -4]
    )


def _index(data: bytes, n_words: int, i: int, value: int) -> bytes:
    """A word of a shard's index, under a right checksum."""
    at = len(data) - 4 - 8 * n_words
    return data[:at] + with_checksum(_word(data[at:-4], i, value))


def _index_swapped(data: bytes, n_words: int, i: int, j: int) -> bytes:
    """Two chunks' entries of a shard's index in each other's place, under a right
    checksum.
    """
    at = len(data) - 4 - 8 * n_words
    pairs = np.frombuffer(data[at:-4], "<u8").reshape(-1, 2).copy()
    pairs[[i, j]] = pairs[[j, i]]
    return data[:at] + with_checksum(pairs.tobytes())


# --- changes of JSON


def _set(data: bytes, path: list[Any], value: Any) -> bytes:
    whole = json.loads(data)
    if not path:
        return _json(value)
    _at(whole, path[:-1])[path[-1]] = value
    return _json(whole)


def _taken_away(data: bytes, path: list[Any]) -> bytes:
    whole = json.loads(data)
    if not path:  # there is nothing in it
        return data
    del _at(whole, path[:-1])[path[-1]]
    return _json(whole)


def _added(data: bytes, path: list[Any], key: str, value: Any) -> bytes:
    whole = json.loads(data)
    inside = _at(whole, path)
    inside.append(value) if isinstance(inside, list) else inside.update({key: value})
    return _json(whole)


def _twice(data: bytes, path: list[Any]) -> bytes:
    """Every item of a list twice, or every key of an object (JSON allows it)."""
    whole = json.loads(data)
    inside = _at(whole, path)
    if isinstance(inside, list):
        inside += list(inside)
        return _json(whole)
    marked = json.loads(data)
    _at(marked, path)["\ufffe"] = 0
    body = json.dumps(inside)[1:-1]
    return json.dumps(marked).replace('"\\ufffe": 0', body or '"a": 1, "a": 2').encode()


def _other_order(data: bytes, path: list[Any]) -> bytes:
    """A list back to front."""
    whole = json.loads(data)
    inside = _at(whole, path)
    if not isinstance(inside, list):  # there is none in it
        return data
    inside.reverse()
    return _json(whole)


def _nested(data: bytes, path: list[Any], opening: str) -> bytes:
    """A value 100,000 levels deep."""
    closing = "]" if opening == "[" else "}"
    inside = (
        (opening if opening == "[" else '{"a":') * DEEP
        + ("1" if opening != "[" else "")
        + closing * DEEP
    )
    return (
        _set(data, path, "\ufffe").replace(b'"\\ufffe"', inside.encode())
        if path
        else inside.encode()
    )


CHANGES: dict[str, Callable[..., bytes]] = {
    "cut": lambda data, n: data[:n],
    "grown": lambda data, what: data + bytes.fromhex(what),
    "flip": _flip,
    "patch": _patch,
    "word": _word,
    "element": _element,
    "index": _index,
    "index swapped": _index_swapped,
    "set": _set,
    "taken away": _taken_away,
    "added": _added,
    "twice": _twice,
    "other order": _other_order,
    "nested": _nested,
}


# --- what the changes are told


def _set_of(rng: np.random.Generator, key: str, objects: Objects) -> list[Any]:
    path = _path(rng, json.loads(objects[key]))
    there = _at(json.loads(objects[key]), path)
    values: tuple[Any, ...] = OTHERS
    if (
        rng.random() < 0.8
        and isinstance(there, (int, float))
        and not isinstance(there, bool)
    ):
        values = (*NUMBERS, there + 1, there - 1, there * 2, there * 100, str(there))
    elif rng.random() < 0.8 and isinstance(there, str):
        values = (*STRINGS, there + "x", there[1:], there.upper(), f"../{there}")
    return [path, _one(rng, values)]


def _index_of(rng: np.random.Generator, key: str, objects: Objects) -> list[Any]:
    words = _index_words(key, objects)
    return [words, int(rng.integers(words)), _one(rng, INDEX_WORDS)]


def _index_swap_of(rng: np.random.Generator, key: str, objects: Objects) -> list[Any]:
    words = _index_words(key, objects)
    i, j = rng.choice(words // 2, 2, replace=False) if words > 2 else (0, 0)
    return [words, int(i), int(j)]


def _index_words(key: str, objects: Objects) -> int:
    about = json.loads(objects[key.split("/c/", maxsplit=1)[0] + "/zarr.json"])
    grid = about["chunk_grid"]["configuration"]["chunk_shape"][0]
    return 2 * int(grid) // int(about["codecs"][0]["configuration"]["chunk_shape"][0])


def _container(
    rng: np.random.Generator, key: str, objects: Objects, kind: type | tuple[type, ...]
) -> list[Any]:
    whole = json.loads(objects[key])
    found = [path for path in _paths(whole) if isinstance(_at(whole, path), kind)]
    return _one(rng, found) if found else []


_DRAWS: dict[str, Callable[[np.random.Generator, str, Objects], list[Any]]] = {
    "gone": lambda rng, key, objects: [],
    "swapped": lambda rng, key, objects: [_other(rng, key, objects)],
    "cut": lambda rng, key, objects: [
        int(rng.integers(len(objects[key]) + 1)) if rng.random() < 0.8 else 0
    ],
    "grown": lambda rng, key, objects: [rng.bytes(int(rng.integers(1, 64))).hex()],
    "flip": lambda rng, key, objects: [
        int(rng.integers(8 * max(1, len(objects[key]))))
    ],
    "patch": lambda rng, key, objects: [
        int(rng.integers(len(objects[key]))),
        rng.bytes(int(rng.integers(1, 16))).hex(),
    ],
    "word": lambda rng, key, objects: [
        int(rng.integers(len(objects[key]) // 8)),
        _one(rng, WORDS),
    ],
    "element": lambda rng, key, objects: [
        int(rng.integers((len(objects[key]) - 4) // 4)),
        _one(rng, WORDS),
    ],
    "index": _index_of,
    "index swapped": _index_swap_of,
    "set": _set_of,
    "taken away": lambda rng, key, objects: [
        _path(rng, json.loads(objects[key]), root=False)
    ],
    "added": lambda rng, key, objects: [
        _container(rng, key, objects, (dict, list)),
        _one(rng, STRINGS),
        _one(rng, OTHERS),
    ],
    "twice": lambda rng, key, objects: [_container(rng, key, objects, (dict, list))],
    "other order": lambda rng, key, objects: [_container(rng, key, objects, list)],
    "nested": lambda rng, key, objects: [
        _path(rng, json.loads(objects[key])),
        _one(rng, ("[", "{")),
    ],
    "no file": lambda rng, key, objects: [_one(rng, NO_FILES)],
}


def _other(rng: np.random.Generator, key: str, objects: Objects) -> str:
    """Another object, mostly one of the same sort: that has the right form, and is of
    another unit or site.
    """
    same = [
        other for other in objects if other != key and sort_of(other) == sort_of(key)
    ]
    return _one(
        rng,
        same
        if same and rng.random() < 0.8
        else [other for other in objects if other != key],
    )


def _path(rng: np.random.Generator, whole: Any, *, root: bool = True) -> list[Any]:
    """A place in a JSON value; a level is drawn before what is on it, so that long
    lists do not hide the rest.
    """
    found = _paths(whole)[0 if root else 1 :]
    if not found:
        return []
    depth = _one(rng, sorted({len(path) for path in found}))
    names = sorted(
        {str(path[0]) if path else "" for path in found if len(path) == depth}
    )
    first = _one(rng, names)
    return _one(
        rng,
        [
            path
            for path in found
            if len(path) == depth and (str(path[0]) if path else "") == first
        ],
    )


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[list[Any]]:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        list(above),
        *(path for key, one in inside for path in _paths(one, (*above, key))),
    ]


def _at(value: Any, path: list[Any]) -> Any:
    for step in path:
        value = value[step]
    return value


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _one(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


# --- sealing


def sealed(objects: Objects) -> Objects:
    """The objects with every digest made anew, from units' objects to the content id.
    What cannot be, is left.
    """
    made = dict(objects)
    try:
        manifest = json.loads(made["manifest.json"])
        for i, generation in enumerate(manifest["generations"]):
            _seal_generation(made, i, generation)
        _seal_columns(made, manifest)
        for key in manifest["files"]:
            if key in made:
                manifest["files"][key] = _record(made[key])
        ids = [
            one["plan_digest"] + one["units_digest"] for one in manifest["generations"]
        ]
        manifest["content_id"] = _digest("".join(ids).encode())
        manifest["parent"] = (
            _digest("".join(ids[:-1]).encode()) if len(ids) > 1 else None
        )
        made["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OverflowError,
    ):
        return made
    return made


def _seal_generation(made: Objects, index: int, generation: dict[str, Any]) -> None:
    suffix = f"-{index}" if index else ""
    records = b""
    for unit in range(
        generation["first_unit"],
        min(generation["first_unit"] + generation["n_units"], 100),
    ):
        key = f"units{suffix}/{unit:05d}.json"
        record = json.loads(made[key])
        record["objects"] = {
            one: _record(made[one]) if one in made else told
            for one, told in record["objects"].items()
        }
        if record != json.loads(made[key]):
            made[key] = (json.dumps(record, indent=1) + "\n").encode()
        records += made[key]
        block = f"blocks/{unit:05d}.json"
        if f"tokens/c/{unit}/0" in record["objects"] and block in made:
            told = json.loads(made[block])
            if told["tokens"] != record["objects"][f"tokens/c/{unit}/0"]:
                told["tokens"] = record["objects"][f"tokens/c/{unit}/0"]
                made[block] = (json.dumps(told, indent=1) + "\n").encode()
    generation["units_digest"] = _digest(records)
    generation["plan_digest"] = _digest(made[f"plan{suffix}.json"])


def _seal_columns(made: Objects, manifest: dict[str, Any]) -> None:
    last = len(manifest["generations"]) - 1
    key = f"columns{f'-{last}' if last else ''}/digests/c/0/0"
    column = b""
    for unit in range(min(manifest["n_units"], 100)):
        state = b""
        for i, generation in enumerate(manifest["generations"]):
            if (
                generation["first_unit"]
                <= unit
                < generation["first_unit"] + generation["n_units"]
            ):
                one = blake3(
                    made[f"units{f'-{i}' if i else ''}/{unit:05d}.json"]
                ).digest()
                state = blake3(state + one).digest() if state else one
        column += state
    if len(column) == len(made[key]) - 4:
        made[key] = with_checksum(column)


def _record(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "digest": _digest(data)}


def _digest(data: bytes) -> str:
    return str(blake3(data).hexdigest())
