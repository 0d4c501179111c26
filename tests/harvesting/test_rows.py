"""Tests of the rows that are kept, and of how a unit is filled.

Filters, halved batches, staging on a device, autocast, compile.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import actstore
from actstore.console.token_file import read_tokens
from actstore.errors import HarvestWarning, ModelError, SpecError
from actstore.format.storage import Storage
from actstore.harvesting import writer_thread
from actstore.harvesting.fill_unit_buffer import RowCollector
from actstore.harvesting.sealed_unit import seal
from actstore.harvesting.unit_buffer import UnitBuffer
from schemas.source import Site

SPEC: dict[str, Any] = {
    "sites": "embed",
    "context": 8,
    "batch": 8,
    "unit_sequences": 16,
    "dtype": "float32",
}
TOKENS = torch.randint(
    0, 40, (64, 8), generator=torch.Generator().manual_seed(3)
).numpy()


class Model(nn.Module):
    """Its batch may be too large, as a GPU's memory is."""

    def __init__(
        self, limit: int = 10**6, error: type[Exception] = torch.OutOfMemoryError
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 4)
        self.embed.weight.data = torch.randn(
            40, 4, generator=torch.Generator().manual_seed(0)
        )
        self.limit = limit
        self.error = error
        self.sizes: list[int] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(tokens))
        if tokens.shape[1] == 8 and len(tokens) > self.limit:  # a probe is shorter
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        out: torch.Tensor = self.embed(tokens)
        return out


def objects(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    return {key: storage.read(key) for key in storage.list()}


def kept(store: actstore.Store) -> list[tuple[int, int, int]]:
    where = store.provenance(store.rows())
    return sorted(
        zip(
            where.sequence.tolist(),
            where.position.tolist(),
            where.token.tolist(),
            strict=True,
        )
    )


def test_filters_look_at_the_token_alone(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("# frequent\n7\n\n9  # nine\n7\n")
    excluded = read_tokens(str(tmp_path / "out.txt"))
    assert excluded == (7, 9)
    spec = {**SPEC, "skip_first": 2, "exclude_tokens": excluded}
    store = actstore.harvest(spec, "memory://filtered", model=Model(), tokens=TOKENS)
    wanted = [
        (s, p, int(TOKENS[s, p]))
        for s in range(64)
        for p in range(2, 8)
        if TOKENS[s, p] not in excluded
    ]
    assert kept(store) == wanted
    rows = store.rows()
    vectors = Model().embed.weight.detach().numpy()
    assert np.array_equal(
        store.read("embed", rows), vectors[store.provenance(rows).token]
    )
    assert store.norms["embed"].all.count == len(store.rows("train"))


def test_special_tokens_can_be_left_out() -> None:
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": 20_000,
    }
    spec |= {"context": 64, "exclude_special_tokens": True}
    store = actstore.harvest(spec, "memory://special")
    tokens = store.tokens(np.arange(store.manifest.n_sequences))
    assert 0 < (tokens == 0).sum() == tokens.size - store.manifest.n_rows
    assert not (store.provenance(store.rows()).token == 0).any()


def test_a_unit_without_any_row_is_a_unit(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[16:32] = 5
    store = actstore.harvest(
        {**SPEC, "exclude_tokens": (5,)},
        str(tmp_path / "s"),
        model=Model(),
        tokens=tokens,
    )
    assert store.unit_rows[1] == 0
    assert store.manifest.n_rows == (tokens != 5).sum()
    seen = np.concatenate([batch.row for batch in store.stream()])
    assert sorted(seen.tolist()) == store.rows("train").tolist()


def test_lists_of_tokens_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_tokens(str(tmp_path / "none.txt"))
    (tmp_path / "bad.txt").write_text("3\nthe\n")
    with pytest.raises(SpecError, match="line 2: wanted a token id, got 'the'"):
        read_tokens(str(tmp_path / "bad.txt"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_says_so(error: type[Exception]) -> None:
    model = Model(3, error)
    with pytest.warns(HarvestWarning, match="goes on with [42] sequences per forward"):
        store = actstore.harvest(
            SPEC, f"memory://oom-{error.__name__}", model=model, tokens=TOKENS
        )
    assert [store.record(unit).batch for unit in range(4)] == [2] * 4
    assert kept(store) == [
        (s, p, int(TOKENS[s, p])) for s in range(64) for p in range(8)
    ]
    assert not store.storage.list("claims")
    exact = actstore.harvest(
        SPEC, f"memory://enough-{error.__name__}", model=Model(), tokens=TOKENS
    )
    assert [exact.record(unit).batch for unit in range(4)] == [None] * 4
    assert np.array_equal(
        store.read("embed", store.rows()), exact.read("embed", exact.rows())
    )


def test_one_sequence_that_does_not_fit_and_other_errors_are_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HarvestWarning)
        with pytest.raises(
            ModelError, match="out of memory on cpu with one sequence of 8"
        ):
            actstore.harvest(SPEC, "memory://none", model=Model(0), tokens=TOKENS)

    class Broken(Model):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            if len(tokens) == 8:
                raise RuntimeError("shapes do not fit")
            return super().forward(tokens)

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        actstore.harvest(SPEC, "memory://broken", model=Broken(), tokens=TOKENS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_staging_on_a_device_gives_the_same_bytes(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's path with the CPU as the device: two staging buffers in turn, permuted
    before the copy.
    """
    spec = {**SPEC, "dtype": dtype, "skip_first": 1}
    plain = actstore.harvest(
        spec, f"memory://plain-{dtype}", model=Model(), tokens=TOKENS
    )

    def staging(self: writer_thread.WriterThread) -> tuple[UnitBuffer, ...]:
        cpu = torch.device("cpu")
        return self._make_buffer(device=cpu), self._make_buffer(device=cpu)

    monkeypatch.setattr(writer_thread.WriterThread, "staging_buffers", staging)
    staged = actstore.harvest(
        spec, f"memory://staged-{dtype}", model=Model(), tokens=TOKENS
    )
    if dtype != "int8":
        assert objects(staged.url) == objects(plain.url)
    rows = plain.rows()
    np.testing.assert_allclose(
        staged.read("embed", rows), plain.read("embed", rows), rtol=1e-5
    )
    assert staged.manifest.norms == plain.manifest.norms


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_harvest_stores_what_the_cpu_does() -> None:
    gpu = actstore.harvest(
        SPEC, "memory://gpu", model=Model(), tokens=TOKENS, device="cuda"
    )
    cpu = actstore.harvest(SPEC, "memory://cpu", model=Model(), tokens=TOKENS)
    assert np.array_equal(gpu.read("embed", gpu.rows()), cpu.read("embed", cpu.rows()))


def test_autocast_runs_the_forward_in_less_precision() -> None:
    spec: dict[str, Any] = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.2.mlp.hook_post",
        "tokens": 640,
    }
    spec |= {"context": 32, "dtype": "float32"}
    exact = actstore.harvest(spec, "memory://exact32")
    mixed = actstore.harvest({**spec, "autocast": "bfloat16"}, "memory://mixed16")
    a, b = (one.read(spec["sites"], one.rows()) for one in (exact, mixed))
    assert 1e-4 < np.abs(a - b).max() / np.abs(a).max() < 0.05


def test_a_compiled_forward_gives_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the compiler's own front end and an eager back end: no C++ compiler is
    needed.
    """
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: compiled(call, backend="eager"))
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.*.hook_mlp_out",
        "tokens": 640,
    }
    spec |= {"context": 32, "dtype": "float32"}
    plain = actstore.harvest(spec, "memory://not-compiled")
    again = actstore.harvest({**spec, "compile": True}, "memory://compiled")
    for site in plain.sites:
        np.testing.assert_allclose(
            again.read(site, again.rows()),
            plain.read(site, plain.rows()),
            rtol=1e-4,
            atol=1e-5,
        )


def test_norms_are_of_the_stored_values_and_overflow_is_seen_late() -> None:
    """A collector alone: rows of two batches, norms in float32 of what was cast."""
    site = Site(name="s", d=6)
    collector = RowCollector((site,), np.array([], np.int32), torch.device("cpu"))
    collector.begin_unit(UnitBuffer.make((site,), 16, "bfloat16"))
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)) * 100
    collector.begin_batch(np.ones((2, 4), np.int32), 0)
    collector.add_values(0, x)
    rows = seal(collector.finish_unit(0, 2))
    cast = x.bfloat16().float().reshape(8, 6)
    np.testing.assert_allclose(rows.norms["s"], cast.norm(dim=1), rtol=1e-6)
    assert rows.stats.sites["s"].count.tolist() == [2, 6]
