"""Workers that share a harvest: killed at any instant and started again, the store has
the same bytes.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
from actstore.errors import ExistsError, OthersUnfinishedError, SpecError
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting import token_blocks
from actstore.harvesting.store_writer import StoreWriter
from actstore.harvesting.worker_share import Share, parse_worker
from tests.harvesting import killing
from tests.support import low_rank, make_plan, make_tokens, unit_rows

KILLS = 50
HANG_S = 60.0


def objects(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    return {key: storage.read(key) for key in storage.list()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    path = tmp_path_factory.mktemp("corpus") / "ids.jsonl"
    return path, killing.corpus(path)


@pytest.fixture(scope="module")
def undisturbed(
    corpus: tuple[Path, list[list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> actstore.Store:
    out = str(tmp_path_factory.mktemp("whole") / "store")
    threads = torch.get_num_threads()
    killing.work(str(corpus[0]), out, None, 0.0)
    torch.set_num_threads(threads)
    return actstore.open(out)


def test_the_undisturbed_store_holds_the_corpus_once(
    undisturbed: actstore.Store, corpus: tuple[Path, list[list[int]]]
) -> None:
    """No duplicate and no hole, against the documents themselves."""
    stream = [token for document in corpus[1] for token in document]
    n = undisturbed.manifest.n_sequences
    assert n == 40 * 3
    wanted = np.array(stream[: n * 16]).reshape(n, 16)
    rows = undisturbed.rows()
    where = undisturbed.provenance(rows)
    pairs = set(zip(where.sequence.tolist(), where.position.tolist(), strict=True))
    assert pairs == {(s, p) for s in range(n) for p in range(1, 16)}
    assert len(rows) == len(pairs)
    assert (where.token == wanted[where.sequence, where.position]).all()
    vectors = killing.Model().embed.weight.detach().numpy()
    np.testing.assert_array_equal(undisturbed.read("embed", rows), vectors[where.token])


@pytest.mark.slow
def test_killed_at_fifty_random_instants_the_stores_have_the_same_bytes(
    undisturbed: actstore.Store, corpus: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    """Two workers, SIGKILL at random instants, restarted at once; as many stores as it
    takes for fifty kills.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.harvesting.killing", "actstore.harvesting.harvest"]
    )
    rng = random.Random(5)
    wanted = objects(undisturbed.url)
    kills, stores = 0, 0
    while kills < KILLS:
        out = tmp_path / f"store-{stores}"
        stores += 1

        def start(number: int, out: Path = out) -> Any:
            one = context.Process(
                target=killing.work,
                args=(str(corpus[0]), str(out), f"{number}/2", 0.03),
            )
            one.start()
            return one

        workers = {number: start(number) for number in (1, 2)}
        began = time.monotonic()
        while not (out / "manifest.json").exists():
            assert time.monotonic() - began < HANG_S, "the workers do not get on"
            for one in workers.values():
                one.join(rng.uniform(0, 0.25))
            victim = rng.choice((1, 2))
            if workers[victim].is_alive():
                workers[victim].kill()
                kills += 1
            for number, one in list(workers.items()):
                one.join(None if number == victim else 0)
                if not one.is_alive():
                    workers[number] = start(number)
        for one in workers.values():
            one.kill()
            one.join()
        assert objects(str(out)) == wanted


def test_shares_cover_every_unit_once() -> None:
    plan = make_plan(n_units=23).model_copy(update={"first_unit": 5})
    for n in (1, 2, 3, 8, 40):
        units = [unit for i in range(n) for unit in Share(i, n).units(plan)]
        assert sorted(units) == list(range(5, 23))
    assert parse_worker("3/8") == Share(2, 8)
    for wrong in ("0/8", "9/8", "3", "a/b", "-1/2"):
        with pytest.raises(SpecError, match="wanted i/n"):
            parse_worker(wrong)


@pytest.mark.filterwarnings("ignore::actstore.errors.HarvestWarning")
def test_a_worker_says_what_is_left_and_the_last_one_finishes(
    undisturbed: actstore.Store,
    corpus: tuple[Path, list[list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first worker, which reads for all, comes last.
    monkeypatch.setattr(token_blocks, "PATIENCE_S", 0.05)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the plan's numerics name it
    try:
        out, spec = str(tmp_path / "store"), killing.spec(corpus[0])
        for worker in ("2/3", "3/3"):
            with pytest.raises(OthersUnfinishedError, match="other workers"):
                actstore.harvest(spec, out, model=killing.Model(), worker=worker)
        with pytest.raises(ExistsError, match=r"spec\.seed: wanted 4, there is 0"):
            actstore.harvest(
                {**spec, "seed": 4}, out, model=killing.Model(), worker="1/3"
            )
        store = actstore.harvest(spec, out, model=killing.Model(), worker="1/3")
    finally:
        torch.set_num_threads(threads)
    assert objects(out) == objects(undisturbed.url)
    assert store.manifest == undisturbed.manifest


def test_a_unit_done_twice_has_one_record_and_its_own_bytes(tmp_path: Path) -> None:
    """Also where two machines compute differently: the record that stays is that of the
    objects that stay.
    """
    plan = make_plan(n_units=2)
    storage = Storage(str(tmp_path / "s"))
    writers = [StoreWriter.create(storage, plan) for _ in range(2)]
    tokens = make_tokens(plan, 0)
    block = writers[0].commit_block(0, tokens, {"unit": 1}, last=False)
    first = writers[0].commit_unit(unit_rows(plan, 0, tokens, low_rank(plan)), block)
    assert (
        writers[1].commit_unit(unit_rows(plan, 0, tokens, low_rank(plan)), block)
        == first
    )
    values = low_rank(plan)
    other = writers[1].commit_unit(
        unit_rows(plan, 0, tokens, lambda *a: values(*a) + 1), block
    )
    assert other != first
    assert storage.read(object_keys.unit_key(0)) == other.to_json().encode()
    from actstore.format.object_records import object_record

    for key, record in other.objects.items():
        assert object_record(storage.read(key)) == record, key
    for writer in writers:
        writer.close()


def test_claims_settle_on_the_smallest_batch(tmp_path: Path) -> None:
    plan = make_plan(n_units=2)
    writer = StoreWriter.create(Storage(str(tmp_path / "s")), plan)
    assert writer.claimed(1) is None
    assert [writer.claim(1, batch) for batch in (8, 16, 4, 8)] == [8, 8, 4, 4]
    assert writer.claimed(1) == 4
    writer.close()
