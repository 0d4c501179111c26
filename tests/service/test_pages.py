"""The pages over HTTP, without a browser: who may what, hostile names, forms, 1,000 runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from actstore.format.storage import Storage
from tests.service.page_support import SITES, PlayedService, make_stores
from tests.support import make_store
from trainer.service.pages.new_run_form import sent_form, submission_of
from trainer.service.pages.static_files import static_address, static_files

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE runs; --",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eevil\u202c \u05d0\u05d1",
    "x" * 180,
    "javascript:alert(1)",
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def played(tmp_path: Path, stores: Path) -> Iterator[PlayedService]:
    played = PlayedService(tmp_path, stores)
    yield played
    played.close()


@pytest.fixture
def ada(played: PlayedService) -> Iterator[TestClient]:
    with TestClient(played.app, follow_redirects=False) as client:
        log_in(client, played.tokens["ada"])
        yield client


def log_in(client: TestClient, token: str) -> None:
    client.cookies.clear()
    sent = client.post("/login", data={"token": token, "next": "/pages/stores"})
    assert sent.status_code == 303
    assert sent.headers["location"] == "/pages/stores"


def csrf(client: TestClient) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get("/").text)
    assert found
    return found[1]


def test_nobody_sees_a_page_without_a_login(played: PlayedService) -> None:
    run = played.add(["one"])[0]
    with TestClient(played.app, follow_redirects=False) as client:
        for path in (
            "/",
            "/pages/stores",
            "/pages/new",
            f"/pages/runs/{run}",
            "/pages/compare",
            "/pages/curves?run=1",
            "/pages/norms?store=s",
            f"/pages/runs/{run}/explorer/",
            f"/pages/report?run={run}",
        ):
            answer = client.get(path)
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/login")
        assert (
            client.get("/?text=a&user=b").headers["location"]
            == "/login?next=/%3Ftext%3Da%26user%3Db"
        )
        part = client.get("/", headers={"HX-Request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (204, "/login")
        for path in (
            f"/pages/runs/{run}/cancel",
            "/pages/new",
            "/pages/estimate",
            "/logout",
        ):
            assert client.post(path, data={"name": ""}).headers["location"] == "/login"
        wrong = client.post("/login", data={"token": "actstore_0_0"})
        assert wrong.status_code == 401
        assert "does not count" in wrong.text
        assert client.get("/login").status_code == 200
        for name in static_files():
            answer = client.get(static_address(name))
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
        assert client.get("/static/..%2fpages.py").status_code == 404


def test_a_login_from_elsewhere_is_refused(played: PlayedService) -> None:
    data = {"token": played.tokens["eve"]}
    with TestClient(played.app, follow_redirects=False) as client:
        for headers in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "https://evil.example"},
        ):
            assert client.post("/login", data=data, headers=headers).status_code == 403
        sent = client.post(
            "/login",
            data={**data, "next": "//evil.example/"},
            headers={"Sec-Fetch-Site": "same-origin"},
        )
        assert sent.headers["location"] == "/"
        cookie = sent.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie


def test_a_form_without_the_sessions_token_changes_nothing(
    ada: TestClient, played: PlayedService
) -> None:
    run = played.add(["one"])[0]
    for given in ({"other": ""}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "é"}):
        sent = ada.post(f"/pages/runs/{run}/cancel", data=given)
        assert sent.status_code == 403
        assert "load the page again" in sent.text
    assert ada.post("/pages/new", json={"csrf": csrf(ada)}).status_code == 415
    assert played.service.run(run).state == "queued"
    sent = ada.post(f"/pages/runs/{run}/cancel", data={"csrf": csrf(ada)})
    assert sent.headers["location"] == f"/pages/runs/{run}"
    assert played.service.run(run).state == "cancelled"
    assert (
        ada.post(f"/pages/runs/{run}/resume", data={"csrf": csrf(ada)}).status_code
        == 303
    )
    assert played.service.run(run).state == "queued"


def test_roles_see_and_may_what_they_may(
    ada: TestClient, played: PlayedService
) -> None:
    others = played.add(["others"], user="root")[0]
    assert "Cancel" not in ada.get(f"/pages/runs/{others}").text
    refused = ada.post(f"/pages/runs/{others}/cancel", data={"csrf": csrf(ada)})
    assert refused.status_code == 403
    log_in(ada, played.tokens["root"])
    assert "Cancel" in ada.get(f"/pages/runs/{others}").text
    log_in(ada, played.tokens["eve"])
    home = ada.get("/")
    assert "New run" not in home.text
    assert ada.get("/pages/new").status_code == 403
    for path in (f"/pages/runs/{others}/cancel", "/pages/new", "/pages/estimate"):
        assert ada.post(path, data={"csrf": csrf(ada)}).status_code == 403
    assert played.service.run(others).state == "queued"
    out = ada.post("/logout", data={"csrf": csrf(ada)})
    assert out.headers["location"] == "/login"
    assert ada.get("/").status_code == 303


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(
    ada: TestClient, played: PlayedService, name: str
) -> None:
    (run, other) = played.add([name, f"{name} 2"], user=name, sweep=name)
    lease = played.start([run, other])
    played.advance(lease, 50)
    played.end(lease, "failed", name)
    Storage(played.service.run(run).url).put("<b>.json", b"{}")
    pages = [
        "/",
        f"/pages/runs/{run}",
        f"/pages/compare?run={run}&run={other}&fields=all",
        f"/?text={name[:50]}",
        f"/pages/new?like={run}",
    ]
    for path in pages:
        answer = ada.get(path)
        assert answer.status_code == 200, path
        text = re.sub(
            r'<script type="application/json".*?</script>',
            "",
            answer.text,
            flags=re.DOTALL,
        )
        assert "<img src=x" not in answer.text
        assert not re.search(r"<script>|<b>\.json|onerror=alert\(1\)>[^&]*<", text)
        assert not re.search(r'href="javascript', text)
        assert answer.headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'"
        )
    assert unescape(ada.get(f"/pages/runs/{run}").text).count(name) >= 3


def address_of_older(text: str) -> str:
    older = re.search(r'href="([^"]+)" rel="next"', text)
    assert older is not None
    return unescape(older[1])


def test_a_thousand_runs_come_in_pages(ada: TestClient, played: PlayedService) -> None:
    played.add([f"run-{n:04}" for n in range(1000)])
    found: list[str] = []
    address = "/"
    for page in range(20):
        answer = ada.get(address)
        # htmx asks for the list alone again and again.
        part = ada.get(address, headers={"HX-Request": "true"})
        assert len(answer.content) < 120_000
        assert "<html" not in part.text
        found += re.findall(
            r'<td class="text name"><a href="[^"]+">(run-\d+)</a>', answer.text
        )
        assert f"{page * 50 + 1:,}–{page * 50 + 50:,} of 1,000" in answer.text
        older = re.search(r'href="([^"]+)" rel="next"', answer.text)
        address = unescape(older[1]) if older else ""
        here = answer
    assert address == ""
    # and back again
    for page in reversed(range(19)):
        newer = re.search(r'href="([^"]+)" rel="prev"', here.text)
        assert newer is not None
        here = ada.get(unescape(newer[1]))
        assert f"{page * 50 + 1:,}–{page * 50 + 50:,} of 1,000" in here.text
        assert f">{found[page * 50]}</a>" in here.text
    assert 'rel="prev"' not in here.text
    # newer ones came meanwhile: the list begins with the newest of them
    second = ada.get(address_of_older(here.text))
    played.add(["late"])
    newer = re.search(r'href="([^"]+)" rel="prev"', second.text)
    assert newer is not None
    assert f">{found[0]}</a>" in ada.get(unescape(newer[1])).text
    assert ">late</a>" in ada.get("/").text
    assert found == [f"run-{n:04}" for n in reversed(range(1000))]
    assert "1–1 of 1" in ada.get("/?text=run-0777").text
    assert "No run fits" in ada.get("/?text=nothing").text
    assert "No run fits" in ada.get("/?state=failed").text


def test_a_page_says_what_to_do_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    played = PlayedService(tmp_path, tmp_path / "none")
    with TestClient(played.app, follow_redirects=False) as client:
        log_in(client, played.tokens["ada"])
        assert "trainer submit spec.yaml --service http" in client.get("/").text
        assert "actstore harvest" in client.get("/pages/stores").text
        assert "no store" in client.get("/pages/new").text
        assert "No run was chosen" in client.get("/pages/compare").text
        missing = client.get("/pages/runs/nothing")
        assert missing.status_code == 404
        assert "Not found" in missing.text
        log_in(client, played.tokens["eve"])
        assert "trainer token make" in client.get("/").text
    played.close()


def test_the_form_starts_a_run_once(ada: TestClient, played: PlayedService) -> None:
    page = ada.get(f"/pages/new?store={played.store}").text
    assert "passes are told here" in page
    assert "Macro" not in page
    key = re.search(r'name="key" value="([0-9a-f]+)"', page)
    assert key
    data = {
        "csrf": csrf(ada),
        "key": key[1],
        "store": str(played.store),
        "kind": "topk",
        "l0": "4",
        "name": "by-form",
        "sites": ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"],
    }
    before = ada.post("/pages/estimate", data=data)
    assert "Passes over the data" in before.text
    assert played.service.runs().total == 0
    sent = ada.post("/pages/new", data=data)
    again = ada.post("/pages/new", data=data)
    assert sent.headers["location"] == again.headers["location"]
    # A step back in the browser, and another name: another run.
    other = ada.post("/pages/new", data={**data, "name": "by-form-2"})
    assert other.headers["location"] != sent.headers["location"]
    played.service.queue.cancel(other.headers["location"].rpartition("/")[2], "ada")
    (run,) = played.service.runs(["queued"]).runs
    assert (run.name, run.user, run.spec.sae.k) == ("by-form", "ada", 4)
    assert run.spec.stream.sites == ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
    sweep = ada.post(
        "/pages/new",
        data={**data, "key": "", "name": "grid", "yaml": "grid: {sae.k: [1, 2]}"},
    )
    assert sweep.headers["location"] == "/?sweep=grid"
    assert played.service.runs(sweep="grid").total == 2


def test_what_the_form_offers_is_accepted(
    ada: TestClient, played: PlayedService
) -> None:
    """Every choice, and every field with a value that its hint speaks of."""
    page = ada.get(f"/pages/new?store={played.store}").text
    choices = {
        name: re.findall(r'<option value="([^"]*)"', options)
        for name, options in re.findall(r'<select id="(\w+)"[^>]*>(.*?)</select>', page)
    }
    texts = {"rows": "5k", "batch": "256", "expansion": "2", "l0": "4", "seed": "3"}
    texts |= {"name": "any-name", "priority": "2"}
    given = set(re.findall(r'<input id="(\w+)" name="\1"', page))
    assert given == set(texts)
    data = {"store": str(played.store), "kind": "topk"}
    tried = [data | {name: text} for name, text in texts.items()]
    tried += [data | texts | {"sites": site} for site in SITES]
    for kind in choices["kind"]:
        for rescale in choices["rescale"]:
            tried.append(data | {"kind": kind, "rescale": rescale})
            tried.append(data | texts | {"kind": kind, "rescale": rescale})
    for fields in tried:
        form = sent_form({name: [text] for name, text in fields.items()})
        assert played.service.estimate(submission_of(form)).fits


def test_ticks_of_another_store_go_with_it(
    ada: TestClient, played: PlayedService
) -> None:
    other = played.store.parent / "other"
    make_store(other, {"blocks.7.hook_mlp_out": 16, "blocks.1.hook_mlp_out": 16})
    try:
        ticked = ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out", "blocks.*"]
        data = {"csrf": csrf(ada), "store": str(other), "sites": ticked}
        played.service._stores._looked = float("-inf")
        page = ada.post("/pages/new", data={**data, "action": "store"}).text
        found = re.findall(r'name="sites" value="([^"]*)" checked', page)
        assert found == ["blocks.1.hook_mlp_out", "blocks.*"]
        assert "blocks.7.hook_mlp_out" in page
        assert "blocks.2.hook_mlp_out" not in page
    finally:
        shutil.rmtree(other)
        played.service._stores._looked = float("-inf")


def test_what_is_wrong_stands_at_its_field_and_what_was_typed_stays(
    ada: TestClient, played: PlayedService
) -> None:
    data = {
        "csrf": csrf(ada),
        "store": str(played.store),
        "kind": "relu_l1",
        "expansion": "many",
        "rows": "1X",
        "name": "<i>",
        "sites": "blocks.1.hook_mlp_out",
    }
    sent = ada.post("/pages/new", data=data)
    assert sent.status_code == 422
    text = unescape(sent.text)
    assert re.search(r'id="expansion-wrong">[^<]*sae\.expansion: wanted a number', text)
    assert re.search(r'id="rows-wrong">[^<]*rows: ', text)
    assert 'value="many"' in text
    assert 'value="1X"' in text
    assert 'value="&lt;i&gt;"' in sent.text
    assert re.search(r'value="blocks\.1\.hook_mlp_out" checked', text)
    assert re.search(r'<option value="relu_l1" selected>', text)
    elsewhere = ada.post(
        "/pages/new",
        data={**data, "store": "/etc", "expansion": "", "rows": "", "name": ""},
    )
    assert "does not read from there" in elsewhere.text
    assert played.service.runs().total == 0
    problem = ada.post("/pages/estimate", data=data)
    assert problem.status_code == 200
    assert "sae.expansion" in problem.text


def test_curves_go_on_after_a_step(ada: TestClient, played: PlayedService) -> None:
    ids = played.add(["a", "b"])
    lease = played.start(ids)
    played.advance(lease, 100)
    whole = ada.get("/pages/curves", params={"run": ids}).json()
    assert [one["name"] for one in whole] == ["a", "b"]
    assert whole[0]["last_step"] == 100
    more = ada.get("/pages/curves", params={"run": ids, "after": ["90", "100"]}).json()
    assert [len(one["rows"]) for one in more] == [1, 0]
    assert (
        ada.get("/pages/curves", params={"run": ids, "after": ["x", "1"]}).status_code
        == 422
    )
    assert (
        ada.get("/pages/curves", params={"run": ids, "after": ["1"]}).status_code == 422
    )


def test_norms_are_drawn_of_allowed_stores_only(
    ada: TestClient, played: PlayedService
) -> None:
    drawn = ada.get("/pages/norms", params={"store": str(played.store)})
    assert drawn.headers["content-type"] == "image/svg+xml"
    assert drawn.text.startswith("<svg")
    assert "script-src" in drawn.headers["content-security-policy"]
    for other in (
        "/etc",
        f"{played.store}/../../runs",
        "http://127.0.0.1/",
        "file:///etc",
    ):
        assert ada.get("/pages/norms", params={"store": other}).status_code == 422, (
            other
        )
