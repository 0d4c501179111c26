"""Submitting runs, and what the API tells of them, as a real server answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import actstore
import trainer
from actstore.errors import ActstoreError
from schemas.service import Estimate, RunPage, ServiceRun
from schemas.train import TrainSpec
from tests.service.served import SAE, Served, served
from tests.support import make_store
from trainer.service.work_pools import FRESH_S
from trainer.training.train import Settings, train_one
from trainer.training.train_spec import load_spec


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    with served(folder, catalog=str(folder / "catalog")) as found:
        yield found


def submitted(there: Served, spec: dict[str, Any], **more: Any) -> Any:
    with there.client("submitter") as client:
        return client.post("/runs", json={"spec": spec, **more})


def test_a_run_is_queued_as_it_was_asked_for(there: Served) -> None:
    answer = submitted(there, there.spec(), name="one", priority=3)
    assert answer.status_code == 201
    (run,) = [ServiceRun.model_validate(one) for one in answer.json()]
    assert (run.name, run.state, run.user, run.priority) == ("one", "queued", "ada", 3)
    assert run.url == str(there.folder / "runs" / "one")
    assert run.spec == load_spec(there.spec())
    assert run.waits_for is not None
    assert run.memory_bytes > 0
    with there.client("reader") as reader:
        assert ServiceRun.model_validate(reader.get(f"/runs/{run.id}").json()) == run


def test_a_sweep_is_a_run_for_each_combination(there: Served) -> None:
    sweep = {"base": there.spec(), "grid": {"sae.k": [2, 4], "seed": [0, 1]}}
    answer = submitted(there, sweep, name="sweep")
    assert answer.status_code == 201
    runs = [ServiceRun.model_validate(one) for one in answer.json()]
    assert [run.name for run in runs] == [
        f"sweep/k={k},seed={seed}" for k in (2, 4) for seed in (0, 1)
    ]
    assert {run.sweep for run in runs} == {"sweep"}


def test_a_dry_run_says_what_it_would_take(there: Served) -> None:
    sweep = {"base": there.spec(), "grid": {"sae.k": [2, 4]}}
    answer = submitted(there, sweep, name="dry", dry_run=True)
    assert answer.status_code == 200
    estimate = Estimate.model_validate(answer.json())
    assert estimate.runs == ["dry/k=2", "dry/k=4"]
    assert (estimate.rows, estimate.passes, estimate.fits) == (4096, 1, True)
    assert estimate.seconds is None
    assert not (there.folder / "runs" / "dry").exists()
    with there.client() as client:
        assert client.get("/runs", params={"text": "dry"}).json()["total"] == 0


def message_of_training(there: Served, spec: dict[str, Any], out: Path) -> str:
    """What the command line says of the same spec."""
    with pytest.raises(ActstoreError) as refused:
        train_one(lambda: load_spec(spec), str(out), Settings())
    return str(refused.value)


MISTAKES: dict[str, dict[str, Any]] = {
    "no kind": {"sae": {"k": 3}, "stream": {"sites": "nosuch"}},
    "a kind that is not there": {"sae": {"kind": "topkk"}},
    "a key that is not there": {"sae": {**SAE, "kk": 3}},
    "another kind's key": {"sae": {**SAE, "l1": 0.1}},
    "no rows": {"rows": 0},
    "a text for a number": {"rows": "many"},
    "a site that is not there": {"stream": {"sites": ["blocks.9.hook_mlp_out"]}},
    "no pairs": {"sae": {"kind": "transcoder", "inner": SAE}},
    "pairs without targets": {"stream": {"mode": "pairs"}},
    "pairs of sites that do not match": {
        "sae": {"kind": "transcoder", "inner": SAE},
        "stream": {"mode": "pairs", "sites": "blocks.*.hook_mlp_out", "targets": "blocks.0.hook_mlp_out"},
    },
    "aligned rows for a plain kind": {"stream": {"mode": "aligned"}},
    "an L0 above the dictionary": {"sae": {"kind": "relu_l1", "n_latents": 8, "target_l0": 9}},
    "what does nothing": {"sae": {**SAE, "expansion": 2.0}},
    "resampling after the end": {"resample": {"every": "1M"}},
    "for ever": {"rows": None, "stream": {"epochs": None}},
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_as_the_command_line_tells_it(
    there: Served, mistake: str, tmp_path: Path
) -> None:
    spec = {**there.spec(), **MISTAKES[mistake]}
    answer = submitted(there, spec)
    assert answer.status_code == 422
    assert answer.json() == {"detail": message_of_training(there, spec, tmp_path / "r")}
    assert submitted(there, spec, dry_run=True).json() == answer.json()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another store": ({"store": "/etc"}, "does not read from there"),
    "a store that is not there": ({"store": "{}/stores/none"}, "none"),
    "a URL": ({"store": "http://127.0.0.1:1/x"}, "does not read from there"),
    "a secret in the store": ({"store": "s3://key:hush@b/x"}, "secret|password"),
    "a secret in the name": ({"name": "https://x/?token=hush"}, "password"),
    "a harvest that is followed": ({"stream": {"follow": True}}, "finished stores"),
    "triton on a CPU": ({"kernels": "triton"}, "needs CUDA"),
    "more than any slot has": ({"sae": {"kind": "topk", "n_latents": 1 << 24}}, "GB"),
    "a huge dictionary": ({"sae": {"kind": "topk", "n_latents": 1 << 50}}, "GB"),
    "no number": ({"sae": {"kind": "topk", "expansion": 1e300}}, "2\\^53"),
    "a huge number": ({"rows": 10**30}, "2\\^53"),
    "a wild pattern": ({"stream": {"sites": "*" * 9}}, "pattern"),
    "a long pattern": ({"stream": {"sites": "blocks.{0..99999999}.x"}}, "pattern"),
    "half a character": ({"name": "\ud800"}, "half a character"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_service_refuses(there: Served, what: str) -> None:
    more, told = REFUSED[what]
    spec = {**there.spec(), **more}
    spec["store"] = spec["store"].replace("{}", str(there.folder))
    body = json.dumps({"spec": spec})
    with there.client("submitter") as client:
        answer = client.post(
            "/runs", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 422
    assert re.search(told, answer.json()["detail"])
    assert "hush" not in answer.text


@pytest.mark.parametrize(
    "name", ["../x", "a/b", ".", "..", ".service", "/x", "a\\b", "%2e", "x" * 100 + "é" * 60, "a b", "~", "\u202e"]
)  # fmt: skip
def test_a_name_is_that_of_a_folder_in_the_runs_folder(
    there: Served, name: str
) -> None:
    assert submitted(there, there.spec(), name=name).status_code == 422


@pytest.mark.parametrize(
    "path", ["stream.weights./../../x", "stream.weights.a/b", "sae/k"]
)
def test_a_run_of_a_sweep_leads_nowhere_else(there: Served, path: str) -> None:
    sweep = {"base": there.spec(), "runs": [{path: 1.0}]}
    assert submitted(there, sweep, name="out").status_code == 422
    assert {path.name for path in there.folder.iterdir()} <= {
        "stores",
        "runs",
        "state",
        "catalog",
    }


def test_a_sweep_has_a_bound(there: Served) -> None:
    values = list(range(1000))
    sweep = {"base": there.spec(), "grid": {f"x{i}": values for i in range(50)}}
    answer = submitted(there, sweep)
    assert (answer.status_code, "at most 500" in answer.text) == (422, True)


def test_a_name_is_given_once(there: Served) -> None:
    assert submitted(there, there.spec(), name="twice").status_code == 201
    sweep = {"base": there.spec(), "grid": {"sae.k": [2, 4]}}
    for spec in (there.spec(), sweep):
        again = submitted(there, spec, name="twice")
        assert (again.status_code, "already" in again.text) == (409, True)
    (there.folder / "runs" / "left").mkdir(parents=True)
    (there.folder / "runs" / "left" / "file").write_text("x")
    assert submitted(there, there.spec(), name="left").status_code == 409


def test_the_same_key_gives_the_same_runs(there: Served) -> None:
    def sent(key: str, **more: Any) -> Any:
        with there.client("submitter") as client:
            body = {"spec": there.spec(), **more}
            return client.post("/runs", json=body, headers={"Idempotency-Key": key})

    first = sent("key-1", name="once")
    again = sent("key-1", name="once")
    assert [first.status_code, again.status_code] == [201, 201]
    assert first.json()[0]["id"] == again.json()[0]["id"]
    # without a name too, although each would be called otherwise
    assert sent("key-2").json()[0]["id"] == sent("key-2").json()[0]["id"]
    other = sent("key-1", name="another")
    assert (other.status_code, "Idempotency-Key" in other.text) == (409, True)
    with there.client("submitter", "ben") as ben:
        answer = ben.post(
            "/runs", json={"spec": there.spec()}, headers={"Idempotency-Key": "key-1"}
        )
        assert answer.status_code == 201
        for key in ("", "x" * 201, "a b"):
            bad = ben.post(
                "/runs", json={"spec": there.spec()}, headers={"Idempotency-Key": key}
            )
            assert bad.status_code == 422


def test_pages_of_runs(tmp_path: Path) -> None:
    with served(tmp_path) as there, there.client() as client:
        names = [there.submitted(name=f"run-{i}").name for i in range(7)]
        there.submitted("ben", name="other")
        found: list[str] = []
        after = None
        while True:
            params: dict[str, Any] = {
                "limit": 3,
                "user": "ada",
                **({"after": after} if after else {}),
            }
            page = RunPage.model_validate(client.get("/runs", params=params).json())
            found += [run.name for run in page.runs]
            assert page.total == 7
            after = page.next
            if after is None:
                break
        assert found == names[::-1]
        assert client.get("/runs", params={"text": "OTH"}).json()["total"] == 1
        assert client.get("/runs", params={"state": "completed"}).json()["total"] == 0
        both = client.get("/runs?state=queued&state=running").json()
        assert both["total"] == 8
        assert client.get("/runs", params={"after": "nosuch"}).status_code == 404
        for bad in ("limit=0", "limit=201", "state=x", f"text={'x' * 201}"):
            assert client.get(f"/runs?{bad}").status_code == 422
        assert client.get("/runs/nosuch").status_code == 404
        assert client.get("/runs/%00/journal").status_code == 404


def test_cancel_and_resume(there: Served) -> None:
    run = there.submitted().id
    with there.client("submitter") as client:
        for _ in range(2):
            assert client.post(f"/runs/{run}/cancel").json()["state"] == "cancelled"
        assert client.post(f"/runs/{run}/resume").json()["state"] == "queued"
        again = client.post(f"/runs/{run}/resume")
        assert (again.status_code, "queued" in again.text) == (409, True)
        assert client.post("/runs/nosuch/cancel").status_code == 404


def test_the_journal_is_told_as_it_grows(there: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr("trainer.service.journals.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(there.app.state.context.answers, "_fresh_s", 0.0)
    run = there.submitted()
    with there.client("reader") as client:

        def steps(**params: Any) -> list[int]:
            answer = client.get(f"/runs/{run.id}/journal", params=params)
            return [record["step"] for record in answer.json()]

        assert steps() == []
        journal = Path(run.url) / "journal.jsonl"
        journal.parent.mkdir(parents=True)
        lines = [_line(step) for step in (1, 5, 9, 13)]
        journal.write_text("".join(lines[:2]) + lines[2][:20])
        assert steps() == [1, 5]  # half a line is none
        journal.write_text("".join(lines[:3]))
        assert (steps(), steps(after_step=1), steps(after_step=2)) == (
            [1, 5, 9],
            [5, 9],
            [5, 9],
        )
        # it went on from the checkpoint of step 1, and has grown beyond what was read
        others = [_line(step, loss=2.0) for step in (3, 6, 7, 8)]
        journal.write_text(lines[0] + "".join(others))
        assert steps() == [1, 3, 6, 7, 8]
        journal.write_text(lines[0])
        assert steps() == [1]
        assert [record.step for record in there.service.journal(run.id)] == [1]
        journal.write_text("no record\n")
        assert client.get(f"/runs/{run.id}/journal").status_code == 422


def _line(step: int, loss: float = 1.0) -> str:
    record = {
        "step": step, "rows": step * 64, "loss": loss, "mse": 1.0, "fvu": 0.5, "l0": 4.0,
        "dead": 0, "lr": 0.1, "rows_per_s": 1e4, "stall": 0.0,
    }  # fmt: skip
    return json.dumps(record) + "\n"


def test_a_run_that_was_trained(there: Served) -> None:
    """Its artifacts, evaluation, report and publication, and the estimate of others."""
    run = there.submitted(name="trained")
    spec = TrainSpec.model_validate(run.spec.model_dump())
    with there.client("submitter") as client:
        early = client.get(f"/runs/{run.id}/report")
        assert (early.status_code, "queued" in early.text) == (409, True)
        assert (
            client.post(f"/runs/{run.id}/publish", json={"name": "x"}).status_code
            == 409
        )
        trainer.train(spec, run.url)
        there.ended(run)
        keys = [one["key"] for one in client.get(f"/runs/{run.id}/artifacts").json()]
        assert {"sae.json", "sae.safetensors", "journal.jsonl"} <= set(keys)
        for key in keys:
            answer = client.get(f"/runs/{run.id}/artifacts/{key}")
            assert answer.content == (Path(run.url) / key).read_bytes()
        assert client.get(f"/runs/{run.id}/evaluation").json() is None
        report = client.get(f"/runs/{run.id}/report")
        assert report.status_code == 200, report.text
        assert "<!doctype html>" in report.text[:100].lower()
        assert "sandbox" in report.headers["content-security-policy"]
        assert client.get(f"/runs/{run.id}/report").content == report.content
        assert client.get(f"/runs/{run.id}/evaluation").json()["pooled"]["fvu"] < 1
        published = client.post(f"/runs/{run.id}/publish", json={"name": "ours"})
        assert published.json()["published"] == "catalog:ours:latest"
        assert (
            client.post(f"/runs/{run.id}/publish", json={"name": "../x"}).status_code
            == 422
        )


def test_stores(there: Served) -> None:
    make_store(str(there.folder / "elsewhere"))
    catalog = str(there.folder / "catalog")
    actstore.publish(there.store, "named", catalog=catalog)
    actstore.publish(there.folder / "elsewhere", "not-ours", catalog=catalog)
    there.service._stores._looked = float("-inf")
    with there.client("reader") as client:
        (found,) = client.get("/stores").json()
        assert (found["name"], found["url"]) == ("catalog:named", there.store)
        assert len(found["sites"]) == 3
        norms = client.get("/stores/norms", params={"url": there.store}).json()
        assert [one["site"] for one in norms] == found["sites"]
        assert norms[0]["low"] <= norms[0]["median"] <= norms[0]["high"]
        for url in ("/etc", str(there.folder / "elsewhere"), "http://127.0.0.1/"):
            assert client.get("/stores/norms", params={"url": url}).status_code == 422
    named = submitted(there, there.spec(store="catalog:named"))
    assert named.status_code == 201
    assert named.json()[0]["spec"]["store"] == "catalog:named"
    assert submitted(there, there.spec(store="catalog:not-ours")).status_code == 422


def test_state_and_metrics(there: Served) -> None:
    assert submitted(there, there.spec(), name="counted").status_code == 201
    with there.client("reader") as client:
        state = client.get("/state").json()
        assert state["slots"][0]["name"] == "cpu-0"
        assert sum(state["counts"].values()) > 0
        client.get("/runs/abc/journal")
        text = client.get("/metrics").text
        assert 'actstore_runs{state="queued"}' in text
        assert 'route="/runs/{run_id}/journal",status="404"' in text
        assert "abc" not in text


def test_ready_says_no_where_nothing_can_be_trained(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with there.client("reader") as client:
        assert client.get("/ready").status_code == 200
        monkeypatch.setattr(there.service, "_trouble", lambda: "the disk is full")
        time.sleep(FRESH_S)  # it is looked at now and then only
        told = client.get("/ready")
        assert (told.status_code, told.json()["status"]) == (503, "not ready")
