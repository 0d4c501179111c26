"""`verify --deep` names what is not what tokens, values and the model make, although
every digest is in order; and raises no false alarm.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import ModelError, SpecError
from actstore.format import object_keys
from actstore.format.shard import encode_plain
from actstore.format.statistics import UnitStats
from actstore.model.load_model import load_model
from actstore.store.store import Store
from schemas.source import ModelSource
from tests.recomputing.forging import Forger

FIRST, SECOND = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
UNIT = 3  # the one that is forged
SPEC: dict[str, Any] = {
    "model": "builtin:mini",
    "corpus": "builtin:stdlib",
    "sites": [FIRST, SECOND],
    "tokens": 32 * 24,
    "context": 32,
    "unit_sequences": 4,
    "chunk_rows": 50,
    "codec": "raw",  # so that other values take as many bytes
    "exclude_special_tokens": True,
}
EVERY: dict[str, Any] = {"rows": 10**6, "all_units": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return actstore.harvest(SPEC, tmp_path_factory.mktemp("deep") / "store")


@pytest.fixture
def forger(store: Store) -> Forger:
    return Forger(store)


def checked_alone(store: Store, **options: Any) -> list[str]:
    """What is wrong, though bytes and digests are in order."""
    assert actstore.verify(store).problems == []
    return actstore.verify_deep(store, **{**EVERY, **options}).problems


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"dtype": "float32", "pack": False, "batch": 3},
        {"model": {"name": "builtin:mini", "dtype": "bfloat16"}, "batch": 1},
        {"dtype": "float16", "autocast": "bfloat16", "skip_first": 2, "codec": "lz4"},
    ],
    ids=["int8", "padded", "bfloat16", "autocast"],
)
def test_no_false_alarm(options: dict[str, Any], tmp_path: Path) -> None:
    store = actstore.harvest({**SPEC, **options}, tmp_path / "s")
    if "skip_first" in options:
        store = actstore.extend(tmp_path / "s", sites="blocks.0.hook_resid_post")
        store = actstore.extend(tmp_path / "s", tokens=32 * 6)
    # Runs of one sequence, of some, and of whole batches: other forwards than those of
    # the harvest.
    for rows in (1, 32 * 8 * 2, 10**6):
        found = actstore.verify_deep(store, rows=rows, all_units=True, seed=rows)
        assert found.problems == []
        assert max(found.worst.values()) <= 1
    assert found.model_rows == found.rows == store.manifest.n_rows
    assert found.units == store.manifest.n_units


def test_other_threads_and_other_padding_raise_no_alarm(tmp_path: Path) -> None:
    tokens = torch.randint(3, 90, (24, 32))
    tokens[3, 20:] = -1
    tokens[5, :9] = -1
    model = load_model(ModelSource(name="builtin:mini")).module
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spec = {"sites": [FIRST, SECOND], "dtype": "float32", "unit_sequences": 8}
        store = actstore.harvest(spec, tmp_path / "s", model=model, tokens=tokens)
    finally:
        torch.set_num_threads(before)
    found = actstore.verify_deep(store, model=model, **EVERY)
    assert found.problems == []
    if before != 2:
        assert any("threads" in note for note in found.notes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_moves_less_than_is_allowed(dtype: str, tmp_path: Path) -> None:
    # The same model in a higher precision: no other processor can be further off.
    source = ModelSource.model_validate({"name": "builtin:tiny", "dtype": dtype})
    model = load_model(source).module
    tokens = torch.randint(3, 90, (16, 64))
    spec = {"sites": ["blocks.*.hook_resid_post"], "dtype": "float32"}
    store = actstore.harvest(spec, tmp_path / "s", model=model, tokens=tokens)
    exact = copy.deepcopy(model).double()
    found = actstore.verify_deep(store, model=exact, **EVERY)
    assert max(found.worst.values()) < 0.25
    # only that the weights are others is wrong
    assert len(found.problems) == 1
    assert "other weights" in found.problems[0]


class Cancelling(torch.nn.Module):
    """A model whose second layer keeps little more than what rounding left.

    Another `order` of its sums stands for another processor.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(40, 16)
        self.inner = torch.nn.Linear(16, 16)
        self.last = torch.nn.Identity()
        self.order = 1

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.inner(self.embed(input_ids))
        # So large that what is left of x is of the size of its rounding.
        large = x.roll(1, -1) * (2**20 if x.dtype == torch.float32 else 2**10)
        parts = [x, large, -large, x.roll(2, -1)]
        total = torch.zeros_like(x)
        for part in parts[:: self.order]:
            total = total + part
        return self.last(total)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "bfloat16")],
)
def test_a_model_that_magnifies_its_own_rounding(
    dtype: torch.dtype, autocast: str | None, tmp_path: Path
) -> None:
    model = Cancelling().to(dtype)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    tokens = torch.randint(0, 40, (24, 10), generator=torch.manual_seed(1))
    spec = {"sites": ["inner", "last"], "dtype": "float32", "unit_sequences": 4}
    if autocast:
        spec["autocast"] = autocast
    store = actstore.harvest(spec, tmp_path / "s", model=model, tokens=tokens)
    model.order = -1
    found = actstore.verify_deep(store, model=model, **EVERY)
    assert found.problems == []
    magnified = [note for note in found.notes if "magnifies its own" in note]
    assert len(magnified) == 1
    assert all(note.endswith("allowed, at last") for note in magnified)
    # The model is as it was, to the bit.
    for name, x in model.state_dict().items():
        assert x.dtype == dtype
        assert torch.equal(x, before[name])
    # What is wrong at the other site is still found, by what is usual there.
    forger = Forger(store)
    unit = store.manifest.n_units - 1
    forger.values("inner", unit, lambda x: x * 1.6)
    found = actstore.verify_deep(forger.write(tmp_path / "f"), model=model, **EVERY)
    assert any("the row is off by" in x for x in found.problems)
    assert all("acts/inner/" in x or "site inner" in x for x in found.problems)


def test_what_is_wrong_is_told_where_rounding_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Cancelling().bfloat16()
    tokens = torch.randint(0, 40, (8, 10), generator=torch.manual_seed(1))
    spec = {"sites": ["last"], "dtype": "float32"}
    store = actstore.harvest(spec, tmp_path / "s", model=model, tokens=tokens)
    model.order = -1
    only_bfloat16 = model.inner.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.bfloat16:
            raise RuntimeError("not implemented for 'Float'\nand more")
        return only_bfloat16(x)

    monkeypatch.setattr(model.inner, "forward", forward)
    found = actstore.verify_deep(store, model=model, **EVERY)
    assert found.problems
    assert any("could not be measured" in note for note in found.notes)
    assert all(x.dtype == torch.bfloat16 for x in model.state_dict().values())


@pytest.mark.parametrize("units", ["1:3,5", "3"])
def test_a_part_of_a_store(store: Store, units: str, tmp_path: Path) -> None:
    actstore.copy(store.url, tmp_path / "part", sites=SECOND, units=units)
    n = {"1:3,5": 3, "3": 1}[units]
    for options in ({}, {"rows": 1}, EVERY, {"rows": 10**6, "seed": 7}):
        found = actstore.verify_deep(tmp_path / "part", **options)
        assert found.problems == []
        assert list(found.worst) == [SECOND]
        # Units that were left out have nothing but fill, which only `all_units` reads.
        assert found.units == n or options == EVERY
    forger = Forger(actstore.open(tmp_path / "part"))
    forger.values(SECOND, UNIT if n == 1 else 5, lambda x: x * 2)
    found = actstore.verify_deep(forger.write(tmp_path / "f"), rows=10**6)
    assert any("rows are not what the model gives" in line for line in found.problems)


def test_a_record_that_is_lost_is_told(store: Store, tmp_path: Path) -> None:
    Forger(store).write(tmp_path / "s")
    key = object_keys.unit_key(UNIT)
    (tmp_path / "s" / key).unlink()
    found = actstore.verify_deep(tmp_path / "s", rows=10**6)
    assert any(key in line for line in found.problems)
    assert 0 < found.model_rows < store.manifest.n_rows


def test_a_value_whose_norm_was_left_is_named(forger: Forger, tmp_path: Path) -> None:
    def change(x: Any) -> Any:
        x[7, 2] += 1
        return x

    forger.only_values(FIRST, UNIT, change)
    problems = checked_alone(forger.write(tmp_path / "s"), rows=0)
    sequence, position = forger.store.pairs(UNIT)[7]
    row = UNIT * forger.store.layout.capacity + 7
    assert f"norm/{FIRST}/c/{UNIT}: unit {UNIT}, slot 7 (row {row}:" in problems[0]
    assert f"sequence {sequence}, position {position}): norm wanted" in problems[0]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_forged_value_is_named_by_the_model(
    store: Store, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    site = data.draw(st.sampled_from([FIRST, SECOND]))
    unit = data.draw(st.integers(0, store.manifest.n_units - 1))
    slot = data.draw(st.integers(0, store.rows_in(unit) - 1))
    channel = data.draw(st.integers(0, 15))
    share = data.draw(st.sampled_from([-1.0, -0.05, 0.05, 2.0]))

    def change(x: Any) -> Any:
        x[slot, channel] += share * np.linalg.norm(x[slot])
        return x

    forger = Forger(store)
    forger.values(site, unit, change)
    folder = tmp_path_factory.mktemp("forged") / "s"
    found = actstore.verify_deep(forger.write(folder), **EVERY)
    by_model = [line for line in found.problems if f"acts/{site}/c/{unit}/0" in line]
    assert f"unit {unit}, slot {slot} (row" in by_model[0]
    assert f"channel {channel}: wanted" in by_model[0]
    assert len(by_model) == 1


def test_a_sample_finds_what_is_wrong_in_all_rows(
    forger: Forger, tmp_path: Path
) -> None:
    for unit in forger.store.units():
        forger.values(FIRST, unit, lambda x: np.roll(x, 1, axis=0))
    problems = checked_alone(forger.write(tmp_path / "s"), rows=64, all_units=False)
    assert any(f"site {FIRST}: 6" in line for line in problems)
    assert not any(SECOND in line for line in problems)


def test_swapped_rows_are_named_with_whose_they_are(
    forger: Forger, tmp_path: Path
) -> None:
    pairs = forger.store.pairs(UNIT)
    # two rows of one sequence, which are computed in one forward
    a, b = np.flatnonzero(pairs[:, 0] == pairs[0, 0])[:2].tolist()

    def change(x: Any) -> Any:
        x[[a, b]] = x[[b, a]]
        return x

    forger.values(FIRST, UNIT, change)
    problems = checked_alone(forger.write(tmp_path / "s"))
    named = [line for line in problems if "it has the values of" in line]
    assert len(named) == 2
    assert f"slot {a} (row" in named[0]
    assert (
        f"has the values of sequence {pairs[b, 0]}, position {pairs[b, 1]}" in named[0]
    )


def test_another_site_is_named(forger: Forger, tmp_path: Path) -> None:
    other = forger.store.read_unit(SECOND, UNIT)
    forger.values(FIRST, UNIT, lambda x: other)
    problems = checked_alone(forger.write(tmp_path / "s"))
    assert any(f"it has the values of site {SECOND}" in line for line in problems)
    assert any(f"units/{UNIT:05d}.stats" in line for line in problems)


def test_positions_off_by_one_are_named(forger: Forger, tmp_path: Path) -> None:
    # Every value is that of the token before; only the model can tell.
    pairs = forger.store.pairs(UNIT)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))

    def change(x: Any) -> Any:
        shifted = x.copy()
        shifted[order[1:]] = x[order[:-1]]
        return shifted

    forger.values(FIRST, UNIT, change)
    problems = checked_alone(forger.write(tmp_path / "s"))
    assert any(
        f"acts/{FIRST}/c/{UNIT}/0" in line and "it has the values of sequence" in line
        for line in problems
    )


def test_rows_that_are_not_those_of_the_tokens(forger: Forger, tmp_path: Path) -> None:
    def twice(pairs: Any) -> Any:
        pairs[4] = pairs[9]
        return pairs

    forger.pairs(UNIT, twice)
    problems = checked_alone(forger.write(tmp_path / "a"), rows=0)
    assert any("is there 2 times, first in slots 4 and 9" in line for line in problems)

    def swapped(pairs: Any) -> Any:
        pairs[[4, 9]] = pairs[[9, 4]]
        return pairs

    forger.pairs(UNIT, swapped)
    problems = checked_alone(forger.write(tmp_path / "b"), rows=0)
    assert any(
        "slot 4 (row" in line and "in that slot, and 1 more are wrong" in line
        for line in problems
    )


def test_slots_without_a_row_hold_nothing(forger: Forger, tmp_path: Path) -> None:
    store = forger.store
    n = store.rows_in(UNIT)
    assert n < store.layout.capacity
    rows = store.pairs(UNIT)
    forger.plain(f"rows/c/{UNIT}/0", np.concatenate([rows, rows[:1]]), -1)
    norms = store.read_norms(FIRST, np.arange(n) + UNIT * store.layout.capacity)
    forger.plain(f"norm/{FIRST}/c/{UNIT}", np.append(norms, np.float32(1)), 0)
    problems = checked_alone(forger.write(tmp_path / "s"), rows=0)
    assert len(problems) == 2
    assert "sequences or positions behind them" in problems[0]
    assert "values behind them; wanted 0" in problems[1]


def test_statistics_that_the_values_do_not_make(forger: Forger, tmp_path: Path) -> None:
    store = forger.store
    key = object_keys.unit_stats_key(UNIT)
    stats = UnitStats.from_bytes(store.manifest.sites, forger.objects[key])
    stats.sites[FIRST].mean[1, 3] += 0.1
    stats.sites[SECOND].m2[1, 3] *= 1.1
    forger.objects[key] = stats.to_bytes()
    found = actstore.verify_deep(forger.write(tmp_path / "s"), rows=0, all_units=True)
    assert [line.split("statistics: ")[1] for line in found.problems] == [
        "mean of rest",
        "m2 of rest",
    ]


@pytest.mark.parametrize(
    "name", ["non_finite", "histogram", "sum_norm", "sum_sq_norm", "max_norm"]
)
def test_figures_that_the_norms_do_not_make(
    name: str, forger: Forger, tmp_path: Path
) -> None:
    key = object_keys.unit_stats_key(UNIT)
    stats = UnitStats.from_bytes(forger.store.manifest.sites, forger.objects[key])
    figures = getattr(stats.sites[SECOND], name)
    if name == "histogram":  # the counts still add up
        most = int(figures[1].argmax())
        figures[1, most] -= 1
        figures[1, most - 1] += 1
    else:
        figures[1] += 1
    forger.objects[key] = stats.to_bytes()
    problems = actstore.verify_deep(
        forger.write(tmp_path / "s"), rows=0, all_units=True
    ).problems
    assert any(
        f"site {SECOND}: the rows make other statistics: " in line and name in line
        for line in problems
    )


def test_values_behind_the_last_row(tmp_path: Path) -> None:
    spec = {**SPEC, "dtype": "int8", "sites": [FIRST]}
    store = actstore.harvest(spec, tmp_path / "s")
    n = store.rows_in(UNIT)
    assert n < store.layout.capacity
    forger = Forger(store)
    scale, _ = store.int8_parts(FIRST, UNIT)
    key = object_keys.chunk_key(object_keys.scale_key(FIRST), UNIT)
    forger.plain(key, np.append(scale[:n], np.float16(1)), 0)
    found = actstore.verify_deep(forger.write(tmp_path / "a"), rows=0, all_units=True)
    assert len(found.problems) == 1
    assert f"{key}: unit {UNIT} has {n} rows, and values behind them" in str(found)

    def longer(x: Any) -> Any:
        return np.concatenate([x, x[:1]])

    store = actstore.harvest({**spec, "dtype": "float16"}, tmp_path / "h")
    forger = Forger(store)
    forger.only_values(FIRST, UNIT, longer)
    found = actstore.verify_deep(forger.write(tmp_path / "b"), rows=0, all_units=True)
    assert len(found.problems) == 1
    assert f"acts/{FIRST}/c/{UNIT}/0: unit {UNIT} has {n} rows" in found.problems[0]


def test_a_filter_that_was_not_used(forger: Forger, tmp_path: Path) -> None:
    for key in ("manifest.json", "plan.json"):
        told = json.loads(forger.objects[key])
        told["spec"]["skip_first"] = 3
        forger.objects[key] = json.dumps(told).encode()
    store = forger.write(tmp_path / "s")
    found = actstore.verify_deep(store, rows=0, all_units=True)
    told_of = [line for line in found.problems if "of its tokens" in line]
    assert len(told_of) == store.manifest.n_units
    n = store.rows_in(UNIT)
    kept = 4 * (SPEC["context"] - 3)
    assert f"unit {UNIT} has {n} rows, and of its tokens {kept} are kept" in str(
        told_of
    )


def test_tokens_behind_the_last_sequence(tmp_path: Path) -> None:
    store = actstore.harvest({**SPEC, "tokens": 32 * 22}, tmp_path / "s")
    forger = Forger(store)
    last = store.manifest.n_units - 1
    block = store.block(last).copy()
    block[-1] = 5
    key = object_keys.chunk_key("tokens", last, 0)
    forger.objects[key] = encode_plain(block, block.shape, -1)
    found = actstore.verify_deep(forger.write(tmp_path / "f"), rows=0, all_units=True)
    assert "tokens behind them" in found.problems[0]


def test_only_all_units_are_all_units(store: Store, tmp_path: Path) -> None:
    spec = {**SPEC, "tokens": 32 * 60}
    many = actstore.harvest(spec, tmp_path / "s")
    found = actstore.verify_deep(many, rows=0)
    assert found.units == 8 < many.manifest.n_units
    assert "--all" in found.notes[0]
    assert actstore.verify_deep(many, rows=0, all_units=True).notes == [
        "no rows were computed with the model"
    ]


def test_another_model_is_told(store: Store) -> None:
    model = load_model(ModelSource(name="builtin:mini")).module
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    found = actstore.verify_deep(store, model=model)
    assert "other weights" in found.problems[0]
    assert any("rows are not what the model gives" in line for line in found.problems)


def test_a_bad_object_is_told_and_the_rest_looked_at(
    forger: Forger, tmp_path: Path
) -> None:
    forger.write(tmp_path / "s")
    (tmp_path / "s" / "norm" / FIRST / "c" / str(UNIT)).unlink()
    found = actstore.verify_deep(tmp_path / "s", **EVERY)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("corrupt  ")
    assert found.model_rows == forger.store.manifest.n_rows
    (tmp_path / "s" / object_keys.unit_stats_key(UNIT)).unlink()
    found = actstore.verify_deep(tmp_path / "s", rows=0, all_units=True)
    # Once, though both sites have figures there.
    assert [line.count(f"{UNIT:05d}.stats") for line in found.problems] == [0, 1]


def test_imports_have_no_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {"a": rng.standard_normal((500, 8)).astype(np.float32)}
    every: dict[str, dict[str, Any]] = {
        "rows": {},
        "tokens": {"tokens": rng.integers(0, 9, (25, 20))},
    }
    for name, options in every.items():
        source = rows if name == "rows" else {"a": rows["a"].reshape(25, 20, 8)}
        store = actstore.import_activations(source, tmp_path / name, **options)
        found = actstore.verify_deep(store, all_units=True)
        assert found.problems == []
        assert found.model_rows == 0
        assert found.notes == ["imported: there is no model to compute its rows with"]
        with pytest.raises(SpecError, match="was imported"):
            actstore.verify_deep(store, model="builtin:mini")


def test_a_model_that_cannot_be_found(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4))
    tokens = torch.randint(0, 9, (20, 8))
    store = actstore.harvest({"sites": ["1"]}, tmp_path, model=module, tokens=tokens)
    with pytest.raises(ModelError, match="harvested from memory; give it"):
        actstore.verify_deep(store)
    assert actstore.verify_deep(store, model=module).problems == []
    assert actstore.verify_deep(store, rows=0).problems == []
    with pytest.raises(SpecError, match="verify_deep: model: wanted"):
        actstore.verify_deep(store, model=3)  # type: ignore[arg-type]


def test_code_of_a_model_is_trusted_again(forger: Forger, tmp_path: Path) -> None:
    for key in ("manifest.json", "plan.json"):
        told = json.loads(forger.objects[key])
        told["spec"]["model"]["trust_remote_code"] = True
        forger.objects[key] = json.dumps(told).encode()
    store = forger.write(tmp_path / "s")
    with pytest.raises(ModelError, match="say so again with trust_remote_code"):
        actstore.verify_deep(store)
    assert actstore.verify_deep(store, rows=0).problems == []
