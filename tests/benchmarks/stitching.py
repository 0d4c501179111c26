"""Measures how fast dictionaries are compared.

`python -m tests.benchmarks.stitching [--a M] [--b M] [--d D] [--rounds N]`.

`max_cosine_...`: all cosines of two dictionaries of random directions, block by block,
with the maximum of each latent of either; in billions of multiply-adds per second. Floor: the same
products of blocks alone, into memory that is there. ratio = value / floor.
`add_...`: what each latent of the larger one does to the smaller one (two
reconstructions and one more product with the larger decoder), in rows per second.
Floor: the matrix products that it needs. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from schemas.records import BenchRecord
from trainer.analysis.cosines import ROWS_AT_ONCE, mutual_max_cosine
from trainer.stitching.add import effects_of_adding
from trainer.stitching.dictionary import Dictionary

ROWS = 1024


def main() -> None:
    """Print a JSON line for each case."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--a", type=int, default=12_288)
    words.add_argument("--b", type=int, default=24_576)
    words.add_argument("--d", type=int, default=768)
    words.add_argument("--rounds", type=int, default=3)
    asked = words.parse_args()
    for record in (
        _cosines(asked.a, asked.b, asked.d, asked.rounds),
        _adding(asked.a, asked.b, asked.d, asked.rounds),
    ):
        print(record.model_dump_json(), flush=True)


def _cosines(m_a: int, m_b: int, d: int, rounds: int) -> BenchRecord:
    made = torch.Generator().manual_seed(0)
    a, b = torch.randn(m_a, d, generator=made), torch.randn(m_b, d, generator=made)
    into = torch.empty(ROWS_AT_ONCE, ROWS_AT_ONCE)

    def products() -> None:
        for rows_b in b.split(ROWS_AT_ONCE):
            for rows_a in a.split(ROWS_AT_ONCE):
                torch.mm(rows_a, rows_b.T, out=into[: len(rows_a), : len(rows_b)])

    work = m_a * m_b * d / 1e9
    value = work / _seconds(lambda: mutual_max_cosine(a, b), rounds)
    floor = work / _seconds(products, rounds)
    case = f"max_cosine_{m_a}x{m_b}_d{d}"
    return _record(case, value, "1e9 multiply-adds/s", floor)


def _adding(m_a: int, m_b: int, d: int, rounds: int) -> BenchRecord:
    a, b = _dictionary(m_a, d), _dictionary(m_b, d)
    x = torch.randn(ROWS, d, generator=torch.Generator().manual_seed(1))

    def products() -> None:
        for one in (a, b):
            for part in one.parts():
                # encoded and decoded
                (x @ one.W_enc[:, part]) @ one.W_dec[part]
        for part in b.parts():
            x @ b.W_enc[:, part]
            x @ b.W_dec[part].T

    value = ROWS / _seconds(lambda: effects_of_adding(a, b, [x]), rounds)
    floor = ROWS / _seconds(products, rounds)
    return _record(f"add_{m_b}_to_{m_a}_d{d}", value, "rows/s", floor)


def _dictionary(m: int, d: int) -> Dictionary:
    made = torch.Generator().manual_seed(m)
    directions = torch.nn.functional.normalize(torch.randn(m, d, generator=made), dim=1)
    zeros = torch.zeros(m)
    # About 1 in 500 latents fires.
    bias = zeros - 2.9
    return Dictionary(
        directions.T.contiguous(),
        bias,
        zeros,
        zeros + 1,
        bias,
        directions,
        torch.zeros(d),
    )


def _seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _record(case: str, value: float, unit: str, floor: float) -> BenchRecord:
    return BenchRecord(
        bench="stitching",
        case=case,
        value=value,
        unit=unit,
        floor=floor,
        ratio=value / floor,
    )


if __name__ == "__main__":
    main()
