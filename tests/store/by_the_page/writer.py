"""Units, records, columns and the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numcodecs import blosc

from tests.store.by_the_page.metadata import GROUPS, array, group, named
from tests.store.by_the_page.numbers import (
    WORD,
    checked,
    digest,
    figures,
    merge,
    permutation,
    quantised,
    statistics,
    to_bfloat16,
)

SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}


class PageWriter:
    """Writes one finished store. values: by site [sequences, context, d] float32;
    tokens: [sequences, context].
    """

    def __init__(
        self, folder: Path, values: dict[str, np.ndarray], tokens: np.ndarray, *, dtype: str, codec: str,
        unit_sequences: int, chunk_rows: int, seed: int, special: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.folder, self.values, self.tokens, self.dtype, self.codec = (
            folder,
            values,
            tokens,
            dtype,
            codec,
        )
        self.s, self.c, self.seed, self.special = (
            unit_sequences,
            chunk_rows,
            seed,
            special,
        )
        self.n, self.context = tokens.shape
        self.capacity = -(-unit_sequences * self.context // chunk_rows) * chunk_rows
        self.n_units = -(-self.n // unit_sequences)
        self.sites = [{"name": name, "d": x.shape[2]} for name, x in values.items()]
        self.stats: list[list[list[np.ndarray]]] = []
        self.records: list[bytes] = []
        self.rows: list[int] = []
        self.bytes: list[int] = []

    def put(self, key: str, data: bytes | dict[str, Any]) -> dict[str, Any]:
        raw = json.dumps(data).encode() if isinstance(data, dict) else data
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        return {"bytes": len(raw), "digest": digest(raw)}

    def write(self) -> None:
        plan = self.put("plan.json", self.plan())
        arrays = self.arrays()
        for key, one in arrays.items():
            self.put(f"{key}/zarr.json", one)
        for k in range(self.n_units):
            self.unit(k)
        files = {
            "plan.json": plan,
            "README.md": self.put("README.md", b"A store."),
            **self.columns(),
        }
        merged = [self.merged(j) for j in range(len(self.sites))]
        files["norms.stats"] = self.put(
            "norms.stats", b"".join(part.tobytes() for one in merged for part in one)
        )
        for key, one in self.groups(arrays).items():
            self.put(f"{key}/zarr.json".lstrip("/"), one)
        self.put("manifest.json", self.manifest(files, merged))

    def unit(self, k: int) -> None:
        tokens = self.tokens[k * self.s : (k + 1) * self.s]
        sequence, position = np.nonzero(tokens >= 0)
        order = permutation(len(sequence), self.seed, 1, k)
        special = (position == 0) | np.isin(tokens[sequence, position], self.special)
        grown = np.full((self.s, self.context), -1, "<i4")
        grown[: len(tokens)] = tokens
        objects = {
            f"tokens/c/{k}/0": self.put(f"tokens/c/{k}/0", checked(grown.tobytes()))
        }
        block = {
            "unit": k, "n_sequences": len(tokens), "n_tokens": len(sequence), "tokens": objects[f"tokens/c/{k}/0"],
            "cursor": {"sequence": k * self.s + len(tokens)}, "last": k == self.n_units - 1, "skipped_documents": 0,
        }  # fmt: skip
        self.put(f"blocks/{k:05d}.json", block)
        pairs = np.full((self.capacity, 2), -1, "<i4")
        pairs[: len(order)] = np.stack([sequence + k * self.s, position], axis=1)[order]
        objects[f"rows/c/{k}/0"] = self.put(f"rows/c/{k}/0", checked(pairs.tobytes()))
        self.stats.append([])
        for site in self.sites:
            x = self.values[site["name"]][k * self.s : (k + 1) * self.s][
                sequence, position
            ]
            objects |= self.site(k, site["name"], x, order, special)
        data = b"".join(part.tobytes() for one in self.stats[k] for part in one)
        objects[f"units/{k:05d}.stats"] = self.put(f"units/{k:05d}.stats", data)
        record = {
            "unit": k,
            "n_sequences": len(tokens),
            "n_rows": len(order),
            "objects": objects,
            "batch": None,
        }
        self.put(f"units/{k:05d}.json", record)
        self.records.append(json.dumps(record).encode())
        self.rows.append(len(order))
        self.bytes.append(sum(one["bytes"] for one in objects.values()))

    def site(
        self, k: int, name: str, x: np.ndarray, order: list[int], special: np.ndarray
    ) -> dict[str, Any]:
        parts: dict[str, bytes] = {}
        if self.dtype == "int8":
            stored, scale, step = quantised(x)
            parts[f"scale/{name}/c/{k}"] = checked(self.filled(scale[order]).tobytes())
            parts[f"step/{name}/c/{k}/0/0"] = checked(step.tobytes())
        elif self.dtype == "bfloat16":
            stored = to_bfloat16(x)
            x = (stored.astype("<u4") << 16).view("<f4")
        else:
            stored = x.astype("<f2" if self.dtype == "float16" else "<f4")
            x = stored.astype("<f4")
        norm = np.sqrt(np.square(x.astype("<f8")).sum(axis=1)).astype("<f4")
        parts[f"acts/{name}/c/{k}/0"] = self.shard(stored[order])
        parts[f"norm/{name}/c/{k}"] = checked(self.filled(norm[order]).tobytes())
        self.stats[k].append(statistics(x, norm, special))
        return {key: self.put(key, data) for key, data in parts.items()}

    def filled(self, x: np.ndarray) -> np.ndarray:
        whole = np.zeros(self.capacity, x.dtype)
        whole[: len(x)] = x
        return whole

    def shard(self, x: np.ndarray) -> bytes:
        out, index = b"", np.full((self.capacity // self.c, 2), WORD, "<u8")
        for i in range(-(-len(x) // self.c)):
            chunk = np.zeros((self.c, x.shape[1]), x.dtype)
            part = x[i * self.c : (i + 1) * self.c]
            chunk[: len(part)] = part
            raw = chunk.tobytes()
            if self.codec != "raw":
                raw = blosc.compress(
                    np.frombuffer(raw, x.dtype),
                    self.codec.encode(),
                    5,
                    blosc.BITSHUFFLE,
                    0,
                )
            index[i] = len(out), len(raw) + 4
            out += checked(raw)
        return out + checked(index.tobytes())

    def arrays(self) -> dict[str, dict[str, Any]]:
        slots, units = self.n_units * self.capacity, self.n_units
        found = {
            "tokens": array((units * self.s, self.context), (self.s, self.context), "int32", -1, "sequence position",
                            "token ids; -1: padding, or none there"),
            "rows": array((slots, 2), (self.capacity, 2), "int32", -1, "row pair",
                          "sequence and position of each row; -1: no row there"),
        }  # fmt: skip
        for site in self.sites:
            name, d = site["name"], site["d"]
            acts = array(
                (slots, d),
                (self.capacity, d),
                self.dtype,
                0 if self.dtype == "int8" else 0.0,
                f"row d_{d}",
            )
            inner = [one for one in acts["codecs"] if one["name"] == "bytes"]
            if self.codec != "raw":
                settings = {
                    "typesize": SIZES[self.dtype],
                    "cname": self.codec,
                    "clevel": 5,
                }
                inner.append(
                    named(
                        "blosc", {**settings, "shuffle": "bitshuffle", "blocksize": 0}
                    )
                )
            sharding = {
                "chunk_shape": [self.c, d],
                "codecs": [*inner, {"name": "crc32c"}],
                "index_codecs": [
                    named("bytes", {"endian": "little"}),
                    {"name": "crc32c"},
                ],
                "index_location": "end",
            }
            found[f"acts/{name}"] = {
                **acts,
                "codecs": [named("sharding_indexed", sharding)],
            }
            found[f"norm/{name}"] = array(
                (slots,), (self.capacity,), "float32", 0.0, "row"
            )
            if self.dtype == "int8":
                found[f"scale/{name}"] = array(
                    (slots,), (self.capacity,), "float16", 0.0, "row"
                )
                found[f"step/{name}"] = array(
                    (units, 2, d), (1, 2, d), "float32", 0.0, f"unit moment d_{d}"
                )
        return found

    def column_arrays(self) -> dict[str, dict[str, Any]]:
        n, sites = self.n_units, len(self.sites)
        return {
            "columns/rows": array((n,), (n,), "int32", 0, "unit", "valid rows; they are the unit's first"),
            "columns/bytes": array((n,), (n,), "int64", 0, "unit", "stored bytes of the unit's objects"),
            "columns/digests": array((n, 32), (n, 32), "uint8", 0, "unit byte", "blake3 of the unit's records"),
            "columns/sums": array((n, sites, 2, 5), (n, sites, 2, 5), "float64", 0.0, "unit site stratum figure",
                                  "count, non-finite rows, sum, sum of squares, maximum"),
        }  # fmt: skip

    def groups(self, arrays: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """With lists of what is below them."""
        about = {"format": "actstore", "format_version": 1, "format_minor": 2}
        names = {key.split("/")[0] for key in arrays if "/" in key}
        listed = {
            **{name: group({"description": GROUPS[name]}, {}) for name in names},
            "columns": group({}, {}),
        }
        made = {"": group(about, {**listed, **arrays, **self.column_arrays()})}
        for name in names:
            below = {
                key.split("/", 1)[1]: one
                for key, one in arrays.items()
                if key.startswith(f"{name}/")
            }
            made[name] = group({"description": GROUPS[name]}, below)
        return made

    def columns(self) -> dict[str, Any]:
        digests = b"".join(blake3(record).digest() for record in self.records)
        sums = np.array(
            [[np.stack(one[:5], axis=1) for one in unit] for unit in self.stats], "<f8"
        )
        chunks = {
            "rows/c/0": np.array(self.rows, "<i4").tobytes(),
            "bytes/c/0": np.array(self.bytes, "<i8").tobytes(),
            "digests/c/0/0": digests,
            "sums/c/0/0/0/0": sums.tobytes(),
        }
        arrays = self.column_arrays()
        below = {key.split("/", 1)[1]: one for key, one in arrays.items()}
        return {
            "columns/zarr.json": self.put("columns/zarr.json", group({}, below)),
            **{
                f"{key}/zarr.json": self.put(f"{key}/zarr.json", one)
                for key, one in arrays.items()
            },
            **{
                f"columns/{key}": self.put(f"columns/{key}", checked(data))
                for key, data in chunks.items()
            },
        }

    def merged(self, j: int) -> list[np.ndarray]:
        """A site's statistics over the units that are not held out."""
        d = self.sites[j]["d"]
        total = [
            np.zeros(2, "<i8"),
            np.zeros(2, "<i8"),
            *(np.zeros(2, "<f8") for _ in range(3)),
        ]
        total += [
            np.zeros((2, d), "<f8"),
            np.zeros((2, d), "<f8"),
            np.zeros((2, 2048), "<i8"),
        ]
        for k in range(self.n_units):
            if k % 20 != 19:
                merge(total, self.stats[k][j])
        return total

    def plan(self) -> dict[str, Any]:
        return {
            "format": "actstore", "format_version": 1, "format_minor": 2, **self.about(), "corpus_digest": None,
            "generation": 0, "parent": None, "first_unit": 0,
        }  # fmt: skip

    def about(self) -> dict[str, Any]:
        """What a plan and a manifest both say."""
        source = {"name": "by the page", "revision": None}
        corpus = {
            "kind": "memory",
            "split": "train",
            "config": None,
            "text_column": "text",
            "token_column": None,
        }
        spec = {
            "model": {**source, "dtype": "float32"}, "corpus": {**source, **corpus},
            "sites": [site["name"] for site in self.sites], "tokens": self.n * self.context, "context": self.context,
            "pack": True, "prepend_bos": None, "batch": 1, "dtype": self.dtype, "codec": self.codec, "seed": self.seed,
            "memory": 1 << 30, "unit_sequences": self.s, "chunk_rows": self.c, "exclude_special_tokens": False,
            "skip_first": 0, "exclude_tokens": [], "autocast": None, "compile": False,
        }  # fmt: skip
        layout = {
            "context": self.context, "n_sequences": self.n, "unit_sequences": self.s, "capacity": self.capacity,
            "chunk_rows": self.c, "n_units": self.n_units,
        }  # fmt: skip
        model = {
            "architecture": "none", "n_layers": 0, "d_model": 0, "vocabulary": 0, "weights_digest": "none",
            "tokenizer_digest": None, "bos_token": None, "special_tokens": list(self.special), "processed": False,
        }  # fmt: skip
        numerics = {
            "device": "cpu",
            "torch": "none",
            "dtype": "float32",
            "batch": 1,
            "threads": 1,
        }
        return {
            "spec": spec,
            "sites": self.sites,
            "layout": layout,
            "model": model,
            "numerics": numerics,
        }

    def manifest(
        self, files: dict[str, Any], merged: list[list[np.ndarray]]
    ) -> dict[str, Any]:
        counts = {
            "n_units": self.n_units,
            "n_sequences": self.n,
            "n_rows": sum(self.rows),
        }
        generation = {
            "plan": "plan.json", "units": "units/", "sites": self.sites, "first_unit": 0, **counts,
            "plan_digest": files["plan.json"]["digest"], "units_digest": digest(b"".join(self.records)),
        }  # fmt: skip
        content = digest(
            (generation["plan_digest"] + generation["units_digest"]).encode()
        )
        norms = [
            {"site": site["name"], "d": site["d"], "all": figures(one, [0, 1]), "special": figures(one, [0]), "rest": figures(one, [1])}
            for site, one in zip(self.sites, merged, strict=True)
        ]  # fmt: skip
        train = sum(n for k, n in enumerate(self.rows) if k % 20 != 19)
        return {
            "format": "actstore", "format_version": 1, "format_minor": 2, "content_id": content, "parent": None,
            **self.about(), "generations": [generation], **counts, "n_train_rows": train, "n_bytes": sum(self.bytes),
            "norms": norms, "files": files,
        }  # fmt: skip
