"""Digests, the order of rows, int8 and statistics."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
from blake3 import blake3

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
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
    draws = sorted(
        mix(i * 0x9E3779B97F4A7C15 + key & WORD) & ~low | i for i in range(n)
    )
    return [draw & low for draw in draws]


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper halves of finite float32, rounded half to even."""
    bits = x.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    finite = np.isfinite(x).all(axis=1)
    good = x[finite].astype("<f8")
    mean = (
        good.mean(axis=0).astype("<f4") if finite.any() else np.zeros(x.shape[1], "<f4")
    )
    step = (
        good.std(axis=0).astype("<f4") if finite.any() else np.ones(x.shape[1], "<f4")
    )
    step[step == 0] = 1
    y = (np.where(finite[:, None], x, np.float32(0)) - mean) / step
    exact = np.abs(y).max(axis=1) / np.float32(127)
    scale = exact.astype("<f2")
    scale[scale.astype("<f4") < exact] = np.nextafter(scale, np.float16(np.inf))[
        scale.astype("<f4") < exact
    ]
    scale[scale == 0] = 1
    q = np.clip(np.rint(y / scale.astype("<f4")[:, None]), -127, 127).astype("i1")
    q[~finite], scale[~finite] = 0, np.nan
    return q, scale, np.stack([mean, step])


def statistics(
    x: np.ndarray, norm: np.ndarray, special: np.ndarray
) -> list[np.ndarray]:
    finite, d = np.isfinite(norm), x.shape[1]
    out = [
        np.zeros(2, "<i8"),
        np.zeros(2, "<i8"),
        *(np.zeros(2, "<f8") for _ in range(3)),
    ]
    out += [
        np.zeros((2, d), "<f8"),
        np.zeros((2, d), "<f8"),
        np.zeros((2, 2048), "<i8"),
    ]
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
        nothing = {
            "mean_norm": "NaN",
            "mean_sq_norm": "NaN",
            "max_norm": "NaN",
            "quantiles": ["NaN"] * 9,
        }
        return {**about, **nothing, "outliers": 0}
    below = np.cumsum(histogram)

    def quantile(q: float) -> float:
        b = int(np.argmax(below >= q * n))
        return float(
            2.0 ** (-24 + (b + (q * n - (below[b] - histogram[b])) / histogram[b]) / 32)
        )

    limit = min(max(int(np.floor(32 * (np.log2(10 * quantile(0.5)) + 24))), 0), 2047)
    return {
        **about,
        "mean_norm": float(one[2][strata].sum() / n),
        "mean_sq_norm": float(one[3][strata].sum() / n),
        "max_norm": float(one[4][strata].max()),
        "quantiles": [quantile(q) for q in QUANTILES],
        "outliers": int(histogram[limit + 1 :].sum()),
    }
