"""A writer and a reader of stores, made from `actstore/FORMAT.md` and nothing else: no import of the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from blake3 import blake3
from numcodecs import blosc

CROSS = {"zarr_format": 3, "node_type": "array"}
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
VALID = "row i is valid where rows[i, 0] >= 0 (`rows` of the root group)"
GROUPS = {
    "acts": f"activations by site; {VALID}",
    "norm": f"L2 norms of the rows by site; {VALID}",
    "scale": "of each row; activation = step[unit, 0] + step[unit, 1] * (scale[row] * acts[row])",
    "step": "channel mean and step of each unit",
}
WORD = 2**64 - 1


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def checked(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def mix(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & WORD
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def permutation(n: int, *parts: int) -> list[int]:
    key = 0
    for part in parts:
        key = mix(key + 0x9E3779B97F4A7C15 + mix(part & WORD) & WORD)
    low = (1 << max(1, (n - 1).bit_length())) - 1
    draws = sorted(mix(i * 0x9E3779B97F4A7C15 + key & WORD) & ~low | i for i in range(n))
    return [draw & low for draw in draws]


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper halves of finite float32, rounded half to even."""
    bits = x.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


class PageWriter:
    """Writes one finished store. values: by site [sequences, context, d] float32; tokens: [sequences, context]."""

    def __init__(
        self, folder: Path, values: dict[str, np.ndarray], tokens: np.ndarray, *, dtype: str, codec: str,
        unit_sequences: int, chunk_rows: int, seed: int, special: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.folder, self.values, self.tokens, self.dtype, self.codec = folder, values, tokens, dtype, codec
        self.s, self.c, self.seed, self.special = unit_sequences, chunk_rows, seed, special
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
        files = {"plan.json": plan, "README.md": self.put("README.md", b"A store."), **self.columns()}
        merged = [self.merged(j) for j in range(len(self.sites))]
        files["norms.stats"] = self.put("norms.stats", b"".join(part.tobytes() for one in merged for part in one))
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
        objects = {f"tokens/c/{k}/0": self.put(f"tokens/c/{k}/0", checked(grown.tobytes()))}
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
            x = self.values[site["name"]][k * self.s : (k + 1) * self.s][sequence, position]
            objects |= self.site(k, site["name"], x, order, special)
        data = b"".join(part.tobytes() for one in self.stats[k] for part in one)
        objects[f"units/{k:05d}.stats"] = self.put(f"units/{k:05d}.stats", data)
        record = {"unit": k, "n_sequences": len(tokens), "n_rows": len(order), "objects": objects, "batch": None}
        self.put(f"units/{k:05d}.json", record)
        self.records.append(json.dumps(record).encode())
        self.rows.append(len(order))
        self.bytes.append(sum(one["bytes"] for one in objects.values()))

    def site(self, k: int, name: str, x: np.ndarray, order: list[int], special: np.ndarray) -> dict[str, Any]:
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
                raw = blosc.compress(np.frombuffer(raw, x.dtype), self.codec.encode(), 5, blosc.BITSHUFFLE, 0)
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
            acts = array((slots, d), (self.capacity, d), self.dtype, 0 if self.dtype == "int8" else 0.0, f"row d_{d}")
            inner = [one for one in acts["codecs"] if one["name"] == "bytes"]
            if self.codec != "raw":
                settings = {"typesize": SIZES[self.dtype], "cname": self.codec, "clevel": 5}
                inner.append(named("blosc", {**settings, "shuffle": "bitshuffle", "blocksize": 0}))
            sharding = {
                "chunk_shape": [self.c, d],
                "codecs": [*inner, {"name": "crc32c"}],
                "index_codecs": [named("bytes", {"endian": "little"}), {"name": "crc32c"}],
                "index_location": "end",
            }
            found[f"acts/{name}"] = {**acts, "codecs": [named("sharding_indexed", sharding)]}
            found[f"norm/{name}"] = array((slots,), (self.capacity,), "float32", 0.0, "row")
            if self.dtype == "int8":
                found[f"scale/{name}"] = array((slots,), (self.capacity,), "float16", 0.0, "row")
                found[f"step/{name}"] = array((units, 2, d), (1, 2, d), "float32", 0.0, f"unit moment d_{d}")
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
        about = {"format": "actstore", "format_version": 1, "format_minor": 1}
        names = {key.split("/")[0] for key in arrays if "/" in key}
        listed = {**{name: group({"description": GROUPS[name]}, {}) for name in names}, "columns": group({}, {})}
        made = {"": group(about, {**listed, **arrays, **self.column_arrays()})}
        for name in names:
            below = {key.split("/", 1)[1]: one for key, one in arrays.items() if key.startswith(f"{name}/")}
            made[name] = group({"description": GROUPS[name]}, below)
        return made

    def columns(self) -> dict[str, Any]:
        digests = b"".join(blake3(record).digest() for record in self.records)
        sums = np.array([[np.stack(one[:5], axis=1) for one in unit] for unit in self.stats], "<f8")
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
            **{f"{key}/zarr.json": self.put(f"{key}/zarr.json", one) for key, one in arrays.items()},
            **{f"columns/{key}": self.put(f"columns/{key}", checked(data)) for key, data in chunks.items()},
        }

    def merged(self, j: int) -> list[np.ndarray]:
        """A site's statistics over the units that are not held out."""
        d = self.sites[j]["d"]
        total = [np.zeros(2, "<i8"), np.zeros(2, "<i8"), *(np.zeros(2, "<f8") for _ in range(3))]
        total += [np.zeros((2, d), "<f8"), np.zeros((2, d), "<f8"), np.zeros((2, 2048), "<i8")]
        for k in range(self.n_units):
            if k % 20 != 19:
                merge(total, self.stats[k][j])
        return total

    def plan(self) -> dict[str, Any]:
        return {
            "format": "actstore", "format_version": 1, "format_minor": 1, **self.about(), "corpus_digest": None,
            "generation": 0, "parent": None, "first_unit": 0,
        }  # fmt: skip

    def about(self) -> dict[str, Any]:
        """What a plan and a manifest both say."""
        source = {"name": "by the page", "revision": None}
        corpus = {"kind": "memory", "split": "train", "config": None, "text_column": "text", "token_column": None}
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
        numerics = {"device": "cpu", "torch": "none", "dtype": "float32", "batch": 1, "threads": 1}
        return {"spec": spec, "sites": self.sites, "layout": layout, "model": model, "numerics": numerics}

    def manifest(self, files: dict[str, Any], merged: list[list[np.ndarray]]) -> dict[str, Any]:
        counts = {"n_units": self.n_units, "n_sequences": self.n, "n_rows": sum(self.rows)}
        generation = {
            "plan": "plan.json", "units": "units/", "sites": self.sites, "first_unit": 0, **counts,
            "plan_digest": files["plan.json"]["digest"], "units_digest": digest(b"".join(self.records)),
        }  # fmt: skip
        content = digest((generation["plan_digest"] + generation["units_digest"]).encode())
        norms = [
            {"site": site["name"], "d": site["d"], "all": figures(one, [0, 1]), "special": figures(one, [0]), "rest": figures(one, [1])}
            for site, one in zip(self.sites, merged, strict=True)
        ]  # fmt: skip
        train = sum(n for k, n in enumerate(self.rows) if k % 20 != 19)
        return {
            "format": "actstore", "format_version": 1, "format_minor": 1, "content_id": content, "parent": None,
            **self.about(), "generations": [generation], **counts, "n_train_rows": train, "n_bytes": sum(self.bytes),
            "norms": norms, "files": files,
        }  # fmt: skip


def named(name: str, configuration: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def array(shape: Any, chunk: Any, dtype: str, fill: float, dimensions: str, what: str = "") -> dict[str, Any]:
    first = {"name": "bytes"} if dtype in {"int8", "uint8"} else named("bytes", {"endian": "little"})
    return {
        **CROSS,
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": named("regular", {"chunk_shape": list(chunk)}),
        "chunk_key_encoding": named("default", {"separator": "/"}),
        "fill_value": fill,
        "codecs": [first, {"name": "crc32c"}],
        "dimension_names": dimensions.split(),
        "attributes": {"description": what} if what else {},
        "storage_transformers": [],
    }


def group(attributes: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    ordered = {key: below[key] for key in sorted(below, key=lambda key: (key.count("/"), key))}
    listing = {"kind": "inline", "must_understand": False, "metadata": ordered}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes, "consolidated_metadata": listing}


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    finite = np.isfinite(x).all(axis=1)
    good = x[finite].astype("<f8")
    mean = good.mean(axis=0).astype("<f4") if finite.any() else np.zeros(x.shape[1], "<f4")
    step = good.std(axis=0).astype("<f4") if finite.any() else np.ones(x.shape[1], "<f4")
    step[step == 0] = 1
    y = (np.where(finite[:, None], x, np.float32(0)) - mean) / step
    exact = np.abs(y).max(axis=1) / np.float32(127)
    scale = exact.astype("<f2")
    scale[scale.astype("<f4") < exact] = np.nextafter(scale, np.float16(np.inf))[scale.astype("<f4") < exact]
    scale[scale == 0] = 1
    q = np.clip(np.rint(y / scale.astype("<f4")[:, None]), -127, 127).astype("i1")
    q[~finite], scale[~finite] = 0, np.nan
    return q, scale, np.stack([mean, step])


def statistics(x: np.ndarray, norm: np.ndarray, special: np.ndarray) -> list[np.ndarray]:
    finite, d = np.isfinite(norm), x.shape[1]
    out = [np.zeros(2, "<i8"), np.zeros(2, "<i8"), *(np.zeros(2, "<f8") for _ in range(3))]
    out += [np.zeros((2, d), "<f8"), np.zeros((2, d), "<f8"), np.zeros((2, 2048), "<i8")]
    for stratum in (0, 1):
        here = special == (stratum == 0)
        values, rows = norm[here & finite].astype("<f8"), x[here & finite].astype("<f8")
        out[0][stratum], out[1][stratum] = len(values), (here & ~finite).sum()
        out[2][stratum], out[3][stratum] = values.sum(), (values**2).sum()
        if not len(values):
            continue
        out[4][stratum], out[5][stratum] = values.max(), rows.mean(axis=0)
        out[6][stratum] = ((rows - out[5][stratum]) ** 2).sum(axis=0)
        with np.errstate(divide="ignore"):
            bins = np.clip(np.floor(32 * (np.log2(values) + 24)), 0, 2047).astype(int)
        out[7][stratum] = np.bincount(bins, minlength=2048)
    return out


def merge(total: list[np.ndarray], one: list[np.ndarray]) -> None:
    for stratum in (0, 1):
        n, m = int(total[0][stratum]), int(one[0][stratum])
        if m:
            delta = one[5][stratum] - total[5][stratum]
            total[5][stratum] += delta * (m / (n + m))
            total[6][stratum] += one[6][stratum] + delta**2 * (n * m / (n + m))
    for i in (0, 1, 2, 3, 7):
        total[i] += one[i]
    total[4][:] = np.maximum(total[4], one[4])


def figures(one: list[np.ndarray], strata: list[int]) -> dict[str, Any]:
    n, histogram = int(one[0][strata].sum()), one[7][strata].sum(axis=0)
    about = {"count": n, "non_finite": int(one[1][strata].sum())}
    if not n:
        nothing = {"mean_norm": "NaN", "mean_sq_norm": "NaN", "max_norm": "NaN", "quantiles": ["NaN"] * 9}
        return {**about, **nothing, "outliers": 0}
    below = np.cumsum(histogram)

    def quantile(q: float) -> float:
        b = int(np.argmax(below >= q * n))
        return float(2.0 ** (-24 + (b + (q * n - (below[b] - histogram[b])) / histogram[b]) / 32))

    limit = min(max(int(np.floor(32 * (np.log2(10 * quantile(0.5)) + 24))), 0), 2047)
    return {
        **about,
        "mean_norm": float(one[2][strata].sum() / n),
        "mean_sq_norm": float(one[3][strata].sum() / n),
        "max_norm": float(one[4][strata].max()),
        "quantiles": [quantile(q) for q in QUANTILES],
        "outliers": int(histogram[limit + 1 :].sum()),
    }


def read_site(folder: Path, site: str) -> dict[tuple[int, int], np.ndarray]:
    """Every row of a site of any store, float32 [d] by (sequence, position)."""
    manifest = json.loads((folder / "manifest.json").read_text())
    layout, spec = manifest["layout"], manifest["spec"]
    d = next(one["d"] for one in manifest["sites"] if one["name"] == site)
    last = len(manifest["generations"]) - 1
    counts = plain(folder / (f"columns-{last}" if last else "columns") / "rows/c/0", "<i4", (manifest["n_units"],))
    found = {}
    for k, n in enumerate(counts):
        pairs = plain(folder / f"rows/c/{k}/0", "<i4", (layout["capacity"], 2))
        x = unit_values(folder, site, k, int(n), d, spec, layout)
        assert (pairs[n:] == -1).all()
        found |= {(int(a), int(b)): row for (a, b), row in zip(pairs[:n], x, strict=True)}
    return found


def plain(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    data = path.read_bytes()
    assert checked(data[:-4]) == data
    return np.frombuffer(data[:-4], dtype).reshape(shape)


def unit_values(folder: Path, site: str, k: int, n: int, d: int, spec: Any, layout: Any) -> np.ndarray:
    data = (folder / f"acts/{site}/c/{k}/0").read_bytes()
    c, chunks = layout["chunk_rows"], layout["capacity"] // layout["chunk_rows"]
    raw = data[-(16 * chunks + 4) :]
    assert checked(raw[:-4]) == raw
    stored = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "int8": "i1"}[spec["dtype"]]
    parts = []
    for offset, length in np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)[: -(-n // c)].tolist():
        chunk = data[offset : offset + length]
        assert checked(chunk[:-4]) == chunk
        body = chunk[:-4] if spec["codec"] == "raw" else blosc.decompress(chunk[:-4])
        parts.append(np.frombuffer(body, stored).reshape(c, d))
    x = np.concatenate([*parts, np.zeros((0, d), stored)])[:n]
    if spec["dtype"] == "bfloat16":
        return (x.astype("<u4") << 16).view("<f4")
    if spec["dtype"] != "int8":
        return x.astype("<f4")
    scale = plain(folder / f"scale/{site}/c/{k}", "<f2", (layout["capacity"],))[:n].astype("<f4")
    step = plain(folder / f"step/{site}/c/{k}/0/0", "<f4", (2, d))
    return step[0] + step[1] * (scale[:, None] * x.astype("<f4"))
